"""SAFECLIP whole: warm up each modality by itself, match the towers, then round after round score, split, train.

The passes of a run are a fixed list. What is done of it stands in `checkpoints/state.safetensors` (and `scorer-
state.safetensors`), with weights, optimizer, pools and position; every pass and every scored round is resumable, so the same
command goes on from anywhere.
"""

import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch

from manifests.errors import ConfigError, RunError
from manifests.layout import CHECKPOINTS, is_sealed, read_plan, read_seal, require_same_plan
from manifests.parts import write_json
from manifests.store import Store, open_store
from pipeline.config.catalogue import RunConfig
from pipeline.steps.plan import begin_run, reachable, read_run
from pipeline.training.lessons import lessons_for, look_at_lessons
from pipeline.training.one_pass import Job, checkpoint_name, describe, position, take_pass
from pipeline.training.schedule import Pass, passes_of
from pipeline.training.trackers import tracking, values_of
from pipeline.training.which_round import Training, looking_ahead, manifest_of, named_architecture, sealed_round
from pipeline.workers.connect import connected, make_executor, num_gpus
from pipeline.workers.run_stage import run_stage
from pipeline.workers.train_on_ray import take_on_ray
from stages.pair import Shard
from stages.read.count_rows import CountRows, CountTarget
from stages.read.shards import open_dataset
from stages.train.settings import TrainSettings
from stages.train.taught import Lessons

log = logging.getLogger("pairsan.train")

SETTINGS: Final = f"{CHECKPOINTS}/train.json"
ROWS: Final = f"{CHECKPOINTS}/rows.json"
_EXTENDABLE: Final = ("rounds", "look_again", "overlap", "save_every_steps", "faiss_from", "log_to")
History = list[dict[str, Any]]


def run(data: Sequence[str], out: str, config: RunConfig, *, until_round: int | None = None, verbose: bool = False) -> History:
    """Train a CLIP model from random weights by SAFECLIP, in as many rounds as the settings say; goes on where it stopped.

    Args:
        data: Folders, files, globs or brace patterns.
        out: Run folder.
        config: The settings; `model.model` names the architecture.
        until_round: Stop after this round (0: after the warm-up); the same call without it goes on.
        verbose: Whether to let Ray speak.

    Returns:
        One entry per pass of the whole run: index, kind, round, subject, manifest, steps, losses, seconds.

    Raises:
        TrainingFailed: A loss is not finite; the last saved position is kept.
        PairsanError: See `manifests.errors`.
    """
    with _begun(data, out, config, verbose=verbose) as training:
        for this in _todo(training):
            if until_round is not None and this.round_number > until_round:
                break
            begun, manifest = position(training.store), None
            if begun["pass"] == this.index and begun["batches"]:
                manifest = begun["manifest"]  # whatever was sealed since, the pass goes on with what it began on
            elif this.kind == "round":
                manifest = sealed_round(training, this)
            elif this.kind == "refit":
                manifest = manifest_of(training.store, this.round_number)
            with looking_ahead(training, this, manifest, until_round):
                _take(training, this, manifest)
        return list(position(training.store)["history"])


def train(out: str, config: RunConfig, number: int, *, verbose: bool = False) -> History:
    """Take the next round's training passes on a round that is sealed already; a job of its own, apart from scoring.

    Args:
        out: Run folder, warmed up.
        config: The settings.
        number: The sealed round.
        verbose: Whether to let Ray speak.

    Returns:
        See `run`.

    Raises:
        RunError: The round is not sealed, or the warm-up is not finished.
    """
    store = open_store(out)
    if not is_sealed(store, number):
        raise RunError(f"round {number} of {out} is not sealed; `pairsan status {shlex.quote(out)}` says what is missing")
    with _begun(read_run(store).data, out, config, verbose=verbose) as training:
        todo = _todo(training)
        if not todo:
            raise RunError(f"all rounds of {out} are trained; ask for more with --rounds")
        if todo[0].round_number == 0:
            raise RunError(f"the warm-up of {out} is not finished; `pairsan run --until-round 0` goes on with it")
        for this in todo:
            if this.round_number == todo[0].round_number:
                _take(training, this, number)
        return list(position(store)["history"])


@contextmanager
def _begun(data: Sequence[str], out: str, config: RunConfig, *, verbose: bool) -> Iterator[Training]:
    dataset, store = open_dataset(data, skip_unreadable=config.data.skip_unreadable), open_store(out)
    config = _with_scout(store, reachable(config))
    training = Training(store, dataset, config, _architecture(config), verbose)
    if config.train.train_workers > 1 and config.executor.executor == "local":
        raise ConfigError(f"--train-workers {config.train.train_workers} needs --executor ray")
    if config.train.overlap and config.executor.executor == "local":
        raise ConfigError("--overlap looks on Ray's workers while this process trains; it needs --executor ray")
    if config.train.scorer == "locked" and config.train.num_matching_passes == 0:
        raise ConfigError("scorer = 'locked' learns to match in its matching passes; --matching-passes 0 leaves it without any")
    begin_run(store, dataset, list(data), config)
    _same_settings(training)
    told = tracking(config.train.trackers, store, config.train.model_dump())
    with connected(config.executor, verbose=verbose), told as track:
        yield replace(training, track=track)


