"""One decision on a round, which every shard can apply by itself."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.histogram import grid_bins
from stages.label.fit.calibration import Calibration
from stages.label.fit.judged import PeopleSay
from stages.label.fit.mixture import Mixture
from stages.label.fit.reliability import Reliability
from stages.label.fit.strata import Codes, Strata
from stages.label.limits import Limit


@dataclass(frozen=True, slots=True)
class Decision:
    """How every row is labelled; the same for all shards.

    Attributes:
        rule: The rule that was applied: the one asked for, or `quantile` where that one was not believed.
        mixture: The fit; None where there was nothing to fit.
        cut: Rows at or above this cosine are safe; None under `published`, which cuts on the posterior.
        min_posterior: Least raw posterior of a safe row under `published`, else None.
        ranks: Share of rows with a higher cosine at every grid point, float32 (2**20 + 1,).
        num_scored: Rows with a cosine.
        num_safe: Rows that the cut calls safe, before any limit.
        doubts: Sentences on what speaks against believing the asked-for rule; empty where nothing does.
        limits: What signals must allow beside the cut.
        calibration: What was estimated from the measured null, under `calibrated`; else None.
        strata: The same for groups of rows, with cuts of their own; None without.
        separation: Of a round that looks again: AUROC of pairs against mismatched pairs, out of sample.
        reliability: What the null says of the score, whatever the rule; None where there are too few mismatched pairs.
        people: What people's verdicts say of the cosines, under `judged`; else None.
    """

    rule: str
    mixture: Mixture | None
    cut: float | None
    min_posterior: float | None
    ranks: npt.NDArray[np.float32]
    num_scored: int
    num_safe: int
    doubts: tuple[str, ...]
    limits: tuple[Limit, ...] = ()
    calibration: Calibration | None = None
    strata: Strata | None = None
    separation: float | None = None
    reliability: Reliability | None = None
    people: PeopleSay | None = None

    @property
    def share_above_cut(self) -> float:
        """Share of the scored rows that the cut calls safe, before any limit."""
        return self.num_safe / max(1, self.num_scored)

    def is_safe(self, cosines: npt.NDArray[np.float32], codes: Codes | None = None) -> npt.NDArray[np.bool_]:
        """Return which finite cosines are safe, in the stratum of each where there are strata: bool (n,)."""
        if self.strata is not None and codes is not None:
            return self.strata.is_safe(cosines, codes)
        if self.cut is not None:
            return cosines >= np.float32(self.cut)
        if self.mixture is None or self.min_posterior is None:
            raise ValueError("a decision has a cut, or a mixture and a least posterior")
        return self.mixture.posterior(cosines.astype(np.float64)) >= self.min_posterior

    def p_safe(self, cosines: npt.NDArray[np.float32], codes: Codes | None = None) -> npt.NDArray[np.float32]:
        """Return the posterior of the matching component, float32 (n,); 1 - rank where no mixture could be fitted."""
        mismatch = self.p_mismatch(cosines, codes)
        if mismatch is not None:
            return (1.0 - mismatch).astype(np.float32)
        if self.mixture is None:
            return (1.0 - self.rank(cosines)).astype(np.float32)
        wide = cosines.astype(np.float64)
        posterior = self.mixture.posterior if self.rule == "published" else self.mixture.monotone_posterior
        return posterior(wide).astype(np.float32)

    def p_mismatch(self, cosines: npt.NDArray[np.float32], codes: Codes | None = None) -> npt.NDArray[np.float32] | None:
        """Return the probability of being mismatched, float32 (n,); None but under `calibrated` and `judged`."""
        if self.strata is not None and codes is not None:
            return self.strata.p_mismatch(cosines, codes)
        return None if self.calibration is None else self.calibration.local[grid_bins(cosines)]

    def rank(self, cosines: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the share of rows with a higher cosine, float32 (n,)."""
        return self.ranks[grid_bins(cosines)]
