"""Signals of every row: how often its image and caption occur, and how its vectors lie among a sample of all others."""

from dataclasses import dataclass, replace
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.layout import EMBEDDINGS, SCORES, part_name
from manifests.parts import write_part
from manifests.schema import SIGNALS
from manifests.store import Store
from stages.pair import Shard
from stages.signals.accord import Accord, Rows
from stages.signals.joint_doubt import witnessed
from stages.signals.neighbourhood import Neighbourhood
from stages.signals.repeats import KINDS, Commonness, Repeats, repeats_name
from stages.signals.sample import Reference
from stages.signals.shingles import COUNTS
from stages.vectors import read_columns, unit, vectors_of

Vectors = npt.NDArray[np.float32]
_MOST: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SignalTarget:
    """Where signals are read from and go.

    Attributes:
        run: The run folder.
        scores_round: Round whose scores, and embeddings, are read.
        folder: Of the signals parts, the repeats and the reference.
        fingerprint: For the footers.
        clusters: Name of the clusters of near copies; None without.
        bands: Folder of the bands of captions; None without.
        witness: Folder of what is not joined over near copies yet; None where parts are whole as they are.
        reference: Name of the reference; None without neighbours.
        agreement: Name of the sample that captions are compared with; None without.
        others: Folder of the reference encoder's vectors; None without one.
        canaries: Folder of those of canaries; None without one.
        neighbours: k.
        agreement_neighbours: Nearest captions whose images are asked.
        num_rows: Rows with a cosine, where it speaks against a pair that its caption occurs often among them; else None.
        near_copy: Cosine from which pictures are near copies; None where they are told by hash alone.
        num_threads: Threads of the search.
    """

    run: Store
    scores_round: int
    folder: str
    fingerprint: str
    clusters: str | None
    bands: str | None
    witness: str | None
    reference: str | None
    agreement: str | None
    others: str | None
    canaries: str | None
    neighbours: int
    agreement_neighbours: int
    num_rows: int | None
    near_copy: float | None
    num_threads: int


