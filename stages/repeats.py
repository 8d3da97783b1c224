"""How many rows of the whole dataset share an image hash, or a caption hash: one grouping of two columns, out of core."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from manifests.layout import SCORES, part_name
from manifests.parts import write_part
from manifests.schema import scores_schema
from manifests.store import Store

Kind = Literal["image", "caption"]
KINDS: Final[tuple[Kind, ...]] = ("image", "caption")
REPEATS: Final = pa.schema([pa.field("hash", pa.int64(), nullable=False), pa.field("num_rows", pa.int64(), nullable=False)])
_BATCH_ROWS: Final = 100_000


def write_repeats(
    run: Store, scores_round: int, shards: Sequence[str], folder: str, *, memory_bytes: int, fingerprint: str
) -> None:
    """Count equal hashes over all scores parts and write those that occur more than once, sorted by hash.

    DuckDB groups within `memory_bytes` and spills the rest to the temporary folder: 8 bytes a row for each kind at worst.

    Args:
        run: The run folder.
        scores_round: Round whose scores are read.
        shards: Names of all shards.
        folder: Where `repeats-image.parquet` and `repeats-caption.parquet` go, below the run.
        memory_bytes: DuckDB's limit.
        fingerprint: For the footers.
    """
    files = [run.path(part_name(scores_round, SCORES, shard)) for shard in shards]
    parts = pads.dataset(files, schema=scores_schema(2), format="parquet", filesystem=run.fs)
    with duckdb.connect(config={"memory_limit": f"{memory_bytes}B", "preserve_insertion_order": False}) as connection:
        connection.register("scores", parts)
        for kind in KINDS:
            found = connection.sql(
                f"SELECT {kind}_hash AS hash, count(*) AS num_rows FROM scores WHERE {kind}_hash IS NOT NULL "  # noqa: S608
                "GROUP BY 1 HAVING count(*) > 1 ORDER BY 1"
            )
            batches = _as(REPEATS, found.to_arrow_reader(_BATCH_ROWS))
            write_part(run, repeats_name(folder, kind), REPEATS, batches, fingerprint=fingerprint)


def repeats_name(folder: str, kind: Kind) -> str:
    """Return the name of a kind's counts inside the run."""
    return f"{folder}/repeats-{kind}.parquet"


@dataclass(frozen=True)
class Repeats:
    """Hashes that occur more than once, and how often; 16 bytes each.

    Attributes:
        hashes: int64 (n,), ascending.
        counts: int64 (n,).
    """

    hashes: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @classmethod
    def read(cls, run: Store, folder: str, kind: Kind) -> "Repeats":
        """Read the counts that `write_repeats` left."""
        with run.fs.open_input_file(run.path(repeats_name(folder, kind))) as file:
            table = pq.read_table(file)
        return cls(table["hash"].to_numpy(), table["num_rows"].to_numpy())

    def of(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how many rows share each hash, 1 at least: int64 (m,)."""
        place = np.searchsorted(self.hashes, hashes)
        place_inside = np.minimum(place, max(0, len(self.hashes) - 1))
        found = np.ones(len(hashes), np.int64)
        if len(self.hashes):
            known = self.hashes[place_inside] == hashes
            found[known] = self.counts[place_inside[known]]
        return found


def _as(schema: pa.Schema, reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    for batch in reader:
        yield pa.Table.from_batches([batch]).cast(schema)
