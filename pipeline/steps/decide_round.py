"""Choose the cut and the limits of a counted round, and see what they would do with its canaries."""

from dataclasses import dataclass

from manifests.layout import read_seal
from pipeline.steps.audit import judged_pairs
from pipeline.steps.canary_leaks import check_leaks, count_canaries, leaks
from pipeline.steps.count import Totals
from pipeline.steps.plan import Round
from pipeline.steps.signals import Signals
from pipeline.workers.executors import Executor
from stages.label.decide import Decision, decide
from stages.label.look_again import look_again


@dataclass(frozen=True)
class Decided:
    """What was decided of a round.

    Attributes:
        decision: The cut, and the limits of signals.
        leaks: How many canaries of each kind it would call safe; None without canaries.
    """

    decision: Decision
    leaks: dict[str, dict[str, float]] | None


def decide_round(executor: Executor, round_: Round, totals: Totals, signals: Signals | None) -> Decided:
    """Return the split of what was counted.

    Raises:
        SplitRefused: It is not believed, or lets too many canaries in.
    """
    canaries = count_canaries(executor, round_, signals.parts if signals else None)
    values = signals.values if signals else {}
    if round_.before is None:
        judged = judged_pairs(round_) if round_.split.rule == "judged" else None
        decision = decide(
            totals.histogram, round_.split, nulls=totals.nulls, signals=values, strata=totals.strata, judged=judged
        )
    else:
        past = read_seal(round_.run, round_.before).get("separation")  # of rows out of sample; a split's is of all of them
        decision = look_again(totals.histogram, round_.split, totals.strata, signals=values, before=past)
    found = leaks(canaries, decision)
    check_leaks(found, round_.split)
    return Decided(decision, found)
