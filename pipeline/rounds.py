"""The story of a round: plan, score, count, split, label, seal.

Each step leaves whole files behind and begins by looking at what is already there, so that the same call goes on where
an earlier one stopped, however that ended.
"""

from collections.abc import Sequence

from manifests.layout import Plan, is_sealed, read_plan, round_numbers
from manifests.reading import Manifest, open_round
from manifests.reviews import snapshot
from manifests.store import Store, open_store
from pipeline.config.load import RunConfig
from pipeline.steps.count import counted, decided
from pipeline.steps.numbering import grown, newest_scores, rescore_number, split_number
from pipeline.steps.plan import Round, begin_round, begin_run, read_run
from pipeline.steps.score import Choice, scored_round
from pipeline.steps.seal import label_and_seal
from pipeline.steps.signals import asked_signals, signals_plan
from pipeline.workers.executors import Executor, connected, make_executor
from stages.read.shards import open_dataset
from stages.settings import SplitOptions

FIRST_ROUND = 1
_OTHER_SETTINGS = (
    "Other reading settings need another --out; other weights make a new round by `pairsan rescore {run}`; other split "
    "settings need only `pairsan split {run}`, which reuses the scores."
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
    round_ = _first_round(data, out, config, kind="clean", verbose=verbose)
    return open_round(round_.run, round_.number)


def embed(data: Sequence[str], out: str, config: RunConfig, *, verbose: bool = False) -> Round:
    """Score all pairs of a dataset and stop there; `split` makes sealed rounds of the scores. See `clean`."""
    return _first_round(data, out, config, kind="embed", verbose=verbose)


def rescore(out: str, config: RunConfig, *, verbose: bool = False) -> Manifest:
    """Make a new sealed round of a run with other weights; the round they have already, where there is one.

    With `growth`, the safe share is that of the newest sealed round plus `growth`, at most `cap`.

    Args:
        out: Run folder, which names its data.
        config: The settings, with the new weights.
        verbose: Whether to let Ray speak.

    Raises:
        PlanMismatch: The data have changed since the run began.
        PairsanError: As for `clean`.
    """
    run = open_store(out)
    dataset = open_dataset(read_run(run).data)
    begin_run(run, dataset, [], config)  # refuses other data
    signals = asked_signals(config)

    def choose(scores: Plan) -> Choice:
        number = rescore_number(run, scores)
        split = grown(run, config.split, before=number).model_dump()
        plan = {"kind": "rescore", "scores": scores, "scores_round": number, "split": split}
        plan["signals"] = signals
        plan["reviews"] = _reviews(run, number)
        if is_sealed(run, number):  # whatever was asked for now, these weights have their labels
            plan = {key: read_plan(run, number).get(key) for key in plan}
        return Choice(number, plan, _OTHER_SETTINGS.format(run=out))

    with scored_round(run, dataset, config, choose, verbose=verbose) as (executor, round_):
        if not is_sealed(run, round_.number):
            _seal(executor, round_, config, SplitOptions.model_validate(round_.plan["split"]))
    return open_round(run, round_.number)


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
    shards = read_run(run).shards
    source = scores_round if scores_round is not None else newest_scores(run, len(shards))
    plan = {key: read_plan(run, source)[key] for key in ("scores", "scores_round")}
    plan["signals"] = signals_plan(run, source, config)
    number = split_number(run, {**plan, "split": config.split.model_dump()})
    with connected(config.executor, verbose=verbose):
        executor = make_executor(config.executor, use_gpus=False, num_shards=len(shards))
        planned = Round(run, number, {**plan, "round": number}, shards)
        totals = counted(executor, planned, config, config.split)
        decision = decided(totals, config.split)  # before the plan: no round where it is refused
        contents = {"kind": "split", **plan, "split": config.split.model_dump(), "reviews": _reviews(run, number)}
        round_ = begin_round(run, number, contents, shards, hint="Choose another split.")
        label_and_seal(executor, round_, totals, decision)
    return open_round(run, number)


def _first_round(data: Sequence[str], out: str, config: RunConfig, *, kind: str, verbose: bool) -> Round:
    """Plan round 1, score it, and seal it where `kind` is `clean`."""
    dataset, run = open_dataset(data), open_store(out)
    split = config.split.model_dump() if kind == "clean" else None
    signals = asked_signals(config) if kind == "clean" else None

    def choose(scores: Plan) -> Choice:
        begin_run(run, dataset, list(data), config)
        plan = {"kind": kind, "scores": scores, "scores_round": FIRST_ROUND, "split": split, "signals": signals}
        plan["reviews"] = _reviews(run, FIRST_ROUND)
        return Choice(FIRST_ROUND, plan, _OTHER_SETTINGS.format(run=out))

    with scored_round(run, dataset, config, choose, verbose=verbose) as (executor, round_):
        if kind == "clean" and not is_sealed(run, FIRST_ROUND):
            _seal(executor, round_, config, config.split)
        return round_


def _reviews(run: Store, number: int) -> Plan | None:
    """Return which human verdicts a round honours: those of when it was begun."""
    return read_plan(run, number).get("reviews") if number in round_numbers(run) else snapshot(run)


def _seal(executor: Executor, round_: Round, config: RunConfig, options: SplitOptions) -> None:
    """Count a scored round, split it, label its rows and seal it."""
    totals = counted(executor, round_, config, options)
    label_and_seal(executor, round_, totals, decided(totals, options))
