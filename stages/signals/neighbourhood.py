"""How the image vector of a row lies among those of a sample, and what the captions around it say."""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from stages.histogram import on_grid
from stages.signals.nearest import Nearest
from stages.signals.repeats import Counts
from stages.signals.sample import Reference
from stages.signals.signal_parts import REFERENCE, Known, Source
from stages.vectors import unit

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Nearby:
    """What is known of the neighbours of some rows; float32 (n,) each.

    Attributes:
        outlier: 1 - cosine of the k-th neighbour, in [0, 2].
        neighbour_outlier: The median of the same over the k neighbours: a row at the edge of a crowd has members of it around.
        half_outlier: As `outlier`, of the k/2-th: a crowd of fewer than k in the sample shows there alone.
        neighbour_half_outlier: The median of the same over the k/2 neighbours.
        caption_agreement: Cosine of the caption with the mean caption vector of the k neighbours, in [-1, 1].
    """

    outlier: Vectors
    neighbour_outlier: Vectors
    half_outlier: Vectors
    neighbour_half_outlier: Vectors
    caption_agreement: Vectors


class Neighbourhood:
    """Compares rows with a sample. Copies of a row's image (equal hashes, itself too) are not among its neighbours.

    Attributes:
        own: Distance of the k-th neighbour of each row of the sample, float32 (r,); and of the k/2-th.

    Source: k-nearest-neighbour distance: Ramaswamy, Rastogi, Shim (SIGMOD 2000), here on unit vectors.
    """

    def __init__(self, reference: Reference, k: int) -> None:
        """Index the sample, and see how its own rows lie.

        Args:
            reference: The sample.
            k: How many neighbours; fewer where the sample is smaller.
        """
        self._reference, self._k = reference, k
        self._nearest = Nearest(reference.images, exact=True)
        found = self.neighbours(reference.images, reference.hashes)
        self.own = tuple(self.distance(reference.images, near) for near in _both(found))

    def __call__(self, v: Vectors, t: Vectors, hashes: npt.NDArray[np.int64]) -> Nearby:
        """Return what is known of the neighbours of some rows.

        Args:
            v: Unit vectors of the images, float32 (n, d).
            t: Unit vectors of their captions, float32 (n, d).
            hashes: Of the images, int64 (n,).
        """
        found = self.neighbours(v, hashes)
        if not found.shape[1]:
            return Nearby(*(np.zeros(len(v), np.float32) for _ in fields(Nearby)))
        (near, half), (own, half_own) = _both(found), self.own
        lies = self.distance(v, near), _median(own[near]), self.distance(v, half), _median(half_own[half])
        # by place: neighbours as near as each other come in any order
        mean = unit(np.stack([self._reference.texts[rows].mean(0) for rows in np.sort(found, axis=1)]) if len(found) else t)
        return Nearby(*lies, np.einsum("nd,nd->n", t, mean).astype(np.float32))

    def neighbours(self, v: Vectors, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the places of the neighbours in the sample, nearest first, int64 (n, k)."""
        wanted = min(self._k + 1, len(self._reference.hashes))
        found = self._nearest.places(v, wanted)
        copies = self._reference.hashes[found] == hashes[:, None]
        drop = np.where(copies.any(1), copies.argmax(1), wanted - 1)  # the copy, else the farthest
        keep = np.arange(wanted)[None] != drop[:, None]
        places: npt.NDArray[np.int64] = found[keep].reshape(len(v), -1)
        return places

    def distance(self, v: Vectors, found: npt.NDArray[np.int64]) -> Vectors:
        """Return the distance of the last neighbour, on the grid, so that its histogram loses nothing.

        It is taken anew: in the last digits of what FAISS says, the number of its threads shows.
        """
        if not found.shape[1]:
            return np.zeros(len(v), np.float32)
        last = self._reference.images[found[:, -1]].astype(np.float64)
        return (1.0 - on_grid(np.einsum("nd,nd->n", v.astype(np.float64), last))).astype(np.float32)


def _both(found: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return all neighbours, and the nearer half of them."""
    return found, found[:, : (found.shape[1] + 1) // 2]


def _median(values: Vectors) -> Vectors:
    """Return the lower median of each line, (n,)."""
    middle = (values.shape[1] - 1) // 2
    median: Vectors = np.partition(values, middle, axis=1)[:, middle]
    return median


def neighbour_signals(counts: Counts) -> Source | None:
    """Return how an image vector lies among those of the reference; None where neighbours are not sought."""
    parts = counts.parts
    if not parts.asked.near:
        return None
    around = Neighbourhood(Reference.read(parts.run, parts.name(REFERENCE)), parts.asked.neighbours)

    def source(rows: Known) -> dict[str, Vectors]:
        if rows.v is None or rows.t is None:
            return {}
        near = around(rows.v, rows.t, rows.images)
        return {field.name: getattr(near, field.name) for field in fields(near)}

    return source
