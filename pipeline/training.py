"""SAFECLIP whole: warm up each modality by itself, match the towers, then round after round score, split, train.

The passes of a run are a fixed list. What is done of it stands in one file, `checkpoints/state.safetensors`, with weights,
optimizer, pools and position; every pass and every scored round is resumable, so the same command goes on from anywhere.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import open_clip

from manifests.errors import ConfigError, RunError
from manifests.layout import require_same_plan
from manifests.parts import write_json
from manifests.reading import Manifest
from manifests.schema import Label
from manifests.store import Store, open_store
from pipeline.config import RunConfig
from pipeline.executors import connected
from pipeline.plans import begin_run
from pipeline.rounds import rescore
from stages.decode import Decode
from stages.encoders import preprocess_config
from stages.options import TrainOptions
from stages.round_rows import Batch, round_batches
from stages.shards import Dataset, open_dataset, read_shard
from stages.train import Learner, PassResult, new_model, read_progress

log = logging.getLogger("pairsan.train")

CHECKPOINTS: Final = "checkpoints"
STATE: Final = f"{CHECKPOINTS}/state.safetensors"
SETTINGS: Final = f"{CHECKPOINTS}/train.json"
DEFAULT_GROWTH: Final = 0.01
_EXTENDABLE: Final = ("rounds", "save_every_steps")


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the rows: its place in the list, its kind, and the round it belongs to (0 for the warm-up)."""

    index: int
    kind: Literal["unimodal", "matching", "round"]
    round_number: int


def passes_of(options: TrainOptions) -> list[Pass]:
    """Return the passes of a whole run in order."""
    kinds = ["unimodal"] * options.warmup_passes + ["matching"] * options.matching_passes
    warm = [Pass(index, kind, 0) for index, kind in enumerate(kinds)]  # type: ignore[arg-type]
    return warm + [Pass(len(warm) + i, "round", i + 1) for i in range(options.rounds)]


