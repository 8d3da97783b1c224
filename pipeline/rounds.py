"""The story of a round: plan, score, count, signals, decide, label, seal.

Each step leaves whole files behind and begins by looking at what is already there, so that the same call goes on where
an earlier one stopped, however that ended.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from manifests.errors import ConfigError
from manifests.layout import Plan, is_sealed, read_plan
from manifests.reading import Manifest, open_round
from manifests.store import Store, open_store
from pipeline.config.catalogue import RunConfig
from pipeline.steps.count import count
from pipeline.steps.growth import grow, round_of_data, taken_over, with_source
from pipeline.steps.label import decide_round, label
from pipeline.steps.numbering import grown, looked_at, rescore_number, scores_asked, split_number
from pipeline.steps.plan import Round, begin_run, forget_unsealed, planned, read_run
from pipeline.steps.score import prepare, score
from pipeline.steps.seal import seal
from pipeline.steps.signals.add import add_signals
from pipeline.steps.signals.asked import asked_signals, signals_plan
from pipeline.workers.connect import choose_device, connected, make_executor
from pipeline.workers.executors import Executor
from stages.read.shards import Dataset, open_dataset

if TYPE_CHECKING:
    from pipeline.steps.embed_stage import Scoring

_ENCODING: Final = "pipeline.steps.embed_stage"  # imports torch and open_clip, which takes longer than Ray takes to start


def clean(
    data: Sequence[str],
    out: str,
    config: RunConfig,
    *,
    restart: bool = False,
    drop_missing: bool = False,
    verbose: bool = False,
) -> Manifest:
    """Score all pairs of a dataset, split them, and seal the labels as round 1 of a run, or as its next where they have grown.

    Args:
        data: Folders, files, globs or brace patterns.
        out: Run folder; an interrupted run of the same plan is continued.
        config: The settings.
        restart: Whether to delete first what was begun in that folder; not where a round is sealed.
        drop_missing: Whether to go on where shards of a sealed round are gone.
        verbose: Whether to let Ray speak.

    Raises:
        PairsanError: See `manifests.errors`; what was finished is kept.
    """
    signals = asked_signals(config)
    with _begun(data, out, config, restart=restart, drop_missing=drop_missing, verbose=verbose) as begun:
        looks = looked_at(begun.run, config, begun.scores["scores_round"])
        round_ = begun.planned(config, "clean", split=config.split.model_dump(), signals=signals, **looks)
        return _take(begun.executor, round_, config, begun.scoring)


def add(out: str, data: Sequence[str], name: str | None, config: RunConfig, *, verbose: bool = False) -> Manifest:
    """Score a further source, and seal a round over all data of a run; nothing is left to do where that was done.

    Args:
        out: Run folder.
        data: Folders, files, globs or brace patterns of the source.
        name: What its shards are called by, before their own names; that of the first folder or file if None.
        config: The settings.
        verbose: Whether to let Ray speak.

    Raises:
        ConfigError: The name is none.
        RunError: Nothing of the run is sealed yet, or it trains.
        PairsanError: As for `clean`.
    """
    return clean(with_source(open_store(out), data, name), out, config, verbose=verbose)


def embed(
    data: Sequence[str],
    out: str,
    config: RunConfig,
    *,
    restart: bool = False,
    drop_missing: bool = False,
    verbose: bool = False,
) -> Round:
    """Score all pairs of a dataset and stop there; `split` makes sealed rounds of the scores. See `clean`."""
    with _begun(data, out, config, restart=restart, drop_missing=drop_missing, verbose=verbose) as begun:
        round_ = begun.planned(config, "embed", split=None, signals=None)
        score(begun.executor, round_, config, begun.scoring)
        return round_


@dataclass(frozen=True)
class _Begun:
    """A run that is begun, or gone on with: its data, what scores them where, and what a plan says of the scores."""

    run: Store
    dataset: Dataset
    executor: Executor
    scoring: "Scoring"
    scores: dict[str, Any]

    def planned(self, config: RunConfig, kind: str, **more: Any) -> Round:
        """Return its round; see `steps.plan.planned`."""
        number = self.scores["scores_round"]
        return planned(self.run, number, self.dataset.shards, kind=kind, scores=self.scores, config=config, **more)


@contextmanager
def _begun(
    data: Sequence[str], out: str, config: RunConfig, *, restart: bool, drop_missing: bool, verbose: bool
) -> Iterator[_Begun]:
    """Begin a run, or go on with it where its data have grown."""
    run, dataset = open_store(out), open_dataset(data, skip_unreadable=config.data.skip_unreadable)
    with _ready(config, dataset, verbose=verbose) as (executor, scoring):
        if restart:
            forget_unsealed(run)
        grow(run, dataset, data, config, drop_missing=drop_missing)
        begin_run(run, dataset, data, config)
        number = round_of_data(run, dataset.fingerprint)
        scores = {"scores": scoring.plan, "scores_round": number, **taken_over(run, scoring.plan)}
        yield _Begun(run, dataset, executor, scoring, scores)


@contextmanager
def _ready(config: RunConfig, dataset: Dataset, *, verbose: bool) -> "Iterator[tuple[Executor, Scoring]]":
    """Connect, and yield workers and what they score with; they start while the weights are looked at here."""
    with connected(config.executor, verbose=verbose, meanwhile=_ENCODING):
        device = choose_device(config.model, config.executor)
        executor = make_executor(config.executor, use_gpus=device == "cuda")
        executor.start(len(dataset.shards), _ENCODING)
        yield executor, prepare(config, dataset, device)


def rescore(out: str, config: RunConfig, *, trained_on: int | None = None, verbose: bool = False) -> Manifest:
    """Make a new sealed round of a run with other weights; the round they have already, where there is one.

    With `growth`, the safe share is that of the newest sealed round plus `growth`, at most `cap`.

    Args:
        out: Run folder, which names its data.
        config: The settings, with the new weights.
        trained_on: Sealed round that those trained on, by rule look-again; the newest by default.
        verbose: Whether to let Ray speak.

    Raises:
        ConfigError: `trained_on` is no sealed round, or its rule does not ask.
        PlanMismatch: The data have changed since the run began.
        PairsanError: As for `clean`.
    """
    run = open_store(out)
    dataset = read_run(run).open_data()
    begin_run(run, dataset, [], config)  # refuses other data
    signals = asked_signals(config)
    if trained_on is not None and config.split.rule != "look-again":
        raise ConfigError(f"--trained-on {trained_on} has no effect under rule {config.split.rule!r}, only under look-again")
    with _ready(config, dataset, verbose=verbose) as (executor, scoring):
        return _take(executor, _rescored(run, dataset, config, scoring.plan, signals, trained_on), config, scoring)


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
    source = scores_asked(run, len(shards), scores_round)
    scores = {key: read_plan(run, source)[key] for key in ("scores", "scores_round")}
    more = {
        **{"split": config.split.model_dump(), "signals": signals_plan(run, source, config)},
        **looked_at(run, config, source, read_plan(run, source).get("trained_on")),
    }
    number = split_number(run, {**scores, **more, "profile": config.profile})
    round_ = planned(run, number, shards, kind="split", scores=scores, config=config, **more)
    with connected(config.executor, verbose=verbose):
        return _take(make_executor(config.executor, use_gpus=False), round_, config, None)


def _take(executor: Executor, round_: Round, config: RunConfig, scoring: "Scoring | None") -> Manifest:
    """Take a planned round to its seal.

    A round is begun, that is, its plan written, by the first step that writes into it: by `score` where it has scores of its
    own, else by `label`. So a split that is refused leaves no round behind.

    Args:
        executor: Where shards are worked on.
        round_: Planned.
        config: The settings.
        scoring: What scores it; None where its scores are an earlier round's.
    """
    score(executor, round_, config, scoring)
    if not round_.is_sealed:
        totals = count(executor, round_)
        signals = add_signals(executor, round_, config, totals.histogram.num_rows)
        decided = decide_round(executor, round_, totals, signals)
        written = label(executor, round_, totals, signals, decided)
        seal(round_, totals, signals, decided, written)
    return open_round(round_.run, round_.number)


def _rescored(
    run: Store, dataset: Dataset, config: RunConfig, scores: Plan, signals: Plan | None, trained_on: int | None
) -> Round:
    """Plan the round of some weights; whatever is asked for now, weights that have labels keep them."""
    number = rescore_number(run, scores)
    if is_sealed(run, number):
        return Round(run, number, read_plan(run, number), dataset.shards)
    looks = looked_at(run, config, number, trained_on)
    more = {"split": grown(run, config.split, before=number).model_dump(), "signals": signals, **looks}
    of = {"scores": scores, "scores_round": number, **taken_over(run, scores)}
    return planned(run, number, dataset.shards, kind="rescore", scores=of, config=config, **more)
