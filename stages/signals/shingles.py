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
from manifests.store import Store
from stages.pair import Shard
from stages.score.hashes import normalised
from stages.signals.repeats import REPEATS, over_parts, tables_of
from stages.vectors import read_columns

FOLDER: Final = "bands"
COUNTS: Final = "repeats-bands.parquet"
FEWEST: Final = 5  # smaller families are not counted: at a billion rows most of the memory would go into pairs
_SHINGLE, _BANDS, _ROWS, _SEED = 5, 6, 4, 1
BANDS: Final = pa.schema([pa.field("bands", pa.list_(pa.int64(), _BANDS))])
_BATCH_ROWS: Final = 100_000
Bands = npt.NDArray[np.int64]


def caption_bands(captions: Sequence[str]) -> Bands:
    """Return hashes of the bands of each caption: int64 (n, 6). Case, digits, punctuation and white space are overlooked."""
    if not captions:
        return np.zeros((0, _BANDS), np.int64)
    hashes = MinHash.bulk([_shingles(text) for text in captions], num_perm=_BANDS * _ROWS, seed=_SEED)
    return np.asarray([_band_hashes(found.hashvalues.astype("<u8")) for found in hashes], np.int64)


def band_lists(captions: Sequence[str], known: npt.NDArray[np.bool_]) -> pa.FixedSizeListArray:
    """Return the bands of each caption as a column that is null where it is not known.

    Args:
        captions: Of all rows.
        known: Whether each row has one, bool (n,).
    """
    bands = np.zeros((len(captions), _BANDS), np.int64)
    bands[known] = caption_bands([captions[row] for row in np.flatnonzero(known).tolist()])
    return pa.FixedSizeListArray.from_arrays(pa.array(bands.ravel()), _BANDS, mask=pa.array(~known))


def _shingles(caption: str) -> list[bytes]:
    text = normalised(caption)
    return [text[i : i + _SHINGLE].encode("utf-8", "surrogatepass") for i in range(max(1, len(text) - _SHINGLE + 1))]


def _band_hashes(values: npt.NDArray[np.uint64]) -> list[int]:
    """Return a hash of each band; its place goes into it, so that equal values in other bands do not meet."""
    bands = enumerate(values.reshape(_BANDS, _ROWS))
    digests = (hashlib.blake2b(bytes([place]) + band.tobytes(), digest_size=8).digest() for place, band in bands)
    return [int.from_bytes(digest, "little", signed=True) for digest in digests]


class ShingleCaptions:
    """Stage: a shard in, the bands of its captions on disk out; returns its number of rows."""

    def __init__(self, run: Store, scores_round: int, folder: str, fingerprint: str) -> None:
        """Prepare.

        Args:
            run: The run folder.
            scores_round: Round whose captions are read.
            folder: Of the signals; the bands go below it.
            fingerprint: For the footers.
        """
        self._run, self._round, self._folder, self._fingerprint = run, scores_round, folder, fingerprint

    def open(self) -> None:
        """Do nothing; there is nothing to load."""

    def run(self, shard: Shard, /) -> int:
        """Write the bands of one shard, row for row; null where there is no caption."""
        captions = read_columns(self._run, part_name(self._round, SCORES, shard.name), ["caption"])["caption"].combine_chunks()
        lists = band_lists(captions.fill_null("").to_pylist(), captions.is_valid().to_numpy(zero_copy_only=False))
        name = f"{self._folder}/{FOLDER}/{shard.name}.parquet"
        return write_part(self._run, name, BANDS, [pa.table([lists], schema=BANDS)], fingerprint=self._fingerprint).num_rows


def write_band_counts(run: Store, shards: Sequence[str], folder: str, *, memory_bytes: int, fingerprint: str) -> None:
    """Count the rows of every band over all shards, and write those of 5 rows and more, sorted by hash.

    Args:
        run: The run folder.
        shards: Names of all shards, whose bands are there.
        folder: Of the signals.
        memory_bytes: DuckDB's limit; it spills the rest: 48 bytes a row at worst.
        fingerprint: For the footers.
    """
    names = [f"{folder}/{FOLDER}/{shard}.parquet" for shard in shards]
    with over_parts(run, names, BANDS, memory_bytes) as connection:
        found = connection.sql(
            "SELECT hash, count(*) AS num_rows FROM (SELECT unnest(bands) AS hash FROM parts) "
            "GROUP BY 1 HAVING count(*) >= $fewest ORDER BY 1",
            params={"fewest": FEWEST},
        )
        batches = tables_of(REPEATS, found.to_arrow_reader(_BATCH_ROWS))
        write_part(run, f"{folder}/{COUNTS}", REPEATS, batches, fingerprint=fingerprint)
