"""Open a round whose scores are complete: plan it, score what is missing, hand it over while the cluster is still there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manifests.layout import Plan
from manifests.store import Store
from pipeline.config.load import RunConfig
from pipeline.steps.plan import Round, begin_round
from pipeline.workers.executors import Executor, connected, make_executor, num_cluster_gpus
from pipeline.workers.run_stage import run_stage
from stages.pair import Shard
from stages.read.shards import Dataset

if TYPE_CHECKING:
    from pipeline.steps.embed_stage import Scoring
    from stages.score.embed import Embedded


@dataclass(frozen=True)
class Choice:
    """Which round a set of scores belongs to.

    Attributes:
        number: The round.
        plan: Its contents beside schema version and number.
        hint: What to do where the round was begun under another plan.
    """

    number: int
    plan: dict[str, Any]
    hint: str


@contextmanager
def scored_round(
    run: Store, dataset: Dataset, config: RunConfig, choose: Callable[[Plan], Choice], *, verbose: bool
) -> Iterator[tuple[Executor, Round]]:
    """Yield an executor and a round that has a scores part for every shard.

    Args:
        run: The run folder.
        dataset: Its data.
        config: The settings.
        choose: Takes the scoring half of the plan and says which round it belongs to.
        verbose: Whether to let Ray speak.
    """
    from pipeline.steps.embed_stage import num_local_gpus, prepare_scoring  # torch: seconds that a mere split need not wait

    with connected(config.executor, verbose=verbose):
        num_gpus = num_cluster_gpus() if config.executor.executor == "ray" else num_local_gpus()
        scoring = prepare_scoring(config, dataset, num_gpus=num_gpus)
        chosen = choose(scoring.plan)
        round_ = begin_round(run, chosen.number, chosen.plan, dataset.shards, hint=chosen.hint)
        executor = make_executor(config.executor, use_gpus=scoring.device == "cuda", num_shards=len(dataset.shards))
        _score(executor, round_, scoring, dataset, config)
        yield executor, round_


def _score(executor: Executor, round_: Round, scoring: "Scoring", dataset: Dataset, config: RunConfig) -> None:
    """Embed the shards that have no scores yet."""
    todo = round_.missing_scores()
    if not todo:
        return

    def count(_: Shard, embedded: "Embedded") -> tuple[int, int]:
        return embedded.num_rows, embedded.num_quarantined

    stage = scoring.stage(round_.run, round_.number, dataset, config, num_threads=executor.num_threads)
    before = len(round_.shards) - len(todo)
    folder = (round_.run, round_.number)
    run_stage(executor, stage, todo, what="embed", folder=folder, collect=count, num_done_before=before)
