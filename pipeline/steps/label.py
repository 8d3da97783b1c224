"""Decide on a counted round, and label its rows: the cut, the limits, what they do with canaries, which copies are kept."""

from dataclasses import dataclass, replace

from manifests.labels import Label
from manifests.layout import fingerprint, read_plan, read_seal, round_folder, sealed_rounds
from pipeline.steps.audit import judged_pairs
from pipeline.steps.canary_leaks import check_leaks, count_canaries, leaks
from pipeline.steps.count import Totals
from pipeline.steps.plan import Round
from pipeline.steps.signals.add import Signals
from pipeline.workers.executors import Executor
from pipeline.workers.run_stage import run_missing, run_stage
from stages.label.copies.kept import write_kept
from stages.label.copies.offer_copies import OfferCopies, OfferTarget
from stages.label.copies.twins import write_twins
from stages.label.decide import decide
from stages.label.decision import Decision
from stages.label.label_rows import Labelled, LabelRows, LabelTarget
from stages.label.look_again import look_again
from stages.pair import Shard


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


def label(executor: Executor, round_: Round, totals: Totals, signals: Signals | None, decided: Decided) -> dict[str, Labelled]:
    """Write every manifest part, and return what is known of each, by shard."""
    written: dict[str, Labelled] = {}

    def collect(shard: Shard, labelled: Labelled) -> tuple[int, int]:
        written[shard.name] = labelled
        return labelled.part.num_rows, labelled.labels[Label.QUARANTINED]

    round_.begin()
    previous, since = earlier(round_)
    reviews = round_.plan.get("reviews")
    shards, num_rows = [shard.name for shard in round_.shards], totals.histogram.num_rows
    target = LabelTarget(
        run=round_.run,
        scores_round=round_.scores_round,
        round_number=round_.number,
        fingerprint=fingerprint(round_.plan),
        decision=decided.decision,
        previous=previous,
        trained_on=round_.trained_on,
        signals=signals.parts if signals else None,
        reviews_until=None if reviews is None else reviews["until"],
        rise_since=since,
        num_folds=round_.split.sit_out_folds,
        twins=write_twins(round_.run, round_.scores_round, shards, num_rows, round_.scores_fingerprint),
    )
    if round_.split.keep_one is not None:
        target = _keeping_one(executor, round_, target, round_.split.keep_one)
    run_stage(executor, LabelRows(target), round_.shards, what="label", folder=round_.place, collect=collect)
    return written


def _keeping_one(executor: Executor, round_: Round, target: LabelTarget, which: str) -> LabelTarget:
    """Return how rows are labelled with one copy of each cluster kept; look first which copies would be safe but for that."""
    run, folder = round_.run, round_folder(round_.number)
    target = replace(target, number_of={shard.name: number for number, shard in enumerate(round_.shards)})
    kept, offers = f"{folder}/kept.parquet", f"{folder}/copies"
    if not run.exists(kept):
        ages = {
            part["shard"]: number
            for number in reversed(sealed_rounds(run, round_.number))
            for part in read_seal(run, number)["parts"]
        }
        ages = {shard.name: ages.get(shard.name, round_.number) for shard in round_.shards}
        stage = OfferCopies(OfferTarget(target, offers, ages))
        run_missing(executor, stage, round_.shards, offers, what="compare copies", folder=round_.place)
        write_kept(run, kept, [shard.part(offers) for shard in round_.shards], which, fingerprint=target.fingerprint)
        run.delete_folder(offers)
    return replace(target, kept=kept)


def earlier(round_: Round) -> tuple[int | None, int | None]:
    """Return the sealed round before this one, and the newest one before it that other weights have scored."""
    before = sealed_rounds(round_.run, round_.number)
    last = max(before, default=None) if round_.before is None else round_.before
    return last, max((n for n in before if _by_other_weights(round_, n)), default=None)


def _by_other_weights(round_: Round, number: int) -> bool:
    """Return whether an earlier round has other scores of the same data."""
    plan = read_plan(round_.run, number)
    same = plan["scores"]["dataset"] == round_.plan["scores"]["dataset"]
    return bool(same and plan["scores_round"] != round_.scores_round)
