"""DuckDB over the parts of a round: what is above its memory goes to the temporary folder."""

import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from manifests.errors import PlaceError
from manifests.parts import write_part
from manifests.store import Store

_BATCH_ROWS: Final = 100_000
# DuckDB spills a grouping, yet fails above a size: with 256 MiB and one thread 10 M values of 16 bytes went well, 25 M did not
_VALUE_BYTES: Final = 26


def connect(**config: Any) -> duckdb.DuckDBPyConnection:
    """Return a connection whose spills lie in the temporary folder, not in the one a command was typed in, until it closes."""
    folder = Path(tempfile.gettempdir(), f"pairsan-spill-{uuid.uuid4().hex[:12]}")  # made by the first spill
    return duckdb.connect(config={"temp_directory": str(folder), **config})


@contextmanager
def over_parts(run: Store, names: Sequence[str], schema: pa.Schema, memory_bytes: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a DuckDB connection to which some files are the table `parts`; it spills to disk what is above its memory.

    Args:
        run: The run folder.
        names: Of the files, inside it.
        schema: Columns that are wanted of them; all are read by every query.
        memory_bytes: The limit.

    Raises:
        PlaceError: The temporary folder has no room for what is spilled.
    """
    parts = pads.dataset([run.path(name) for name in names], schema=schema, format="parquet", filesystem=run.fs)
    with within(memory_bytes, f"counting over {len(names):,} parts") as connection:
        # a footer is 100 KB, of 100,000 shards 10 GB (apache/arrow#37630)
        connection.register("parts", parts.scanner(cache_metadata=False))
        yield connection


@contextmanager
def within(memory_bytes: int, what: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a DuckDB connection that spills to disk what is above its memory.

    Raises:
        PlaceError: The temporary folder has no room for what is spilled; says what was done.
    """
    with connect(memory_limit=f"{memory_bytes}B", preserve_insertion_order=False) as connection:
        try:
            yield connection
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            said = " ".join(str(error).split())[:300]
            place = f"what is above {memory_bytes >> 20} MiB is spilled to {tempfile.gettempdir()}; TMPDIR names another place"
            raise PlaceError(f"{what}: {said}; {place}") from error


def write_counts(
    store: Store,
    name: str,
    schema: pa.Schema,
    values: str,
    *,
    parts: tuple[Sequence[str], pa.Schema],
    num_values: int,
    memory_bytes: int,
    fingerprint: str,
    fewest: int = 2,
) -> None:
    """Write which values occur how often over some parts as one part, sorted by value.

    Args:
        store: Where the parts lie, and what is written.
        name: Of what is written.
        schema: Its two columns: value and count.
        values: The value as SQL over the columns of the parts; null is none.
        parts: Names of the parts, and the columns that are wanted of them.
        num_values: How many there are, about; more passes are taken over the parts where they are too many for the memory.
        memory_bytes: The limit.
        fingerprint: For the footer.
        fewest: Values that occur less often are left out.
    """
    value, count = schema.names
    passes = max(1, -(-num_values * _VALUE_BYTES // memory_bytes))
    with over_parts(store, *parts, memory_bytes) as connection:
        for turn in range(passes):
            turns = f" AND hash(v) % {passes} = {turn}" if passes > 1 else ""
            counted = (
                f"SELECT v AS {value}, count(*) AS {count} FROM (SELECT {values} AS v FROM parts) "  # noqa: S608  # our own words
                f"WHERE v IS NOT NULL{turns} GROUP BY 1 HAVING count(*) >= {int(fewest)}"
            )
            connection.execute(f"INSERT INTO counts {counted}" if turn else f"CREATE TEMP TABLE counts AS {counted}")
        write_answer(connection.sql("SELECT * FROM counts ORDER BY 1"), store, name, schema, fingerprint=fingerprint)


def write_answer(found: duckdb.DuckDBPyRelation, store: Store, name: str, schema: pa.Schema, *, fingerprint: str) -> None:
    """Write what DuckDB finds as one part, batch by batch."""
    batches = (pa.Table.from_batches([batch]).cast(schema) for batch in found.to_arrow_reader(_BATCH_ROWS))
    write_part(store, name, schema, batches, fingerprint=fingerprint)
