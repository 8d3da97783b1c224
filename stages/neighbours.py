"""Signals of every row: how often its image and caption occur, and how its vectors lie among a sample of all others."""

from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.layout import EMBEDDINGS, SCORES, part_name
from manifests.parts import write_part
from manifests.schema import SIGNALS
from manifests.store import Store
from stages.grid import on_grid
from stages.pair import Shard
from stages.reference import Reference, read_columns, unit, vectors_of
from stages.repeats import Repeats

Vectors = npt.NDArray[np.float32]
SIGNALS_PART = pa.schema([pa.field("signals", SIGNALS)])


@dataclass(frozen=True, slots=True)
class SignalTarget:
    """Where signals are read from and go.

    Attributes:
        run: The run folder.
        scores_round: Round whose scores, and embeddings, are read.
        folder: Of the signals parts, the repeats and the reference.
        fingerprint: For the footers.
        reference: Name of the reference; None without neighbours.
        neighbours: k.
        num_threads: Threads of the search.
    """

    run: Store
    scores_round: int
    folder: str
    fingerprint: str
    reference: str | None
    neighbours: int
    num_threads: int


class Neighbours:
    """Stage: a shard in, its signals part on disk out; returns its number of rows."""

    def __init__(self, target: SignalTarget) -> None:
        """Prepare; nothing is loaded before `open`."""
        self._target = target

    def open(self) -> None:
        """Load the repeats and the reference."""
        target = self._target
        faiss.omp_set_num_threads(target.num_threads)
        self._images, self._captions = (Repeats.read(target.run, target.folder, kind) for kind in ("image", "caption"))
        self._reference = Reference.read(target.run, target.reference) if target.reference else None

    def run(self, shard: Shard, /) -> int:
        """Write the signals of one shard, row for row."""
        target = self._target
        columns = ["cosine", "image_hash", "caption_hash"]
        scores = read_columns(target.run, part_name(target.scores_round, SCORES, shard.name), columns)
        signals = pa.table({"signals": self._signals(scores, shard)})
        name = f"{target.folder}/{shard.name}.parquet"
        return write_part(target.run, name, SIGNALS_PART, [signals], fingerprint=target.fingerprint).num_rows

    def _signals(self, scores: pa.Table, shard: Shard) -> pa.StructArray:
        scored = scores["cosine"].is_valid().to_numpy()
        images, captions = (scores[name].fill_null(0).to_numpy() for name in ("image_hash", "caption_hash"))
        outlier, agreement = (np.zeros(len(scored), np.float32) for _ in range(2))
        if self._reference is not None and scored.any():
            parts = part_name(self._target.scores_round, EMBEDDINGS, shard.name)
            vectors = read_columns(self._target.run, parts, ["image", "text"])
            v, t = (unit(vectors_of(vectors[kind])[scored]) for kind in ("image", "text"))
            outlier[scored], agreement[scored] = compare(self._reference, v, t, images[scored], self._target.neighbours)
        near = scored if self._reference is not None else np.zeros(len(scored), bool)
        arrays = {
            "p_mismatch": pa.nulls(len(scored), pa.float32()),
            "outlier": pa.array(outlier, mask=~near),
            "image_cluster": pa.array(images, mask=~scored),
            "image_cluster_size": pa.array(self._images.of(images).clip(max=2**31 - 1).astype(np.int32), mask=~scored),
            "caption_cluster_size": pa.array(self._captions.of(captions).clip(max=2**31 - 1).astype(np.int32), mask=~scored),
            "caption_agreement": pa.array(agreement, mask=~near),
        }
        types = {field.name: field.type for field in SIGNALS}
        cast = [array.cast(types[name]) for name, array in arrays.items()]
        return pa.StructArray.from_arrays(cast, fields=list(SIGNALS), mask=pa.array(~scored))


def compare(
    reference: Reference, v: Vectors, t: Vectors, hashes: npt.NDArray[np.int64], k: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return how far the k-th neighbour of each image is, and how well its caption agrees with its neighbours' captions.

    Copies of a row's image (equal hashes, itself too) are not among its neighbours.

    Args:
        reference: The sample.
        v: Unit vectors of the images, float32 (n, d).
        t: Unit vectors of their captions, float32 (n, d).
        hashes: Of the images, int64 (n,).
        k: How many neighbours; fewer where the sample is smaller.

    Returns:
        1 - cosine of the k-th neighbour, in [0, 2], and the cosine of t with the mean caption vector of the k neighbours, in
        [-1, 1]; float32 (n,) each.

    Source: k-nearest-neighbour distance: Ramaswamy, Rastogi, Shim (SIGMOD 2000), here on unit vectors.
    """
    wanted = min(k + 1, len(reference.hashes))
    similar, found = faiss.knn(np.ascontiguousarray(v), reference.images, wanted, metric=faiss.METRIC_INNER_PRODUCT)
    copies = reference.hashes[found] == hashes[:, None]
    drop = np.where(copies.any(1), copies.argmax(1), wanted - 1)  # the copy, else the farthest
    keep = np.arange(wanted)[None] != drop[:, None]
    if wanted == 1:
        return np.zeros(len(v), np.float32), np.zeros(len(v), np.float32)
    similar, found = similar[keep].reshape(len(v), -1), found[keep].reshape(len(v), -1)
    mean = unit(np.stack([reference.texts[rows].mean(0) for rows in found]) if len(found) else t)
    distance = (1.0 - on_grid(similar[:, -1].astype(np.float64))).astype(np.float32)  # so that its histogram loses nothing
    return distance, np.einsum("nd,nd->n", t, mean).astype(np.float32)
