"""Which sealed round a training round reads: made by a scout, by the scorer, or by a new look with the model being trained."""

import logging
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from manifests.errors import SplitRefused
from manifests.layout import CHECKPOINTS, is_sealed, read_plan, round_numbers
from manifests.parts import write_bytes
from manifests.reading import Manifest
from manifests.store import Store
from pipeline import rounds
from pipeline.config.catalogue import TABLES, RunConfig
from pipeline.config.document import as_toml
from pipeline.config.scout import scouted
from pipeline.steps.numbering import grown
from pipeline.steps.plan import reachable
from pipeline.training.one_pass import checkpoint_name, position
from pipeline.training.schedule import Pass, Subject
from pipeline.training.trackers import Track
from stages.label.settings import SplitSettings
from stages.read.shards import Dataset
from stages.train.settings import TrainSettings

log = logging.getLogger("pairsan.train")

SCOUT: Final = f"{CHECKPOINTS}/scout.toml"
DEFAULT_GROWTH: Final = 0.01


@dataclass(frozen=True)
class Training:
    """A training run under way: where it lies, on what data, with which settings.

    Attributes:
        store: The run folder.
        dataset: The data.
        config: The settings.
        architecture: open_clip's name of the model.
        verbose: Whether to let Ray speak.
        ahead: Sealed rounds of looks that were taken beside training, by the round that trains on them.
        track: Is told the values of each pass; see `trackers`.
    """

    store: Store
    dataset: Dataset
    config: RunConfig
    architecture: str
    verbose: bool
    ahead: dict[int, int] = field(default_factory=dict)
    track: Track = lambda _, values: values

    def architecture_of(self, subject: Subject) -> str:
        """Return open_clip's name of what is trained: the model's, or the scout's own."""
        scout = self.config.train.scout_model
        return self.architecture if subject != "scout" or scout is None else named_architecture(scout)


def sealed_round(training: Training, this: Pass) -> int:
    """Return the sealed round that a round's training reads: score with the newest weights, grow the safe share, split."""
    store, config, number = training.store, training.config, this.round_number
    if number in training.ahead:
        return training.ahead[number]
    if config.train.look_again and number > 1:
        last = manifest_of(store, number - 1)
        return _looked_again(training, number, last) if looks_before(config.train, number) else last
    if config.train.scorer == "scout":
        if number > 1:
            return manifest_of(store, number - 1)  # a scout speaks once
        config = scouted(config)
    checkpoint = scoring_checkpoint(config.train, number)
    architecture = training.architecture_of("scout" if config.train.scorer == "scout" else "scorer").removeprefix("local-dir:")
    model = config.model.model_copy(update={"checkpoint": store.path(checkpoint), "model": architecture})
    growth = DEFAULT_GROWTH if config.split.growth is None else config.split.growth
    split = config.split.model_copy(update={"growth": None if config.train.scorer == "scout" else growth})
    config = config.model_copy(update={"model": model, "split": split})
    if number > 1 and checkpoint == scoring_checkpoint(config.train, number - 1):  # the scorer is as it was: its scores stand
        before = manifest_of(store, number - 1)
        return _split(store, config.model_copy(update={"split": grown(store, split, before=before + 1)}), before, training)
    return rounds.rescore(store.uri, config, verbose=training.verbose).number


def _looked_again(training: Training, number: int, last: int) -> int:
    """Return the sealed round of the look before a round; the one before, in force, where the look is refused.

    Args:
        training: The run.
        number: Of the round that will train on it.
        last: Sealed round that the round before trains on.
    """
    trained_on = manifest_of(training.store, number - training.config.train.look_age)
    try:
        config = _looking_again(training, number)
        return rounds.rescore(training.store.uri, config, trained_on=trained_on, verbose=training.verbose).number
    except SplitRefused as error:
        log.warning("round %d trains on manifest %d again: %s", number, last, error)
        return last


@contextmanager
def looking_ahead(training: Training, this: Pass, last: int | None, until_round: int | None) -> Iterator[None]:
    """Take the look before the next round on other workers, while this round trains; for as long as the block runs.

    What ends the look is said at the end of the block, when the round is trained; what ends training leaves the look to end
    with Ray. Either way the same call goes on: a look that is sealed is found again.

    Args:
        training: The run.
        this: The pass that trains.
        last: Sealed round that it trains on.
        until_round: Where this call ends; None at the last round.
    """
    options, number = training.config.train, this.round_number
    goes_on = until_round is None or number < until_round
    if last is None or this.kind != "round" or not (options.overlap and goes_on and looks_before(options, number + 1)):
        yield
        return
    pool = ThreadPoolExecutor(1)
    try:
        look = pool.submit(_looked_again, training, number + 1, last)
        yield
        training.ahead[number + 1] = look.result()
    finally:
        pool.shutdown(wait=False)


