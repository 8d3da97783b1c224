"""The columns of a manifest: what a trainer, a reviewer and DuckDB will see.

A manifest part mirrors its input shard row by row. A change of columns is a new `SCHEMA_VERSION`, a line in the
changelog and a note in docs/manifest-format.md; today's reader reads every older version.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import pyarrow as pa

SCHEMA_VERSION = 10
SCORES_SINCE = 8  # the version that last changed what scores are
LOOKS_SINCE = 10  # the one that put looks beside the vectors
ROW_GROUP_ROWS = 25_000
VERSION_KEY = b"pairsan.schema_version"
FINGERPRINT_KEY = b"pairsan.fingerprint"
NOT_DOWNLOADED_KEY = b"pairsan.not_downloaded"  # of a scores part: rows of the crawl that never came, by why, as JSON

# Cosines are stored on this grid (2**-19, about 1.9e-6), which float32 represents exactly. The noise of an fp32 encoder
# is no smaller, and on a grid a merged histogram loses nothing: fit, cut and ranks are exact at any number of rows.
COSINE_STEP = 2.0**-19
NUM_NULLS = 4


class Label(StrEnum):
    """What a row may be used for."""

    SAFE = "safe"  # train with the image-caption loss
    RISKY = "risky"  # train each modality by itself
    QUARANTINED = "quarantined"  # never train


class Reason(StrEnum):
    """Why a row is not safe. Of several limits that a row breaks, the first in this order names it.

    Attributes:
        meaning: The rest of a sentence that begins with "this pair", for people.
    """

    meaning: str

    def __new__(cls, word: str, meaning: str) -> "Reason":
        """Make a word with its meaning."""
        made = str.__new__(cls, word)
        made._value_, made.meaning = word, meaning
        return made

    # risky: scored, and not believed
    BELOW_CUT = "below_cut", "has a cosine below the cut: its caption fits its image less than those of safe pairs"
    EXACT_DUPLICATE = "exact_duplicate", "shows the very same pixels as more rows than --max-image-repeats allows"
    NEAR_DUPLICATE = "near_duplicate", "looks like more rows than the limits on look-alikes and near copies allow"
    REPEATED_CAPTION = "repeated_caption", "has nearly the caption of more rows than --max-caption-copies allows"
    CROWDED = "crowded", "has an image vector among the densest, as images with one learned trigger have"
    LOCAL_OUTLIER = "local_outlier", "has an image vector farther from all others than most"
    DISCORDANT = "discordant", "is doubted by several witnesses together: its accord is among the lowest"
    SUSPECT_LOOK = "suspect_look", "has an image that looks as those of doubted pairs do: they may have a trigger in common"
    DUPLICATE_UID = "duplicate_uid", "has the uid of another row, so that what is said of one would be said of both"
    REPLACED = (
        "replaced",
        "is farther from what the index promised than honest pictures that were encoded anew",
    )
    PUT_OUT = "put_out", "sat out of the CLIP loss, and the model that had not trained on it for a round contradicts it"
    # set by a human verdict, on safe rows too; a `drop` makes the row quarantined
    REVIEW = "review", "has a human verdict"
    # quarantined: could not be scored
    SHARD_UNREADABLE = "shard_unreadable", "lies in a damaged stretch of its shard"
    TAR_TRUNCATED = "tar_truncated", "is where its archive breaks off, or right after that"
    AMBIGUOUS = "ambiguous", "may be another row to other readers of tars, whose label must not become its own"
    DUPLICATE_KEY = "duplicate_key", "has a key that was met before in the shard"
    ROW_MALFORMED = "row_malformed", "is a line of a table with another number of fields than its header"
    DENIED = "denied", "is of a domain, or has a uid or hash, that --deny names"
    READER_ERROR = "reader_error", "met an exception that nobody foresaw; the detail names it"
    OUTSIDE_ROOT = "outside_root", "names a file outside the folder of the images (--image-root, --allow-outside)"
    IMAGE_MISSING = "image_missing", "has no image"
    IMAGE_UNDECODABLE = "image_undecodable", "has bytes that are no image, or only a part of one"
    IMAGE_TOO_LARGE = "image_too_large", "has an image of too many bytes, or too many pixels by its header"
    CAPTION_MISSING = "caption_missing", "has no caption"
    CAPTION_EMPTY = "caption_empty", "has a caption with nothing in it"
    CAPTION_UNDECODABLE = "caption_undecodable", "has a caption of which more than a tenth is not UTF-8"
    NOT_FINITE = "not_finite", "gave NaN or infinity in the model"


class Voice(StrEnum):
    """Who made a row what it is. A human verdict is last, and stays as long as it stands."""

    SPLIT = "split"  # the cut of a round that did not look at the one before
    VETO = "veto"  # repeats, copies, crowds, wording, accord: a limit of a signal
    TAKEN_BACK = "taken_back"  # a risky row that a model which never matched it finds fitting
    PUT_OUT = "put_out"  # a safe row that sat out and is contradicted
    REVIEW = "review"  # a human


# what a later look does not take back, whatever its cosines say
VETOES: Final = (
    *(Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE, Reason.REPEATED_CAPTION),
    *(Reason.CROWDED, Reason.SUSPECT_LOOK, Reason.DUPLICATE_UID),
)


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
            LimitSetting("crowded_tail", Reason.CROWDED, Bound.CROWD, "outlier"),
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
        (LimitSetting("crowded_tail", Reason.CROWDED, Bound.CROWD, "outlier"),),
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
SOURCE: Final = pa.struct(
    [
        pa.field("url", pa.string()),
        pa.field("domain", pa.string()),  # that somebody has registered, by the public suffix list
        pa.field("sha256", pa.string()),  # of the download, as the source says it, not of what lies in the data
        pa.field("md5", pa.string()),
        pa.field("width", pa.int32()),  # px, of the original
        pa.field("height", pa.int32()),
        pa.field("others", pa.string()),  # JSON of text: license, status, and what --keep-column names
    ]
)
_WORD = pa.dictionary(pa.int32(), pa.string())
_UID = pa.binary(16)

SCORES = pa.schema(
    [
        pa.field("uid", _UID, nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("cosine", pa.float32()),
        pa.field("reason", _WORD),
        pa.field("detail", pa.string()),
        pa.field("signals", SIGNALS),
        pa.field("image_hash", pa.int64()),  # since version 2, as is the next
        pa.field("caption_hash", pa.int64()),
        pa.field("image_offset", pa.int64()),  # of the encoded image inside a plain tar; null elsewhere
        pa.field("image_bytes", pa.int64()),
        pa.field("null_cosines", pa.list_(pa.float32(), NUM_NULLS)),  # of the image with captions of other rows
        pa.field("image_edge", pa.int32()),  # since version 4: px of the encoded image's shorter side
        pa.field("pixels_hash", pa.int64()),  # since version 6
        pa.field("image_sha256", pa.binary(32)),  # since version 7: of the encoded image, as it lies in the data
        pa.field("source", SOURCE),  # since version 8
    ]
)
_ADDED = {
    2: ("image_hash", "caption_hash", "image_offset", "image_bytes", "null_cosines"),
    4: ("image_edge",),
    6: ("pixels_hash",),
    7: ("image_sha256",),
    8: ("source",),
}


def scores_schema(version: int) -> pa.Schema:
    """Return the columns of a scores part that was written under a schema version."""
    later = {name for added, names in _ADDED.items() if added > version for name in names}
    return _with_signals_of(pa.schema([field for field in SCORES if field.name not in later]), version)


def manifest_schema(version: int) -> pa.Schema:
    """Return the columns of a manifest part that was written under a schema version."""
    later = {name for since, names in ((_HISTORY_SINCE, HISTORY), (8, ("source",))) if since > version for name in names}
    known = [field for field in MANIFEST if field.name not in later]
    return _with_signals_of(pa.schema(known), version)


def _with_signals_of(schema: pa.Schema, version: int) -> pa.Schema:
    known = [pa.field(signal.name, signal.type) for signal in SIGNAL_TABLE if signal.since <= max(2, version)]
    return schema.set(schema.get_field_index("signals"), pa.field("signals", pa.struct(known)))


HISTORY: Final = ("voice", "since", "sits_out")
_HISTORY_SINCE: Final = 5
MANIFEST = pa.schema(
    [
        pa.field("shard", _WORD, nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("uid", _UID, nullable=False),
        pa.field("caption", pa.string()),
        pa.field("cosine", pa.float32()),
        pa.field("p_safe", pa.float32(), nullable=False),
        pa.field("rank", pa.float32()),
        pa.field("label", _WORD, nullable=False),
        pa.field("reason", _WORD),
        pa.field("detail", pa.string()),
        pa.field("signals", SIGNALS),
        pa.field("voice", _WORD),  # since version 5, as are the next
        pa.field("since", pa.int32()),
        pa.field("sits_out", pa.bool_()),
        pa.field("source", SOURCE),  # since version 8
    ]
)

MEANINGS = {
    "shard": "input shard, relative to the dataset root",
    "index": "row position inside the shard, from 0, counting every row",
    "key": "the row's key in its source (`__key__`, row id, path)",
    "uid": "stable 128-bit id: the source's own hex `uid` where it has one, else blake2b of shard name and key",
    "caption": "the caption that was scored, cleaned; null with --no-keep-captions",
    "cosine": "image-caption cosine similarity in [-1, 1] on a grid of 2**-19; null where the row could not be scored",
    "p_safe": "posterior of the matching component in [0, 1], monotone in cosine; 0 where cosine is null",
    "rank": "share of scored rows with a higher cosine, 0 = best; ties share a rank; null where cosine is null",
    "label": "`safe`, `risky` or `quarantined`",
    "reason": "why the row is not safe; null where it is; `review` where a human said so, whatever the label",
    "detail": "what exactly was wrong with the row, or what was repaired in its caption",
    "signals": "what the signals stage adds (fields below); null until it has run, and where the row could not be scored",
    "voice": "who made the row what it is: `split`, `veto`, `taken_back`, `put_out` or `review`; null where it is quarantined",
    "since": "the sealed round since which the row has this label and reason",
    "sits_out": "a safe row that is to train unimodally until the next look, which then scores it out of sample",
    "source": "what the row says of where it comes from: `url`, its registered `domain`, `sha256` and `md5` of the download, "
    "`width` and `height` of the original, and `others` as JSON; null where it says nothing",
}
