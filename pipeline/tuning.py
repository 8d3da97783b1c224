"""`pairsan tune`: which cut keeps canaries out, and what it would keep of the data."""

import shlex
from typing import Any

from manifests.errors import RunError
from manifests.layout import read_plan
from manifests.store import open_store
from pipeline.config.catalogue import ExecutorSettings
from pipeline.steps.canary_leaks import count_canaries, proposals
from pipeline.steps.count import count
from pipeline.steps.numbering import scores_asked
from pipeline.steps.plan import Round, read_run
from pipeline.steps.signals.add import count_signals
from pipeline.steps.signals.asked import are_there, signal_parts
from pipeline.workers.connect import make_executor
from stages.label.fit.calibration import FEWEST_NULLS, calibrate
from stages.label.settings import SplitSettings


def tune(run: str, number: int | None, leak: float) -> dict[str, Any]:
    """Return a cut at which at most `leak` of the canaries with foreign captions are safe, and what that keeps.

    Args:
        run: Run folder.
        number: Round whose scores are looked at; the newest complete ones by default.
        leak: Share of each kind of canary.

    Returns:
        `cut`, `kept_share`, `cut_by_kind`, `num_canaries`, `alpha`, by which rule `calibrated` would cut there, and, where the
        round has neighbour signals, `discord_share`, the budget that does the same without a cut.

    Raises:
        RunError: The scores have no canaries.
    """
    store = open_store(run)
    shards = read_run(store).shards
    source = scores_asked(store, len(shards), number)
    plan = read_plan(store, source)
    if not plan["scores"].get("canaries"):
        raise RunError(f"the scores of round {source} of {run} have no canaries; score with --canaries 1000")
    split = plan["split"] or SplitSettings().model_dump()  # of an `embed`, which has none
    round_ = Round(store, source, {**plan, "split": {**split, "max_quarantined_share": 1.0, "max_unread_share": 1.0}}, shards)
    executor = make_executor(ExecutorSettings(executor="local"), use_gpus=False)
    totals = count(executor, round_)
    parts = signal_parts(round_, totals.histogram.num_rows)
    signals = count_signals(executor, round_, parts) if parts and parts.asked.near and are_there(parts) else None
    canaries = count_canaries(executor, round_, signals.parts if signals else None)
    found = proposals(canaries, totals.histogram, signals.values.get("accord") if signals else None, leak)
    numbers = {kind: sum(len(scores.cosines) for scores in pieces) for kind, pieces in canaries.items()}
    found |= {"leak": leak, "round": source, "num_canaries": numbers}
    if totals.nulls.num_rows >= FEWEST_NULLS:
        found["alpha"] = calibrate(totals.histogram, totals.nulls).tail_at(found["cut"])
    return found


def as_text(found: dict[str, Any], run: str) -> str:
    """Return a proposal for a terminal."""
    lines = [
        f"at most {found['leak']:.2%} of each kind of canary with a foreign caption is safe from cosine {found['cut']:.4f} on,"
    ]
    lines += [
        f"which keeps {found['kept_share']:.2%} of the scored pairs:",
        f"  pairsan split {shlex.quote(run)} --min-cosine {found['cut']:.6f}",
    ]
    if "alpha" in found and 0 < found["alpha"] < 1:
        lines += [f"or, by rate (rule calibrated cuts there at alpha {found['alpha']:.2g}):"]
        lines += [f"  pairsan split {shlex.quote(run)} --rule calibrated --alpha {found['alpha']:.2g}"]
    if "discord_share" in found:
        lines += [f"or, without a cut, by neighbours, which keeps {1.0 - found['discord_share']:.2%}:"]
        lines += [f"  pairsan split {shlex.quote(run)} --keep-share 1.0 --discord-share {found['discord_share']:.4f}"]
    return "\n".join([*lines, *(f"  {kind}: cut {cut:.4f}" for kind, cut in found["cut_by_kind"].items())])