def learning_rate(options: TrainOptions, this: Pass, num_steps: int, first_step: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the step: one warm-up and one cosine over all unimodal and round passes.

    The first matching stands outside it, at its own constant rate. The schedule's clock is passes, not steps, so it ends
    at zero with the last step that is really taken, however the rows of later rounds divide.

    Args:
        options: Training settings.
        this: The pass.
        num_steps: Steps it will take.
        first_step: The step it begins with.
    """
    if this.kind == "matching":
        constant = options.slow_learning_rate if options.first_matching == "slow" else options.locked_learning_rate
        return lambda _: constant
    scheduled = [p.index for p in passes_of(options) if p.kind != "matching"]
    place, total = scheduled.index(this.index), len(scheduled)

    def rate(step: int) -> float:
        done = (place + min(1.0, (step - first_step) / max(1, num_steps))) / total
        rising = options.lr_warmup_share
        if done < rising:
            return options.learning_rate * done / rising
        return options.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (done - rising) / max(1e-9, 1.0 - rising)))

    return rate


def run(
    data: Sequence[str], out: str, config: RunConfig, *, until_round: int | None = None, verbose: bool = False
) -> list[dict[str, Any]]:
    """Train a CLIP model from random weights by SAFECLIP, in as many rounds as the settings say; goes on where it stopped.

    Args:
        data: Folders, files, globs or brace patterns.
        out: Run folder.
        config: The settings; `model.model` names the architecture.
        until_round: Stop after this round (0: after the warm-up); the same call without it goes on.
        verbose: Whether to let Ray speak.

    Returns:
        One entry per pass that was taken now: index, kind, round, steps, losses.

    Raises:
        TrainingFailed: A loss is not finite; the last saved position is kept.
        PairsanError: See `manifests.errors`.
    """
    dataset, store = open_dataset(data), open_store(out)
    architecture = _architecture(config)
    begin_run(store, dataset, list(data), config)
    _same_settings(store, config.train, architecture)
    learner, progress = _learner(store, config.train, architecture)
    decode = Decode(dataset.store, config.data, preprocess_config(learner.model), num_threads=2)
    decode.open()
    num_rows, taken = _count_rows(dataset, config), []
    with connected(config.executor, verbose=verbose):
        for this in passes_of(config.train)[progress["pass"] :]:
            if until_round is not None and this.round_number > until_round:
                break
            manifest = _sealed(out, config, this, verbose=verbose) if this.kind == "round" else None
            result = _take(learner, this, manifest, dataset, decode, config.train, store, progress, num_rows)
            last_of_warmup = (
                this.round_number == 0 and this.index + 1 == config.train.warmup_passes + config.train.matching_passes
            )
            if this.kind == "round" or last_of_warmup:
                learner.save_model(store, checkpoint_name(this.round_number))
            progress = {"pass": this.index + 1, "batches": 0}
            learner.save(store, STATE, progress)
            taken.append({**dataclasses.asdict(this), **dataclasses.asdict(result)})
            log.warning("pass %d (%s, round %d): %s", this.index + 1, this.kind, this.round_number, _losses(result))
    return taken


def checkpoint_name(round_number: int) -> str:
    """Return the name of the model after a round, e.g. `checkpoints/round-0003.safetensors`; 0 is the warm-up."""
    return f"{CHECKPOINTS}/round-{round_number:04d}.safetensors"


def _take(
    learner: Learner,
    this: Pass,
    manifest: Manifest | None,
    dataset: Dataset,
    decode: Decode,
    options: TrainOptions,
    store: Store,
    progress: dict[str, int],
    num_rows: int,
) -> PassResult:
    """Take one pass from where it was left."""
    done = progress["batches"] if progress["pass"] == this.index else 0
    if manifest is not None and manifest.seal["plan"]["scores"]["dataset"]["fingerprint"] != dataset.fingerprint:
        raise RunError(f"round {manifest.number} was made of other data than these; train on the data it names")
    label = {"unimodal": Label.RISKY, "matching": Label.SAFE, "round": None}[this.kind]
    seed = options.seed * 10_007 + this.index
    size = options.train_batch_size
    batches = round_batches(manifest, dataset.shards, decode, batch_size=size, seed=seed, as_label=label)
    counts = [num_rows] if manifest is None else [manifest.seal["counts"]["labels"][word] for word in (Label.SAFE, Label.RISKY)]
    num_steps, first = sum(count // size for count in counts), learner.step - done
    if num_steps == 0:
        raise ConfigError(f"train_batch_size = {size} is more than any label has rows ({counts}); lower it")

    def save() -> None:
        learner.save(store, STATE, {"pass": this.index, "batches": learner.step - first})

    locked = this.kind == "matching" and options.first_matching == "locked"
    rest: islice[Batch] = islice(batches, done, None)
    rate = learning_rate(options, this, num_steps, first)
    return learner.learn(rest, rate, locked_image=locked, every=(options.save_every_steps, save))


def _sealed(out: str, config: RunConfig, this: Pass, *, verbose: bool) -> Manifest:
    """Score with the checkpoint of the round before and return the sealed round."""
    path = open_store(out).path(checkpoint_name(this.round_number - 1))
    model = config.model.model_copy(update={"checkpoint": path, "model": _architecture(config).removeprefix("local-dir:")})
    growth = DEFAULT_GROWTH if config.split.growth is None else config.split.growth
    split = config.split.model_copy(update={"growth": growth})
    return rescore(out, config.model_copy(update={"model": model, "split": split}), verbose=verbose)


def _learner(store: Store, options: TrainOptions, architecture: str) -> tuple[Learner, dict[str, int]]:
    """Return a new learner, or the one that an earlier call has left, and its position."""
    learner = Learner(new_model(architecture, options.seed), open_clip.get_tokenizer(architecture), options)
    if not store.exists(STATE):
        return learner, {"pass": 0, "batches": 0}
    progress, tensors = read_progress(store.path(STATE))
    learner.restore(tensors, progress["step"])
    return learner, progress


def _architecture(config: RunConfig) -> str:
    name = config.model.model
    if name is None:
        raise ConfigError("which architecture? Give --model NAME, or a folder with open_clip_config.json")
    return f"local-dir:{name}" if Path(name).is_dir() else name


def _same_settings(store: Store, options: TrainOptions, architecture: str) -> None:
    """Refuse to go on with other training settings; more rounds may be asked for."""
    if not store.is_local:
        raise RunError(f"training needs the run on a local or mounted path, not {store.uri}")
    kept = {key: value for key, value in options.model_dump().items() if key not in _EXTENDABLE}
    document = {"train": kept, "architecture": architecture}
    if store.exists(SETTINGS):
        old = json.loads(store.read_bytes(SETTINGS))
        require_same_plan(old, document, where=f"training in {store.uri}", hint="Give another --out for other settings.")
    else:
        write_json(store, SETTINGS, document)


def _count_rows(dataset: Dataset, config: RunConfig) -> int:
    """Count the rows that have an image and a caption; for the length of the warm-up passes."""
    shards = dataset.shards
    return sum(pair.reason is None for shard in shards for pair in read_shard(dataset.store, shard, config.data))


def _losses(result: PassResult) -> str:
    found = {"CLIP loss": result.clip_loss, "unimodal loss": result.unimodal_loss}
    return ", ".join([f"step {result.num_steps}", *(f"{k} {v:.3f}" for k, v in found.items() if not math.isnan(v))])
