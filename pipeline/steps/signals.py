"""Compute the signals of a scored round: repeats, samples, near copies, then every shard by itself. Resumable."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from manifests.errors import RunError
from manifests.layout import EMBEDDINGS, SIGNAL_PARTS, fingerprint, part_name, read_plan, round_folder
from manifests.store import Store
from pipeline.config.load import RunConfig, limits_of
from pipeline.steps.near_copies import CLUSTERS, find_copies, num_cells
from pipeline.steps.plan import Round
from pipeline.steps.witness_vectors import add_reference, canary_folder, reference_folder, tower_of
from pipeline.workers.executors import Executor
from pipeline.workers.run_stage import run_missing, run_stage
from stages.pair import Shard
from stages.signals.joint_doubt import GROUPS_NAME, PAIRS_NAME, WITNESS, JoinCopies, write_groups
from stages.signals.repeats import KINDS, write_repeats
from stages.signals.sample import Reference, Sampled, SampleRows, share_of
from stages.signals.shingles import COUNTS, ShingleCaptions, write_band_counts
from stages.signals.shingles import FOLDER as BAND_PARTS
from stages.signals.signal_parts import SignalParts
from stages.signals.write_signals import Neighbours, SignalTarget

_REFERENCE, _AGREEMENT, _CENTRES = "reference.parquet", "agreement.parquet", "centres.parquet"
FIRST_SCHEMA = 2


def signal_parts(round_: Round) -> SignalParts | None:
    """Return where the signals of a round lie; None where its plan asks for none.

    The folder's name follows from what was asked for, so that other settings, later, leave sealed rounds as they are.
    """
    asked = round_.plan.get("signals")
    if asked is None:
        return None
    stamp = fingerprint({"scores": round_.scores_fingerprint, "signals": asked})
    folder = f"{round_folder(round_.scores_round)}/{SIGNAL_PARTS}-{stamp[:8]}"
    return SignalParts(folder, stamp, asked["signals"] == "all")


def asked_signals(config: RunConfig) -> dict[str, Any] | None:
    """Return what a plan says of signals: what of the settings can change one; None where there are none.

    Raises:
        PairsanError: The reference encoder cannot be found.
    """
    asked, tower = config.signals.plan, tower_of(config)
    return asked if asked is None or tower is None else {**asked, "reference_encoder": tower.plan}


def signals_plan(run: Store, scores_round: int, config: RunConfig) -> dict[str, Any] | None:
    """Return what the plan of a round says of signals that is made of scores which are there already.

    Args:
        run: The run folder.
        scores_round: Round of the scores.
        config: The settings.

    Raises:
        RunError: These scores have no hashes, embeddings or captions, to make the signals of that the split asks for.
    """
    asked = asked_signals(config)
    if asked is None:
        return asked
    plan, where = read_plan(run, scores_round), f"round {scores_round} of {run.uri}"
    if plan["schema_version"] < FIRST_SCHEMA:
        if limits_of(config.split):
            raise RunError(f"{where} was scored by pairsan 0.1.0, without hashes; score again to label by signals")
        return None
    if asked["signals"] == "all" and not plan["scores"]["keep"]["embeddings"]:
        raise RunError(
            f"{where} kept no embeddings, so there are no neighbours to compare; score again with --keep-embeddings, "
            "or ask for --signals repeats"
        )
    needs = [name for name in ("reference_encoder", "caption_shingles") if name in asked]
    if needs and not plan["scores"]["keep"]["captions"]:
        raise RunError(f"{where} kept no captions, which {needs[0]} reads; score again with --keep-captions")
    return asked


def add_signals(executor: Executor, round_: Round, config: RunConfig, num_scored: int) -> SignalParts | None:
    """Write the signals parts that are missing.

    Args:
        executor: Where shards are worked on.
        round_: Its scores are complete, its plan says which signals.
        config: How much memory may be taken, and where the reference encoder's weights lie.
        num_scored: Rows with a cosine.

    Raises:
        RunError: The embeddings are gone.
    """
    parts = signal_parts(round_)
    if parts is None:
        return None
    done = round_.run.names(parts.folder)
    if all(f"{shard.name}.parquet" in done for shard in round_.shards):
        return parts
    if any(f"repeats-{kind}.parquet" not in done for kind in KINDS):
        names = [shard.name for shard in round_.shards]
        memory = config.signals.signals_memory_mb << 20
        write_repeats(round_.run, round_.scores_round, names, parts.folder, memory_bytes=memory, fingerprint=parts.fingerprint)
    asked = round_.plan["signals"]
    if asked.get("caption_shingles"):
        _count_bands(executor, round_, parts, config.signals.signals_memory_mb << 20)
    if parts.near:
        if not round_.run.names(f"{round_folder(round_.scores_round)}/{EMBEDDINGS}"):
            where = f"round {round_.scores_round} of {round_.run.uri}"
            raise RunError(f"the embeddings of {where} were deleted (--keep-last); score again, or ask for --signals repeats")
        add_reference(executor, round_, config)
        _draw(executor, round_, parts, num_scored, config.signals.signals_memory_mb << 20)
        if "near_copy_cosine" in asked:
            samples = (f"{parts.folder}/{_REFERENCE}", f"{parts.folder}/{_CENTRES}")
            find_copies(executor, round_, parts, samples, num_scored, config.signals.signals_memory_mb << 20)
    target = signal_target(executor, round_, parts, num_scored)
    written, folder = target.witness or parts.folder, (round_.run, round_.number)
    run_missing(executor, Neighbours(target), round_.shards, written, what="signals", folder=folder)
    if target.witness is not None:
        _join_copies(executor, round_, target, config.signals.signals_memory_mb << 20)
    if asked.get("caption_shingles"):
        round_.run.delete_folder(f"{parts.folder}/{BAND_PARTS}")
    return parts


def _join_copies(executor: Executor, round_: Round, target: SignalTarget, memory_bytes: int) -> None:
    """Let near copies share their doubts, and write the signals parts."""
    run, names = target.run, [shard.name for shard in round_.shards]
    if not {GROUPS_NAME, PAIRS_NAME} <= run.names(target.folder):
        write_groups(run, names, target.folder, memory_bytes=memory_bytes, fingerprint=target.fingerprint)
    stage, folder = JoinCopies(run, target.folder, target.fingerprint), (run, round_.number)
    run_missing(executor, stage, round_.shards, target.folder, what="join near copies", folder=folder)
    run.delete_folder(f"{target.folder}/{WITNESS}")


def _count_bands(executor: Executor, round_: Round, parts: SignalParts, memory_bytes: int) -> None:
    """Hash the wording of all captions and count it, where that is not done yet."""
    run, names = round_.run, [shard.name for shard in round_.shards]
    stage = ShingleCaptions(run, round_.scores_round, parts.folder, parts.fingerprint)
    bands, folder = f"{parts.folder}/{BAND_PARTS}", (run, round_.number)
    run_missing(executor, stage, round_.shards, bands, what="shingle captions", folder=folder)
    if COUNTS not in run.names(parts.folder):
        write_band_counts(run, names, parts.folder, memory_bytes=memory_bytes, fingerprint=parts.fingerprint)


def signal_target(executor: Executor, round_: Round, parts: SignalParts, num_scored: int) -> SignalTarget:
    """Return where the signals of a round are read from and go."""
    asked, near = round_.plan["signals"], parts.near
    return SignalTarget(
        run=round_.run,
        scores_round=round_.scores_round,
        folder=parts.folder,
        fingerprint=parts.fingerprint,
        clusters=f"{parts.folder}/{CLUSTERS}" if near and "near_copy_cosine" in asked else None,
        bands=f"{parts.folder}/{BAND_PARTS}" if asked.get("caption_shingles") else None,
        witness=f"{parts.folder}/{WITNESS}" if near and _joins(asked) else None,
        reference=f"{parts.folder}/{_REFERENCE}" if near else None,
        agreement=f"{parts.folder}/{_AGREEMENT}" if near and asked.get("agreement_rows") else None,
        others=reference_folder(round_) if near else None,
        canaries=canary_folder(round_) if near else None,
        neighbours=int(asked.get("neighbours", 0)),
        agreement_neighbours=int(asked.get("agreement_neighbours", 0)),
        num_rows=num_scored if asked.get("common_captions") else None,
        near_copy=asked.get("near_copy_cosine"),
        num_threads=executor.num_threads,
    )


def _joins(asked: dict[str, Any]) -> bool:
    """Return whether near copies are judged together: there are copies, and something to judge them by."""
    return bool("near_copy_cosine" in asked and asked.get("agreement_rows"))


@dataclass
class _Collected:
    """Rows that shards have offered for the samples."""

    offered: dict[str, Sampled] = field(default_factory=dict)

    def add(self, shard: Shard, sampled: Sampled) -> tuple[int, int]:
        self.offered[shard.name] = sampled
        return len(sampled.hashes), 0


def _check_memory(round_: Round, num_rows: int, others: str | None, allowed: int) -> None:
    """Refuse a sample that does not fit into a worker.

    Raises:
        RunError: Says how much it takes, and which settings to change.
    """
    shard = round_.shards[0].name
    names = [part_name(round_.scores_round, EMBEDDINGS, shard), *([f"{others}/{shard}.parquet"] if others else [])]
    schemas = [pq.read_schema(round_.run.path(name), filesystem=round_.run.fs) for name in names]
    bytes_per_row = 2 * sum(field.type.byte_width for schema in schemas for field in schema)  # float32 of what is fp16
    if num_rows * bytes_per_row > allowed:
        raise RunError(
            f"a sample of {num_rows:,} rows takes {num_rows * bytes_per_row / 2**20:,.0f} MiB in each worker, "
            f"--signals-memory-mb allows {allowed >> 20:,}; raise it, lower --agreement-rows or --reference-rows, or raise "
            "--copy-cell-rows"
        )


def _draw(executor: Executor, round_: Round, parts: SignalParts, num_scored: int, memory_bytes: int) -> None:
    """Draw the samples that are missing, all from the rows of lowest priority, and write them."""
    asked, done = round_.plan["signals"], round_.run.names(parts.folder)
    sizes = {_REFERENCE: int(asked["reference_rows"]), _AGREEMENT: int(asked.get("agreement_rows", 0))}
    sizes[_CENTRES] = num_cells(num_scored, asked) if "near_copy_cosine" in asked else 0
    wanted = {name: min(num, num_scored) for name, num in sizes.items() if num and name not in done}
    if not wanted:
        return
    others, collected = reference_folder(round_), _Collected()
    _check_memory(round_, max(wanted.values()), others, memory_bytes)
    share = share_of(max(wanted.values()), num_scored)
    stage = SampleRows(round_.run, round_.scores_round, share=share, seed=int(asked["signals_seed"]), others=others)
    run_stage(executor, stage, round_.shards, what="sample", folder=(round_.run, round_.number), collect=collected.add)
    offered = [collected.offered[shard.name] for shard in round_.shards if len(collected.offered[shard.name].hashes)]
    for name, num in wanted.items():
        Reference.choose(offered, num).write(round_.run, f"{parts.folder}/{name}", parts.fingerprint)
