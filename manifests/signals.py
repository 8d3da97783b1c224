"""Every signal of a row, and the settings that label by it: the one place where a new one is declared."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import pyarrow as pa

from manifests.labels import Reason


class Bound(StrEnum):
    """How a setting bounds a signal."""

    MOST = "most"  # the setting is the highest value of a safe row
    LOWEST_SHARE = "lowest_share"  # the setting is the share of rows, those of lowest values, that is risky
    HIGHEST_SHARE = "highest_share"  # the same of highest values
    LEAST = "least"  # the setting is the lowest value of a safe row; of a row that has none nothing is said
    CROWD = "crowd"  # the setting is the share of ordinary rows that fall under the cut; see `stages.label.fit.crowds`


@dataclass(frozen=True, slots=True)
class LimitSetting:
    """A setting of `[split.limits]` that makes rows risky by a signal.

    Attributes:
        setting: Its name.
        reason: Of the rows beyond it.
        bound: How it bounds the signal.
        counted: Signal whose values over all rows place the bound; None where the setting is the bound itself.
        witness: Signal, a p-value, that must doubt a row too before it is risky; None where the bound suffices.
        cluster: What rows share that are counted together, of which `keep_one` keeps one; nothing where rows are not counted.
    """

    setting: str
    reason: Reason
    bound: Bound = Bound.MOST
    counted: str | None = None
    witness: str | None = None
    cluster: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Signal:
    """One field of the `signals` column: the one place where a new one is declared.

    Attributes:
        name: Of the field.
        type: Its Arrow type.
        since: Schema version that brought it.
        meaning: For people: `pairsan schema`, the report, the review page and the docs show it.
        limits: Settings that label by it.
        top: Highest value it can have, 1 or 2.
    """

    name: str
    type: pa.DataType
    since: int
    meaning: str
    limits: tuple[LimitSetting, ...] = ()
    top: float = 1.0


_F, _N, _ID = pa.float32(), pa.int32(), pa.int64()
SIGNAL_TABLE: Final = (
    Signal("p_mismatch", _F, 2, "probability that the pair is mismatched (local false discovery rate); rule `calibrated` only"),
    Signal(
        "outlier",
        _F,
        2,
        "1 - cosine of its image vector to the k-th nearest of a seeded sample; unusually low: crowded, high: alone",
        (
            LimitSetting("crowded_share", Reason.CROWDED, Bound.LOWEST_SHARE, "outlier"),
            LimitSetting("crowded_tail", Reason.CROWDED, Bound.CROWD, "outlier", witness="look_accord"),
            LimitSetting("outlier_share", Reason.LOCAL_OUTLIER, Bound.HIGHEST_SHARE, "outlier"),
        ),
        top=2.0,
    ),
    Signal("image_cluster", _ID, 2, "the image's perceptual hash; rows that share it look alike"),
    Signal(
        "image_cluster_size",
        _N,
        2,
        "rows of the whole dataset that share that hash",
        (LimitSetting("max_look_alikes", Reason.NEAR_DUPLICATE, witness="accord"),),
    ),
    Signal("caption_cluster_size", _N, 2, "rows of the whole dataset with this caption, but for case, digits and punctuation"),
    Signal("caption_agreement", _F, 2, "cosine of its caption vector with the mean one of its image's neighbours"),
    Signal(
        "near_copy_cluster", _ID, 3, "rows that share it are near copies by their image vectors, in chains: their lowest hash"
    ),
    Signal(
        "near_copies",
        _N,
        3,
        "rows of the whole dataset that share that cluster, itself too",
        (LimitSetting("max_near_copies", Reason.NEAR_DUPLICATE, cluster=("near_copy_cluster",)),),
    ),
    Signal(
        "image_agreement",
        _F,
        3,
        "mean cosine of its image vector with those of the captions nearest to its own, copies left out",
    ),
    Signal("reference_agreement", _F, 3, "the same by a reference encoder that never saw the data, and by the captions' words"),
    Signal("neg_clip_loss", _F, 3, "cosine, less what other captions and images of a sample explain of it"),
    Signal(
        "accord",
        _F,
        3,
        "combined p-value, in [0, 1], of the ranks of neg_clip_loss, image_agreement and reference_agreement within a sample, "
        "and of how often its caption occurs: low where they doubt the pair; near copies share their doubts",
        (LimitSetting("discord_share", Reason.DISCORDANT, Bound.LOWEST_SHARE, "accord"),),
    ),
    Signal(
        "caption_copies",
        _N,
        4,
        "rows of the whole dataset with nearly this caption (a band of MinHash in common), itself too; 1 below 5",
        (LimitSetting("max_caption_copies", Reason.REPEATED_CAPTION),),
    ),
    Signal(
        "pair_copies",
        _N,
        4,
        "near copies of its image, itself too, that have its caption",
        (LimitSetting("max_pair_copies", Reason.NEAR_DUPLICATE, cluster=("near_copy_cluster", "caption_hash")),),
    ),
    Signal(
        "cosine_rise",
        _F,
        4,
        "share of rows that its cosine has overtaken since an earlier round by other weights, in [-1, 1]; high: learned fast",
    ),
    Signal(
        "neighbour_outlier",
        _F,
        4,
        "median of `outlier` over its k neighbours: low at the edge of a crowd, too",
        (LimitSetting("crowded_tail", Reason.CROWDED, Bound.CROWD, "outlier", witness="look_accord"),),
        top=2.0,
    ),
    Signal(
        "half_outlier",
        _F,
        9,
        "1 - cosine of its image vector to the k/2-th nearest: crowds too small for `outlier` show there",
        top=2.0,
    ),
    Signal(
        "neighbour_half_outlier",
        _F,
        9,
        "median of `half_outlier` over its k/2 neighbours",
        top=2.0,
    ),
    Signal(
        "look_accord",
        _F,
        10,
        "p-value, in [0, 1], of its accord and of how doubted pairs are whose images have such colours, roughness and tones: "
        "low where doubted pairs may have a trigger in common",
        (LimitSetting("look_tail", Reason.SUSPECT_LOOK, Bound.LEAST),),
    ),
    Signal(
        "exact_copy_cluster", _ID, 6, "hash of the image's pixels as the encoder sees them; rows that share it are one picture"
    ),
    Signal(
        "exact_copies",
        _N,
        6,
        "rows of the whole dataset that share these pixels, itself too",
        (LimitSetting("max_image_repeats", Reason.EXACT_DUPLICATE, cluster=("exact_copy_cluster",)),),
    ),
    Signal("promise", pa.string(), 8, "what came of what the index promised: `exact`, `differs`, `no_hash` or `unknown`"),
    Signal(
        "p_reencoded",
        _F,
        8,
        "p-value, in [0, 1], of its distance from what the index promised, if the picture was honestly encoded anew; 1: exact",
        (LimitSetting("replaced_tail", Reason.REPLACED, Bound.LEAST),),
    ),
)
SIGNALS: Final = pa.struct([pa.field(signal.name, signal.type) for signal in SIGNAL_TABLE])
# in the order in which they name a row's reason
LIMITS: Final = tuple(
    sorted(
        ((limit, signal) for signal in SIGNAL_TABLE for limit in signal.limits),
        key=lambda pair: list(Reason).index(pair[0].reason),
    )
)
