"""What is known of a score whatever rule cuts it: does it tell pairs apart, and how much of what is called safe is mismatched.

A fixed share of any score can be kept, also of one that says nothing. The measured null (`stages.score.null_cosines`) tells the
two apart without a label: where exchanged pairs score as the others do, no share of the score is a choice of pairs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from stages.histogram import Histogram
from stages.label.fit.calibration import LEAST_NULLS, mismatched_share

LEAST_SEPARATION: Final = 0.55
_MOST_MISMATCHED: Final = 0.5
_Z: Final = 1.96  # of 95 %
Safe = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Reliability:
    """What the seal says of a score.

    Attributes:
        separation: How often a pair scores above an exchanged one, ties half: AUROC, in [0, 1]; 0.5 says nothing.
        separation_high: Upper end of its 95 % interval.
        mismatched_share: Estimated share of mismatched pairs among all scored rows, a standard error added; None
            of a round that looks again, which asks some of them only.
        of_safe: The same among the safe rows, before limits of signals; None where nothing is safe.
        low: Lower end of the 95 % interval of `of_safe`.
        high: Upper end.
    """

    separation: float
    separation_high: float
    mismatched_share: float | None
    of_safe: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def separates(self) -> bool:
        """Whether the score tells pairs apart, or at least the few rows that are safe where nearly all are mismatched."""
        return self.separation_high >= LEAST_SEPARATION or (self.of_safe is not None and self.of_safe < _MOST_MISMATCHED)

    def over(self, parts: list[tuple[int, "Reliability"]]) -> "Reliability":
        """Return the same with the estimate over groups of rows that have cuts of their own, by the safe rows of each."""
        held = [(num, part.of_safe, part.low, part.high) for num, part in parts if num and part.of_safe is not None]
        if not held:
            return self
        weights, *columns = np.asarray(held, np.float64).T
        of_safe, low, high = (float(np.average(column, weights=weights)) for column in columns)
        return replace(self, of_safe=of_safe, low=low, high=high)


def separation(pairs: Histogram, nulls: Histogram) -> float:
    """Return how often a pair scores above a mismatched one, ties half: area under the ROC curve, in [0, 1]."""
    below = nulls.counts.cumsum() - nulls.counts / 2
    return float((pairs.counts * below).sum() / max(1, pairs.num_rows) / max(1, nulls.num_rows))


def reliability(pairs: Histogram, nulls: Histogram | None, is_safe: Safe | None, num_safe: int) -> Reliability | None:
    """Return what the null says of a score and of a choice of rows by it; None where there are too few mismatched pairs.

    The interval joins three errors, each at 95 %, and so is rather wide: that of the share of all rows that is mismatched, that
    of the share of the null that would be safe (Clopper-Pearson; the four null cosines of a row count as independent), and how
    many of just these safe rows happen to be (Poisson).

    Args:
        pairs: Cosines of all scored pairs.
        nulls: Cosines of mismatched pairs.
        is_safe: Which cosines are safe; None where nothing is.
        num_safe: Rows that are.
    """
    if nulls is None or nulls.num_rows < LEAST_NULLS or not pairs.num_rows:
        return None
    apart = separation(pairs, nulls)
    high = apart + _Z * math.sqrt((1 / pairs.num_rows + 1 / nulls.num_rows) / 12)  # its error where nothing is told apart
    low_share, share, high_share = (mismatched_share(pairs, nulls, errors) for errors in (-_Z, 1.0, _Z))
    if is_safe is None or not num_safe:
        return Reliability(apart, high, share)
    values, counts = nulls.occupied()
    beyond = int(counts[is_safe(values.astype(np.float32))].sum())
    scale = pairs.num_rows / num_safe
    ends = binomtest(beyond, nulls.num_rows).proportion_ci(0.95, "exact")
    of_safe, low, most = (
        min(1.0, part * rate * scale)
        for part, rate in ((share, beyond / nulls.num_rows), (low_share, ends.low), (high_share, ends.high))
    )
    low, most = (end + sign * _Z * math.sqrt(end / num_safe) for end, sign in ((low, -1), (most, 1)))
    return Reliability(apart, high, share, of_safe, max(0.0, low), min(1.0, most))
