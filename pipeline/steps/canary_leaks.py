"""What a split would have done with the canaries, and which split would do with them as one wishes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from manifests.errors import SplitRefused
from pipeline.steps.count import scores_target
from pipeline.steps.plan import Round
from pipeline.workers.executors import Executor
from pipeline.workers.run_stage import run_stage
from stages.histogram import Histogram
from stages.label.decision import Decision
from stages.label.settings import SplitSettings
from stages.label.tally_canaries import TallyCanaries
from stages.pair import Shard
from stages.score.canaries import FOREIGN, KINDS, REPEATED, REPEATS, CanaryScores
from stages.signals.signal_parts import SignalParts

Found = Mapping[str, Sequence[CanaryScores]]
_CONFIDENCE = 0.95


def count_canaries(executor: Executor, round_: Round, signals: SignalParts | None) -> dict[str, list[CanaryScores]]:
    """Return what is known of all canaries by kind, in pieces; nothing where the scores have none."""
    found: dict[str, list[CanaryScores]] = {}
    if not round_.plan["scores"].get("canaries"):
        return found

    def collect(_: Shard, of_shard: dict[str, CanaryScores]) -> tuple[int, int]:
        for kind, scores in of_shard.items():
            found.setdefault(kind, []).append(scores)
        return sum(len(scores.cosines) for scores in of_shard.values()), 0

    stage = TallyCanaries(scores_target(round_, signals=signals))
    run_stage(executor, stage, round_.shards, what="count canaries", folder=round_.place, collect=collect)
    return found


def leaks(canaries: Found, decision: Decision) -> dict[str, dict[str, float]] | None:
    """Return, per kind, how many canaries the split would call safe, with a Clopper-Pearson interval; None without canaries.

    The cut is applied, the limits of those signals that canaries have, and the limits of copies to repeated images.
    """
    found: dict[str, dict[str, float]] = {
        kind: _leak(kind, CanaryScores.joined(canaries[kind]), decision) for kind in KINDS if canaries.get(kind)
    }
    return found or None


def check_leaks(found: dict[str, dict[str, float]] | None, options: SplitSettings) -> None:
    """Refuse a split that lets in more canaries with foreign captions than is allowed.

    Raises:
        SplitRefused: Names kinds and shares; also where there are no canaries to judge by.
    """
    limit = options.max_canary_leak
    if limit is None:
        return
    if found is None:
        raise SplitRefused("--max-canary-leak judges by canaries, and these scores have none; score with --canaries 1000")
    over = {kind: found[kind]["share"] for kind in FOREIGN if kind in found and found[kind]["share"] > limit}
    if over:
        listed = ", ".join(f"{share:.2%} of {kind}" for kind, share in over.items())
        raise SplitRefused(
            f"this split would call {listed} canaries safe, allowed are {limit:.2%} (--max-canary-leak); nothing was sealed. "
            "`pairsan tune RUN` proposes a cut that does not"
        )


def interval(hits: int, num: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, by Clopper and Pearson; all of [0, 1] where there is nothing to tell by."""
    found = binomtest(hits, num).proportion_ci(_CONFIDENCE) if num else None
    return (float(found.low), float(found.high)) if found else (0.0, 1.0)


def _leak(kind: str, scores: CanaryScores, decision: Decision) -> dict[str, float]:
    safe = decision.is_safe(scores.cosines, scores.codes)
    for limit in decision.limits:
        if set(limit.reads()) <= scores.signals.keys():
            safe &= limit.allows(scores.signals)
    # each of the copies has a caption of its own, so that a limit of pair copies does not see them
    copies = [limit.most for limit in decision.limits if limit.signal in ("exact_copies", "near_copies")]
    if kind == REPEATED and any(most is not None and most < REPEATS for most in copies):
        safe = np.zeros(len(safe), bool)
    hits, num = int(safe.sum()), len(safe)
    low, high = interval(hits, num)
    return {"num": num, "safe": hits, "share": hits / max(1, num), "low": low, "high": high}


def proposals(canaries: Found, cosines_at: Histogram, accords_at: Histogram | None, leak: float) -> dict[str, Any]:
    """Return the lowest cut at which no kind of canary with a foreign caption leaks more than `leak`, by cosine and by accord.

    Args:
        canaries: What is known of them, by kind.
        cosines_at: Histogram of all scored pairs.
        accords_at: The same of their accord; None where it was not computed.
        leak: Share of a kind that may be safe.

    Returns:
        `cut`, `kept_share`, `cut_by_kind`; with accords `discord_share`, the budget that does the same without any cut.
    """
    whole = {kind: CanaryScores.joined(canaries[kind]) for kind in FOREIGN if canaries.get(kind)}
    cuts = {kind: _just_above(scores.cosines, leak) for kind, scores in whole.items()}
    cut = max(cuts.values(), default=-1.0)
    found = {"cut": cut, "kept_share": cosines_at.num_at_least(cut) / max(1, cosines_at.num_rows), "cut_by_kind": cuts}
    if accords_at is None or not all("accord" in scores.signals for scores in whole.values()):
        return found
    least = max((_just_above(scores.signals["accord"].astype(np.float32), leak) for scores in whole.values()), default=-1.0)
    below = accords_at.num_rows - accords_at.num_at_least(least)  # at least one row, as a budget of 0 sets no limit
    return {**found, "discord_share": max(1, below) / max(1, accords_at.num_rows)}


def _just_above(values: npt.NDArray[np.float32], leak: float) -> float:
    """Return the lowest cut at or above which at most a share `leak` of the values lies."""
    ordered, allowed = np.sort(values), int(np.floor(leak * len(values)))
    return float(np.nextafter(ordered[len(ordered) - 1 - allowed], np.float32(2.0))) if allowed < len(ordered) else -1.0