class Neighbours:
    """Stage: a shard in, its signals part on disk out; returns its number of rows."""

    def __init__(self, target: SignalTarget) -> None:
        """Prepare; nothing is loaded before `open`."""
        self._target = target

    def open(self) -> None:
        """Load the repeats and the samples."""
        target = self._target
        faiss.omp_set_num_threads(target.num_threads)
        self._images, self._captions = (Repeats.read(target.run, repeats_name(target.folder, kind)) for kind in KINDS)
        self._clusters = Repeats.read(target.run, target.clusters) if target.clusters else None
        self._bands = Repeats.read(target.run, f"{target.folder}/{COUNTS}") if target.bands else None
        self._around = None
        if target.reference:
            self._around = Neighbourhood(Reference.read(target.run, target.reference), target.neighbours)
        self._accord = None
        if target.agreement:
            self._accord = accord_of(target, self._clusters)
            self._common = Commonness(self._captions, target.num_rows) if target.num_rows is not None else None

    def run(self, shard: Shard, /) -> int:
        """Write the signals of one shard, row for row."""
        target = self._target
        columns = ["cosine", "image_hash", "caption_hash", *(["caption"] if target.others else [])]
        scores = read_columns(target.run, part_name(target.scores_round, SCORES, shard.name), columns)
        table, folder = pa.table({"signals": self._signals(scores, shard)}), target.folder
        if target.witness is not None and self._clusters is not None:
            images, captions = (scores[name].fill_null(0).to_numpy() for name in ("image_hash", "caption_hash"))
            table = witnessed(table["signals"].combine_chunks(), self._clusters.clusters_of(images), captions)
            folder = target.witness
        name = f"{folder}/{shard.name}.parquet"
        return write_part(target.run, name, table.schema, [table], fingerprint=target.fingerprint).num_rows

    def _signals(self, scores: pa.Table, shard: Shard) -> pa.StructArray:
        scored = scores["cosine"].is_valid().to_numpy()
        images, captions = (scores[name].fill_null(0).to_numpy() for name in ("image_hash", "caption_hash"))
        sizes = {
            "image_cluster": images,
            "image_cluster_size": self._images.of(images).clip(max=_MOST),
            "caption_cluster_size": self._captions.of(captions).clip(max=_MOST),
        }
        if self._clusters is not None:
            sizes["near_copy_cluster"] = self._clusters.clusters_of(images)
            sizes["near_copies"] = self._clusters.of(images).clip(max=_MOST)
        if self._bands is not None:
            sizes["caption_copies"] = self._caption_copies(self._bands, shard)
        arrays = {name: pa.array(values, mask=~scored) for name, values in sizes.items()}
        if self._around is not None and scored.any():
            places = pa.array(np.where(scored, np.cumsum(scored) - 1, 0), mask=~scored)
            found = self._near(scores, shard, scored, images)
            arrays |= {name: pa.array(values).take(places) for name, values in found.items()}
        cast = [arrays.get(field.name, pa.nulls(len(scored), field.type)).cast(field.type) for field in SIGNALS]
        return pa.StructArray.from_arrays(cast, fields=list(SIGNALS), mask=pa.array(~scored))

    def _caption_copies(self, counts: Repeats, shard: Shard) -> npt.NDArray[np.int64]:
        """Return how many rows share the most common band of each caption, int64 (n,)."""
        name = f"{self._target.bands}/{shard.name}.parquet"
        bands = read_columns(self._target.run, name, ["bands"])["bands"].combine_chunks()
        found = np.ones(len(bands), np.int64)
        held = bands.is_valid().to_numpy(zero_copy_only=False)
        shared = counts.of(bands.flatten().to_numpy()).reshape(-1, bands.type.list_size)  # flatten leaves out null rows
        found[held] = shared.max(axis=1, initial=1).clip(max=_MOST)
        return found

    def _near(
        self, scores: pa.Table, shard: Shard, scored: npt.NDArray[np.bool_], hashes: npt.NDArray[np.int64]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Return what the vectors say, of the scored rows."""
        target = self._target
        if self._around is None:
            return {}
        vectors = read_columns(target.run, part_name(target.scores_round, EMBEDDINGS, shard.name), ["image", "text"])
        v, t = (unit(vectors_of(vectors[kind])[scored]) for kind in ("image", "text"))
        near = self._around(v, t, hashes[scored])
        found = {name: getattr(near, name) for name in ("outlier", "neighbour_outlier", "caption_agreement")}
        if self._accord is None:
            return found
        rows = Rows(v, t, self._clusters.clusters_of(hashes[scored]) if self._clusters else hashes[scored])
        if target.others is not None:
            others = read_columns(target.run, f"{target.others}/{shard.name}.parquet", ["image"])["image"]
            captions = scores["caption"].filter(pa.array(scored)).fill_null("").to_pylist()
            rows = replace(rows, others=unit(vectors_of(others)[scored]), captions=tuple(captions))
        if self._common is not None:
            rows = replace(rows, common=self._common(scores["caption_hash"].filter(pa.array(scored)).fill_null(0).to_numpy()))
        said = self._accord(rows)
        found |= {"neg_clip_loss": said.neg_clip_loss, "image_agreement": said.image_agreement, "accord": said.accord}
        return found if said.reference_agreement is None else {**found, "reference_agreement": said.reference_agreement}


def accord_of(target: SignalTarget, clusters: Repeats | None) -> Accord:
    """Return what compares rows with the sample; near copies count as one picture in it.

    Args:
        target: Where the sample lies.
        clusters: Of near copies; None where only equal hashes are one picture.
    """
    sample = Reference.read(target.run, target.agreement or "")
    if clusters is not None:
        sample = sample.once_each(clusters.clusters_of(sample.hashes))
    return Accord(sample, target.agreement_neighbours, target.near_copy)
