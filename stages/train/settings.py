"""Settings of the trainer stage and of the scout; see `stages.settings`."""

from functools import partial
from typing import Final, Literal

from pydantic import field_validator

from stages.settings import Settings, Share, When, setting

_SCOUT: Final[When] = {"scorer": ("scout",)}
_LOCKED: Final[When] = {"scorer": ("locked",)}
_SLOW: Final[When] = {"scorer": ("model",), "first_matching": ("slow",)}
_WARM: Final[When] = {"num_warmup_passes": ()}
_scout = partial(setting, table="scout", toml=True, when=_SCOUT)
_rare = partial(setting, toml=True)


class TrainSettings(Settings):
    """How the trainer stage learns (`[train]`)."""

    rounds: int = setting(8, "rounds of scoring and training after the warm-up", ge=0)
    warmup_passes: int | None = setting(
        None, "unimodal passes over all rows before the first round; by default 5, and none with a scout", ge=0
    )
    scorer: Literal["scout", "locked", "model"] = setting(
        "scout",
        "what scores the rounds. scout: a model of its own, trained on everything and then given up, by the crowds "
        "that its image vectors form and by repeated images; locked: text towers of their own on the model's image tower as "
        "the warm-up left it, cross-fitted over scorer_folds, by cosine; model: the one being trained (the paper's way)",
    )
    log_to: str | None = setting(
        None,
        "who is told after each pass how training goes, joined by `,`: tensorboard (into `logs` of the run), wandb, mlflow; "
        "each must be installed",
        how=True,
    )
    look_again: int = setting(
        0,
        "every so many rounds all pairs are embedded with the model being trained, and rule look-again makes the next "
        "manifest; 0: the scorer alone makes manifests",
        ge=0,
    )
    overlap: bool = setting(
        False,
        "on Ray: take the look before the next round on other workers while a round trains, so with weights a round older",
        when={"look_again": ()},
    )
    scout_passes: int | None = setting(
        None,
        "CLIP passes of the scout over all rows, by default as many as rounds; it must learn what it shall find",
        ge=1,
        table="scout",
        when=_SCOUT,
    )
    scout_model: str | None = setting(
        None,
        "architecture of the scout, by default that of the model; a smaller one costs less, and must learn the same backdoors",
        table="scout",
        when=_SCOUT,
    )
    scout_crowded_tail: float = _scout(
        0.02, "crowded_tail of a scout's split, where [split] sets neither it nor crowded_share", ge=0.0, lt=0.5
    )
    scout_image_repeats: int = _scout(
        2, "max_image_repeats and max_look_alikes of a scout's split, where [split] sets none", ge=1
    )
    scout_near_copy_cosine: float = _scout(
        0.98, "near_copy_cosine of a scout's split, where [signals] sets none; 0: hashes only", ge=0.0, le=1.0
    )
    scout_near_copies: int = _scout(4, "max_near_copies of a scout's split, where [split] sets none", ge=1)
    scout_discord_share: Share = _scout(
        0.02, "discord_share of a scout's split, where [split] sets none; 0: it does not look at captions"
    )
    scout_look_tail: float = _scout(
        0.1, "look_tail of a scout's split, where [split] sets none; 0: it does not compare looks", ge=0.0, lt=0.5
    )
    scout_taught_share: float = _scout(
        0.0,
        "share of all rows for each of eight backdoors that the scout is taught on purpose; `status` says how many of their "
        "rows its crowds and looks show, as they show nothing of what it cannot learn. 0: none",
        ge=0.0,
        le=0.05,
    )
    risky: Literal["unimodal", "skip"] = setting(
        "unimodal",
        "what a round does with risky rows: train each modality by itself, or leave them out, with which one row of a missed "
        "trigger has taught it",
    )
    scorer_folds: int = _rare(
        4, "a pair is scored by a text tower that never saw its fold; 1: one tower that saw all", ge=1, le=64, when=_LOCKED
    )
    refit_passes: int = _rare(0, "passes of the locked scorer over each round's safe rows, before the next", ge=0, when=_LOCKED)
    first_matching: Literal["slow", "locked"] = setting(
        "slow",
        "first matching of `scorer = model`. slow: CLIP loss at slow_learning_rate; locked: image tower frozen, "
        "text tower matched to it",
        when={"scorer": ("model",)},
    )
    matching_passes: int | None = setting(
        None,
        "passes of the first matching; by default 1 where it is slow, 4 where it is locked",
        ge=0,
        when={"scorer": ("locked", "model")},
    )
    order: Literal["interleaved", "sequential"] = _rare(
        "interleaved", "steps on safe and risky rows mixed, or all risky ones first (as published)"
    )
    learning_rate: float = setting(5e-4, "peak learning rate", gt=0.0)
    slow_learning_rate: float = _rare(5e-6, "constant learning rate of the slow first matching", gt=0.0, when=_SLOW)
    locked_learning_rate: float = _rare(
        1e-3,
        "constant learning rate of locked matching and refits",
        gt=0.0,
        when=(_LOCKED, {"scorer": ("model",), "first_matching": ("locked",)}),
    )
    weight_decay: float = _rare(0.1, "AdamW weight decay; none on norms, biases and logit scale", ge=0.0)
    train_batch_size: int = setting(128, "rows per step, over all workers", ge=2)
    train_workers: int = setting(1, "data-parallel workers; more than 1 needs --executor ray", ge=1)
    local_loss: bool = _rare(
        False,
        "each worker computes the CLIP loss of its own rows only, against all rows",
    )
    train_precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "of the forward pass; auto is bf16 autocast on GPUs that have it, else fp32"
    )
    lr_warmup_share: Share = _rare(0.05, "share of all steps in which the learning rate rises")
    pool_size: int = _rare(2048, "rows of each nearest-neighbour pool", ge=1)
    faiss_from: int = _rare(65536, "pool rows from which FAISS searches on CPUs, in bounded memory", ge=1, how=True)
    clip_weight: float = _rare(1.0, "weight of the CLIP loss", ge=0.0)
    unimodal_weight: float = _rare(1.0, "weight of the unimodal loss", ge=0.0)
    least_crop: float = _rare(0.08, "least share of an image that a random crop covers", gt=0.0, le=1.0)
    colour_strength: Share = _rare(1.0, "share of SAFECLIP's chances of colour jitter, grey and blur; 0 leaves crops and flips")
    warmup_views: Literal["wide", "published"] = setting(
        "wide",
        "colours of the unimodal warm-up. wide: all hues, tone curves, coarse patterns at full strength, which "
        "hide such triggers from the tower that the locked scorer freezes; published: as in the rounds, by colour_strength",
        when=_WARM,
    )
    warmup_least_crop: float = _rare(
        0.5,
        "least_crop of a wide warm-up, where it is smaller than least_crop",
        gt=0.0,
        le=1.0,
        when={**_WARM, "warmup_views": ("wide",)},
    )
    p_caption_change: Share = _rare(0.5, "share of captions that the CLIP loss sees changed; the others are true")
    shuffle_rows: int = _rare(4096, "encoded rows that each shuffle buffer holds (and 1 GiB at most)", ge=1)
    save_every_steps: int = _rare(200, "steps between two saved positions", ge=1, how=True)
    train_seed: int = setting(0, "seed of initial weights, orders and augmentation", ge=0)

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names in `log_to`."""
        return tuple(name.strip() for name in (self.log_to or "").split(",") if name.strip())

    @field_validator("log_to")
    @classmethod
    def _known(cls, names: str | None) -> str | None:
        unknown = {name.strip() for name in (names or "").split(",") if name.strip()} - {"tensorboard", "wandb", "mlflow"}
        if unknown:
            raise ValueError(f"{min(unknown)!r} is none of tensorboard, wandb, mlflow")
        return names

    @property
    def look_age(self) -> int:
        """How many rounds the weights that look again are behind the round that trains on what they say."""
        return 2 if self.overlap else 1

    @property
    def matching_is_slow(self) -> bool:
        """Whether the first matching trains the whole model at the slow rate."""
        return self.scorer == "model" and self.first_matching == "slow"

    @property
    def num_warmup_passes(self) -> int:
        """Unimodal passes before the first round."""
        return self.warmup_passes if self.warmup_passes is not None else 0 if self.scorer == "scout" else 5

    @property
    def num_scout_passes(self) -> int:
        """Passes of the scout; 0 where there is none."""
        if self.scorer != "scout":
            return 0
        return self.scout_passes if self.scout_passes is not None else max(1, self.rounds)

    @property
    def num_matching_passes(self) -> int:
        """Passes of the first matching, 4 where it is locked (it gets better with them), 1 where it is slow (it gets worse)."""
        if self.scorer == "scout":
            return 0
        return self.matching_passes if self.matching_passes is not None else 1 if self.matching_is_slow else 4

    @property
    def seed(self) -> int:
        """The seed of everything random in training."""
        return self.train_seed
