"""A sealed round as a gallery: filter, sort, count and page through any number of pairs with DuckDB."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import ConfigError
from manifests.layout import sealed_rounds
from manifests.reading import Manifest, open_round
from manifests.reviews import newest, read_all
from pipeline.pages.embedding_map import TABLE, EmbeddingMap, corners
from pipeline.pages.likeness import SIMILARITY, Likeness
from pipeline.queries.inspection import Query, sealed_off, spelled
from stages.vectors import read_columns, vectors_of

PAGE_ROWS: Final = 60
_AT_ONCE: Final = 100 * PAGE_ROWS  # places of one query, of which pages are cut
_KEPT_ANSWERS: Final = 64
_THREADS: Final = 8
_BINS: Final = 40
_EVERYWHERE: Final = "-inf,-inf,inf,inf"
Row = dict[str, Any]
Place = tuple[str, int]


@dataclass(frozen=True)
class Wanted:
    """What a gallery shows.

    Attributes:
        query: Filters and sort; its `limit` and `columns` are not used.
        verdict: Only pairs with this human verdict; `any`, or `none` for pairs without; empty for all.
        where: An expression of DuckDB over the manifest's columns, for experts.
        like: What the images are compared with, as `Likeness.table` takes it; they then have a `similarity`. Empty: nothing.
        area: Of the map, `left,top,right,bottom`; empty for all, those that are not on it too.
    """

    query: Query
    verdict: str = ""
    where: str = ""
    like: str = ""
    area: str = ""


class Gallery:
    """The pairs of one round. Safe to use from several threads; expressions can read nothing but this round."""

    def __init__(self, manifest: Manifest, *, threads: int | None = None, checkpoint: str | None = None) -> None:
        """Open the round read-only; for `checkpoint` see `Likeness`."""
        self.manifest, self._lock = manifest, threading.Lock()
        self._connection = sealed_off(manifest, threads)
        self.likeness = Likeness(manifest, self._connection, checkpoint)
        self.map = EmbeddingMap(manifest, self._connection)
        self._answers: OrderedDict[Any, Any] = OrderedDict()
        self._acts: tuple[str, ...] = ()
        self._pool = ThreadPoolExecutor(_THREADS)
        self.refresh()

    def refresh(self) -> None:
        """Take up verdicts that were given meanwhile, here or elsewhere."""
        names = tuple(sorted(self.manifest.run.names("reviews")))
        with self._lock:
            if self._acts == names and names:
                return
            verdicts = newest(read_all(self.manifest.run))
            self._acts = names
            self._verdicts = {row["uid"]: row for row in verdicts.to_pylist()}
            self._connection.register("verdicts_now", verdicts.select(["uid", "verdict"]))
            self._connection.execute("CREATE OR REPLACE TABLE verdicts AS SELECT * FROM verdicts_now")
            self._answers = OrderedDict((key, value) for key, value in self._answers.items() if not key[1].verdict)

    def count(self, wanted: Wanted) -> int:
        """Return how many pairs a filter finds.

        Raises:
            ConfigError: The filter is not understood; says why.
        """
        return int(self._answer("count", wanted, "count(*)", "")[0][0])

    def places(self, wanted: Wanted, limit: int = _AT_ONCE, after: Place | None = None) -> list[Place]:
        """Return shard and row of the first pairs that a filter finds, sorted; of those behind a place, where one is given."""
        name = wanted.query.sort.removeprefix("-")
        column, downwards = spelled(name, wanted.query.more), wanted.query.sort.startswith("-")
        order = f"{column} {'DESC' if downwards else 'ASC'} NULLS LAST, shard, index"
        test, values = ("", ()) if after is None else _behind(column, downwards, self._value(wanted, name, after), after)
        found = self._answer("places", wanted, "shard, index", f"ORDER BY {order} LIMIT {limit}", test, values)
        return [(shard, index) for shard, index in found]

    def _value(self, wanted: Wanted, name: str, place: Place) -> Any:
        """Return what a pair has in a column, or in a field of its signals."""
        if name == SIMILARITY:
            return self.likeness.of(wanted.like, [place])[0]
        column, _, field = name.partition(".")
        found = _take(self.manifest, place[0], [place[1]])[column].to_pylist()[0]
        return found.get(field) if field and found is not None else found

    def histogram(self, name: str, like: str = "") -> dict[str, Any] | None:
        """Return how the values of a column or signal spread over the round; None where no row has one.

        Args:
            name: A column of numbers, or `signals.NAME`, or `similarity`.
            like: To what.

        Returns:
            `low` and `high`, between which all but 1 % of the values lie, and `bins` of equal width from one to the other, each
            with its number of rows by label; what lies beyond is in the outermost bins.
        """
        column, place = spelled(name, (SIMILARITY,) if like else ()), ("histogram", Wanted(Query(), like=like), name)
        with self._lock:
            if place in self._answers:
                found: dict[str, Any] | None = self._answers[place]
                return found
        ends = f"SELECT approx_quantile({column}, 0.005), approx_quantile({column}, 0.995) FROM {self._joined(like)}"  # noqa: S608
        low, high = self.query(ends)[0]
        found = None if low is None else {"low": low, "high": high, "bins": self._bins(column, low, high, like)}
        with self._lock:
            self._answers[place] = found
        return found

    def _bins(self, column: str, low: float, high: float, like: str) -> list[dict[str, int]]:
        bins: list[dict[str, int]] = [{} for _ in range(_BINS)]
        bin_ = f"least({_BINS - 1}, greatest(0, floor(({column} - ?) / ? * {_BINS})))::INT"
        text = f"SELECT {bin_} AS bin, label, count(*) FROM {self._joined(like)} WHERE {column} IS NOT NULL GROUP BY ALL"  # noqa: S608
        for number, label, count in self.query(text, [low, (high - low) or 1.0]):
            bins[number][label] = count
        return bins

    def drawn(self, wanted: Wanted) -> bytes:
        """Return the map of the round, with what a filter finds on it; see `EmbeddingMap.drawn`."""
        self.map.ready()
        text, values = self._sql(replace(wanted, area=wanted.area or _EVERYWHERE), "map_point", "")
        return self.map.drawn(np.asarray(self._run(text, values).fetchnumpy()["map_point"], np.int64))

    def first(self, wanted: Wanted, num: int) -> list[Row]:
        """Return the first rows that a filter finds."""
        return self.rows(self.places(wanted, num))

    def query(self, text: str, values: list[Any] | None = None) -> list[tuple[Any, ...]]:
        """Return the answer to one of our own queries over the view `pairs`."""
        return self._run(text, values or []).fetchall()

    def page(self, wanted: Wanted, number: int) -> list[Row]:
        """Return the rows of a page, from 0, with their newest verdicts; however deep, each query goes on where one ended."""
        stretch, first = divmod(number * PAGE_ROWS, _AT_ONCE)
        places = self.places(wanted)
        for _ in range(stretch):
            places = self.places(wanted, after=places[-1]) if len(places) == _AT_ONCE else []
        return self.rows(places[first : first + PAGE_ROWS])

    def rows(self, places: list[Place], manifest: Manifest | None = None) -> list[Row]:
        """Return whole rows, in the order of their places."""
        manifest = manifest or self.manifest
        by_shard: dict[str, list[int]] = {}
        for shard, index in places:
            by_shard.setdefault(shard, []).append(index)
        tables = self._pool.map(lambda item: _take(manifest, *item), by_shard.items())
        found = {(row["shard"], row["index"]): row for table in tables for row in table.to_pylist()}
        return [self._with_verdict(found[place]) for place in places]

    def table(self, wanted: Wanted) -> pa.Table:
        """Return uid, shard, index and key of every pair that a filter finds."""
        text, values = self._sql(wanted, "uid, shard, index, key", "ORDER BY shard, index")
        with self._connection.cursor() as cursor, _explained():
            found: pa.Table = _one_statement(cursor, text).sql(text, params=values).to_arrow_table()
        return found

    def history(self, place: Place) -> list[Row]:
        """Return label, reason, cosine and p_safe of a pair in every sealed round of the run, oldest first."""
        run, found = self.manifest.run, []
        for number in sealed_rounds(run):
            row = _take(open_round(run, number), place[0], [place[1]]).to_pylist()[0]
            found.append({"round": number, **{name: row[name] for name in ("label", "reason", "cosine", "p_safe", "rank")}})
        return found

    def alike(self, row: Row, limit: int = 8) -> tuple[str, list[Place]]:
        """Return the filter that finds all pairs whose image looks like one, empty where there are no others, and the first.

        Near copies where they were sought, else rows of its perceptual hash.
        """
        signals = row.get("signals") or {}
        by_vectors = signals.get("near_copies") is not None
        name, size = ("near_copy_cluster", "near_copies") if by_vectors else ("image_cluster", "image_cluster_size")
        cluster = signals.get(name)
        if cluster is None or signals[size] < 2:
            return "", []
        where = f"signals.{name} = {int(cluster)}"
        found = self.query(f"SELECT shard, index FROM pairs WHERE {where} LIMIT {limit + 1}")  # noqa: S608
        return where, [(shard, index) for shard, index in found if (shard, index) != (row["shard"], row["index"])][:limit]

    def neighbours(self, place: Place, limit: int = 8) -> list[Place]:
        """Return the pairs of the same shard whose images are nearest by their vectors; none where no vectors were kept."""
        part = next(part for part in self.manifest.seal["parts"] if part["shard"] == place[0])
        name = part.get("embeddings", {}).get("name")
        if name is None or not self.manifest.run.exists(name):
            return []
        vectors = vectors_of(read_columns(self.manifest.run, name, ["image"])["image"]).astype(np.float32)
        similar = vectors @ vectors[place[1]]
        similar[place[1]] = -np.inf
        return [(place[0], int(row)) for row in np.argsort(-similar)[:limit]]

    def _with_verdict(self, row: Row) -> Row:
        return {**row, "review": self._verdicts.get(row["uid"])}

    def _answer(
        self, kind: str, wanted: Wanted, columns: str, tail: str, test: str = "", more: tuple[Any, ...] = ()
    ) -> list[tuple[Any, ...]]:
        key = (kind, wanted, tail, test, more)
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
                return list(self._answers[key])
        text, values = self._sql(wanted, columns, f"{test and f'AND {test} '}{tail}")
        found = self._run(text, [*values, *more]).fetchall()
        with self._lock:
            self._answers[key] = found
            while len(self._answers) > _KEPT_ANSWERS:
                self._answers.popitem(last=False)
        return found

    def _run(self, text: str, values: list[Any]) -> duckdb.DuckDBPyConnection:
        with _explained():
            return _one_statement(self._connection.cursor(), text).execute(text, values)

    def _sql(self, wanted: Wanted, columns: str, tail: str) -> tuple[str, list[Any]]:
        tests, values = wanted.query.conditions()
        if wanted.verdict:
            some = "" if wanted.verdict in ("any", "none") else " WHERE verdict = ?"
            values += [wanted.verdict] if some else []
            word = "NOT IN" if wanted.verdict == "none" else "IN"
            tests.append(f"uid {word} (SELECT uid FROM verdicts{some})")  # noqa: S608
        if wanted.where:
            tests.append(f"({wanted.where}\n)")
        source = self._joined(wanted.like)
        if wanted.area:
            self.map.ready()
            source += f" JOIN {TABLE} USING (shard, index)"
            tests.append("map_x BETWEEN ? AND ? AND map_y BETWEEN ? AND ?")
            values += corners(wanted.area)
        return f"SELECT {columns} FROM {source} WHERE {' AND '.join(['TRUE', *tests])} {tail}", values  # noqa: S608

    def _joined(self, like: str) -> str:
        """Return the view `pairs`, joined with how like their images are to something."""
        return f"pairs JOIN {self.likeness.compared(like)} USING (shard, index)" if like else "pairs"


def _one_statement(cursor: duckdb.DuckDBPyConnection, text: str) -> duckdb.DuckDBPyConnection:
    if len(cursor.extract_statements(text)) != 1:
        raise ConfigError("a filter is one expression, without a semicolon")
    return cursor


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what DuckDB raises into an error for the user."""
    try:
        yield
    except duckdb.Error as error:
        raise ConfigError(f"the filter is not understood: {str(error).splitlines()[0]}") from None


def _behind(column: str, downwards: bool, value: Any, place: Place) -> tuple[str, tuple[Any, ...]]:
    """Return a test, and its values, of which pairs come after one in an order that ends in shard and index."""
    later = "(shard > ? OR (shard = ? AND index > ?))"
    if value is None:  # nulls are last
        return f"({column} IS NULL AND {later})", (place[0], *place)
    beyond = f"{column} {'<' if downwards else '>'} ?"
    return f"({beyond} OR ({column} = ? AND {later}) OR {column} IS NULL)", (value, value, place[0], *place)


def _take(manifest: Manifest, shard: str, rows: list[int]) -> pa.Table:
    table = manifest.table(shard)
    if pc.max(pa.array(rows)).as_py() >= table.num_rows:
        raise ConfigError(f"{shard} has {table.num_rows} rows")
    return table.take(rows)
