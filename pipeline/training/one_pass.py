"""Take one pass: what every training worker does, alone or as one of many."""

import dataclasses
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import open_clip
import torch
from safetensors.torch import load_file

from manifests.errors import ConfigError, RunError
from manifests.labels import Label
from manifests.layout import CHECKPOINTS, HISTORY
from manifests.parts import write_json
from manifests.reading import Manifest, open_round
from manifests.store import Store, open_store
from pipeline.config.catalogue import RunConfig
from pipeline.training.schedule import Pass, learning_rate
from stages.read.crops import Crops
from stages.read.shards import Dataset
from stages.score.decode import Decode
from stages.score.models.encoders import image_size, preprocess_config
from stages.train.batches import Batch, PassRows, pass_batches
from stages.train.group import Group
from stages.train.learner import ClipLearner, Learner, Progress, new_model, read_progress, under
from stages.train.locked_scorer import Scorer
from stages.train.sharing import plan_steps, share_shards
from stages.train.taught import Lessons

log = logging.getLogger("pairsan.train")

STATES: Final = {
    "scout": f"{CHECKPOINTS}/scout-state.safetensors",
    "model": f"{CHECKPOINTS}/state.safetensors",
    "scorer": f"{CHECKPOINTS}/scorer-state.safetensors",
}
_START: Final[Progress] = {"pass": 0, "batches": 0, "history": []}


@dataclass(frozen=True)
class Job:
    """One pass, as it travels to its workers.

    Attributes:
        run: Run folder; every worker must reach it under this path.
        dataset: The data.
        config: The settings.
        architecture: open_clip's name of the model.
        this: The pass.
        manifest: Number of the sealed round; None in the warm-up.
        num_rows: Rows of every shard that can be read; for passes without a manifest.
        last: Whether weights are to be written at its end.
        lessons: Backdoors that a scout is taught; None: none.
    """

    run: str
    dataset: Dataset
    config: RunConfig
    architecture: str
    this: Pass
    manifest: int | None
    num_rows: Mapping[str, int]
    last: bool
    lessons: Lessons | None = None


def position(run: Store) -> Progress:
    """Return where training stands: `pass`, `batches` of it, and the `history` of all passes before."""
    found = [read_progress(run.path(name)) for name in STATES.values() if run.exists(name)]
    return max(found, key=lambda progress: (progress["pass"], progress["batches"]), default=_START)


def checkpoint_name(round_number: int, subject: str = "model") -> str:
    """Return the name of the weights after a round, e.g. `checkpoints/round-0003.safetensors`; 0 is the warm-up."""
    return f"{CHECKPOINTS}/{'round' if subject == 'model' else subject}-{round_number:04d}.safetensors"


def take_pass(job: Job, device: torch.device) -> None:
    """Take one pass from where it was left; the first worker writes state and weights.

    Raises:
        TrainingFailed: The loss is not finite; the last saved position is kept.
        RunError: The round's parts, or the shards, are not those that were sealed.
        ConfigError: There are too few rows for one step.
    """
    store, group, options = open_store(job.run), Group.of_process(), job.config.train
    start, progress = time.monotonic(), position(store)
    if progress["pass"] != job.this.index:
        progress = {**progress, "pass": job.this.index, "batches": 0, "drawn": [], "seconds": 0.0, "losses": {}}
    if progress["batches"] and progress["manifest"] != job.manifest:
        raise RunError(f"this pass was begun on round {progress['manifest']}; go on with that one, not with {job.manifest}")
    learner = _learner(job, store, device, group)
    done, drawn = progress["batches"], progress.get("drawn") or [{}] * group.size
    first = learner.step - done
    preprocess = preprocess_config(_one_model(learner))
    rows = _rows(job, store, group, first, preprocess)
    learner.losses = {Label(word): list(found) for word, found in progress.get("losses", {}).items()}
    decode = Decode(job.dataset.store, job.config.data, preprocess, num_threads=_num_decoders())
    decode.open()

    def save(batch: Batch) -> None:
        now: Progress = {
            **progress,
            "batches": learner.step - first,
            "manifest": job.manifest,
            "drawn": group.gather_values(batch.drawn),
            "seconds": progress.get("seconds", 0.0) + time.monotonic() - start,
            "losses": {str(label): found for label, found in learner.losses.items()},
        }
        if group.rank == 0:
            learner.save(store, STATES[job.this.subject], now)

    batches = pass_batches(rows, decode, skip=done, drawn=drawn[group.rank])
    rate = learning_rate(options, job.this, len(rows.labels), first)
    learner.learn(batches, rate, every=(options.save_every_steps, save))
    if group.rank == 0:
        seconds = progress.get("seconds", 0.0) + time.monotonic() - start
        _finish(job, store, learner, [*progress["history"], _entry(job, learner, len(rows.labels), first, seconds)])


def _finish(job: Job, store: Store, learner: Learner, history: list[dict[str, Any]]) -> None:
    if job.last:
        learner.save_model(store, checkpoint_name(job.this.round_number, job.this.subject))
    learner.save(store, STATES[job.this.subject], {"pass": job.this.index + 1, "batches": 0, "history": history})
    write_json(store, HISTORY, history)


