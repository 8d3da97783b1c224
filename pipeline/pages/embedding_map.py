"""A map of a round: the vectors of its images on the plane of their two principal axes, of up to 2 M pairs."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.errors import ConfigError
from manifests.labels import Label
from manifests.reading import Manifest
from manifests.store import Store
from stages.vectors import read_columns, vectors_of

TABLE: Final = "embedding_map"
MOST_POINTS: Final = 2_000_000
_FIT_ROWS: Final = 20_000
_THREADS: Final = 8
_STEPS: Final = 65_535  # a point's place travels as two numbers of 16 bits
_CORE: Final = (0.005, 0.995)  # what lies beyond is drawn at the border


class EmbeddingMap:
    """Lays the images of a round out; computed once, when it is first asked for. Safe to use from several threads."""

    def __init__(self, manifest: Manifest, connection: duckdb.DuckDBPyConnection) -> None:
        """Take a round, and a connection that gets the table: shard, index, map_point, map_x, map_y in [0, 1]."""
        self._manifest, self._connection, self._lock = manifest, connection, threading.Lock()
        self._points: bytes | None = None
        self._num = 0

    def ready(self) -> None:
        """Compute it, where that was not done yet.

        Raises:
            ConfigError: No vectors were kept.
        """
        with self._lock:
            if self._points is None:
                self._points = self._computed()

    def drawn(self, hits: npt.NDArray[np.int64]) -> bytes:
        """Return all points for the browser, little-endian: their number, uint32; x and y, uint16 each; label; found or not.

        Args:
            hits: Points that a filter finds.
        """
        self.ready()
        found = np.zeros(self._num, np.uint8)
        found[hits] = 1
        return (self._points or b"") + found.tobytes()

    def place(self, pair: tuple[str, int]) -> list[float] | None:
        """Return where a pair lies, from 0 to 1; None where it is not on the map, or nobody has asked for that."""
        if self._points is None:
            return None
        text = f"SELECT map_x, map_y FROM {TABLE} WHERE shard = ? AND index = ?"  # noqa: S608
        found = self._connection.cursor().execute(text, list(pair)).fetchall()
        return [min(1.0, max(0.0, value)) for value in found[0]] if found else None

    def _computed(self) -> bytes:
        manifest, run = self._manifest, self._manifest.run
        named = {part["shard"]: part["embeddings"]["name"] for part in manifest.seal["parts"] if "embeddings" in part}
        parts = {shard: name for shard, name in named.items() if run.exists(name)}
        if not parts:
            raise ConfigError("no vectors of this round were kept; score with --keep-embeddings, or all signals")
        mean, axes = _principal_axes(run, list(parts.values()))
        every = -(-manifest.num_rows // MOST_POINTS)

        def laid_out(shard: str) -> pa.Table:
            vectors = vectors_of(read_columns(run, parts[shard], ["image"])["image"])[::every]
            rows = np.flatnonzero(vectors.any(axis=1))
            places = (vectors[rows].astype(np.float32) - mean) @ axes
            names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), [shard])
            columns = [names, pa.array((rows * every).astype(np.int32)), *places.T]
            return pa.table(columns, names=["shard", "index", "map_x", "map_y"])

        with ThreadPoolExecutor(_THREADS) as pool:
            found = pa.concat_tables(pool.map(laid_out, parts)).unify_dictionaries()
        for name in ("map_x", "map_y"):
            values = found[name].to_numpy()
            low, high = np.quantile(values, _CORE) if len(values) else (0.0, 1.0)
            scaled = ((values - low) / max(float(high - low), 1e-6)).astype(np.float32)
            found = found.set_column(found.column_names.index(name), name, pa.array(scaled))
        return self._kept(found)

    def _kept(self, found: pa.Table) -> bytes:
        """Make the table, and return what of it a browser draws."""
        self._num, cursor = len(found), self._connection.cursor()
        cursor.register("found", found.append_column("map_point", pa.array(np.arange(len(found), dtype=np.int64))))
        cursor.execute(f"CREATE OR REPLACE TABLE {TABLE} AS SELECT * FROM found")  # noqa: S608
        words = ", ".join(f"'{label}'" for label in Label)
        label = f"list_position([{words}], label::VARCHAR) - 1"
        text = f"SELECT {label} FROM {TABLE} JOIN pairs USING (shard, index) ORDER BY map_point"  # noqa: S608
        labels = np.asarray([code for (code,) in cursor.execute(text).fetchall()], np.uint8)
        places = [(found[name].to_numpy().clip(0.0, 1.0) * _STEPS).astype("<u2") for name in ("map_x", "map_y")]
        return b"".join(part.tobytes() for part in (np.asarray([self._num], "<u4"), *places, labels))


def corners(area: str) -> list[float]:
    """Return left, right, top and bottom of an area of the map, `left,top,right,bottom`.

    Raises:
        ConfigError: It is none.
    """
    try:
        left, top, right, bottom = map(float, area.split(","))
    except ValueError:
        raise ConfigError(f"{area!r} is no area of the map: left,top,right,bottom, each from 0 to 1") from None
    return [min(left, right), max(left, right), min(top, bottom), max(top, bottom)]


def _principal_axes(run: Store, names: list[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the mean of image vectors, (d,), and their two principal axes, (d, 2), by the first row groups of the parts."""
    from sklearn.decomposition import PCA

    some = names[:: max(1, -(-len(names) // _FIT_ROWS))]
    each, sample = -(-_FIT_ROWS // len(some)), []
    for name in some:
        with run.fs.open_input_file(run.path(name)) as file, pq.ParquetFile(file) as parquet:
            if parquet.num_row_groups:
                vectors = vectors_of(parquet.read_row_group(0, columns=["image"])["image"])
                sample.append(vectors[vectors.any(axis=1)][:each].astype(np.float32))
    rows = np.concatenate(sample) if sample else np.zeros((0, 1), np.float32)
    if len(rows) < 3 or rows.shape[1] < 2:
        raise ConfigError(f"a map needs the vectors of three images, there are {len(rows)}")
    fit = PCA(2, svd_solver="covariance_eigh").fit(rows)
    return fit.mean_.astype(np.float32), fit.components_.T.astype(np.float32)
