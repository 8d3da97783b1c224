"""Settings by name: how closely to look, and ways to train. `pairsan config --profile NAME` prints one as a TOML file.

Figures of the first three: docs/evidence.md, "Profiles". Source of the paper's: SAFECLIP (ICML 2024), section 5 and appendix:
32 passes over 1M pairs at batch 512 and 48 over 100k at 256, AdamW at 5e-4, pools of about 2 % of the data, 5 unimodal passes,
one slow CLIP pass at 5e-6 (1M) or 5e-5 (100k), posterior 0.9, + 1 % a round. Where our defaults differ from the published code,
so do these: one schedule over the steps really taken, true captions half of the time, clean views for scoring, and a cut that
is monotone in the cosine.
"""

from dataclasses import dataclass
from typing import Any, Final

Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Profile:
    """A named set of settings.

    Attributes:
        text: What it is for.
        settings: By section; whatever is given besides wins over them.
        needs: Settings that it cannot know and that must be given.
    """

    text: str
    settings: Tables
    needs: tuple[str, ...] = ()


_QUICK: Final[dict[str, Any]] = {"max_image_repeats": 2}
_STANDARD: Final[dict[str, Any]] = {**_QUICK, "max_look_alikes": 2, "max_caption_copies": 50, "max_pair_copies": 4}
_PAPER: Final[dict[str, Any]] = {
    "warmup_passes": 5,
    "matching_passes": 1,
    "scorer": "model",
    "first_matching": "slow",
    "learning_rate": 5e-4,
    "least_crop": 0.08,
    "warmup_views": "published",
}
_PAPER_SPLIT: Final[dict[str, Any]] = {"rule": "monotone", "threshold": 0.9, "growth": 0.01, "cap": 0.85}

PROFILES: Final[dict[str, Profile]] = {
    "quick": Profile("the cosine, and images that more than two rows show", {"split": _QUICK}),
    "standard": Profile(
        "quick, and doubted look-alikes, near copies under one caption, wordings of more than 50 rows; keeps embeddings",
        {"signals": {"near_copy_cosine": 0.98}, "split": _STANDARD},
    ),
    "thorough": Profile(
        "standard, and what an independent image tower says of every pair; also canaries; one more image pass",
        {
            "embed": {"canaries": 1000},
            "signals": {"near_copy_cosine": 0.95},
            "split": {**_STANDARD, "discord_share": 0.07},
        },
        needs=("reference_encoder",),
    ),
    "paper-1m": Profile(
        "SAFECLIP as its paper trains on a million pairs",
        {
            "train": {**_PAPER, "rounds": 26, "train_batch_size": 512, "pool_size": 21845, "slow_learning_rate": 5e-6},
            "split": _PAPER_SPLIT,
        },
    ),
    "paper-100k": Profile(
        "SAFECLIP as its paper trains on 100,000 pairs",
        {
            "train": {**_PAPER, "rounds": 42, "train_batch_size": 256, "pool_size": 2048, "slow_learning_rate": 5e-5},
            "split": _PAPER_SPLIT,
        },
    ),
    "demo": Profile(
        "training on the bundled pairs, as `make demo` does",
        {
            "train": {
                "rounds": 5,
                "warmup_passes": 1,
                "matching_passes": 2,
                "scorer": "locked",
                "look_again": 1,
                "scorer_folds": 2,
                "learning_rate": 1e-3,
                "train_batch_size": 128,
                "pool_size": 512,
                "least_crop": 0.85,
                "colour_strength": 0.0,
                "p_caption_change": 0.0,
            },
            # the estimate of who is mismatched is high by three where a model is this small, hence the large alpha
            "split": {
                "rule": "monotone",
                "if_unseparable": "quantile",
                "fallback_share": 0.4,
                "growth": 0.1,
                "alpha": 0.15,
                "sit_out_folds": 4,
            },
        },
    ),
}
