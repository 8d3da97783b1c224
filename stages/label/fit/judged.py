"""How much of what scores so high is wrong, by pairs that people judged: a logistic curve of the cosine.

The measured null (`stages.label.fit.calibration`) knows captions of other images only. Captions that nearly fit, as a retrieval
crawler, a caption model or an attacker gives, score as right ones do; only who looks can tell. Two parameters are what a few
hundred verdicts can carry; their error is that of resampled verdicts.

Source: the curve is Platt's (1999), of a score against verdicts.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from manifests.errors import SplitRefused
from stages.histogram import NUM_BINS, Histogram, grid_bins
from stages.label.fit.calibration import Calibration

FEWEST_JUDGED: Final = 50
_RESAMPLES: Final = 200
_CUT_BY: Final = 0.84  # a standard error above the estimate, as in `calibrated`
_INTERVAL: Final = (0.025, 0.975)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judged:
    """Pairs of an earlier round that people judged, with their cosines in this one.

    Attributes:
        round_number: The round that they were drawn from.
        cosines: float64 (n,).
        wrong: What people say: bool (n,).
        weights: How many rows each stands for, float64 (n,).
    """

    round_number: int
    cosines: Floats
    wrong: npt.NDArray[np.bool_]
    weights: Floats


@dataclass(frozen=True, slots=True)
class PeopleSay:
    """What was estimated.

    Attributes:
        calibration: For the cut: its `tail` is a standard error above the estimate, its `local` the estimate.
        tail: At every grid point, the estimated share of wrong pairs among all at or above it, float64 (2**20 + 1,).
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    calibration: Calibration
    tail: Floats
    low: Floats
    high: Floats

    def at(self, cut: float) -> tuple[float, float, float]:
        """Return the share of wrong pairs among all at or above a cosine, and the ends of its 95 % interval."""
        place = int(grid_bins(np.asarray([cut], np.float32))[0])
        return float(self.tail[place]), float(self.low[place]), float(self.high[place])

    def doubt(self, alpha: float) -> str:
        """Return why there is no cut."""
        found = self.calibration
        return (
            f"by {found.num_nulls:,} pairs that people judged no cut leaves at most {alpha:.2%} wrong (--alpha) and none above "
            f"--max-p-mismatch: at best {float(found.tail.min()):.2%} are, a standard error added; of all pairs "
            f"{found.mismatched_share:.1%} are estimated to be wrong"
        )


def calibrate_by_people(pairs: Histogram, judged: Judged | None) -> PeopleSay:
    """Estimate the share of wrong pairs above every cosine.

    Args:
        pairs: Cosines of all scored pairs, one at least.
        judged: What people said; None where nobody judged a sample.

    Raises:
        SplitRefused: Too few pairs were judged.
    """
    num = 0 if judged is None else len(judged.wrong)
    if judged is None or num < FEWEST_JUDGED:
        raise SplitRefused(
            f"rule 'judged' asks people: {FEWEST_JUDGED} judged pairs of a sample at least, there are {num}. "
            "`pairsan review RUN --sample 200` draws one and shows it without its labels"
        )
    values, counts = pairs.occupied()
    rng = np.random.default_rng(0)
    whole = _curve(judged, np.arange(num), values, rng)
    tails = [_tail(_curve(judged, rng.integers(0, num, num), values, rng), counts) for _ in range(_RESAMPLES)]
    low, cut_by, high = np.quantile(tails, (_INTERVAL[0], _CUT_BY, _INTERVAL[1]), axis=0)
    tail = _tail(whole, counts)
    place = np.searchsorted(grid_bins(values.astype(np.float32)), np.arange(NUM_BINS))  # the next cosine that occurs

    def on_grid(found: Floats, beyond: float) -> Floats:
        return np.append(found, beyond)[place]

    local = on_grid(whole, float(whole[-1])).astype(np.float32)
    # an estimate may lie beyond the resampled ones where the verdicts are few; the cut takes the worse of both
    calibration = Calibration(float(tail[0]), num, on_grid(np.maximum(cut_by, tail), np.inf), local)
    return PeopleSay(calibration, *(on_grid(found, np.nan) for found in (tail, np.minimum(low, tail), np.maximum(high, tail))))


def _curve(judged: Judged, rows: npt.NDArray[np.int64], values: Floats, rng: np.random.Generator) -> Floats:
    """Return the probability of being wrong at some cosines, never rising, by some of the verdicts."""
    cosines, wrong, weights = (column[rows] for column in (judged.cosines, judged.wrong, judged.weights))
    num, hits = len(rows), int(wrong.sum())
    centre, spread = float(judged.cosines.mean()), float(judged.cosines.std()) or 1.0
    if 0 < hits < num:
        fit: Any = LogisticRegression(C=1e3)
        fit.fit(((cosines - centre) / spread)[:, None], wrong, sample_weight=weights * num / weights.sum())
        if fit.coef_[0, 0] < 0:
            found: Floats = fit.predict_proba(((values - centre) / spread)[:, None])[:, 1]
            return found
        return np.full(len(values), float(np.average(wrong, weights=weights)))  # the score says nothing, or the opposite
    return np.full(len(values), rng.beta(hits + 0.5, num - hits + 0.5))  # all say the same: Jeffreys' posterior


def _tail(wrong: Floats, counts: npt.NDArray[np.int64]) -> Floats:
    """Return the mean over all rows at or above each cosine."""
    found: Floats = (wrong * counts)[::-1].cumsum()[::-1] / counts[::-1].cumsum()[::-1]
    return found