def _with_scout(store: Store, config: RunConfig) -> RunConfig:
    """Return settings that say how long the scout learns: more rounds, asked for later, must not make it longer."""
    if config.train.scorer != "scout" or config.train.scout_passes is not None:
        return config
    known = store.read_json(SETTINGS)["train"].get("scout_passes") if store.exists(SETTINGS) else None
    passes = known or config.train.num_scout_passes
    return config.model_copy(update={"train": config.train.model_copy(update={"scout_passes": passes})})


def _todo(training: Training) -> list[Pass]:
    return passes_of(training.config.train)[position(training.store)["pass"] :]


def _take(training: Training, this: Pass, manifest: int | None) -> None:
    """Take one pass, here or on Ray's workers."""
    config, dataset = training.config, training.dataset
    if manifest is not None:
        named = read_plan(training.store, manifest)["scores"]["dataset"]["fingerprint"]
        if named != dataset.fingerprint:
            raise RunError(f"round {manifest} was made of other data than these; train on the data it names")
    num_rows = {} if manifest is not None else _num_rows(training)
    passes = passes_of(config.train)
    following = passes[this.index + 1] if this.index + 1 < len(passes) else None
    last = following is None or (following.round_number, following.subject) != (this.round_number, this.subject)
    lessons, architecture = _lessons(training, this, manifest), training.architecture_of(this.subject)
    job = Job(training.store.path(), dataset, config, architecture, this, manifest, num_rows, last, lessons)
    use_gpu = config.model.device != "cpu" and num_gpus(config.executor) > 0
    if config.executor.executor == "ray" and (config.train.train_workers > 1 or use_gpu):
        take_on_ray(take_pass, job, config.train.train_workers, use_gpu=use_gpu)
    else:
        take_pass(job, torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu"))
    history = position(training.store)["history"]
    training.track(this.index + 1, values_of(history[-1], None if manifest is None else read_seal(training.store, manifest)))
    log.info("pass %d (%s, round %d): %s", this.index + 1, this.kind, this.round_number, describe(history[-1]))


def _lessons(training: Training, this: Pass, manifest: int | None) -> Lessons | None:
    """Return what a pass of the scout teaches; before the first pass on its round, ask what it shows of that."""
    lessons = lessons_for(training.store, training.dataset, training.config)
    if lessons is not None and manifest is not None:
        architecture = training.architecture_of("scout").removeprefix("local-dir:")
        scout = {"checkpoint": training.store.path(checkpoint_name(0, "scout")), "model": architecture}
        model = training.config.model.model_copy(update=scout)
        config = training.config.model_copy(update={"model": model})
        look_at_lessons(training.store, training.dataset, config, manifest, lessons)
    return lessons if this.kind == "scout" else None


def _architecture(config: RunConfig) -> str:
    name = config.model.model
    if name is None:
        raise ConfigError("which architecture? Give --model NAME, or a folder with open_clip_config.json")
    return named_architecture(name)


def _same_settings(training: Training) -> None:
    """Refuse to go on with other training settings; more rounds may be asked for."""
    store = training.store
    if not store.is_local:
        raise RunError(f"training needs the run on a local or mounted path, not {store.uri}")
    kept = {key: value for key, value in training.config.train.model_dump().items() if key not in _EXTENDABLE}
    document = {"train": kept, "architecture": training.architecture}
    if store.exists(SETTINGS):
        old, usual = json.loads(store.read_bytes(SETTINGS)), TrainSettings().model_dump()
        # what there was no setting for then, was done as by default
        old["train"] = {**{key: usual[key] for key in kept if key not in old["train"]}, **old["train"]}
        require_same_plan(old, document, where=f"training in {store.uri}", hint="Give another --out for other settings.")
    else:
        write_json(store, SETTINGS, document)


def _num_rows(training: Training) -> dict[str, int]:
    """Count once, in parallel, how many rows of each shard can be read; for the length of the warm-up passes."""
    store, dataset, config = training.store, training.dataset, training.config
    if not store.exists(ROWS):
        found: dict[str, int] = {}

        def collect(shard: Shard, num: int) -> tuple[int, int]:
            found[shard.name] = num
            return num, 0

        options = config.executor.model_copy(update={"decode": "worker"})
        executor = make_executor(options, use_gpus=False)
        stage = CountRows(CountTarget(dataset.store, config.data))
        run_stage(executor, stage, dataset.shards, what="count rows", folder=(store, None), collect=collect)
        write_json(store, ROWS, found)
    counts: dict[str, int] = store.read_json(ROWS)
    return counts
