"""Limits of signals: which values a safe row may have, and where a share of all rows ends."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from manifests.errors import SplitRefused
from manifests.labels import Reason
from manifests.schema import COSINE_STEP
from manifests.signals import LIMITS, SIGNAL_TABLE, Bound
from stages.histogram import Histogram
from stages.label.fit.crowds import crowd_cut
from stages.label.settings import SplitSettings

_MOST_CROWDED: Final = 0.5
# a weak doubt suffices beside a bound that is broken; docs/method.md has what it finds and lets go
DOUBTS_UP_TO: Final = 0.1
# beside a crowd a weaker one does; rows three quarters as far from their neighbours as the cut need none
CROWDED_DOUBTS_UP_TO, DENSE = 0.7, 0.75
_TOPS: Final = {signal.name: signal.top for signal in SIGNAL_TABLE}


@dataclass(frozen=True, slots=True)
class Limit:
    """What a signal of a safe row may be at most and at least.

    Attributes:
        reason: Of the rows beyond it.
        signal: Field of the `signals` column.
        least: Lower values are not safe; None for no bound.
        most: Higher values are not safe; None for no bound.
        witness: Signal, a p-value, that must doubt a row as well before the bound makes it risky; None where it suffices.
        doubt: Highest value of the witness that is a doubt.
        lenient: Whether a row that has no such value is safe.
        cluster: Columns that copies share, of which one is kept; empty where none is.
    """

    reason: Reason
    signal: str
    least: float | None = None
    most: float | None = None
    witness: str | None = None
    lenient: bool = False
    cluster: tuple[str, ...] = ()
    doubt: float = DOUBTS_UP_TO

    def allows(self, signals: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.bool_]:
        """Return which rows the limit leaves safe, bool (n,); NaN is not, unless it is lenient: what is not known is not safe.

        Args:
            signals: By name, (n,) each.
        """
        values = signals[self.signal]
        inside = ~np.isnan(values)
        if self.least is not None:
            inside &= values >= self.least
        if self.most is not None:
            inside &= values <= self.most
        inside |= np.isnan(values) if self.lenient else False
        return inside if self.witness is None else inside | (signals[self.witness] > self.doubt)

    def reads(self) -> tuple[str, ...]:
        """Return the names of the signals that it looks at."""
        return (self.signal,) if self.witness is None else (self.signal, self.witness)


def counted_as(signal: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return values of a signal as histograms hold them: on the grid of cosines, so that [0, 2] is counted as 1 - value."""
    return (1.0 - values.astype(np.float64)).astype(np.float32) if _TOPS[signal] > 1.0 else values


def limits_of(settings: SplitSettings, counted: Mapping[str, Histogram], *, separates: bool = True) -> tuple[Limit, ...]:
    """Turn settings into limits, in the order in which they may name a row's reason; the table of signals says which.

    Args:
        settings: They name signals and bounds.
        counted: Values of signals over all shards, by name.
        separates: Whether the score tells pairs from exchanged ones. Where it does not, looks are left alone: the doubts of an
            untrained model go by colours themselves, and so would what they are fitted to.

    Raises:
        SplitRefused: Crowds would be no minority.
    """
    limits: list[Limit] = []
    for limit, signal in LIMITS:
        asked = getattr(settings, limit.setting)
        if not asked or (limit.counted is not None and limit.counted not in counted):
            continue
        if limit.reason == Reason.SUSPECT_LOOK and not separates:
            continue
        if limit.bound == Bound.LEAST:
            limits.append(Limit(limit.reason, signal.name, least=asked, lenient=True))
        elif limit.counted is None:
            cluster = limit.cluster if settings.keep_one else ()
            limits.append(Limit(limit.reason, signal.name, most=asked, witness=limit.witness, cluster=cluster))
        else:
            least, most = _bound(limit.bound, asked, counted[limit.counted], mirrored=_TOPS[limit.counted] > 1.0)
            found = Limit(limit.reason, signal.name, least, most, limit.witness)
            crowd = limit.bound == Bound.CROWD
            limits += _doubted(found, looks=bool(settings.look_tail) and separates) if crowd else (found,)
    return tuple(limits)


def _doubted(crowd: Limit, *, looks: bool) -> tuple[Limit, ...]:
    """Return what is asked of a crowd: where looks are compared, that they doubt its rows too, or that it is very dense.

    Data have crowds of their own, whose captions fit. A row's neighbours are no such sign: theirs are dense around any crowd.
    """
    if not looks or crowd.least is None:
        return (replace(crowd, witness=None),)
    doubted = replace(crowd, doubt=CROWDED_DOUBTS_UP_TO)
    return (doubted, replace(crowd, least=DENSE * crowd.least, witness=None)) if crowd.signal == "outlier" else (doubted,)


def _bound(kind: Bound, share: float, values: Histogram, *, mirrored: bool) -> tuple[float | None, float | None]:
    """Return the least and most that a share of the rows, or of the ordinary ones, leaves; `mirrored`: counted as 1 - value."""
    if kind == Bound.CROWD:
        return _believed(crowd_cut(values, share), values), None
    between = COSINE_STEP / 2  # the middle to the next value on the grid: the rows at the cut are among those flagged
    if kind == Bound.HIGHEST_SHARE:
        return None, 1.0 - values.cut_above_share(share) if mirrored else values.cut_for_share(share) - between
    return 1.0 - values.cut_for_share(share) + between if mirrored else values.cut_above_share(share), None


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
