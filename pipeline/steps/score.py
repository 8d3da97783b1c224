"""Embed the shards of a round that have no scores yet."""

from dataclasses import replace
from typing import TYPE_CHECKING

from manifests.layout import EMBEDDINGS, SCORES, round_folder
from pipeline.config.catalogue import RunConfig
from pipeline.steps.numbering import shards_of
from pipeline.steps.plan import Round
from pipeline.workers.executors import Executor
from pipeline.workers.run_in_pieces import run_in_pieces
from pipeline.workers.run_stage import run_stage
from stages.pair import Shard
from stages.read.heads import refuse_hopeless
from stages.read.shards import Dataset

if TYPE_CHECKING:
    from pipeline.steps.embed_stage import Scoring
    from stages.score.embed import Embed, Embedded


def prepare(config: RunConfig, dataset: Dataset, device: str) -> "Scoring":
    """Look at the first rows, then resolve the weights and load them once. See `prepare_scoring`.

    Raises:
        DataError: No row can be read as asked.
    """
    bytes_per_row = refuse_hopeless(dataset, config.data)
    from pipeline.steps.embed_stage import prepare_scoring  # torch: seconds that a mere split need not wait

    return replace(prepare_scoring(config, dataset, device=device), bytes_per_row=bytes_per_row)


def score(executor: Executor, round_: Round, config: RunConfig, scoring: "Scoring | None") -> None:
    """Begin a round and write its scores.

    Args:
        executor: Where shards are worked on.
        round_: Planned.
        config: The settings.
        scoring: What scores it; None where the scores are an earlier round's, which needs nothing done.
    """
    if scoring is None:
        return
    round_.begin()
    stage = scoring.stage(round_.run, round_.number, num_shards=len(round_.shards), num_threads=executor.num_threads)
    _take_over(executor, round_, stage)
    folder, kinds = round_folder(round_.scores_round), [EMBEDDINGS] if config.embed.keep_embeddings else []
    done = shards_of(round_.run, round_.scores_round)
    todo = [shard for shard in round_.shards if shard.name not in done]
    size, bytes_per_row = sum(shard.size_bytes for shard in todo), scoring.bytes_per_row
    run_in_pieces(
        executor,
        stage,
        todo,
        [f"{folder}/{kind}" for kind in (*kinds, SCORES)],
        source=(scoring.data, config.data),
        what="embed",
        folder=round_.place,
        collect=_count,
        num_done_before=len(round_.shards) - len(todo),
        num_rows=round(size / bytes_per_row) if bytes_per_row else None,
    )


def _take_over(executor: Executor, round_: Round, stage: "Embed") -> None:
    """Write the parts of shards that a round has scored before the data grew."""
    source = round_.plan.get("taken_over")
    if source is None:
        return
    from stages.score.pieces import TakeOver, TakeOverTarget

    known, done = shards_of(round_.run, source["round"]), shards_of(round_.run, round_.number)
    todo = [shard for shard in round_.shards if shard.name in known - done]
    what = f"take over from round {source['round']}"
    run_stage(
        executor, TakeOver(TakeOverTarget(stage.target, source["round"])), todo, what=what, folder=round_.place, collect=_count
    )


def _count(_: Shard, embedded: "Embedded") -> tuple[int, int]:
    return embedded.num_rows, embedded.num_quarantined
