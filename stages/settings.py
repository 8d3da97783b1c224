"""Settings of the stages. Every field that can change a label lives here and goes into the plan."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Options(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class ReadOptions(Options):
    """How pairs are read (`[data]`)."""

    image_column: str | None = Field(
        None, description="table column of the image (bytes, struct or path), or tar member extension; found by name if unset"
    )
    caption_column: str | None = Field(
        None, description="table column of the caption, or tar member extension, or `json:FIELD`; found by name if unset"
    )
    key_column: str | None = Field(None, description="table column that names a row; found by name, else the row number")
    separator: str | None = Field(
        None, min_length=1, max_length=1, description="field separator of text tables; tab for .tsv, comma for .csv if unset"
    )
    image_root: str | None = Field(None, description="folder or URI that image paths are relative to; the table's own if unset")
    max_image_bytes: int = Field(64 << 20, ge=1, description="larger encoded images are quarantined unread")
    max_image_pixels: int = Field(
        100_000_000, ge=1, description="images of more pixels, by their header, are quarantined undecoded"
    )
    max_caption_bytes: int = Field(8192, ge=1, description="longer captions are cut, and the row's detail says so")


class ModelOptions(Options):
    """Which weights score the pairs (`[model]`)."""

    checkpoint: str | None = Field(
        None, description="weights: .safetensors, .pt, or a folder with open_clip_config.json and weights"
    )
    model: str | None = Field(
        None, description="open_clip model name, model config .json, or folder with open_clip_config.json"
    )
    pretrained: str | None = Field(None, description="open_clip pretrained tag, fetched by open_clip")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto is fp32 on CPU and bf16 (else fp16) autocast on CUDA"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto is cuda where torch sees one")


class EmbedOptions(Options):
    """How scores are made and what is kept of them (`[embed]`)."""

    batch_size: int = Field(64, ge=1, le=65536, description="rows per forward pass")
    keep_embeddings: bool = Field(False, description="write fp16 embeddings beside the scores")
    keep_captions: bool = Field(True, description="write captions into the parts")
    canaries: int = Field(
        0,
        ge=0,
        description="about so many canaries of each kind: known mismatches and triggers made of the data's own rows, scored "
        "with them, and never written into a manifest",
    )


class SignalOptions(Options):
    """What is computed of every row beside its cosine (`[signals]`)."""

    signals: Literal["none", "repeats", "all"] = Field(
        "repeats",
        description="repeats: how many rows share an image or a caption; all: also where its vectors lie among others, which "
        "needs keep_embeddings and turns it on",
    )
    neighbours: int = Field(64, ge=1, le=1024, description="k of the k-th nearest neighbour")
    reference_rows: int = Field(
        8192,
        ge=32,
        le=1 << 20,
        description="rows of the seeded sample that neighbours are sought in; groups of more than neighbours / "
        "reference_rows of all rows look crowded, smaller ones do not",
    )
    agreement_rows: int = Field(
        16384,
        ge=0,
        le=1 << 24,
        description="rows of the larger sample in which the captions nearest to a row's own are sought, whose images should "
        "look like its own; 0: do without",
    )
    agreement_neighbours: int = Field(8, ge=1, le=256, description="how many such captions are asked")
    common_captions: bool = Field(
        True,
        description="accord: count it against a pair, too, that its caption occurs often; off where captions are class names",
    )
    near_copy_cosine: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="images whose vectors are at least this similar are copies of each other, as those of one hash are; by "
        "hash alone if unset",
    )
    copy_cell_rows: int = Field(
        1000, ge=16, description="near copies are sought in cells of about so many rows; the cost is linear in it"
    )
    caption_shingles: bool = Field(
        False, description="count also captions that share most of their wording, by MinHash; needs keep_captions"
    )
    reference_encoder: str | None = Field(
        None,
        description="frozen image tower that never saw these data, for near copies and agreement: timm:NAME with "
        "--reference-checkpoint, or an open_clip name, config or folder",
    )
    reference_checkpoint: str | None = Field(None, description="its weights (.safetensors), where its folder holds none")
    reference_image_size: int | None = Field(None, ge=16, le=1024, description="edge in px of its inputs; its own if unset")
    signals_seed: int = Field(0, ge=0, description="seed of the samples")
    signals_memory_mb: int = Field(2048, ge=64, description="memory of the counting of repeats; more is spilled to disk")

    @property
    def plan(self) -> dict[str, object] | None:
        """What of it can change a signal; None where there are none."""
        if self.signals == "none":
            return None
        names = ["neighbours", "reference_rows", "signals_seed"]
        names += ["agreement_rows", "agreement_neighbours", "common_captions"] if self.agreement_rows else []
        names += ["near_copy_cosine", "copy_cell_rows"] if self.near_copy_cosine else []
        near = {name: getattr(self, name) for name in names} if self.signals == "all" else {}
        near |= {"neighbour_outlier": True} if near else {}  # parts written before there was one are made anew
        return {"signals": self.signals, **near, **({"caption_shingles": True} if self.caption_shingles else {})}


class SplitOptions(Options):
    """How cosines, and signals, become labels (`[split]`)."""

    rule: Literal["calibrated", "monotone", "published", "keep-share", "min-cosine"] = Field(
        "calibrated",
        description="measured null and stated mismatch rate (alpha); monotone mixture cut; the paper's code; a fixed share; "
        "a fixed cosine",
    )
    alpha: float = Field(
        0.01, gt=0.0, lt=1.0, description="calibrated: estimated share of mismatched pairs among the safe ones, at most"
    )
    threshold: float = Field(0.9, gt=0.0, lt=1.0, description="least posterior of the matching component for a safe pair")
    max_p_mismatch: float = Field(
        0.5, gt=0.0, le=1.0, description="calibrated: a safe pair is mismatched with at most this estimated probability"
    )
    null_strata: Literal["caption-length", "script", "image-size"] | None = Field(
        None,
        description="calibrated: a null and a cut of its own for groups of rows, by words of the caption, by its script, or by "
        "the image's shorter side; caption and script need keep_captions",
    )
    keep_share: Share | None = Field(None, description="keep this share of scored rows, best cosines first (sets the rule)")
    min_cosine: float | None = Field(None, ge=-1.0, le=1.0, description="keep rows of at least this cosine (sets the rule)")
    growth: Share | None = Field(None, description="rescore: keep this much more than the newest sealed round does")
    cap: Share = Field(0.85, description="rescore: the safe share never grows beyond this")
    max_image_repeats: int | None = Field(
        None, ge=1, description="rows are risky (near_duplicate) where more than so many show the same image"
    )
    max_near_copies: int | None = Field(
        None, ge=1, description="rows are risky (near_duplicate) with more near copies than so many, by near_copy_cosine"
    )
    max_pair_copies: int | None = Field(
        None,
        ge=1,
        description="rows are risky (near_duplicate) with more near copies of one caption than so many, by near_copy_cosine",
    )
    max_caption_copies: int | None = Field(
        None, ge=4, description="rows are risky (repeated_caption) where more than so many carry nearly the same caption"
    )
    crowded_share: Share = Field(
        0.0,
        description="this share of scored rows, whose image vectors lie densest, is risky (crowded); for a checkpoint that "
        "was trained on these very rows and is then given up",
    )
    crowded_tail: float = Field(
        0.0,
        ge=0.0,
        lt=0.5,
        description="in place of crowded_share: rows are risky (crowded) that lie denser than all but this share of ordinary "
        "ones, and rows most of whose neighbours do; without crowds about that share of all rows is flagged, with crowds they "
        "are too",
    )
    outlier_share: Share = Field(
        0.0, description="this share of scored rows, whose image vectors lie farthest from others, is risky (local_outlier)"
    )
    discord_share: Share = Field(
        0.0,
        description="this share of scored rows, those of lowest accord, is risky (discordant): cosine, images of like captions "
        "and reference encoder speak against them together",
    )
    max_canary_leak: Share | None = Field(
        None, description="refuse the seal where a larger share of a kind of canary with a foreign caption would be safe"
    )
    if_unseparable: Literal["fail", "quantile"] = Field(
        "fail", description="what to do where the mixture cannot be believed: leave unsealed, or keep --fallback-share"
    )
    fallback_share: Share | None = Field(None, description="share of scored rows kept by `--if-unseparable quantile`")
    min_separation: float = Field(
        2.0, ge=0.0, description="least Ashman's D between the components; below 2 there is no valley between them"
    )
    min_safe_share: Share = Field(0.01, description="a smaller safe share of scored rows is not believed")
    max_safe_share: Share = Field(0.999, description="a larger safe share of scored rows is not believed")
    max_quarantined_share: Share = Field(0.2, description="more unscorable rows than this fail the round before the seal")
    seed: int = Field(0, ge=0, description="seed of the `published` rule's k-means start")


class TrainOptions(Options):
    """How the trainer stage learns (`[train]`)."""

    preset: Literal["paper-1m", "paper-100k", "demo"] | None = Field(
        None, description="start from these settings of [train] and [split]; whatever is given besides wins over them"
    )
    rounds: int = Field(8, ge=0, description="rounds of scoring and training after the warm-up")
    warmup_passes: int | None = Field(
        None, ge=0, description="unimodal passes over all rows before the first round; by default 5, and none with a scout"
    )
    scorer: Literal["scout", "locked", "model"] = Field(
        "scout",
        description="what scores the rounds. scout: a model of its own, trained on everything and then given up, by the crowds "
        "that its image vectors form and by repeated images; locked: text towers of their own on the model's image tower as "
        "the warm-up left it, cross-fitted over scorer_folds, by cosine; model: the one being trained (the paper's way)",
    )
    scout_passes: int | None = Field(
        None,
        ge=1,
        description="CLIP passes of the scout over all rows, by default as many as rounds; it must learn what it shall find",
    )
    scout_crowded_tail: float = Field(
        0.02, ge=0.0, lt=0.5, description="crowded_tail of a scout's split, where [split] sets neither it nor crowded_share"
    )
    scout_image_repeats: int = Field(2, ge=1, description="max_image_repeats of a scout's split, where [split] sets none")
    scout_near_copy_cosine: float = Field(
        0.98, ge=0.0, le=1.0, description="near_copy_cosine of a scout's split, where [signals] sets none; 0: hashes only"
    )
    scout_near_copies: int = Field(4, ge=1, description="max_near_copies of a scout's split, where [split] sets none")
    scout_discord_share: Share = Field(
        0.05, description="discord_share of a scout's split, where [split] sets none; 0: it does not look at captions"
    )
    risky: Literal["unimodal", "skip"] = Field(
        "unimodal", description="what a round does with risky rows: train each modality by itself, or leave them out"
    )
    scorer_folds: int = Field(
        4, ge=1, le=64, description="a pair is scored by a text tower that never saw its fold; 1: one tower that saw all"
    )
    refit_passes: int = Field(0, ge=0, description="passes of the locked scorer over each round's safe rows, before the next")
    first_matching: Literal["slow", "locked"] = Field(
        "slow",
        description="first matching of `scorer = model`. slow: CLIP loss at slow_learning_rate; locked: image tower frozen, "
        "text tower matched to it",
    )
    matching_passes: int | None = Field(
        None, ge=0, description="passes of the first matching; by default 1 where it is slow, 4 where it is locked"
    )
    order: Literal["interleaved", "sequential"] = Field(
        "interleaved", description="steps on safe and risky rows mixed, or all risky ones first (as published)"
    )
    learning_rate: float = Field(5e-4, gt=0.0, description="peak learning rate")
    slow_learning_rate: float = Field(5e-6, gt=0.0, description="constant learning rate of the slow first matching")
    locked_learning_rate: float = Field(1e-3, gt=0.0, description="constant learning rate of locked matching and refits")
    weight_decay: float = Field(0.1, ge=0.0, description="AdamW weight decay; none on norms, biases and logit scale")
    train_batch_size: int = Field(128, ge=2, description="rows per step, over all workers")
    train_workers: int = Field(1, ge=1, description="data-parallel workers; more than 1 needs --executor ray")
    local_loss: bool = Field(False, description="each worker computes the CLIP loss of its own rows only, against all rows")
    train_precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the forward pass; auto is bf16 autocast on GPUs that have it, else fp32"
    )
    lr_warmup_share: Share = Field(0.05, description="share of all steps in which the learning rate rises")
    pool_size: int = Field(2048, ge=1, description="rows of each nearest-neighbour pool")
    faiss_from: int = Field(65536, ge=1, description="pool rows from which FAISS searches on CPUs, in bounded memory")
    clip_weight: float = Field(1.0, ge=0.0, description="weight of the CLIP loss")
    unimodal_weight: float = Field(1.0, ge=0.0, description="weight of the unimodal loss")
    least_crop: float = Field(0.08, gt=0.0, le=1.0, description="least share of an image that a random crop covers")
    colour_strength: Share = Field(
        1.0, description="share of SAFECLIP's chances of colour jitter, grey and blur; 0 leaves crops and flips"
    )
    warmup_views: Literal["wide", "published"] = Field(
        "wide",
        description="colours of the unimodal warm-up. wide: all hues, tone curves, coarse patterns at full strength, which "
        "hide such triggers from the tower that the locked scorer freezes; published: as in the rounds, by colour_strength",
    )
    warmup_least_crop: float = Field(
        0.5, gt=0.0, le=1.0, description="least_crop of a wide warm-up, where it is smaller than least_crop"
    )
    p_caption_change: Share = Field(0.5, description="share of captions that the CLIP loss sees changed; the others are true")
    shuffle_rows: int = Field(4096, ge=1, description="encoded rows that each shuffle buffer holds (and 1 GiB at most)")
    save_every_steps: int = Field(200, ge=1, description="steps between two saved positions")
    train_seed: int = Field(0, ge=0, description="seed of initial weights, orders and augmentation")

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
