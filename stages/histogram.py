"""A lossless histogram of cosines: one counter for every point of the grid that cosines are stored on."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from manifests.schema import COSINE_STEP

NUM_BINS: Final = round(2.0 / COSINE_STEP) + 1
_GRID_PER_UNIT: Final = round(1.0 / COSINE_STEP)
_SPARSE_BELOW: Final = 200_000

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SparseCounts:
    """The occupied bins of one shard, in the smallest integers that hold them: this is what workers send the driver.

    Attributes:
        first: The lowest occupied bin.
        gaps: Distance of each occupied bin to the one before, unsigned (k,); 0 for the first.
        counts: Rows in each, unsigned (k,).
    """

    first: int
    gaps: npt.NDArray[np.unsignedinteger[Any]]
    counts: npt.NDArray[np.unsignedinteger[Any]]

    @property
    def bins(self) -> npt.NDArray[np.int64]:
        """The occupied bins, ascending."""
        return self.first + np.cumsum(self.gaps, dtype=np.int64)


def on_grid(cosines: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Round cosines to the grid they are stored on (steps of 2**-19), inside [-1, 1]; NaN stays NaN."""
    steps = np.rint(np.clip(cosines, -1.0, 1.0) * _GRID_PER_UNIT)
    rounded: npt.NDArray[np.float32] = (steps * COSINE_STEP + 0.0).astype(np.float32)  # + 0.0: no negative zero
    return rounded


def grid_bins(cosines: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Return the grid position of each cosine: int32 in [0, 2**20], -1 -> 0, 1 -> 2**20. Must be finite."""
    bins: npt.NDArray[np.int32] = np.rint((cosines.astype(np.float64) + 1.0) / COSINE_STEP).astype(np.int32)
    return bins


def grid_values(bins: npt.NDArray[np.int32] | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the cosines at grid positions, float64, exact."""
    values: npt.NDArray[np.float64] = bins.astype(np.float64) * COSINE_STEP - 1.0
    return values


def count(cosines: npt.NDArray[np.float32]) -> SparseCounts:
    """Count the finite cosines of one shard."""
    bins = grid_bins(cosines)
    if len(bins) < _SPARSE_BELOW:
        occupied, counts = np.unique(bins, return_counts=True)
    else:
        dense = np.bincount(bins, minlength=NUM_BINS)
        occupied = np.flatnonzero(dense).astype(np.int32)
        counts = dense[occupied]
    gaps = np.diff(occupied, prepend=occupied[:1])
    return SparseCounts(int(occupied[0]) if len(occupied) else 0, _small(gaps), _small(counts))


def _small(numbers: npt.NDArray[Any]) -> npt.NDArray[np.unsignedinteger[Any]]:
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


class Histogram:
    """Counts of all shards together; 8 MiB, whatever the number of rows.

    Attributes:
        counts: int64 (2**20 + 1,), one per grid point.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.counts: Counts = np.zeros(NUM_BINS, np.int64)

    def add(self, part: SparseCounts) -> None:
        """Add one shard; the order of shards does not matter."""
        self.counts[part.bins] += part.counts.astype(np.int64)

    @property
    def num_rows(self) -> int:
        """How many cosines were counted."""
        return int(self.counts.sum())

    def occupied(self) -> tuple[npt.NDArray[np.float64], Counts]:
        """Return the distinct cosines, ascending, and how often each occurs."""
        bins = np.flatnonzero(self.counts)
        return grid_values(bins), self.counts[bins]

    def rows(self) -> npt.NDArray[np.float32]:
        """Return every counted cosine, sorted; memory grows with the rows."""
        values, counts = self.occupied()
        return np.repeat(values.astype(np.float32), counts)

    def num_at_least(self, cut: float) -> int:
        """Return how many cosines are at or above `cut`."""
        first = max(0, int(np.ceil((cut + 1.0) / COSINE_STEP - 1e-9)))
        return int(self.counts[first:].sum())

    def ranks(self) -> npt.NDArray[np.float32]:
        """Return, for every grid point, the share of rows with a higher cosine; float32 (2**20 + 1,)."""
        above = self.counts[::-1].cumsum()[::-1] - self.counts
        shares: npt.NDArray[np.float32] = (above / max(1, self.num_rows)).astype(np.float32)
        return shares

    def cut_for_share(self, share: float) -> float:
        """Return the greatest grid cosine at or above which at least `share` of the rows lie.

        Args:
            share: In (0, 1]; rows that tie at the cut are all kept.
        """
        wanted = max(1, int(np.ceil(share * self.num_rows - 1e-9)))
        from_top = self.counts[::-1].cumsum()
        return float(grid_values(np.asarray([NUM_BINS - 1 - int(np.searchsorted(from_top, wanted))]))[0])

    def cut_above_share(self, share: float) -> float:
        """Return the grid value below which about a share of the rows lies; `cut_for_share` from the other end."""
        return self.cut_for_share(1.0 - min(share, 1.0 - 1e-9))

    def coarse(self, num_bins: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return at most `num_bins` bins of equal width over the occupied range: their mean cosines and counts."""
        values, counts = self.occupied()
        if len(values) <= num_bins:
            return values, counts.astype(np.float64)
        place = ((values - values[0]) / (values[-1] - values[0]) * num_bins).astype(np.int64).clip(0, num_bins - 1)
        total = np.bincount(place, weights=counts, minlength=num_bins)
        means = np.bincount(place, weights=values * counts, minlength=num_bins)
        used = total > 0
        return means[used] / total[used], total[used].astype(np.float64)