def looks_before(options: TrainSettings, number: int) -> bool:
    """Return whether a look is due before a round; the first has nothing to look at, nor have weights that are not trained."""
    due = options.look_again > 0 and number <= options.rounds and (number - 1) % options.look_again == 0
    return due and number > options.look_age


def _looking_again(training: Training, number: int) -> RunConfig:
    """Return the settings of the look before a round: its weights, and what they take back, put out and veto."""
    config = training.config
    checkpoint = checkpoint_name(number - config.train.look_age)
    architecture = training.architecture.removeprefix("local-dir:")
    model = config.model.model_copy(update={"checkpoint": training.store.path(checkpoint), "model": architecture})
    growth = DEFAULT_GROWTH if config.split.growth is None else config.split.growth
    split = config.split.model_copy(update={"rule": "look-again", "growth": growth, "keep_share": None, "min_cosine": None})
    return config.model_copy(update={"model": model, "split": split})


def next_command(store: Store, out: str, config: RunConfig) -> str:
    """Return the command that seals the round to be trained on next, or trains where a scout has spoken already.

    How a scout's round is split goes into a settings file of the run, which that command names.
    """
    config = reachable(config)
    number, out = max((entry["round_number"] for entry in position(store)["history"]), default=0), shlex.quote(out)
    if config.train.look_again and number:
        if not looks_before(config.train, number + 1):
            return f"pairsan train {out} --round {manifest_of(store, number)}"
        weights = number + 1 - config.train.look_age
        growth = DEFAULT_GROWTH if config.split.growth is None else config.split.growth
        late = f" --trained-on {manifest_of(store, weights)}" if weights < number else ""
        checkpoint = _quoted(store, checkpoint_name(weights))
        return f"pairsan rescore {out} --rule look-again --growth {growth} --checkpoint {checkpoint}{late}"
    if config.train.scorer == "scout" and number:
        return f"pairsan train {out} --round {manifest_of(store, number)}"
    command = f"pairsan rescore {out} --checkpoint {_quoted(store, scoring_checkpoint(config.train, number + 1))}"
    if config.train.scorer != "scout":
        return command
    tables = [table for table in TABLES if table.partition(".")[0] in ("embed", "signals", "split")]
    write_bytes(store, SCOUT, as_toml(scouted(config), tables, defaults=False).encode())
    other = f" --model {shlex.quote(config.train.scout_model)}" if config.train.scout_model else ""
    return f"{command}{other} --config {_quoted(store, SCOUT)}"


def named_architecture(name: str) -> str:
    """Return how open_clip names an architecture: a folder with `open_clip_config.json`, or one that it knows."""
    return f"local-dir:{name}" if Path(name).is_dir() else name


def _quoted(store: Store, name: str) -> str:
    return shlex.quote(store.path(name))


def scoring_checkpoint(options: TrainSettings, number: int) -> str:
    """Return the name of the weights that a round is scored with."""
    if options.scorer == "model":
        return checkpoint_name(number - 1)
    if options.scorer == "scout":
        return checkpoint_name(0, "scout")
    return checkpoint_name(number - 1 if options.refit_passes else 0, "scorer")


def _split(store: Store, config: RunConfig, before: int, training: Training) -> int:
    """Return the round after `before` that has this split; made of the scores of `before`, unless it is there already."""
    for number in round_numbers(store):
        if number > before and is_sealed(store, number) and _asked(store, number) == config.split:
            return number
    scores = int(read_plan(store, before)["scores_round"])
    manifest: Manifest = rounds.split(store.uri, config, scores_round=scores, verbose=training.verbose)
    return manifest.number


def _asked(store: Store, number: int) -> SplitSettings:
    return SplitSettings.model_validate(read_plan(store, number)["split"])


def manifest_of(store: Store, round_number: int) -> int:
    """Return which sealed round a round was trained on; they differ where someone has split in between."""
    entries = [e for e in position(store)["history"] if e["round_number"] == round_number and e["kind"] == "round"]
    return int(entries[-1]["manifest"])
