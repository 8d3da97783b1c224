"""The signals of a scored round: what is missing is made, and all is counted."""

from dataclasses import dataclass, field

from manifests.errors import RunError
from manifests.layout import EMBEDDINGS, round_folder
from manifests.parts import Part
from pipeline.config.catalogue import RunConfig
from pipeline.steps.plan import Round
from pipeline.steps.signals.asked import are_there, signal_parts
from pipeline.steps.signals.take import STEPS, Work
from pipeline.workers.executors import Executor
from pipeline.workers.run_stage import run_stage
from stages.histogram import Histogram
from stages.label.tally import COUNTED, TalliedSignals, TallySignals
from stages.pair import Shard
from stages.signals.signal_parts import SignalParts


@dataclass
class Signals:
    """The signals of a round.

    Attributes:
        parts: Where they lie.
        written: Each shard's part.
        values: Of the signals of which shares are limited, by name; of those that were computed.
        promises: Rows by what came of what an index promised; empty without one.
    """

    parts: SignalParts
    written: dict[str, Part] = field(default_factory=dict)
    values: dict[str, Histogram] = field(default_factory=dict)
    promises: dict[str, int] = field(default_factory=dict)


def add_signals(executor: Executor, round_: Round, config: RunConfig, num_scored: int) -> Signals | None:
    """Take the steps that are missing, and count what they wrote; None where the plan asks for no signals.

    Args:
        executor: Where shards are worked on.
        round_: Its scores are complete, its plan says which signals.
        config: How much memory may be taken, and where the reference encoder's weights lie.
        num_scored: Rows with a cosine.

    Raises:
        RunError: The embeddings are gone.
    """
    parts = signal_parts(round_, num_scored, executor.num_threads, config.signals.signals_memory_mb << 20)
    if parts is None:
        return None
    if not are_there(parts):
        if parts.asked.near and not parts.run.names(f"{round_folder(parts.scores_round)}/{EMBEDDINGS}"):
            where = f"round {parts.scores_round} of {parts.run.uri}"
            raise RunError(f"the embeddings of {where} were deleted (--keep-last); score again, or ask for --signals repeats")
        steps = [step for step in STEPS if step.asked(parts.asked)]
        for step in steps:
            if not step.writes or not set(step.writes) <= parts.run.names(parts.folder):
                step.take(Work(executor, round_, config, parts))
        for scratch in {step.scratch for step in steps} & set(parts.run.folders(parts.folder)):
            parts.run.delete_folder(parts.name(scratch))
    return count_signals(executor, round_, parts)


def count_signals(executor: Executor, round_: Round, parts: SignalParts) -> Signals:
    """Count all signals parts of a round."""
    found, values = Signals(parts), {name: Histogram() for name in COUNTED}

    def collect(shard: Shard, tallied: TalliedSignals) -> tuple[int, int]:
        found.written[shard.name] = tallied.part
        for name, some in tallied.values.items():
            values[name].add(some)
        for promise, rows in tallied.promises.items():
            found.promises[promise] = found.promises.get(promise, 0) + rows
        return tallied.part.num_rows, 0

    run_stage(executor, TallySignals(parts), round_.shards, what="count signals", folder=round_.place, collect=collect)
    found.values = {name: counted for name, counted in values.items() if counted.num_rows}
    return found
