"""The columns of a manifest: what a trainer, a reviewer and DuckDB will see.

A manifest part mirrors its input shard row by row. A change of columns is a new `SCHEMA_VERSION`, a line in the
changelog and a note in docs/manifest-format.md; today's reader reads every older version.
"""

from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 4
ROW_GROUP_ROWS = 25_000
VERSION_KEY = b"pairsan.schema_version"
FINGERPRINT_KEY = b"pairsan.fingerprint"

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
    """Why a row is not safe."""

    # risky: scored, and not believed
    BELOW_CUT = "below_cut"
    NEAR_DUPLICATE = "near_duplicate"  # too many rows show this image
    CROWDED = "crowded"  # its image vector lies where the vectors are densest
    LOCAL_OUTLIER = "local_outlier"  # its image vector lies far from all others
    REPEATED_CAPTION = "repeated_caption"  # too many rows carry nearly this caption
    DISCORDANT = "discordant"  # cosine, and images of like captions, speak against it together
    # set by a human verdict, on safe rows too; a `drop` makes the row quarantined
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


_SIGNALS_OF_2 = (
    pa.field("p_mismatch", pa.float32()),
    pa.field("outlier", pa.float32()),
    pa.field("image_cluster", pa.int64()),
    pa.field("image_cluster_size", pa.int32()),
    pa.field("caption_cluster_size", pa.int32()),
    pa.field("caption_agreement", pa.float32()),
)
_SIGNALS_OF_3 = (
    *_SIGNALS_OF_2,
    pa.field("near_copy_cluster", pa.int64()),
    pa.field("near_copies", pa.int32()),
    pa.field("image_agreement", pa.float32()),
    pa.field("reference_agreement", pa.float32()),
    pa.field("neg_clip_loss", pa.float32()),
    pa.field("accord", pa.float32()),
)
SIGNALS = pa.struct(
    [
        *_SIGNALS_OF_3,
        pa.field("caption_copies", pa.int32()),  # since version 4, as are the next
        pa.field("pair_copies", pa.int32()),
        pa.field("cosine_rise", pa.float32()),
        pa.field("neighbour_outlier", pa.float32()),
    ]
)
_OLD_SIGNALS = {1: _SIGNALS_OF_2, 2: _SIGNALS_OF_2, 3: _SIGNALS_OF_3}
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
    ]
)
_ADDED = {2: ("image_hash", "caption_hash", "image_offset", "image_bytes", "null_cosines"), 4: ("image_edge",)}


def scores_schema(version: int) -> pa.Schema:
    """Return the columns of a scores part that was written under a schema version."""
    later = {name for added, names in _ADDED.items() if added > version for name in names}
    return _with_signals_of(pa.schema([field for field in SCORES if field.name not in later]), version)


def manifest_schema(version: int) -> pa.Schema:
    """Return the columns of a manifest part that was written under a schema version."""
    return _with_signals_of(MANIFEST, version)


def _with_signals_of(schema: pa.Schema, version: int) -> pa.Schema:
    old = _OLD_SIGNALS.get(version)
    return schema if old is None else schema.set(schema.get_field_index("signals"), pa.field("signals", pa.struct(old)))


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
    "reason": "why the row is not safe; null where it is; `review` where a human said so, whatever the label",
    "detail": "what exactly was wrong with the row, or what was repaired in its caption",
    "signals": "what the signals stage adds (fields below); null until it has run, and where the row could not be scored",
}

SIGNAL_MEANINGS = {
    "p_mismatch": "probability that the pair is mismatched (local false discovery rate); with rule `calibrated` only",
    "outlier": "1 - cosine of its image vector to the k-th nearest of a reference sample; unusually low: crowded, high: alone",
    "neighbour_outlier": "median of the same over these k neighbours: low at the edge of a crowd, too",
    "image_cluster": "the image's perceptual hash; rows that share it look alike",
    "image_cluster_size": "rows of the whole dataset that share it",
    "caption_cluster_size": "rows of the whole dataset with this caption, but for case, digits and punctuation",
    "caption_agreement": "cosine of its caption vector with the mean one of its image's neighbours",
    "near_copy_cluster": "rows that share it are near copies by their image vectors, in chains: their lowest image hash",
    "near_copies": "rows of the whole dataset that share it, itself too",
    "image_agreement": "mean cosine of its image vector with those of the captions nearest to its own, copies left out",
    "reference_agreement": "the same by a reference encoder that never saw the data, and by the captions' words",
    "neg_clip_loss": "cosine, less what other captions and images of a sample explain of it",
    "pair_copies": "near copies of its image, itself too, that have its caption",
    "caption_copies": "rows of the whole dataset with nearly this caption (a band of MinHash in common), itself too; 1 below 5",
    "cosine_rise": "share of rows that its cosine has overtaken since an earlier round by other weights, in [-1, 1]; high: it "
    "was learned fast",
    "accord": "combined p-value, in [0, 1], of the ranks of neg_clip_loss, image_agreement and reference_agreement within a "
    "sample, and of how often its caption occurs: low where they doubt the pair; near copies share their doubts",
}
