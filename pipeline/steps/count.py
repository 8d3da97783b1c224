"""Count a scored round: cosines, nulls, signals, canaries, quarantined rows. What is kept grows with shards, not rows."""

from dataclasses import dataclass, field

from manifests.errors import RunError, TooManyQuarantined
from manifests.parts import Part
from pipeline.config.load import RunConfig
from pipeline.steps.canary_leaks import check_leaks, leaks
from pipeline.steps.plan import Round
from pipeline.steps.signals import add_signals, signal_target
from pipeline.workers.executors import Executor
from pipeline.workers.run_stage import run_stage
from stages.histogram import Histogram
from stages.label.decide import Decision, decide
from stages.label.strata import COLUMN, StrataKind
from stages.label.tally import Tallied, TalliedSignals, Tally, TallySignals
from stages.label.tally_canaries import TallyCanaries
from stages.pair import Shard
from stages.score.canaries import CanaryScores
from stages.settings import SplitOptions
from stages.signals.signal_parts import SignalParts

_WORST = 5


@dataclass
class Totals:
    """What all scores parts of a round add up to; grows with the number of shards, never of rows.

    Attributes:
        histogram: Of all cosines.
        nulls: Of cosines of mismatched pairs.
        scores: Each shard's scores part.
        embeddings: Each shard's embeddings part, where kept.
        signals: Each shard's signals part, where there is one.
        signal_parts: Where those lie.
        closeness: Of 1 - outlier; None where that signal was not computed.
        accord: Of accord; the same.
        strata: Of all cosines, and of those of mismatched pairs, of every stratum by its code; empty where none were asked for.
        canaries: What is known of all canaries, by kind, in pieces.
        quarantined: Rows without a score, per shard.
        reasons: Rows without a score, per reason.
    """

    histogram: Histogram = field(default_factory=Histogram)
    nulls: Histogram = field(default_factory=Histogram)
    scores: dict[str, Part] = field(default_factory=dict)
    embeddings: dict[str, Part] = field(default_factory=dict)
    signals: dict[str, Part] = field(default_factory=dict)
    signal_parts: SignalParts | None = None
    closeness: Histogram | None = None
    accord: Histogram | None = None
    strata: dict[int, tuple[Histogram, Histogram]] = field(default_factory=dict)
    canaries: dict[str, list[CanaryScores]] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return sum(part.num_rows for part in self.scores.values())

    def add(self, shard: Shard, tallied: Tallied) -> tuple[int, int]:
        """Add one shard and return its (rows, quarantined rows)."""
        self.histogram.add(tallied.cosines)
        self.nulls.add(tallied.nulls)
        for code, counted in tallied.strata.items():
            for histogram, part in zip(self.strata.setdefault(code, (Histogram(), Histogram())), counted, strict=True):
                histogram.add(part)
        self.scores[shard.name] = tallied.part
        if tallied.embeddings is not None:
            self.embeddings[shard.name] = tallied.embeddings
        num = sum(tallied.reasons.values())
        self.quarantined[shard.name] = num
        for reason, rows in tallied.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + rows
        return tallied.part.num_rows, num


def tally(executor: Executor, round_: Round, strata: StrataKind | None = None) -> Totals:
    """Count all scores parts of a round, and every stratum by itself where strata are asked for."""
    totals = Totals()
    stage = Tally(
        round_.run,
        round_.scores_round,
        round_.scores_fingerprint,
        with_embeddings=bool(round_.plan["scores"]["keep"]["embeddings"]),
        strata=strata,
    )
    run_stage(executor, stage, round_.shards, what="count", folder=(round_.run, round_.number), collect=totals.add)
    return totals


