"""Compute the signals of a scored round: count repeats, draw the reference, then every shard by itself. Resumable."""

from dataclasses import dataclass, field
from typing import Any

from manifests.errors import RunError
from manifests.layout import EMBEDDINGS, SIGNAL_PARTS, fingerprint, read_plan, round_folder
from manifests.store import Store
from pipeline.config import RunConfig, limits_of
from pipeline.executors import Executor
from pipeline.plans import Round
from pipeline.work import run_stage
from stages.label import SignalParts
from stages.neighbours import Neighbours, SignalTarget
from stages.options import SignalOptions
from stages.pair import Shard
from stages.reference import Reference, Sampled, SampleRows, share_of
from stages.repeats import KINDS, write_repeats

_REFERENCE = "reference.parquet"
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


def signals_plan(run: Store, scores_round: int | None, config: RunConfig) -> dict[str, Any] | None:
    """Return what a round's plan says of signals.

    Args:
        run: The run folder.
        scores_round: Round whose scores are there already; None where they are yet to be made.
        config: The settings.

    Raises:
        RunError: These scores have no hashes, or no embeddings, to make the signals of that the split asks for.
    """
    asked = config.signals.plan
    if asked is None or scores_round is None:
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
    return asked


def add_signals(executor: Executor, round_: Round, options: SignalOptions, num_scored: int) -> SignalParts | None:
    """Write the signals parts that are missing.

    Args:
        executor: Where shards are worked on.
        round_: Its scores are complete, its plan says which signals.
        options: How much memory counting may take.
        num_scored: Rows with a cosine.

    Raises:
        RunError: The embeddings are gone.
    """
    parts = signal_parts(round_)
    if parts is None:
        return None
    done = round_.run.names(parts.folder)
    todo = [shard for shard in round_.shards if f"{shard.name}.parquet" not in done]
    if not todo:
        return parts
    if any(f"repeats-{kind}.parquet" not in done for kind in KINDS):
        names = [shard.name for shard in round_.shards]
        memory = options.signals_memory_mb << 20
        write_repeats(round_.run, round_.scores_round, names, parts.folder, memory_bytes=memory, fingerprint=parts.fingerprint)
    reference = f"{parts.folder}/{_REFERENCE}" if parts.near else None
    if parts.near and not round_.run.names(f"{round_folder(round_.scores_round)}/{EMBEDDINGS}"):
        where = f"round {round_.scores_round} of {round_.run.uri}"
        raise RunError(f"the embeddings of {where} were deleted (--keep-last); score again, or ask for --signals repeats")
    if reference is not None and _REFERENCE not in done:
        _draw(executor, round_, reference, parts.fingerprint, num_scored)
    k = int(round_.plan["signals"].get("neighbours", 0))
    target = SignalTarget(round_.run, round_.scores_round, parts.folder, parts.fingerprint, reference, k, executor.num_threads)
    folder = (round_.run, round_.number)
    run_stage(
        executor, Neighbours(target), todo, what="signals", folder=folder, collect=lambda _, rows: (rows, 0),
        num_done_before=len(round_.shards) - len(todo),
    )  # fmt: skip
    return parts


@dataclass
class _Collected:
    """Rows that shards have offered for the reference."""

    offered: dict[str, Sampled] = field(default_factory=dict)

    def add(self, shard: Shard, sampled: Sampled) -> tuple[int, int]:
        self.offered[shard.name] = sampled
        return len(sampled.hashes), 0


def _draw(executor: Executor, round_: Round, name: str, stamp: str, num_scored: int) -> None:
    """Draw the reference and write it."""
    asked, collected = round_.plan["signals"], _Collected()
    num_rows = int(asked["reference_rows"])
    share = share_of(num_rows, num_scored)
    stage = SampleRows(round_.run, round_.scores_round, share=share, seed=int(asked["signals_seed"]))
    run_stage(executor, stage, round_.shards, what="sample", folder=(round_.run, round_.number), collect=collected.add)
    offered = [collected.offered[shard.name] for shard in round_.shards if len(collected.offered[shard.name].hashes)]
    Reference.choose(offered, num_rows).write(round_.run, name, stamp)
