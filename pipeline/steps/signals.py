"""The signals of a scored round as a list of steps; each says whether it is asked for, what it writes and how. Resumable."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow.parquet as pq

from manifests.errors import RunError
from manifests.layout import EMBEDDINGS, SIGNAL_PARTS, fingerprint, part_name, read_plan, round_folder
from manifests.parts import Part
from manifests.schema import LOOKS_SINCE
from manifests.store import Store
from pipeline.config.catalogue import RunConfig
from pipeline.config.load import limits_of
from pipeline.steps.index_files import index_of, index_plan, is_there
from pipeline.steps.near_copies import find_copies, num_cells
from pipeline.steps.plan import Round
from pipeline.steps.witness_vectors import add_reference, canary_folder, reference_folder, tower_of
from pipeline.workers.executors import Executor
from pipeline.workers.run_stage import run_missing, run_stage
from stages.histogram import Histogram
from stages.label.tally import COUNTED, TalliedSignals, TallySignals
from stages.pair import Shard
from stages.signals.index.join import FOUND, write_found
from stages.signals.index.vectors import CompareVectors, VectorTarget, add_honest_turns
from stages.signals.repeats import KINDS, repeats_name, write_repeats
from stages.signals.sample import Reference, Sampled, SampleRows, SampleTarget, share_of
from stages.signals.shingles import ShingleCaptions, write_band_counts
from stages.signals.signal_parts import (
    AGREEMENT,
    BAND_COUNTS,
    BANDS,
    CENTRES,
    CLUSTERS,
    GROUPS,
    PAIRS,
    PROMISES,
    REFERENCE,
    WITNESS,
    Asked,
    SignalParts,
)
from stages.signals.witnesses.joint_doubt import JoinCopies, write_groups
from stages.signals.write_signals import WriteSignals

_FIRST_SCHEMA: Final = 2  # scores of before it have no hashes


@dataclass(frozen=True)
class Work:
    """What a step works with.

    Attributes:
        executor: Where shards are worked on.
        round_: Its scores are complete.
        config: How much memory may be taken, and where the reference encoder's weights lie.
        parts: What is asked for, and where it all goes.
    """

    executor: Executor
    round_: Round
    config: RunConfig
    parts: SignalParts

    def missing(self, stage: Any, folder: str, what: str) -> None:
        """Run a stage over the shards that have no part in a folder below the run yet."""
        run_missing(self.executor, stage, self.round_.shards, folder, what=what, folder=self.round_.place)


@dataclass(frozen=True)
class Step:
    """One step towards the signals.

    Attributes:
        take: Does what is not done yet.
        asked: Whether a plan wants it.
        writes: Files of the signals' folder; where all are there, the step is done. Empty where it looks for itself.
        scratch: Folder that nobody needs once the signals are there.
    """

    take: Callable[[Work], None]
    asked: Callable[[Asked], bool]
    writes: tuple[str, ...] = ()
    scratch: str = ""


def _count_wording(work: Work) -> None:
    """Hash the wording of all captions and count it."""
    work.missing(ShingleCaptions(work.parts), work.parts.name(BANDS), "shingle captions")
    if BAND_COUNTS not in work.parts.run.names(work.parts.folder):
        write_band_counts(work.parts)


def _draw_samples(work: Work) -> None:
    """Draw the samples that are missing, all from the rows of lowest priority, and write them."""
    parts, asked, executor = work.parts, work.parts.asked, work.executor
    cells = num_cells(parts.num_scored, asked) if asked.copies else 0
    sizes = {REFERENCE: asked.reference_rows, AGREEMENT: asked.agreement_rows, CENTRES: cells}
    done = parts.run.names(parts.folder)
    wanted = {name: min(num, parts.num_scored) for name, num in sizes.items() if num and name not in done}
    if not wanted:
        return
    most, offered = max(wanted.values()), dict[str, Sampled]()
    _check_memory(parts, most)

    def collect(shard: Shard, sampled: Sampled) -> tuple[int, int]:
        offered[shard.name] = sampled
        return len(sampled.hashes), 0

    stage = SampleRows(SampleTarget(parts, share_of(most, parts.num_scored)))
    run_stage(executor, stage, work.round_.shards, what="sample", folder=work.round_.place, collect=collect)
    some = [offered[shard] for shard in parts.shards if len(offered[shard].hashes)]  # in the order of shards, not of workers
    for name, num in wanted.items():
        Reference.choose(some, num).write(parts.run, parts.name(name), parts.fingerprint)


def _check_memory(parts: SignalParts, num_rows: int) -> None:
    """Refuse a sample that does not fit into a worker.

    Raises:
        RunError: Says how much it takes, and which settings to change.
    """
    shard = parts.shards[0]
    names = [part_name(parts.scores_round, EMBEDDINGS, shard), *([f"{parts.others}/{shard}.parquet"] if parts.others else [])]
    schemas = [pq.read_schema(parts.run.path(name), filesystem=parts.run.fs) for name in names]
    bytes_per_row = 2 * sum(field.type.byte_width for schema in schemas for field in schema)  # float32 of what is fp16
    if num_rows * bytes_per_row > parts.memory_bytes:
        raise RunError(
            f"a sample of {num_rows:,} rows takes {num_rows * bytes_per_row / 2**20:,.0f} MiB in each worker, "
            f"signals_memory_mb allows {parts.memory_bytes >> 20:,}; raise it, lower agreement_rows or reference_rows, or "
            "raise copy_cell_rows"
        )


def _compare_with_index(work: Work) -> None:
    """Compare what came with what the index promised."""
    index = index_of(work.config)
    if index is None:
        raise RunError("these signals compare with an index; name it with --index")
    parts = work.parts
    if not index.vectors:
        if not is_there(parts, PROMISES):
            write_found(parts, index, PROMISES)
    elif FOUND in parts.run.folders(parts.folder) or not is_there(parts, PROMISES):
        if not is_there(parts, FOUND):
            write_found(parts, index, FOUND)
        work.missing(CompareVectors(VectorTarget(parts, index)), parts.name(PROMISES), "compare with the index's vectors")
        add_honest_turns(parts, index)
        parts.run.delete_folder(parts.name(FOUND))  # last: it says that the turns are not counted yet


def _write_rows(work: Work) -> None:
    """Ask every source about every row."""
    within = work.parts.name(WITNESS) if work.parts.asked.joins else work.parts.folder
    work.missing(WriteSignals(work.parts), within, "signals")


def _join_copies(work: Work) -> None:
    """Let near copies share their doubts, and write the signals parts."""
    if not {GROUPS, PAIRS} <= work.parts.run.names(work.parts.folder):
        write_groups(work.parts)
    work.missing(JoinCopies(work.parts), work.parts.folder, "join near copies")


STEPS: Final = (
    Step(lambda work: write_repeats(work.parts), lambda _: True, tuple(repeats_name(kind) for kind in KINDS)),
    Step(_count_wording, lambda asked: asked.caption_shingles, scratch=BANDS),
    Step(
        lambda work: add_reference(work.executor, work.round_, work.config),
        lambda asked: asked.near and asked.reference_encoder is not None,
    ),
    Step(_draw_samples, lambda asked: asked.near),
    Step(lambda work: find_copies(work.executor, work.round_, work.parts), lambda asked: asked.copies, (CLUSTERS,)),
    Step(_compare_with_index, lambda asked: asked.index is not None, scratch=PROMISES),
    Step(_write_rows, lambda _: True, scratch=WITNESS),
    Step(_join_copies, lambda asked: asked.joins),
)


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


def signal_parts(round_: Round, num_scored: int = 0, num_threads: int = 1, memory_bytes: int = 2 << 30) -> SignalParts | None:
    """Return where the signals of a round lie; None where its plan asks for none.

    The folder's name follows from what was asked for, so that other settings, later, leave sealed rounds as they are.
    """
    if round_.asked is None:
        return None
    stamp = fingerprint({"scores": round_.scores_fingerprint, "signals": round_.plan["signals"]})
    near = round_.asked.near
    return SignalParts(
        run=round_.run,
        scores_round=round_.scores_round,
        shards=tuple(shard.name for shard in round_.shards),
        folder=f"{round_folder(round_.scores_round)}/{SIGNAL_PARTS}-{stamp[:8]}",
        fingerprint=stamp,
        asked=round_.asked,
        others=reference_folder(round_) if near else None,
        canaries=canary_folder(round_) if near else None,
        num_scored=num_scored,
        num_threads=num_threads,
        memory_bytes=memory_bytes,
    )


def are_there(parts: SignalParts) -> bool:
    """Return whether every shard has its signals part."""
    return {f"{shard}.parquet" for shard in parts.shards} <= parts.run.names(parts.folder)


def asked_signals(config: RunConfig) -> dict[str, Any] | None:
    """Return what a plan says of signals: what of the settings can change one; None where there are none.

    Raises:
        PairsanError: The reference encoder, or the index, cannot be found.
    """
    asked, tower, index = config.signals.plan, tower_of(config), index_of(config)
    if asked is None:
        return None
    more = {"reference_encoder": tower.plan} if tower else {}
    return {**asked, **more, **({"index": index_plan(index)} if index else {})}


def signals_plan(run: Store, scores_round: int, config: RunConfig) -> dict[str, Any] | None:
    """Return what the plan of a round says of signals that is made of scores which are there already.

    Raises:
        RunError: These scores have no hashes, embeddings or captions, to make the signals of that the split asks for.
    """
    asked = asked_signals(config)
    if asked is None:
        return asked
    plan, where = read_plan(run, scores_round), f"round {scores_round} of {run.uri}"
    if plan["schema_version"] < _FIRST_SCHEMA:
        if limits_of(config.split):
            raise RunError(f"{where} was scored by pairsan 0.1.0, without hashes; score again to label by signals")
        return None
    if plan["schema_version"] < LOOKS_SINCE:
        asked.pop("looks", None)
        if config.split.look_tail:
            raise RunError(f"{where} was scored before what images are like was kept; score again to label by --look-tail")
    if asked["signals"] == "all" and not plan["scores"]["keep"]["embeddings"]:
        raise RunError(
            f"{where} kept no embeddings, so there are no neighbours to compare; score again with --keep-embeddings, "
            "or ask for --signals repeats"
        )
    needs = [name for name in ("reference_encoder", "caption_shingles") if name in asked]
    if needs and not plan["scores"]["keep"]["captions"]:
        raise RunError(f"{where} kept no captions, which {needs[0]} reads; score again with --keep-captions")
    return asked