def tally_signals(executor: Executor, round_: Round, parts: SignalParts, totals: Totals) -> None:
    """Count all signals parts of a round, into what its scores add up to."""
    closeness, accord = Histogram(), Histogram()

    def collect(shard: Shard, tallied: TalliedSignals) -> tuple[int, int]:
        totals.signals[shard.name] = tallied.part
        closeness.add(tallied.closeness)
        accord.add(tallied.accord)
        return tallied.part.num_rows, 0

    stage = TallySignals(round_.run, parts)
    run_stage(executor, stage, round_.shards, what="count signals", folder=(round_.run, round_.number), collect=collect)
    totals.signal_parts = parts
    if parts.near:
        totals.closeness, totals.accord = closeness, accord if accord.num_rows else None


def tally_canaries(executor: Executor, round_: Round, totals: Totals, strata: StrataKind | None = None) -> None:
    """Collect what is known of all canaries, where the scores have any; as many as were asked for, whatever the rows."""
    if not round_.plan["scores"].get("canaries"):
        return

    def collect(_: Shard, found: dict[str, CanaryScores]) -> tuple[int, int]:
        for kind, scores in found.items():
            totals.canaries.setdefault(kind, []).append(scores)
        return sum(len(scores.cosines) for scores in found.values()), 0

    parts, near = totals.signal_parts, None
    if parts is not None and parts.near:
        near = signal_target(executor, round_, parts, totals.histogram.num_rows)
    stage = TallyCanaries(round_.run, round_.scores_round, round_.scores_fingerprint, near, strata)
    run_stage(executor, stage, round_.shards, what="count canaries", folder=(round_.run, round_.number), collect=collect)


def check_quarantined(totals: Totals, max_share: float) -> None:
    """Refuse a round of which too much could not be scored.

    Raises:
        TooManyQuarantined: With the counts per reason and the worst shards.
    """
    num, rows = sum(totals.quarantined.values()), totals.num_rows
    if rows and num < rows and num <= max_share * rows:
        return
    if not rows:
        raise TooManyQuarantined(f"the dataset has no rows: all {len(totals.scores)} shards are empty")
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(totals.reasons.items(), key=lambda kv: -kv[1]))
    worst = sorted(totals.scores, key=lambda name: -totals.quarantined[name] / max(1, totals.scores[name].num_rows))
    lines = "".join(f"\n  {n}: {totals.quarantined[n]:,} of {totals.scores[n].num_rows:,}" for n in worst[:_WORST])
    allowed = "some must be scored" if num == rows else f"allowed are {max_share:.1%} (--max-quarantined-share)"
    raise TooManyQuarantined(
        f"{num:,} of {rows:,} rows could not be scored, {allowed}; nothing was sealed.\n"
        f"Reasons: {reasons}\n"
        f"Worst shards:{lines}\nThe scores are kept; after raising the limit, `pairsan split RUN` goes on from them."
    )


def counted(executor: Executor, round_: Round, config: RunConfig, options: SplitOptions) -> Totals:
    """Count a scored round whole, and add its signals on the way.

    Raises:
        TooManyQuarantined: Too much of it could not be scored.
        RunError: The scores lack what groups rows.
    """
    strata = options.null_strata if options.rule == "calibrated" else None
    if strata and COLUMN[strata] == "caption" and not round_.plan["scores"]["keep"]["captions"]:
        raise RunError(f"--null-strata {strata} groups rows by their captions, and these scores kept none; use --keep-captions")
    totals = tally(executor, round_, strata)
    check_quarantined(totals, options.max_quarantined_share)
    parts = add_signals(executor, round_, config, totals.histogram.num_rows)
    if parts is not None:
        tally_signals(executor, round_, parts, totals)
    tally_canaries(executor, round_, totals, strata)
    return totals


def decided(totals: Totals, options: SplitOptions) -> Decision:
    """Return the split of what was counted.

    Raises:
        SplitRefused: It is not believed, or lets too many canaries in.
    """
    decision = decide(totals.histogram, options, totals.closeness, totals.nulls, totals.accord, totals.strata)
    check_leaks(leaks(totals.canaries, decision), options)
    return decision
