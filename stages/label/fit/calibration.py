"""How much of what scores so high is mismatched: the two-groups model with a measured null.

The cosines of all pairs are a mixture f = pi0 f0 + (1 - pi0) f1. f0, the cosines of mismatched pairs, is measured
(`stages.score.null_cosines`) and f1 is left open; of its shape nothing is assumed but that higher cosines are less often
mismatched.

Source: Efron, Large-Scale Inference (2010), chapters 2 and 5 (two groups, local and tail false discovery rate); Storey, JRSS B
64 (2002), for pi0, here on the side where only mismatches lie: the low cosines.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import beta
from sklearn.isotonic import IsotonicRegression

from stages.histogram import NUM_BINS, Counts, Histogram, grid_bins, grid_values

_STARTS: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
_COARSE: Final = 512
FEWEST_NULLS: Final = 1_000
LEAST_NULLS: Final = 200  # below `FEWEST_NULLS` the upper end of the interval stands in for the estimate
_Z: Final = 1.96


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was estimated.

    Attributes:
        mismatched_share: pi0, in [0, 1].
        num_nulls: Mismatched pairs that f0 was measured on.
        tail: At every grid point, the estimated share of mismatched pairs among all at or above it, float64 (2**20 + 1,).
        local: At every grid point, the probability that a pair of that cosine is mismatched, never rising; float32.
    """

    mismatched_share: float
    num_nulls: int
    tail: npt.NDArray[np.float64]
    local: npt.NDArray[np.float32]

    def cut(self, alpha: float, most: float = 1.0) -> float | None:
        """Return the lowest cosine that may be safe; None where there is none.

        Args:
            alpha: Of the pairs at or above it, at most this share is mismatched.
            most: A pair of that cosine is mismatched with at most this probability. Where nearly all pairs match, `alpha` alone
                would let in pairs that are mismatched for certain, since the others make up for them.
        """
        allowed = np.flatnonzero((self.tail <= alpha) & (self.local <= most))
        return float(grid_values(allowed[:1])[0]) if len(allowed) else None

    def tail_at(self, cut: float) -> float:
        """Return the estimated share of mismatched pairs among all at or above a cosine."""
        return float(self.tail[int(grid_bins(np.asarray([cut], np.float32))[0])])

    def doubt(self, alpha: float) -> str:
        """Return why there is no cut."""
        return (
            f"no cut leaves at most {alpha:.2%} mismatched (--alpha) and nobody above --max-p-mismatch: the best has "
            f"{float(self.tail.min()):.2%}, as this checkpoint hardly tells mismatched pairs from others; "
            f"{self.mismatched_share:.1%} of all are estimated to be mismatched"
        )


def calibrate(pairs: Histogram, nulls: Histogram, *, errors: float = 1.0) -> Calibration:
    """Estimate everything from the histograms of all pairs and of all mismatched ones.

    Args:
        pairs: Cosines of all scored pairs, one at least.
        nulls: Cosines of mismatched pairs, `LEAST_NULLS` at least for the result to mean anything.
        errors: Standard errors that are added to the estimate of pi0. Above 0 few rows do not let mismatches in; below 0 they
            do not throw matches out.
    """
    num, num_nulls = pairs.num_rows, max(1, nulls.num_rows)
    above, above_null = _at_least(pairs.counts) / num, _at_least(nulls.counts) / num_nulls
    few = num_nulls < FEWEST_NULLS
    share = mismatched_share(pairs, nulls, max(errors, _Z) if few else errors)
    if few:
        above_null = _upper(above_null, num_nulls)
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = np.where(above > 0, np.minimum(1.0, share * above_null / above), np.inf)  # nobody is there: nothing to claim
    return Calibration(share, nulls.num_rows, tail, _local(pairs.counts, nulls.counts, share))


def _upper(shares: npt.NDArray[np.float64], num: int) -> npt.NDArray[np.float64]:
    """Return the upper ends of the 95 % intervals (Clopper-Pearson) of shares of so many."""
    hits = np.rint(shares * num).astype(int)
    ends = beta.ppf(0.975, np.arange(num) + 1, num - np.arange(num))
    found: npt.NDArray[np.float64] = np.append(ends, 1.0)[hits]
    return found


def _at_least(counts: Counts) -> npt.NDArray[np.float64]:
    return counts[::-1].cumsum()[::-1].astype(np.float64)


def mismatched_share(pairs: Histogram, nulls: Histogram, errors: float) -> float:
    """Return pi0: where only mismatches lie, the data hold pi0 times what the null does.

    Every starting point gives an estimate that matching pairs can only raise; the lowest is taken, each with some of its
    standard error on top.
    """
    num = pairs.num_rows
    below = 1.0 - _at_least(pairs.counts) / num
    below_null = 1.0 - _at_least(nulls.counts) / max(1, nulls.num_rows)
    found = []
    for start in _STARTS:
        place = min(int(np.searchsorted(below_null, start)), NUM_BINS - 1)
        share, null = float(below[place]), float(below_null[place])
        if null > 0:
            error = np.sqrt(max(share, 1.0 / num) * (1.0 - min(share, 1.0)) / num)
            found.append(max(0.0, share + errors * float(error)) / null)
    return min(1.0, min(found, default=1.0))


def _local(pairs: Counts, nulls: Counts, share: float) -> npt.NDArray[np.float32]:
    """Return the local false discovery rate on the grid: a ratio of counts in coarse bins, made monotone."""
    used = np.flatnonzero(pairs + nulls)
    edges = np.unique(np.linspace(used[0], used[-1] + 1, _COARSE + 1).astype(int))
    rows, null = (np.add.reduceat(counts, edges[:-1]).astype(np.float64) for counts in (pairs, nulls))
    expected = share * null / max(1, nulls.sum()) * pairs.sum()
    held = rows > 0
    # what is expected where nobody happens to be goes to the next row above; left out, it would make every ratio too low
    reached = expected.cumsum()[held]
    ratio = np.diff(reached, prepend=0.0) / rows[held]  # not yet clipped: noise on both sides of 1 must average to 1
    centres = ((edges[:-1] + edges[1:]) / 2)[held]
    fit = IsotonicRegression(y_min=0.0, y_max=1.0, increasing=False, out_of_bounds="clip")
    fit.fit(centres, ratio, sample_weight=rows[held])
    found: npt.NDArray[np.float32] = fit.predict(np.arange(NUM_BINS)).astype(np.float32)
    return found
