"""Look at the pairs of a sealed round through DuckDB: filter, sort, show or write."""

import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import duckdb
import pandas as pd
import pyarrow.parquet as pq

from manifests.errors import ConfigError
from manifests.labels import Label, Reason
from manifests.reading import Manifest
from manifests.schema import MANIFEST
from manifests.signals import SIGNAL_TABLE
from pipeline.queries.terminal import printable
from stages.out_of_core import connect

_TABLE_COLUMNS: Final = ("label", "reason", "cosine", "p_safe", "rank", "shard", "key", "caption", "detail")
_PATTERN: Final = re.compile(r"[*?\[{]")
_WIDTHS: Final = {"caption": 60, "detail": 60, "key": 36, "shard": 28}


@dataclass(frozen=True)
class Query:
    """Which pairs, in which order. Fields are those of `pairsan inspect`; empty means no filter.

    Attributes:
        ranges: Column or `signals.NAME`, least and highest value.
        sort: Column or `signals.NAME`, after a minus for the highest first.
        more: Further columns of numbers, of what the round is joined with.
    """

    label: tuple[str, ...] = ()
    reason: tuple[str, ...] = ()
    cosine: tuple[float, float] | None = None
    p_safe: tuple[float, float] | None = None
    caption: str | None = None
    shard: str | None = None
    key: str | None = None
    sort: str = "cosine"
    limit: int = 20
    columns: str = ""
    ranges: tuple[tuple[str, float, float], ...] = ()
    more: tuple[str, ...] = ()

    def sql(self, columns: tuple[str, ...]) -> tuple[str, list[Any]]:
        """Return a query over the view `pairs` and its parameters; values from outside are only ever parameters.

        Raises:
            ConfigError: A label, reason or column does not exist.
        """
        chosen_rows = self.label or self.reason or self.caption or self.cosine or self.p_safe or self.key
        query = self if chosen_rows else replace(self, label=(Label.RISKY, Label.QUARANTINED))
        where, values = query.conditions()
        sort = self.sort.removeprefix("-")
        order = f"{spelled(sort)} {'DESC' if self.sort.startswith('-') else 'ASC'} NULLS LAST"
        chosen = ", ".join(f'"{known(name, MANIFEST.names, "column")}"' for name in columns)
        limit = f" LIMIT {int(self.limit)}" if self.limit else ""
        tests = " AND ".join(["TRUE", *where])
        return f"SELECT {chosen} FROM pairs WHERE {tests} ORDER BY {order}, shard, index{limit}", values  # noqa: S608

    def conditions(self) -> tuple[list[str], list[Any]]:
        """Return tests over the columns and their parameters; none where nothing is filtered."""
        labels = [known(word, list(Label), "label") for word in self.label]
        reasons = [known(word, list(Reason), "reason") for word in self.reason]
        tests: list[tuple[str, Any]] = [("list_contains(?::VARCHAR[], label)", [str(w) for w in labels])] if labels else []
        if reasons:
            tests.append(("list_contains(?::VARCHAR[], reason)", [str(word) for word in reasons]))
        named = (("cosine", self.cosine), ("p_safe", self.p_safe))
        for column, low, high in (*self.ranges, *((name, *bounds) for name, bounds in named if bounds)):
            name = spelled(column, self.more)
            tests += [(f"{name} >= ?", low), (f"{name} <= ?", high)]
        if self.caption:
            tests.append(("contains(lower(caption), lower(?))", self.caption))
        tests += [(f"{name} GLOB ?", glob) for name, glob in (("shard", self.shard), ("key", self.key)) if glob]
        return [test for test, _ in tests], [value for _, value in tests]


def spelled(name: str, more: tuple[str, ...] = ()) -> str:
    """Return a column, one of some more, or a field of `signals`, as DuckDB spells it.

    Raises:
        ConfigError: There is no such column.
    """
    columns = [column for column in MANIFEST.names if column != "signals"]
    word = known(name, [*columns, *more, *(f"signals.{signal.name}" for signal in SIGNAL_TABLE)], "column")
    return ".".join(f'"{part}"' for part in word.split("."))


def show(manifest: Manifest, query: Query, *, form: str, output: str | None) -> None:
    """Print or write the pairs that a query finds.

    Args:
        manifest: The sealed round.
        query: Which pairs.
        form: `table`, `json`, `csv` or `parquet`.
        output: File to write; standard output if unset.

    Raises:
        ConfigError: Parquet without a file, or a word that does not exist.
    """
    if form == "parquet" and output is None:
        raise ConfigError("--format parquet writes a file: name it with --output")
    default = _TABLE_COLUMNS if form == "table" else tuple(MANIFEST.names)
    columns = tuple(name.strip() for name in query.columns.split(",")) if query.columns else default
    with sealed_off(manifest) as connection:
        text, values = query.sql(columns)
        found = connection.sql(text, params=values)
        if form == "table":
            text = _table(columns, found.fetchall())
        else:
            frame = found.to_arrow_table()
            if form == "parquet":
                pq.write_table(frame, output)
                return
            text = _csv(frame) if form == "csv" else _json(frame)
    if output is not None:
        Path(output).write_text(text)
    else:
        sys.stdout.write(text)


def sealed_off(manifest: Manifest, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """Return a connection that has the round as the view `pairs` and may open no other file."""
    connection = connect(**({"threads": threads} if threads else {}))
    if manifest.run.is_local:
        connection.execute(f"SET allowed_directories = [{_text(manifest.path + '/')}]")
    connection.execute("SET enable_external_access = false")
    if manifest.run.is_local and not _PATTERN.search("".join(manifest.files())):  # DuckDB takes such names for patterns
        files = ", ".join(_text(path) for path in manifest.files())
        connection.execute(f"CREATE VIEW pairs AS SELECT * FROM read_parquet([{files}])")  # noqa: S608  # quoted
    else:
        connection.register("pairs", manifest.dataset())
    connection.execute("SET lock_configuration = true")
    return connection


def _text(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"


def known(word: str, allowed: list[Any], what: str) -> str:
    """Return a word that is among those allowed.

    Raises:
        ConfigError: It is not; names those that are.
    """
    if word not in [str(entry) for entry in allowed]:
        raise ConfigError(f"no {what} {word!r}; there are: {', '.join(str(entry) for entry in allowed)}")
    return word


def _table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Lay rows out for a terminal; control characters of a crawl must not reach it."""
    cells = [[_cell(name, value) for name, value in zip(columns, row, strict=True)] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) if cells else len(name) for i, name in enumerate(columns)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in [list(columns), *cells]
    ]
    return "\n".join([*lines, f"({len(rows)} pairs)"]) + "\n"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return printable(value.hex() if isinstance(value, bytes) else str(value), _WIDTHS.get(name, 40))


def _csv(frame: Any) -> str:
    rows: pd.DataFrame = frame.to_pandas()
    if "uid" in rows:
        rows["uid"] = rows["uid"].map(bytes.hex)
    return str(rows.to_csv(index=False))


def _json(frame: Any) -> str:
    rows = frame.to_pylist()
    for row in rows:
        if isinstance(row.get("uid"), bytes):
            row["uid"] = row["uid"].hex()
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