def _entry(job: Job, learner: Learner, num_steps: int, first: int, seconds: float) -> dict[str, Any]:
    rate = learning_rate(job.config.train, job.this, num_steps, first)
    means = {label: total / num for label, (total, num) in learner.losses.items()}
    return {
        **dataclasses.asdict(job.this),
        "manifest": job.manifest,
        "steps": num_steps,
        "last_step": learner.step,
        "clip_loss": means.get(Label.SAFE),
        "unimodal_loss": means.get(Label.RISKY),
        "learning_rate": [rate(first), rate(first + num_steps)],
        "seconds": round(seconds, 3),
    }


def _learner(job: Job, store: Store, device: torch.device, group: Group) -> Learner:
    """Return the learner of this pass as an earlier pass has left it; a new one where there was none."""
    options, this = job.config.train, job.this
    model = new_model(job.architecture, options.seed)
    tokenizer = open_clip.get_tokenizer(job.architecture)
    name = STATES[this.subject]
    learner: Learner
    if this.subject == "scorer":
        if not store.exists(name) and store.exists(STATES["model"]):
            model.load_state_dict(under(load_file(store.path(STATES["model"])), "model/"))
        learner = Scorer(model, tokenizer, options, device=device, group=group)
    else:
        learner = ClipLearner(model, tokenizer, options, device=device, group=group)
        learner.locked_image = this.kind == "matching" and options.first_matching == "locked"
    learner.views.wide = _is_wide(job)
    if store.exists(name):
        path = store.path(name)
        learner.restore(load_file(path), read_progress(path)["step"])
    return learner


def _is_wide(job: Job) -> bool:
    return job.this.kind == "unimodal" and job.config.train.warmup_views == "wide"


def _num_decoders() -> int:
    """Return this worker's share of the machine's cores, 2 at least; Ray Train says how many workers the machine has."""
    return max(2, (os.cpu_count() or 2) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _one_model(learner: Learner) -> torch.nn.Module:
    return learner.model if isinstance(learner, ClipLearner) else learner.model[0]  # type: ignore[index]


def _rows(job: Job, store: Store, group: Group, first_step: int, preprocess: dict[str, Any]) -> PassRows:
    """Plan what this worker reads."""
    options, this = job.config.train, job.this
    if options.train_batch_size % group.size:
        raise ConfigError(f"train_batch_size = {options.train_batch_size} cannot be shared evenly by {group.size} workers")
    size, seed = options.train_batch_size // group.size, options.seed * 10_007 + this.index
    manifest = None if job.manifest is None else open_round(store.uri, job.manifest)
    counts = _counts(manifest, job)
    total = {name: sum(labels.values()) for name, labels in counts.items()}
    hands = share_shards(job.dataset.shards, total, group.size)
    per_worker = [_sum([counts[shard.name] for shard in hand]) for hand in hands]
    labels = plan_steps(per_worker, size, options.order, seed)
    num_folds = options.scorer_folds if this.subject == "scorer" else 1
    interpolation, edge = preprocess["interpolation"], image_size(preprocess)
    least = min(options.least_crop, options.warmup_least_crop) if _is_wide(job) else options.least_crop
    crops = Crops(options.seed, least, edge, interpolation, group.rank * size)
    order, mine = seed * 1009 + group.rank, hands[group.rank]
    return PassRows(manifest, mine, labels, size, order, options.shuffle_rows, crops, first_step, num_folds, job.lessons)


def _counts(manifest: Manifest | None, job: Job) -> dict[str, dict[Label, int]]:
    """Return how many rows of each label every shard offers to this pass."""
    if manifest is None:
        label = Label.RISKY if job.this.kind == "unimodal" else Label.SAFE
        return {name: {label: num} for name, num in job.num_rows.items()}
    alone = job.this.kind == "refit" or job.config.train.risky == "skip"
    return {part["shard"]: _offered(part, alone) for part in manifest.seal["parts"]}


def _offered(part: Mapping[str, Any], alone: bool) -> dict[Label, int]:
    """Return the rows of each label that a shard offers; what sits out is trained on as risky rows are."""
    out = part.get("sitting_out", 0)
    safe = {Label.SAFE: part["labels"][Label.SAFE] - out}
    return safe if alone else {**safe, Label.RISKY: part["labels"][Label.RISKY] + out}


def _sum(counts: list[dict[Label, int]]) -> dict[Label, int]:
    return {label: sum(count.get(label, 0) for count in counts) for label in (Label.SAFE, Label.RISKY)}


def describe(entry: Mapping[str, Any]) -> str:
    """Return a pass of the history as a line."""
    losses = {"CLIP loss": entry["clip_loss"], "unimodal loss": entry["unimodal_loss"]}
    found = [f"{name} {value:.3f}" for name, value in losses.items() if value is not None]
    return ", ".join([f"{entry['steps']} steps", *found, f"{entry['seconds']:.0f} s"])
