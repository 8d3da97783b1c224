"""Write what DuckDB finds as one file for people."""

import csv
from pathlib import Path
from typing import Final

import duckdb
import pyarrow.parquet as pq

from manifests.errors import ConfigError

_BATCH_ROWS: Final = 100_000


def refuse_ending(path: Path | None) -> None:
    """Refuse a file that is neither CSV nor Parquet.

    Raises:
        ConfigError: Names it.
    """
    if path is not None and path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path}: rows are written as .csv or .parquet")


def write_rows(rows: duckdb.DuckDBPyRelation, path: Path) -> None:
    """Write rows as they come, whole or not at all."""
    draft, reader = path.with_name(f".{path.name}.draft"), rows.to_arrow_reader(_BATCH_ROWS)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix == ".parquet":
            with pq.ParquetWriter(draft, reader.schema) as parquet:
                for batch in reader:
                    parquet.write_batch(batch)
        else:
            with draft.open("w", newline="") as file:
                lines = csv.writer(file)
                lines.writerow(reader.schema.names)
                for batch in reader:
                    lines.writerows(row.values() for row in batch.to_pylist())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
