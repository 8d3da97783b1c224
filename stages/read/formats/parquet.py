"""Read pairs from Parquet, a few rows of a row group at a time, and what is damaged of it row by row."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.store import Store
from stages.pair import Pair, Shard
from stages.read.formats.tables import BadCell, TableReader, unreadable
from stages.settings import ReadSettings

# what Arrow raises on a broken Parquet file: types that there are not, too, and UnicodeDecodeError for a name that is no text
DAMAGED: Final = (pa.ArrowException, OSError, UnicodeDecodeError)
_BATCH_ROWS: Final = 256
_BATCH_BYTES: Final = 64 << 20  # of all columns, unpacked
_BUFFER_BYTES: Final = 8 << 20  # of a column chunk at a time; one may have gigabytes


def read_parquet(store: Store, shard: Shard, options: ReadSettings) -> Iterator[Pair]:
    """Yield one pair for every row of a Parquet file; what cannot be read of it is quarantined row by row."""
    with store.fs.open_input_file(shard.path) as file:
        try:
            parquet = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES)
            names = column_names(parquet)
        except DAMAGED as error:
            yield unreadable(shard, 0, str(error), shard.size_bytes)
            return
        reader = TableReader(store, shard, names, options)
        index = 0
        for group in range(parquet.num_row_groups):
            facts = parquet.metadata.row_group(group)
            if index + facts.num_rows <= shard.first:  # only where each row is a pair; see `stages.score.pieces`
                _pass_over(parquet, group, reader, index)
                index += facts.num_rows
                continue
            for pair in _group(parquet, group, reader, index, shard):
                index += 1
                if index > shard.first:
                    yield pair


def _pass_over(parquet: pq.ParquetFile, group: int, reader: TableReader, index: int) -> None:
    """Take note of the keys of a row group; where rows are named by their numbers, nothing of it is read."""
    if reader.key_columns:
        with suppress(*DAMAGED):
            for batch in batches(parquet, group, reader.key_columns):
                for row in cells(batch):
                    reader.pass_over(index, row)
                    index += 1


def _group(parquet: pq.ParquetFile, group: int, reader: TableReader, index: int, shard: Shard) -> Iterator[Pair]:
    """Yield the pairs of a row group; where it cannot be read on, one for each of its rows that is left."""
    facts = parquet.metadata.row_group(group)
    left = facts.num_rows
    try:
        for batch in batches(parquet, group, reader.columns):
            for row in cells(batch):
                pairs = reader.pairs(index, row)
                yield from pairs
                index, left = index + len(pairs), left - 1
    except DAMAGED as error:
        for lost in range(left):
            size = 0 if lost else facts.total_byte_size
            yield unreadable(shard, index + lost, f"row group {group}: {error}", size)


def batches(parquet: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a row group in order, few enough at a time that they fit into memory, whatever its size."""
    facts = parquet.metadata.row_group(group)
    fitting = min(_BATCH_ROWS, _BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size))
    yield from parquet.iter_batches(max(1, fitting), row_groups=[group], columns=columns)


def column_names(parquet: pq.ParquetFile) -> list[str]:
    """Return the names of the columns, but for those that are no text."""
    schema, names = parquet.schema_arrow, []
    for place in range(len(schema)):
        with suppress(UnicodeDecodeError):
            names.append(schema.field(place).name)
    return names


def cells(batch: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any]]:
    """Yield rows as dicts; text that is not UTF-8 as bytes, and what cannot be read at all as `BadCell`."""
    names = batch.schema.names
    for values in zip(*(_values(column) for column in batch.columns), strict=True):
        yield dict(zip(names, values, strict=True))


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (pa.ArrowException, ValueError, OverflowError):  # one value is enough to raise
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.cast(pa.binary()).as_py() if pa.types.is_string(scalar.type) else BadCell("text that is not UTF-8")
    except (pa.ArrowException, ValueError, OverflowError) as error:
        return BadCell(f"a value of type {scalar.type} cannot be read: {error}")
