"""The story of a round: plan, score, count, split, label, seal.

Each step leaves whole files behind and begins by looking at what is already there, so that the same call goes on where
an earlier one stopped, however that ended.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from manifests.errors import RunError
from manifests.layout import SCORES, is_sealed, read_plan, round_folder, round_numbers
from manifests.reading import Manifest, open_round
from manifests.store import Store, open_store
from pipeline.config import RunConfig
from pipeline.executors import Executor, connected, make_executor, num_cluster_gpus
from pipeline.plans import Round, begin_round, begin_run, read_run
from pipeline.sealing import check_quarantined, label_and_seal, tally
from pipeline.work import run_stage
from stages.pair import Shard
from stages.shards import Dataset, open_dataset
from stages.split import decide

if TYPE_CHECKING:
    from pipeline.scoring import Scoring
    from stages.embed import Embedded

FIRST_ROUND = 1
_OTHER_SETTINGS = (
    "Other weights or reading settings need another --out; other split settings need only `pairsan split {run}`, "
    "which reuses the scores."
)


def clean(data: Sequence[str], out: str, config: RunConfig, *, verbose: bool = False) -> Manifest:
    """Score all pairs of a dataset, split them, and seal the labels as round 1 of a run.

    Args:
        data: Folders, files, globs or brace patterns.
        out: Run folder; an interrupted run of the same plan is continued.
        config: The settings.
        verbose: Whether to let Ray speak.

    Raises:
        PairsanError: See `manifests.errors`; what was finished is kept.
    """
    with _scoring(data, out, config, kind="clean", verbose=verbose) as (executor, round_):
        if not is_sealed(round_.run, round_.number):
            _seal_round(executor, round_, config)
    return open_round(round_.run, round_.number)


def embed(data: Sequence[str], out: str, config: RunConfig, *, verbose: bool = False) -> Round:
    """Score all pairs of a dataset and stop there; `split` makes sealed rounds of the scores. See `clean`."""
    with _scoring(data, out, config, kind="embed", verbose=verbose) as (_, round_):
        return round_


def split(out: str, config: RunConfig, *, scores_round: int | None = None, verbose: bool = False) -> Manifest:
    """Make a new sealed round from scores that a run already has.

    Args:
        out: Run folder.
        config: The settings; only those of the split and the executor matter.
        scores_round: Round whose scores are split; the newest complete ones by default.
        verbose: Whether to let Ray speak.

    Raises:
        RunError: No round has complete scores.
        SplitRefused: The split cannot be believed; no round was begun.
    """
    run = open_store(out)
    _, shards = read_run(run)
    source = scores_round if scores_round is not None else _newest_scores(run, len(shards))
    plan = {key: read_plan(run, source)[key] for key in ("scores", "scores_round")}
    number = _open_round_like(run, {**plan, "split": config.split.model_dump()})
    with connected(config.executor, verbose=verbose):
        executor = make_executor(config.executor, use_gpus=False, num_shards=len(shards))
        planned = Round(run, number, {**plan, "round": number}, shards)
        totals = tally(executor, planned)
        check_quarantined(totals, config.split.max_quarantined_share)
        decision = decide(totals.histogram, config.split)  # before the plan: a refused split leaves no round behind
        contents = {"kind": "split", **plan, "split": config.split.model_dump()}
        round_ = begin_round(run, number, contents, shards, hint="Choose another split.")
        label_and_seal(executor, round_, totals, decision)
    return open_round(run, number)


@contextmanager
def _scoring(data: Sequence[str], out: str, config: RunConfig, *, kind: str, verbose: bool) -> Iterator[tuple[Executor, Round]]:
    """Plan round 1, score what is missing of it, and hand over its executor while the cluster is still there."""
    from pipeline.scoring import num_local_gpus, prepare_scoring  # torch: seconds that a mere split need not wait

    dataset = open_dataset(data)
    run = open_store(out)
    with connected(config.executor, verbose=verbose):
        num_gpus = num_cluster_gpus() if config.executor.executor == "ray" else num_local_gpus()
        scoring = prepare_scoring(config, dataset, num_gpus=num_gpus)
        begin_run(run, dataset, list(data), config)
        plan = {
            "kind": kind,
            "scores": scoring.plan,
            "scores_round": FIRST_ROUND,
            "split": config.split.model_dump() if kind == "clean" else None,
        }
        round_ = begin_round(run, FIRST_ROUND, plan, dataset.shards, hint=_OTHER_SETTINGS.format(run=out))
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


def _seal_round(executor: Executor, round_: Round, config: RunConfig) -> None:
    """Split a scored round and seal it."""
    totals = tally(executor, round_)
    check_quarantined(totals, config.split.max_quarantined_share)
    label_and_seal(executor, round_, totals, decide(totals.histogram, config.split))


def _newest_scores(run: Store, num_shards: int) -> int:
    """Return the newest round with a scores part for every shard."""
    for number in reversed(round_numbers(run)):
        parts = [name for name in run.names(f"{round_folder(number)}/{SCORES}") if name.endswith(".parquet")]
        if len(parts) >= num_shards:
            return number
    raise RunError(f"no round of {run.uri} has complete scores; `pairsan status {run.uri}` says what is missing")


def _open_round_like(run: Store, plan: dict[str, object]) -> int:
    """Return the newest round where it is an unsealed split under the same plan, else the next free number."""
    newest = max(round_numbers(run))
    old = read_plan(run, newest)
    same = old["kind"] == "split" and all(old.get(key) == value for key, value in plan.items())
    return newest if same and not is_sealed(run, newest) else newest + 1
