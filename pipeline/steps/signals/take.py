"""The steps towards the signals of a round; each says whether it is asked for, what it writes and how. Resumable."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow.parquet as pq

from manifests.errors import RunError
from manifests.layout import EMBEDDINGS, part_name
from pipeline.config.catalogue import RunConfig
from pipeline.steps.plan import Round
from pipeline.steps.signals.index_files import index_of, is_there
from pipeline.steps.signals.near_copies import find_copies, num_cells
from pipeline.steps.signals.witness_vectors import add_reference
from pipeline.workers.executors import Executor
from pipeline.workers.run_stage import run_missing, run_stage
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
