"""Captions that share most of their wording, found without a model: MinHash of runs of characters, in bands.

Two captions get a band in common with probability 1 - (1 - J^4)^6, where J is the share of their shingles that they have in
common: .96 at J = .8, .32 at .5, .05 at .3. What fills templates ("vector illustration of a ...") shares bands, whatever the
slot holds.

Source: Broder, On the resemblance and containment of documents (1997); banding: Leskovec, Rajaraman, Ullman, Mining of Massive
Datasets, chapter 3.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasketch import MinHash

from manifests.layout import SCORES, part_name
from manifests.parts import write_part
from stages.out_of_core import write_counts
from stages.pair import Shard
from stages.score.hashes import normalised
from stages.signals.repeats import REPEATS, Counts, Repeats
from stages.signals.signal_parts import BAND_COUNTS, BANDS, Known, SignalParts, Source
from stages.stage import Stage
from stages.vectors import read_columns

FEWEST: Final = 5  # smaller families are not counted: at a billion rows most of the memory would go into pairs
_SHINGLE, _NUM_BANDS, _ROWS, _SEED = 5, 6, 4, 1
BAND_SCHEMA: Final = pa.schema([pa.field("bands", pa.list_(pa.int64(), _NUM_BANDS))])
Bands = npt.NDArray[np.int64]


def caption_bands(captions: Sequence[str]) -> Bands:
    """Return hashes of the bands of each caption: int64 (n, 6). Case, digits, punctuation and white space are overlooked."""
    if not captions:
        return np.zeros((0, _NUM_BANDS), np.int64)
    hashes = MinHash.bulk([_shingles(text) for text in captions], num_perm=_NUM_BANDS * _ROWS, seed=_SEED)
    return np.asarray([_band_hashes(found.hashvalues.astype("<u8")) for found in hashes], np.int64)


def band_lists(captions: Sequence[str], known: npt.NDArray[np.bool_]) -> pa.FixedSizeListArray:
    """Return the bands of each caption as a column that is null where it is not known.

    Args:
        captions: Of all rows.
        known: Whether each row has one, bool (n,).
    """
    bands = np.zeros((len(captions), _NUM_BANDS), np.int64)
    bands[known] = caption_bands([captions[row] for row in np.flatnonzero(known).tolist()])
    return pa.FixedSizeListArray.from_arrays(pa.array(bands.ravel()), _NUM_BANDS, mask=pa.array(~known))


def _shingles(caption: str) -> list[bytes]:
    text = normalised(caption)
    return [text[i : i + _SHINGLE].encode("utf-8", "surrogatepass") for i in range(max(1, len(text) - _SHINGLE + 1))]


def _band_hashes(values: npt.NDArray[np.uint64]) -> list[int]:
    """Return a hash of each band; its place goes into it, so that equal values in other bands do not meet."""
    bands = enumerate(values.reshape(_NUM_BANDS, _ROWS))
    digests = (hashlib.blake2b(bytes([place]) + band.tobytes(), digest_size=8).digest() for place, band in bands)
    return [int.from_bytes(digest, "little", signed=True) for digest in digests]


class ShingleCaptions(Stage[SignalParts, int]):
    """Stage: a shard in, the bands of its captions on disk out; returns its number of rows."""

    def run(self, shard: Shard, /) -> int:
        """Write the bands of one shard, row for row; null where there is no caption."""
        parts = self.target
        name = part_name(parts.scores_round, SCORES, shard.name)
        captions = read_columns(parts.run, name, ["caption"])["caption"].combine_chunks()
        lists = band_lists(captions.fill_null("").to_pylist(), captions.is_valid().to_numpy(zero_copy_only=False))
        table = pa.table([lists], schema=BAND_SCHEMA)
        return write_part(
            parts.run, parts.part(shard.name, BANDS), BAND_SCHEMA, [table], fingerprint=parts.fingerprint
        ).num_rows


def write_band_counts(parts: SignalParts) -> None:
    """Count the rows of every band over all shards, and write those of 5 rows and more, sorted by hash."""
    write_counts(
        parts.run,
        parts.name(BAND_COUNTS),
        REPEATS,
        "unnest(bands)",
        parts=([parts.part(shard, BANDS) for shard in parts.shards], BAND_SCHEMA),
        num_values=parts.num_scored * _NUM_BANDS,
        memory_bytes=parts.memory_bytes,
        fingerprint=parts.fingerprint,
        fewest=FEWEST,
    )


def wording_signals(counts: Counts) -> Source | None:
    """Return how many rows share the most common band of a caption; None where that was not counted."""
    if not counts.parts.asked.caption_shingles:
        return None
    bands = Repeats.read(counts.parts.run, counts.parts.name(BAND_COUNTS))

    def source(rows: Known) -> dict[str, npt.NDArray[np.int64]]:
        if rows.bands is None:
            return {}
        of, held = rows.bands
        found = np.ones(len(of), np.int64)
        found[held] = bands.of(of[held].ravel()).reshape(-1, _NUM_BANDS).max(axis=1, initial=1)
        return {"caption_copies": found}

    return source


def read_bands(parts: SignalParts, shard: str, rows: npt.NDArray[np.bool_]) -> tuple[Bands, npt.NDArray[np.bool_]]:
    """Return the bands of some rows of a shard, int64 (n, 6), and which of them have any, bool (n,)."""
    column = read_columns(parts.run, parts.part(shard, BANDS), ["bands"])["bands"].combine_chunks().filter(pa.array(rows))
    held = column.is_valid().to_numpy(zero_copy_only=False)
    found = np.zeros((len(column), _NUM_BANDS), np.int64)
    found[held] = column.flatten().to_numpy().reshape(-1, _NUM_BANDS)  # flatten leaves out null rows
    return found, held
