"""Near copies: pictures whose vectors almost coincide, found in cells of the vector space and joined over all shards.

Comparing all rows with all others is quadratic. So every row goes into the cells of the few centres nearest to it, a cell for
each thousand rows or so, and is compared with what else is there. Rows of one image hash are one picture already, hence the
pictures are named by their hashes here, and what is found are links between hashes.
"""

from dataclasses import dataclass
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.layout import SCORES, part_name
from manifests.parts import write_file, write_part
from manifests.store import Store
from stages.pair import Shard
from stages.signals.components import components
from stages.signals.nearest import Nearest
from stages.signals.repeats import Counts
from stages.signals.signal_parts import Source
from stages.stage import Stage
from stages.vectors import packed, read_columns, unit, vectors_of

CELLS, LINKS = "cells", "links"
PROBES: Final = 2  # so that copies at the border of two cells meet
LINK: Final = pa.schema([pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.int64(), nullable=False)])
_OF_ORDINARY: Final = 0.15  # of the distance of ordinary neighbours; copies are nearer
_AT_ONCE: Final = 2048  # rows of one product
_LAST_DIGITS: Final = 1e-6  # of a float32 cosine, in which sums of another order differ
_ALL_PAIRS_UP_TO: Final = 16384  # rows of a cell that are all compared with each other

