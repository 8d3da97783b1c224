"""Label policy: from the histogram of all cosines to one decision that every shard can apply by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from manifests.errors import SplitRefused
from manifests.schema import COSINE_STEP, LIMITS, SIGNAL_TABLE, Bound, Reason
from stages.histogram import NUM_BINS, Histogram, grid_bins, grid_values
from stages.label.calibration import FEWEST_NULLS, Calibration, calibrate
from stages.label.crowds import crowd_cut
from stages.label.mixture import Mixture, fit_mixture, published_mixture
from stages.label.settings import SplitSettings
from stages.label.strata import Codes, Strata, calibrate_strata

_MOST_CROWDED: Final = 0.5
_TOPS: Final = {signal.name: signal.top for signal in SIGNAL_TABLE}


@dataclass(frozen=True, slots=True)
class Limit:
    """What a signal of a safe row may be at most and at least.

    Attributes:
        reason: Of the rows beyond it.
        signal: Field of the `signals` column.
        least: Lower values are not safe; None for no bound.
        most: Higher values are not safe; None for no bound.
    """

    reason: Reason
    signal: str
    least: float | None = None
    most: float | None = None

    def allows(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Return which values are inside, bool (n,); NaN never is: what is not known is not safe."""
        inside = ~np.isnan(values)
        if self.least is not None:
            inside &= values >= self.least
        if self.most is not None:
            inside &= values <= self.most
        return inside


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
        """Return the probability of being mismatched, float32 (n,); None but under `calibrated`."""
        if self.strata is not None and codes is not None:
            return self.strata.p_mismatch(cosines, codes)
        return None if self.calibration is None else self.calibration.local[grid_bins(cosines)]

    def rank(self, cosines: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the share of rows with a higher cosine, float32 (n,)."""
        return self.ranks[grid_bins(cosines)]


def decide(
    histogram: Histogram,
    settings: SplitSettings,
    *,
    nulls: Histogram | None = None,
    signals: Mapping[str, Histogram] | None = None,
    strata: Mapping[int, tuple[Histogram, Histogram]] | None = None,
) -> Decision:
    """Choose the cut, and the limits of signals.

    Args:
        histogram: Cosines of all shards.
        settings: The rule and what counts as believable.
        nulls: Cosines of mismatched pairs of all shards; for `calibrated`.
        signals: Values of signals over all shards, by name, those of which only shares are limited; see `counted_as`.
        strata: Cosines, and cosines of mismatched pairs, of every stratum; for `null_strata`.

    Raises:
        SplitRefused: Nothing was scored, or the rule cannot be believed and `if_unseparable` is `fail`.
    """
    num_scored = histogram.num_rows
    if num_scored == 0:
        raise SplitRefused("no row has a cosine, so there is nothing to split; `pairsan status` lists the reasons")
    published = settings.rule == "published"
    mixture = published_mixture(histogram, settings.seed) if published else fit_mixture(histogram)
    calibration = _calibrated(histogram, nulls) if settings.rule == "calibrated" else None
    cut, min_posterior = (
        (calibration.cut(settings.alpha, settings.max_p_mismatch), None) if calibration else _cut(histogram, mixture, settings)
    )
    groups = None
    if calibration is not None and settings.null_strata is not None:
        groups = calibrate_strata(settings.null_strata, strata or {}, calibration, settings.alpha, settings.max_p_mismatch)
        # strata may find safe rows where no single cut does; the seal's `cut` is then the lowest of theirs
        cut = cut if cut is not None or not groups.num_safe else float(groups.cuts.min())
    num_safe = groups.num_safe if groups else _num_safe(histogram, mixture, cut, min_posterior)
    doubts = () if published else tuple(_doubts(mixture, cut, num_safe / num_scored, settings, calibration))
    rule = settings.rule
    if doubts:
        if settings.if_unseparable == "fail" or settings.fallback_share is None:
            raise SplitRefused(_refusal(doubts, num_scored, settings))
        rule, cut = "quantile", histogram.cut_for_share(settings.fallback_share)  # type: ignore[assignment]
        num_safe, calibration, groups = histogram.num_at_least(cut), None, None
    limits = limits_of(settings, signals or {})
    ranks = histogram.ranks()
    return Decision(rule, mixture, cut, min_posterior, ranks, num_scored, num_safe, doubts, limits, calibration, groups)


def _calibrated(histogram: Histogram, nulls: Histogram | None) -> Calibration:
    if nulls is None or nulls.num_rows < FEWEST_NULLS:
        num = 0 if nulls is None else nulls.num_rows
        raise SplitRefused(
            f"rule 'calibrated' measures how mismatched pairs score, on {FEWEST_NULLS:,} of them at least, and there are "
            f"{num:,}. Each row gives 4, in chunks of 8 rows or more; scores of pairsan 0.1.0 have none. Score again, or use "
            "another rule."
        )
    return calibrate(histogram, nulls)


def counted_as(signal: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return values of a signal as histograms hold them: on the grid of cosines, so that [0, 2] is counted as 1 - value."""
    return (1.0 - values.astype(np.float64)).astype(np.float32) if _TOPS[signal] > 1.0 else values


def limits_of(settings: SplitSettings, counted: Mapping[str, Histogram]) -> tuple[Limit, ...]:
    """Turn settings into limits, in the order in which they may name a row's reason; the table of signals says which.

    Args:
        settings: They name signals and bounds.
        counted: Values of signals over all shards, by name.

    Raises:
        SplitRefused: Crowds would be no minority.
    """
    limits: list[Limit] = []
    for limit, signal in LIMITS:
        asked = getattr(settings, limit.setting)
        if not asked or (limit.counted is not None and limit.counted not in counted):
            continue
        if limit.counted is None:
            limits.append(Limit(limit.reason, signal.name, most=asked))
        else:
            bound = _bound(limit.bound, asked, counted[limit.counted], mirrored=_TOPS[limit.counted] > 1.0)
            limits.append(Limit(limit.reason, signal.name, **bound))
    return tuple(limits)


def _bound(kind: Bound, share: float, values: Histogram, *, mirrored: bool) -> dict[str, float]:
    """Return where a share of the rows, or of the ordinary ones, ends; `mirrored` values are counted as 1 - value."""
    if kind == Bound.CROWD:
        return {"least": _believed(crowd_cut(values, share), values)}
    between = COSINE_STEP / 2  # the middle to the next value on the grid: the rows at the cut are among those flagged
    if kind == Bound.HIGHEST_SHARE:
        return {"most": 1.0 - values.cut_above_share(share) if mirrored else values.cut_for_share(share) - between}
    return {"least": 1.0 - values.cut_for_share(share) + between if mirrored else values.cut_above_share(share)}


def _believed(cut: float, closeness: Histogram) -> float:
    """Return a cut that leaves most rows.

    Raises:
        SplitRefused: It does not, so what was taken for the ordinary rows is no majority.
    """
    num = closeness.num_at_least(1.0 - cut + COSINE_STEP / 2)  # what lies at the cut is not nearer than it
    if num > _MOST_CROWDED * closeness.num_rows:
        raise SplitRefused(
            f"{num:,} of {closeness.num_rows:,} scored rows would be crowded (nearer than {cut:.4f} to their k-th neighbour), "
            f"believed is at most {_MOST_CROWDED:.0%}; choose a --crowded-share, or a larger --reference-rows"
        )
    return cut


def _cut(histogram: Histogram, mixture: Mixture | None, settings: SplitSettings) -> tuple[float | None, float | None]:
    """Return (least cosine, least posterior) of a safe row; both None where the rule finds no place to cut."""
    if settings.rule == "keep-share":
        return (histogram.cut_for_share(settings.keep_share) if settings.keep_share else None), None
    if settings.rule == "min-cosine":
        return settings.min_cosine, None
    if mixture is None:
        return None, None
    if settings.rule == "published":
        return None, _published_posterior(histogram, mixture, settings)
    return mixture.cut(settings.threshold, grid_values(np.arange(NUM_BINS))), None


def _published_posterior(histogram: Histogram, mixture: Mixture, settings: SplitSettings) -> float:
    """Return the threshold; or, with a share to keep, the posterior above which that share lies: ranking by posterior."""
    if settings.keep_share is None:
        return settings.threshold
    values, counts = histogram.occupied()
    posterior = mixture.posterior(values)
    order = np.argsort(-posterior, kind="stable")
    last = int(np.searchsorted(counts[order].cumsum(), settings.keep_share * histogram.num_rows))
    return float(posterior[order][min(last, len(order) - 1)])


def _num_safe(histogram: Histogram, mixture: Mixture | None, cut: float | None, min_posterior: float | None) -> int:
    if cut is not None:
        return histogram.num_at_least(cut)
    if mixture is None or min_posterior is None:
        return 0
    values, counts = histogram.occupied()
    return int(counts[mixture.posterior(values) >= min_posterior].sum())


def _doubts(
    mixture: Mixture | None, cut: float | None, safe_share: float, settings: SplitSettings, calibration: Calibration | None
) -> list[str]:
    """Return what speaks against the split. A share or cosine chosen by the user needs no mixture to be believed."""
    doubts: list[str] = []
    if calibration is not None:
        if cut is None:
            best, share = float(calibration.tail.min()), calibration.mismatched_share
            doubts.append(
                f"no cut leaves at most {settings.alpha:.2%} mismatched (--alpha) and nobody above --max-p-mismatch: the "
                f"best has {best:.2%}, as this checkpoint hardly tells mismatched pairs from others; {share:.1%} of all are "
                "estimated to be mismatched"
            )
        elif safe_share < settings.min_safe_share:
            doubts.append(f"only {safe_share:.2%} of the scored rows would be safe (--min-safe-share, --alpha)")
        return doubts
    if settings.rule == "monotone":
        if mixture is None:
            return ["there are too few distinct cosines to fit two components (10 rows, 3 distinct values at least)"]
        if mixture.bic_two >= mixture.bic_one:
            doubts.append(
                f"one Gaussian explains the cosines as well as two (BIC {mixture.bic_one:.1f} against {mixture.bic_two:.1f})"
            )
        if mixture.ashman_d < settings.min_separation:
            doubts.append(
                f"the components overlap: Ashman's D is {mixture.ashman_d:.2f}, asked for are {settings.min_separation:g} "
                f"(means {mixture.means[0]:.3f} / {mixture.means[1]:.3f}, standard deviations "
                f"{mixture.stds[0]:.3f} / {mixture.stds[1]:.3f})"
            )
        if cut is None:
            doubts.append(f"no cosine reaches the posterior {settings.threshold:g} (--threshold)")
    if settings.rule != "keep-share" and not settings.min_safe_share <= safe_share <= settings.max_safe_share:
        doubts.append(
            f"{safe_share:.2%} of the scored rows would be safe, believed are {settings.min_safe_share:.2%} to "
            f"{settings.max_safe_share:.2%} (--min-safe-share, --max-safe-share)"
        )
    return doubts


def _refusal(doubts: tuple[str, ...], num_scored: int, settings: SplitSettings) -> str:
    lines = "".join(f"\n  - {doubt}" for doubt in doubts)
    return (
        f"the split of {num_scored} scored rows by rule {settings.rule!r} is not believed, so the round stays unsealed:"
        f"{lines}\n"
        "The scores are kept. Decide with `pairsan split RUN` and one of: --keep-share 0.3 (a share you choose), "
        "--min-cosine 0.2, --if-unseparable quantile --fallback-share 0.3, or --min-separation with a lower value. Where "
        "little is mismatched, two components describe the bulk and not the mismatches; a share is then the honest choice."
    )
