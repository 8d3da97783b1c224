"""Label policy: from the histogram of all cosines to one decision that every shard can apply by itself."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from manifests.errors import SplitRefused
from manifests.schema import NUM_NULLS
from stages.histogram import NUM_BINS, Histogram, grid_bins, grid_values
from stages.label.fit.calibration import FEWEST_NULLS, LEAST_NULLS, Calibration, calibrate
from stages.label.fit.judged import Judged, PeopleSay, calibrate_by_people
from stages.label.fit.mixture import Mixture, fit_mixture, published_mixture
from stages.label.fit.reliability import LEAST_SEPARATION, Reliability, reliability
from stages.label.fit.strata import Codes, Strata, calibrate_strata
from stages.label.limits import Limit, limits_of
from stages.label.settings import SplitSettings


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


def decide(
    histogram: Histogram,
    settings: SplitSettings,
    *,
    nulls: Histogram | None = None,
    signals: Mapping[str, Histogram] | None = None,
    strata: Mapping[int, tuple[Histogram, Histogram]] | None = None,
    judged: Judged | None = None,
) -> Decision:
    """Choose the cut, and the limits of signals.

    Args:
        histogram: Cosines of all shards.
        settings: The rule and what counts as believable.
        nulls: Cosines of mismatched pairs of all shards; for `calibrated`.
        signals: Values of signals over all shards, by name, those of which only shares are limited; see `counted_as`.
        strata: Cosines, and cosines of mismatched pairs, of every stratum; for `null_strata`.
        judged: Pairs that people judged; for `judged`.

    Raises:
        SplitRefused: Nothing was scored, or the rule cannot be believed and `if_unseparable` is `fail`.
    """
    num_scored = histogram.num_rows
    if num_scored == 0:
        raise SplitRefused("no row has a cosine, so there is nothing to split; `pairsan status` lists the reasons")
    published = settings.rule == "published"
    mixture = published_mixture(histogram, settings.seed) if published else fit_mixture(histogram)
    people = calibrate_by_people(histogram, judged) if settings.rule == "judged" else None
    calibration = people.calibration if people else _calibrated(histogram, nulls) if settings.rule == "calibrated" else None
    cut, min_posterior = (
        (calibration.cut(settings.alpha, settings.max_p_mismatch), None) if calibration else _cut(histogram, mixture, settings)
    )
    groups = None
    if calibration is not None and people is None and settings.null_strata is not None:
        groups = calibrate_strata(settings.null_strata, strata or {}, calibration, settings.alpha, settings.max_p_mismatch)
        # strata may find safe rows where no single cut does; the seal's `cut` is then the lowest of theirs
        cut = cut if cut is not None or not groups.num_safe else float(groups.cuts.min())
    num_safe = groups.num_safe if groups else _num_safe(histogram, mixture, cut, min_posterior)
    ranks = histogram.ranks()
    found = Decision(settings.rule, mixture, cut, min_posterior, ranks, num_scored, num_safe, (), (), calibration, groups)
    found = replace(_with_reliability(found, histogram, nulls, strata), people=people)
    separates = found.reliability is None or found.reliability.separates
    found = replace(found, limits=limits_of(settings, signals or {}, separates=separates))
    doubts = tuple(_doubts(found, settings))
    return replace(found, doubts=doubts) if not doubts or published else _doubted(found, doubts, settings, histogram, nulls)


def _doubted(
    found: Decision, doubts: tuple[str, ...], settings: SplitSettings, histogram: Histogram, nulls: Histogram | None
) -> Decision:
    """Return what is sealed all the same, as was asked for by name: this split, or a share in its place.

    Raises:
        SplitRefused: It was not.
    """
    has_cut = found.cut is not None
    if settings.if_unseparable == "accept" and has_cut:
        return replace(found, doubts=doubts)
    if settings.if_unseparable == "quantile" and found.rule == "keep-share":
        return replace(found, doubts=doubts)  # a later round of a run that grows by a share
    if settings.if_unseparable != "quantile" or settings.fallback_share is None:
        raise SplitRefused(_refusal(found, doubts, settings))
    cut = histogram.cut_for_share(settings.fallback_share)
    share = replace(found, rule="quantile", cut=cut, min_posterior=None, num_safe=histogram.num_at_least(cut), doubts=doubts)
    return _with_reliability(replace(share, calibration=None, strata=None, people=None), histogram, nulls, None)


def _with_reliability(
    found: Decision, histogram: Histogram, nulls: Histogram | None, strata: Mapping[int, tuple[Histogram, Histogram]] | None
) -> Decision:
    """Add what the null says of the score and of the rows that it calls safe; with strata, of those of each by its own cut."""
    has_cut = found.cut is not None or found.min_posterior is not None
    known = reliability(histogram, nulls, found.is_safe if has_cut and found.strata is None else None, found.num_safe)
    if known is None or found.strata is None:
        return replace(found, reliability=known)
    parts = []
    for code, (pairs, own) in (strata or {}).items():
        cut, mine = found.strata.cuts[code], own if own.num_rows >= FEWEST_NULLS else nulls
        num = pairs.num_at_least(cut) if cut <= 1.0 else 0
        part = reliability(pairs, mine, partial(np.less_equal, np.float32(cut)), num)
        parts += [(num, part)] if part else []
    return replace(found, reliability=known.over(parts))


def _calibrated(histogram: Histogram, nulls: Histogram | None) -> Calibration:
    num = 0 if nulls is None else nulls.num_rows
    if nulls is not None and num >= LEAST_NULLS:
        return calibrate(histogram, nulls)
    rows = histogram.num_rows
    why = (
        "these scores hold none: its rows lie in shards of fewer than 8, or pairsan 0.1.0 made the scores; pack the data into "
        "larger shards, or score again into another --out"
        if num == 0 and rows >= LEAST_NULLS // NUM_NULLS
        else f"{rows:,} scored rows gave {num:,}"
    )
    raise SplitRefused(
        f"rule 'calibrated' measures how mismatched pairs score, on {LEAST_NULLS:,} of them at least, {NUM_NULLS} a row: "
        f"{LEAST_NULLS // NUM_NULLS} rows are enough, and below {FEWEST_NULLS // NUM_NULLS} the cut is by the upper end of the "
        f"interval of its estimate. Here {why}. So few pairs are looked at faster than they are estimated: "
        "`pairsan split RUN --keep-share 0.9` or --min-cosine, then `pairsan review RUN`"
    )


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


def _doubts(found: Decision, settings: SplitSettings) -> list[str]:
    """Return what speaks against the split. A share or cosine chosen by the user needs no mixture to be believed."""
    doubts: list[str] = []
    mixture, cut, calibration, safe_share, known = (
        found.mixture,
        found.cut,
        found.calibration,
        found.share_above_cut,
        found.reliability,
    )
    chooses = found.num_safe < found.num_scored  # a share of 1 leaves it all to the signals, as a scout does
    if known is not None and chooses and not known.separates and (calibration is None or cut is None):
        doubts.append(
            f"the score does not tell pairs from exchanged ones: AUROC {known.separation:.3f} (0.5 says nothing; "
            f"{LEAST_SEPARATION:g} lies above its 95 % interval)"
        )
    if settings.rule == "published":
        return doubts
    if calibration is not None:
        if cut is None:
            doubts.append(found.people.doubt(settings.alpha) if found.people else calibration.doubt(settings.alpha))
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


def _refusal(found: Decision, doubts: tuple[str, ...], settings: SplitSettings) -> str:
    lines = "".join(f"\n  - {doubt}" for doubt in doubts)
    start = (
        f"the split of {found.num_scored} scored rows by rule {settings.rule!r} is not believed, so the round stays unsealed:"
        f"{lines}\n"
    )
    known = found.reliability
    if found.calibration is not None or (known is not None and not known.separates):
        start += (
            "The remedy is a checkpoint that tells such pairs apart: `pairsan rescore RUN --checkpoint BETTER`. The scores are "
            "kept. "
        )
        if known is not None and not known.separates:
            return start + (
                "Any share of this score is a share drawn at random; whoever wants it all the same says so by name, and the "
                "seal and the report repeat it: `pairsan split RUN --keep-share 0.3 --if-unseparable accept`."
            )
        return start + "With this one: `pairsan split RUN` with a larger --alpha, or a --keep-share that you choose."
    return start + (
        "The scores are kept. Decide with `pairsan split RUN` and one of: --rule calibrated, which measures how mismatched "
        "pairs score, --keep-share 0.3 (a share you choose), --min-cosine 0.2, --if-unseparable quantile --fallback-share 0.3, "
        "or --min-separation with a lower value. Where little is mismatched, two components describe the bulk and not the "
        "mismatches."
    )
