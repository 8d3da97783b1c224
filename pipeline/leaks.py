"""What a split would have done with the canaries, and which split would do with them as one wishes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from manifests.errors import SplitRefused
from manifests.schema import Reason
from stages.canaries import FOREIGN, KINDS, REPEATS
from stages.options import SplitOptions
from stages.split import Decision

Cosines = Mapping[str, Sequence[npt.NDArray[np.float32]]]
_CONFIDENCE = 0.95


def leaks(canaries: Cosines, decision: Decision) -> dict[str, dict[str, float]] | None:
    """Return, per kind, how many canaries the split would call safe, with a Clopper-Pearson interval; None without canaries.

    Cut and, for repeated images, their limit are applied; what neighbours would say of canaries is not known.
    """
    found: dict[str, dict[str, float]] = {
        kind: _leak(kind, np.concatenate(canaries[kind]), decision) for kind in KINDS if canaries.get(kind)
    }
    return found or None


def check_leaks(found: dict[str, dict[str, float]] | None, options: SplitOptions) -> None:
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
    """Return the 95 % interval of a share, by Clopper and Pearson."""
    tail = (1 - _CONFIDENCE) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, num - hits + 1))
    high = 1.0 if hits == num else float(beta.ppf(1 - tail, hits + 1, num - hits))
    return low, high


def _leak(kind: str, cosines: npt.NDArray[np.float32], decision: Decision) -> dict[str, float]:
    safe = decision.is_safe(cosines)
    most = [limit.most for limit in decision.limits if limit.reason == Reason.NEAR_DUPLICATE and limit.most is not None]
    if kind == "repeated" and any(limit < REPEATS for limit in most):
        safe = np.zeros(len(cosines), bool)
    hits, num = int(safe.sum()), len(cosines)
    low, high = interval(hits, num)
    return {"num": num, "safe": hits, "share": hits / max(1, num), "low": low, "high": high}


def proposals(canaries: Cosines, cosines_at: Any, leak: float) -> dict[str, Any]:
    """Return the lowest cut at which no kind of canary with a foreign caption leaks more than `leak`.

    Args:
        canaries: Cosines by kind.
        cosines_at: Histogram of all scored pairs.
        leak: Share of a kind that may be safe.
    """
    cuts = {}
    for kind in FOREIGN:
        if canaries.get(kind):
            values = np.sort(np.concatenate(canaries[kind]))
            allowed = int(np.floor(leak * len(values)))
            cuts[kind] = (
                float(np.nextafter(values[len(values) - 1 - allowed], np.float32(2.0))) if allowed < len(values) else -1.0
            )
    cut = max(cuts.values(), default=-1.0)
    return {"cut": cut, "kept_share": cosines_at.num_at_least(cut) / max(1, cosines_at.num_rows), "cut_by_kind": cuts}