Vectors = npt.NDArray[np.float32]
Hashes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CopyTarget:
    """Where near copies are sought and what comes of it goes.

    Attributes:
        run: The run folder.
        scores_round: Round whose hashes are read.
        shards: Names of all shards.
        vectors: Folder of the image vectors, below the run.
        folder: Of cells and links, below the run.
        centres: Name of the part with the centres.
        column: Of the centres' vectors.
        num_cells: How many there are.
        num_blocks: Files into which the cells are gathered; one is held in memory at a time.
        cosine: Pictures at least this similar are copies.
        fingerprint: For the footers.
        num_threads: Threads of the search.
    """

    run: Store
    scores_round: int
    shards: tuple[str, ...]
    vectors: str
    folder: str
    centres: str
    column: str
    num_cells: int
    num_blocks: int
    cosine: float
    fingerprint: str
    num_threads: int

    def block_of(self, cells: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the block of each cell; blocks are ranges of cells."""
        return cells * self.num_blocks // max(1, self.num_cells)

    def blocks(self) -> list[Shard]:
        """Return the blocks as units of work."""
        return [Shard(f"block-{number:05d}", "", "parquet", 0) for number in range(self.num_blocks)]


def near_copy_cut(v: Vectors, k: int, cosine: float) -> float:
    """Return from which cosine on pictures are copies: as asked for, or higher where all vectors lie close together.

    A model that has hardly learned yet, or whose vectors fill a narrow cone, shows any two pictures as alike. Copies are much
    nearer to each other than ordinary neighbours are, whatever the scale.

    Args:
        v: Unit vectors of a sample, no picture twice, float32 (n, d).
        k: Which neighbour in that sample is an ordinary one.
        cosine: Asked for.
    """
    if len(v) < 3:
        return cosine
    similar = Nearest(v)(v, min(k + 1, len(v)))[0]
    ordinary = float(np.median(1.0 - similar[:, -1].astype(np.float64)))
    return max(cosine, 1.0 - _OF_ORDINARY * ordinary)


class AssignCells(Stage[CopyTarget, int]):
    """Stage: a shard in, its rows by cell on disk out, one record batch for each block; returns its number of rows."""

    def open(self) -> None:
        """Load the centres."""
        target = self.target
        faiss.omp_set_num_threads(target.num_threads)
        self._centres = Nearest(unit(vectors_of(read_columns(target.run, target.centres, [target.column])[target.column])))

    def run(self, shard: Shard, /) -> int:
        """Write the rows of one shard, each image hash once for each cell."""
        target = self.target
        scores = read_columns(target.run, part_name(target.scores_round, SCORES, shard.name), ["cosine", "image_hash"])
        scored = np.flatnonzero(scores["cosine"].is_valid().to_numpy() & scores["image_hash"].is_valid().to_numpy())
        vectors = vectors_of(read_columns(target.run, f"{target.vectors}/{shard.name}.parquet", ["image"])["image"])[scored]
        cells = self._centres(unit(vectors), PROBES)[1]
        rows, places = np.divmod(np.arange(cells.size), cells.shape[1])
        keys = np.stack([cells[rows, places], scores["image_hash"].to_numpy()[scored][rows]])
        first = np.unique(keys, axis=1, return_index=True)[1]  # in the order of the cells
        table = _cell_rows(keys[0, first], keys[1, first], vectors[rows[first]])
        blocks = np.searchsorted(target.block_of(keys[0, first]), np.arange(target.num_blocks + 1))

        def write(file: object) -> None:
            with pa.ipc.new_file(file, table.schema) as writer:
                for start, stop in zip(blocks[:-1].tolist(), blocks[1:].tolist(), strict=True):
                    writer.write_batch(table.slice(start, stop - start))

        write_file(target.run, f"{target.folder}/{CELLS}/{shard.name}.arrow", write)
        return len(scores)


class LinkCells(Stage[CopyTarget, int]):
    """Stage: a block of cells in, the links between its pictures on disk out; returns the number of links."""

    def run(self, block: Shard, /) -> int:
        """Compare the rows of each cell."""
        target, number = self.target, int(block.name.rpartition("-")[2])
        batches = [self._batch(shard, number) for shard in target.shards]
        cells, hashes = (np.concatenate([batch[name].to_numpy() for batch in batches]) for name in ("cell", "image_hash"))
        vectors = np.concatenate([vectors_of(pa.chunked_array([batch["image"]])) for batch in batches])
        order = np.argsort(cells, kind="stable")
        found: list[Hashes] = []
        for members in np.split(order, np.flatnonzero(np.diff(cells[order])) + 1):
            if len(members) > 1:
                once = members[np.unique(hashes[members], return_index=True)[1]]
                found.append(links(hashes[once], unit(vectors[once]), target.cosine))
        pairs = np.unique(np.concatenate([np.zeros((2, 0), np.int64), *found], axis=1), axis=1)
        table = pa.table([pa.array(pairs[0]), pa.array(pairs[1])], schema=LINK)
        name = f"{target.folder}/{LINKS}/{block.name}.parquet"
        return write_part(target.run, name, LINK, [table], fingerprint=target.fingerprint).num_rows

    def _batch(self, shard: str, number: int) -> pa.RecordBatch:
        name = self.target.run.path(f"{self.target.folder}/{CELLS}/{shard}.arrow")
        with self.target.run.fs.open_input_file(name) as file:
            return pa.ipc.open_file(file).get_batch(number)


def links(hashes: Hashes, v: Vectors, cosine: float) -> Hashes:
    """Return links that join the pictures of a cell which are near copies, int64 (2, m): at most one for each picture.

    In a cell of more than 16,384 rows, groups of 2,048 are compared with themselves and with the first one, so that the cost
    stays linear; a crowd of near copies that large is joined through the first group.

    Args:
        hashes: Of the pictures, each once, int64 (n,).
        v: Unit vectors, float32 (n, d).
        cosine: Pictures at least this similar are copies.
    """
    a, b = [], []
    for start in range(0, len(v), _AT_ONCE):
        mine = v[start : start + _AT_ONCE]
        for other in range(0, start + 1, _AT_ONCE) if len(v) <= _ALL_PAIRS_UP_TO else {0, start}:
            near = _alike(mine, v[other : other + _AT_ONCE], cosine)
            a.append(near[:, 0] + start)
            b.append(near[:, 1] + other)
    first = components(np.concatenate(a), np.concatenate(b), len(v))
    linked = np.flatnonzero(first != np.arange(len(v)))
    return np.stack([hashes[first[linked]], hashes[linked]])


def _alike(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], cosine: float) -> npt.NDArray[np.int64]:
    """Return pairs of unit vectors (n, d) and (m, d) at least so similar, int64 (k, 2); on any number of threads the same."""
    scores = a @ b.T
    pairs = np.argwhere(scores >= cosine - _LAST_DIGITS)
    keep = scores[pairs[:, 0], pairs[:, 1]] >= cosine + _LAST_DIGITS
    unsure = np.flatnonzero(~keep)
    for start in range(0, len(unsure), _AT_ONCE):
        these = unsure[start : start + _AT_ONCE]
        left, right = (v[pairs[these, side]].astype(np.float64) for side, v in enumerate((a, b)))
        keep[these] = np.einsum("nd,nd->n", left, right) >= cosine
    return pairs[keep]


def _cell_rows(cells: npt.NDArray[np.int64], hashes: Hashes, vectors: npt.NDArray[np.float16]) -> pa.RecordBatch:
    columns = [pa.array(cells), pa.array(hashes), packed(vectors)]
    return pa.RecordBatch.from_arrays(columns, names=["cell", "image_hash", "image"])


def copy_signals(counts: Counts) -> Source | None:
    """Return the cluster of near copies of an image, and its size; None where they were not sought."""
    clusters = counts.clusters
    if clusters is None:
        return None
    return lambda rows: {"near_copy_cluster": clusters.clusters_of(rows.images), "near_copies": clusters.of(rows.images)}
