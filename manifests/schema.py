"""The columns of a manifest: what a trainer, a reviewer and DuckDB will see.

A manifest part mirrors its input shard row by row. A change of columns is a new `SCHEMA_VERSION`, a line in the
changelog and a note in docs/manifest-format.md; today's reader reads every older version.
"""

from typing import Final

import pyarrow as pa

from manifests.signals import SIGNAL_TABLE, SIGNALS

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
