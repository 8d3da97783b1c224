"""The columns of a manifest: what a trainer, a reviewer and DuckDB will see.

A manifest part mirrors its input shard row by row. A change of columns is a new `SCHEMA_VERSION`, a line in the
changelog and a note in docs/manifest-format.md; today's reader reads every older version.
"""

from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 1
ROW_GROUP_ROWS = 25_000
VERSION_KEY = b"pairsan.schema_version"
FINGERPRINT_KEY = b"pairsan.fingerprint"

# Cosines are stored on this grid (2**-19, about 1.9e-6), which float32 represents exactly. The noise of an fp32 encoder
# is no smaller, and on a grid a merged histogram loses nothing: fit, cut and ranks are exact at any number of rows.
COSINE_STEP = 2.0**-19


class Label(StrEnum):
    """What a row may be used for."""

    SAFE = "safe"  # train with the image-caption loss
    RISKY = "risky"  # train each modality by itself
    QUARANTINED = "quarantined"  # never train


class Reason(StrEnum):
    """Why a row is not safe."""

    # risky: scored, and not believed
    BELOW_CUT = "below_cut"
    NEAR_DUPLICATE = "near_duplicate"
    LOCAL_OUTLIER = "local_outlier"
    # set by a human verdict; a `drop` makes the row quarantined
    REVIEW = "review"
    # quarantined: could not be scored
    SHARD_UNREADABLE = "shard_unreadable"  # these rows lie in a damaged stretch of their shard
    TAR_TRUNCATED = "tar_truncated"  # the archive breaks off inside this row, or right after the row before
    DUPLICATE_KEY = "duplicate_key"  # this key was met before in the shard
    ROW_MALFORMED = "row_malformed"  # a table row with too few fields
    IMAGE_MISSING = "image_missing"
    IMAGE_UNDECODABLE = "image_undecodable"
    IMAGE_TOO_LARGE = "image_too_large"  # bytes, or pixels by its header
    CAPTION_MISSING = "caption_missing"
    CAPTION_EMPTY = "caption_empty"
    CAPTION_UNDECODABLE = "caption_undecodable"  # more than a tenth of it is not UTF-8
    NOT_FINITE = "not_finite"  # the model answered NaN or infinity


SIGNALS = pa.struct(
    [
        pa.field("p_mismatch", pa.float32()),
        pa.field("outlier", pa.float32()),
        pa.field("image_cluster", pa.int64()),
        pa.field("image_cluster_size", pa.int32()),
        pa.field("caption_cluster_size", pa.int32()),
        pa.field("caption_agreement", pa.float32()),
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
    ]
)

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
    "reason": "why the row is not safe; null where it is",
    "detail": "what exactly was wrong with the row, or what was repaired in its caption",
    "signals": "what the neighbour stage adds; null until it has run",
}
