"""Find every row of a round in the index that it was fetched from; DuckDB joins, and spills what is above its memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from manifests.errors import DataError
from manifests.layout import REENCODED, SCORES, part_name, round_folder
from manifests.parts import write_part
from manifests.store import Store
from stages.out_of_core import within
from stages.signals.index.promises import ASPECT, DRAWS, GAP, HONEST_SCHEMA, MIRRORED, PROMISE, Distances, simulated_aspects
from stages.signals.signal_parts import HONEST, SignalParts
from stages.vectors import read_columns

Key = Literal["uid", "url", "key"]
KEYS: Final[tuple[Key, ...]] = ("uid", "url", "key")
_FEWEST: Final = 20
_LEAST_FOUND: Final = 0.1
_MOST_GAP: Final = 0.05  # median, of exact rows: more is another model's
_BATCH_ROWS: Final = 100_000
_ROW_BYTES: Final = 100  # of the index, while it is grouped by key
_USUAL: Final = {
    **{kind: (kind,) for kind in ("sha256", "md5")},
    **{edge: (f"original_{edge}", edge) for edge in ("width", "height")},
}
_FILE, _ROW = pa.field("__file", pa.int32()), pa.field("__row", pa.int64())
FOUND: Final = "found"
_OURS: Final = {"uid": "lower(hex(uid))", "url": "source.url", "key": "key"}
_SCORES: Final = ["uid", "key", "index", "cosine", "source", "__filename"]


@dataclass(frozen=True)
class Index:
    """An index that data were fetched from.

    Attributes:
        store: Where it lies.
        files: Its Parquet files, on the file system of the store.
        sizes: Of each, in bytes.
        key: By which rows are found.
        score: Column of its cosines; None without.
        vectors: Its image vectors: a column, or an array of the .npz beside each file; None without.
    """

    store: Store
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    key: Key
    score: str | None
    vectors: str | None = None

    def scan(self) -> tuple[pa.RecordBatchReader, dict[str, str]]:
        """Read the columns that are wanted, with `__file` and `__row`; and their quoted names by what they are.

        Raises:
            DataError: A file has other columns than the first, as far as they are wanted.
        """
        schema = pq.read_schema(self.files[0], filesystem=self.store.fs)
        folded = {name.casefold(): name for name in schema.names}
        named = {what: next((folded[name] for name in names if name in folded), "") for what, names in _USUAL.items()}
        named = {what: name for what, name in (named | {"by": folded[self.key], "score": self.score or ""}).items() if name}
        wanted = pa.schema([schema.field(name) for name in sorted(set(named.values()))])
        for path in self.files[1:]:
            there = pq.read_schema(path, filesystem=self.store.fs)
            for field in wanted:
                if there.get_field_index(field.name) < 0 or there.field(field.name).type != field.type:
                    kind = there.field(field.name).type if there.get_field_index(field.name) >= 0 else "no such column"
                    raise DataError(f"--index {path}: column {field.name!r} is {field.type} in {self.files[0]}, here {kind}")
        reader = pa.RecordBatchReader.from_batches(wanted.append(_FILE).append(_ROW), self._batches(wanted))
        return reader, {what: '"' + name.replace('"', '""') + '"' for what, name in named.items()}

    def _batches(self, wanted: pa.Schema) -> Iterator[pa.RecordBatch]:
        for number, path in enumerate(self.files):
            first = 0
            with self.store.fs.open_input_file(path) as file, pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=wanted.names):
                    table = pa.Table.from_batches([batch]).select(wanted.names).cast(wanted)
                    table = table.append_column(_FILE, pa.array(np.full(len(batch), number, np.int32)))
                    yield from table.append_column(_ROW, pa.array(np.arange(first, first + len(batch)))).to_batches()
                    first += len(batch)


def key_of(names: Sequence[str], wanted: str, where: str) -> Key:
    """Return by which column rows of an index are found.

    Raises:
        DataError: It has none, or not the one that is wanted.
    """
    there = {name.casefold() for name in names}
    for key in KEYS if wanted == "auto" else (wanted,):
        if key in there:
            return cast(Key, key)
    asked = "none of the columns uid, url, key" if wanted == "auto" else f"no column {wanted!r} (--index-key)"
    raise DataError(f"--index {where} has {asked} to find rows by; it has {list(names)[:20]}")


def write_found(parts: SignalParts, index: Index, folder: str) -> None:
    """Write what is known of every row by the index into a folder of parts, and how honest aspect ratios and cosines move.

    Raises:
        DataError: Hardly a row is in the index, its hashes are of something else, or its scores are another model's.
    """
    with within(parts.memory_bytes, f"finding rows in --index {index.store.uri}") as connection:
        _join(connection, parts, index)
        _refuse_another_index(connection, index)
        honest = {ASPECT: simulated_aspects(), **_honest_gaps(connection, parts, index)}
        names = ", ".join(PROMISE.names)
        found = connection.sql(f"SELECT number, {names} FROM found ORDER BY number, place").to_arrow_reader(_BATCH_ROWS)  # noqa: S608
        for shard, table in _by_shard(found, parts.shards):
            write_part(parts.run, parts.part(shard, folder), PROMISE, [table], fingerprint=parts.fingerprint)
    write_honest(parts, honest)


def write_honest(parts: SignalParts, honest: dict[str, Distances]) -> None:
    """Write distances of honest pictures, ascending, by kind."""
    kinds = np.repeat(list(honest), [len(values) for values in honest.values()])
    distances = np.concatenate([np.sort(values) for values in honest.values()])
    table = pa.table([pa.array(kinds), pa.array(distances)], schema=HONEST_SCHEMA)
    write_part(parts.run, parts.name(HONEST), HONEST_SCHEMA, [table], fingerprint=parts.fingerprint)


def _join(connection: duckdb.DuckDBPyConnection, parts: SignalParts, index: Index) -> None:
    """Make the table `found`, a line for each row of the data; in passes, each over the rows of some keys."""
    paths = [parts.run.path(part_name(parts.scores_round, SCORES, shard)) for shard in parts.shards]
    scores = pads.dataset(paths, format="parquet", filesystem=parts.run.fs)
    connection.register("scores", scores.scanner(columns=_SCORES, cache_metadata=False))
    connection.register("shards", pa.table({"path": paths, "number": pa.array(range(len(paths)), pa.int32())}))
    rows = sum(pq.read_metadata(path, filesystem=index.store.fs).num_rows for path in index.files)
    passes = max(1, -(-rows * _ROW_BYTES // parts.memory_bytes))
    for turn in range(passes):
        scan, named = index.scan()
        connection.register("promised", scan)  # read once by the query
        found = _found(index, named, f"% {passes} = {turn}")
        connection.execute(f"INSERT INTO found BY NAME {found}" if turn else f"CREATE TEMP TABLE found AS {found}")


def _found(index: Index, named: dict[str, str], turn: str) -> str:
    """Return the query of one pass; names of columns are quoted, all else is our own."""
    text = {what: f"lower(CAST({name} AS VARCHAR))" for what, name in named.items()}
    by = f"replace({text['by']}, '-', '')" if index.key == "uid" else f"CAST({named['by']} AS VARCHAR)"
    theirs, ours = f"md5_number({by})", f"md5_number({_OURS[index.key]})"
    hashes = [kind for kind in ("sha256", "md5") if kind in named]
    alone = {what: f"if(count(*) = 1, any_value({name}), NULL)" for what, name in (("file", "__file"), ("row", "__row"))}
    columns = [f"if(min({text[kind]}) = max({text[kind]}), min(md5_number({text[kind]})), NULL) AS {kind}" for kind in hashes]
    columns += [f"{value} AS {what}" for what, value in alone.items()]
    columns += [f"any_value(try_cast({named.get(what, 'NULL')} AS DOUBLE)) AS {what}" for what in ("width", "height", "score")]
    equal = " OR ".join(f"md5_number(lower(s.source.{kind})) = i.{kind}" for kind in hashes) or "false"
    both = " OR ".join(f"(s.source.{kind} IS NOT NULL AND i.{kind} IS NOT NULL)" for kind in hashes) or "false"
    return f"""
        WITH i AS (SELECT {theirs} AS by, true AS known, {", ".join(columns)} FROM promised
                   WHERE hash({theirs}) {turn} GROUP BY 1),
             s AS (SELECT shards.number, scores."index" AS place, {ours} AS by, source, cosine
                   FROM scores JOIN shards ON scores.__filename = shards.path WHERE hash({ours}) {turn})
        SELECT s.number, s.place, s.cosine - i.score AS gap, NULL::FLOAT AS turn, i.file, i.row,
            abs(ln(s.source.width / s.source.height)
                - if(least(i.width, i.height) > 0, ln(i.width / i.height), NULL)) AS aspect,
            CASE WHEN i.known IS NULL THEN 'unknown' WHEN {equal} THEN 'exact'
                 WHEN {both} THEN 'differs' ELSE 'no_hash' END AS promise
        FROM s LEFT JOIN i ON s.by = i.by"""  # noqa: S608


def _refuse_another_index(connection: duckdb.DuckDBPyConnection, index: Index) -> None:
    """Refuse an index that is not this data's.

    Raises:
        DataError: Says how many rows were found, or how many hashes agree.
    """
    counts = dict(connection.sql("SELECT promise, count(*) FROM found GROUP BY 1").fetchall())
    rows, known = sum(counts.values()), sum(num for promise, num in counts.items() if promise != "unknown")
    if known < _LEAST_FOUND * rows:
        raise DataError(
            f"--index {index.store.uri}: {known:,} of {rows:,} rows are in it by {index.key}; is it the index of these data? "
            "--index-key names another column"
        )
    if not counts.get("exact") and counts.get("differs", 0) >= _FEWEST:
        raise DataError(
            f"--index {index.store.uri}: of {counts['differs']:,} rows with a hash in both not one has the same; its hashes, "
            "or the data's, are of something else (of the URL? of pictures encoded anew?)"
        )


def _honest_gaps(connection: duckdb.DuckDBPyConnection, parts: SignalParts, index: Index) -> dict[str, Distances]:
    """Return how far cosines of honest pictures are from the index's; the gaps in `found` lose what is usual of such rows.

    Where rows are known to be exact: as far as pictures that were encoded anew here moved, and `exact` rows. Where there is not
    a hash: as far as cosines lie above what is usual, for a picture put in place of another makes them fall (MIRRORED).
    Nothing where the index has vectors: those say more, and another test would only cost.

    Raises:
        DataError: The index's scores are another model's.
    """
    of, kind, (usual, spread, num) = "exact", GAP, _usual(connection, "exact")
    if num < _FEWEST:
        of, kind, (usual, spread, num) = "no_hash", MIRRORED, _usual(connection, "no_hash")
    steps = encoded_anew(parts, "moved") if kind == GAP else None
    if not index.score or index.vectors or num < _FEWEST or (steps is not None and not len(steps)):
        connection.execute("UPDATE found SET gap = NULL")
        return {}
    if max(abs(usual), spread) > _MOST_GAP:
        raise DataError(
            f"--index-score {index.score}: of {num:,} {of} rows it is {abs(usual):.3f} (median) from this checkpoint's cosine,"
            f" give or take {spread:.3f}; it is another model's"
        )
    connection.execute("UPDATE found SET gap = gap - ?", [usual])
    above = " AND gap >= 0" if steps is None else ""
    query = f"SELECT gap FROM found WHERE promise = ?{above} ORDER BY hash(number, place) LIMIT {DRAWS}"  # noqa: S608
    sample = np.asarray(connection.execute(query, [of]).fetchnumpy()["gap"], np.float32)
    if steps is None:
        return {kind: sample}
    # no more values than were measured: p has its floor
    return {kind: np.abs(steps + np.random.default_rng(0).choice(sample, len(steps))).astype(np.float32)}


def _usual(connection: duckdb.DuckDBPyConnection, promise: str) -> tuple[float, float, int]:
    """Return median, median deviation and number of the gaps of rows that kept such a promise."""
    query = "SELECT median(gap), mad(gap), count(gap) FROM found WHERE promise = ?"
    usual, spread, num = connection.execute(query, [promise]).fetchall()[0]
    return usual or 0.0, spread or 0.0, num


def encoded_anew(parts: SignalParts, what: str) -> Distances:
    """Return by how much cosines `moved`, or pictures `turned`, when rows were encoded anew.

    Nothing where these scores were made without an index.
    """
    if not parts.run.names(f"{round_folder(parts.scores_round)}/{REENCODED}"):
        return np.zeros(0, np.float32)
    names = (part_name(parts.scores_round, REENCODED, shard) for shard in parts.shards)
    return np.concatenate([read_columns(parts.run, name, None)[what].to_numpy() for name in names])


def _by_shard(batches: pa.RecordBatchReader, shards: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the rows of every shard, in order; those of shards without rows too."""
    waiting, current = list[pa.Table](), 0
    for batch in batches:
        table = pa.Table.from_batches([batch])
        numbers = table["number"].to_numpy()
        for number in np.unique(numbers).tolist():
            for done in range(current, number):
                yield shards[done], _joined(waiting)
                waiting = []
            current = number
            first, last = np.searchsorted(numbers, [number, number + 1])
            waiting.append(table.slice(first, last - first))
    for done in range(current, len(shards)):
        yield shards[done], _joined(waiting)
        waiting = []


def _joined(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).select(PROMISE.names).cast(PROMISE) if tables else PROMISE.empty_table()
