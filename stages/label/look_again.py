"""Decide a round that looks again: what is taken back, and what is put out, by a model that has trained on the round before.

Each of the two is asked of rows whose cosines are out of sample, at a cut of its own: risky rows, none of which the model has
matched, and the safe rows that have sat out. See `stages.label.history`.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from manifests.errors import SplitRefused
from manifests.labels import VETOES
from stages.histogram import NUM_BINS, Histogram, grid_values
from stages.label.decision import Decision
from stages.label.fit.calibration import FEWEST_NULLS, Calibration, calibrate, mismatched_share
from stages.label.fit.reliability import LEAST_SEPARATION, Reliability, separation
from stages.label.fit.strata import STRATA, Strata
from stages.label.history import OPEN, SAT_OUT, TRAINED, VETOED
from stages.label.limits import limits_of
from stages.label.settings import SplitSettings

Groups = Mapping[int, tuple[Histogram, Histogram]]
LEAST_KEPT: Final = 0.5
# below it matching pairs score so much like mismatched ones that the estimate of who is which is high by half, and a seventh
# of the clean rows that sat out were put out (benchmarks/reports/2026-11-27-look-again.md)
LEAST_TO_PUT_OUT: Final = 0.8
_EVERYTHING, _NOTHING = -np.inf, np.inf


def look_again(
    histogram: Histogram,
    settings: SplitSettings,
    groups: Groups,
    *,
    signals: Mapping[str, Histogram] | None = None,
    before: float | None = None,
) -> Decision:
    """Choose both cuts, and the limits of signals that veto.

    Args:
        histogram: Cosines of all shards.
        settings: alpha and max_p_mismatch place the cuts; growth is the share of all rows that may be taken back.
        groups: Cosines, and cosines of mismatched pairs, of rows of each place in the round before.
        signals: See `decide`.
        before: Separation of the round before, where that one has any.

    Raises:
        SplitRefused: Mismatched pairs score like others, or much more so than in the round before.
    """
    empty = (Histogram(), Histogram())
    trained, risky, out, vetoed = (groups.get(place, empty) for place in (TRAINED, OPEN, SAT_OUT, VETOED))
    nulls = _nulls([risky, out], [trained, vetoed])
    told_apart = separation(out[0] if out[0].num_rows else trained[0], nulls)
    _check(told_apart, before)
    pairs = _joined([risky[0], out[0]])
    whole = calibrate(pairs if pairs.num_rows else histogram, nulls)
    back = calibrate(risky[0], nulls) if risky[0].num_rows else whole
    # a safe row is put out where it is more likely mismatched than not. The rate among all of them, which places the other cut,
    # would throw out good ones by the hundred where it is a little high; and as it is estimated from few rows, its error is
    # taken off here, where it is added there: without that each look put out its lowest row, whoever that was
    left = calibrate(out[0], nulls, errors=-1.0) if out[0].num_rows else whole
    asked = out[0].num_rows and told_apart >= LEAST_TO_PUT_OUT
    kept = left.cut(1.0, settings.max_p_mismatch) if asked else None
    most = int((settings.growth or 0.0) * histogram.num_rows + 1e-9)
    taken = _most(risky[0], back.cut(settings.alpha, settings.max_p_mismatch), most)
    cuts = {TRAINED: _EVERYTHING, OPEN: taken, SAT_OUT: _EVERYTHING if kept is None else kept, VETOED: _NOTHING}
    strata = _strata(groups, cuts, whole, left)
    known = _reliability(told_apart, out[0], nulls)
    return Decision(
        rule=settings.rule,
        mixture=None,
        cut=None if taken == _NOTHING else float(taken),
        min_posterior=None,
        ranks=histogram.ranks(),
        num_scored=histogram.num_rows,
        num_safe=strata.num_safe,
        doubts=(),
        limits=tuple(limit for limit in limits_of(settings, signals or {}) if limit.reason in VETOES),
        calibration=whole,
        strata=strata,
        separation=told_apart,
        reliability=known,
    )


def _reliability(told_apart: float, out: Histogram, nulls: Histogram) -> Reliability:
    """Return what is known of the safe rows: those that sat out are a sample of them that the model has not trained on."""
    if not out.num_rows:
        return Reliability(told_apart, told_apart, None)
    low, middle, high = (mismatched_share(out, nulls, errors) for errors in (-1.96, 1.0, 1.96))
    return Reliability(told_apart, told_apart, None, middle, low, high)


def _check(found: float, before: float | None) -> None:
    """Refuse a checkpoint that does not tell mismatched pairs from others, or lost most of what told them.

    Raises:
        SplitRefused: With both figures.
    """
    least = max(LEAST_SEPARATION, 0.0 if before is None else 0.5 + LEAST_KEPT * (before - 0.5))
    if found < least:
        past = "" if before is None else f", {before:.3f} in the round before"
        raise SplitRefused(
            f"this checkpoint tells matching from mismatched pairs with an AUROC of {found:.3f}{past}; asked for is "
            f"{least:.3f}. The round stays unsealed, and the last sealed one in force"
        )


def _nulls(asked: list[tuple[Histogram, Histogram]], others: list[tuple[Histogram, Histogram]]) -> Histogram:
    """Return the cosines of mismatched pairs of the rows that are asked about, or of all where those are few.

    Raises:
        SplitRefused: Those are few as well.
    """
    found = _joined([nulls for _, nulls in asked])
    if found.num_rows < FEWEST_NULLS:
        found = _joined([nulls for _, nulls in [*asked, *others]])
    if found.num_rows < FEWEST_NULLS:
        raise SplitRefused(
            f"rule 'look-again' measures how mismatched pairs score, on {FEWEST_NULLS:,} of them at least, and there are "
            f"{found.num_rows:,}; each row gives 4, in chunks of 8 rows or more"
        )
    return found


def _joined(parts: list[Histogram]) -> Histogram:
    whole = Histogram()
    for part in parts:
        whole.counts += part.counts
    return whole


def _most(pairs: Histogram, cut: float | None, most: int) -> float:
    """Return the cut, or a higher one above which no more rows lie than may be taken back."""
    if cut is None or most == 0:
        return _NOTHING
    from_top = pairs.counts[::-1].cumsum()
    place = int(np.searchsorted(from_top, most, side="right")) - 1  # rows that tie are taken back together or not at all
    if place < 0 or from_top[place] == 0:
        return _NOTHING
    best = NUM_BINS - 1 - int(np.searchsorted(from_top, from_top[place]))
    return max(cut, float(grid_values(np.asarray([best]))[0]))


def _strata(groups: Groups, cuts: dict[int, float], whole: Calibration, left: Calibration) -> Strata:
    """Return the cuts of all places, with what the seal says of each."""
    facts: list[dict[str, Any]] = []
    num_safe = 0
    for place, name in enumerate(STRATA["before"]):
        pairs = groups[place][0] if place in groups else Histogram()
        cut = cuts[place]
        safe = pairs.num_rows if cut == _EVERYTHING else 0 if cut == _NOTHING else pairs.num_at_least(cut)
        num_safe += safe
        facts.append({"stratum": name, "rows": pairs.num_rows, "safe": safe, "cut": float(cut) if np.isfinite(cut) else None})
    local = np.tile(whole.local, (len(cuts), 1))
    local[SAT_OUT] = left.local  # what places their cut, so that nobody stays whom the column calls mismatched
    return Strata("before", np.asarray([cuts[place] for place in range(len(cuts))]), local, tuple(facts), num_safe)
