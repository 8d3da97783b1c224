"""Label policy: from the histogram of all cosines to one decision that every shard can apply by itself."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from manifests.errors import SplitRefused
from manifests.schema import NUM_NULLS
from stages.histogram import NUM_BINS, Histogram, grid_values
from stages.label.decision import Decision
from stages.label.doubts import doubts_of, refusal
from stages.label.fit.calibration import FEWEST_NULLS, LEAST_NULLS, Calibration, calibrate
from stages.label.fit.judged import Judged, calibrate_by_people
from stages.label.fit.mixture import Mixture, fit_mixture, published_mixture
from stages.label.fit.reliability import reliability
from stages.label.fit.strata import calibrate_strata
from stages.label.limits import limits_of
from stages.label.settings import SplitSettings


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
    doubts = tuple(doubts_of(found, settings))
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
        raise SplitRefused(refusal(found, doubts, settings))
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
