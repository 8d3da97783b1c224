"""Train CLIP on chosen rows of poisoned shards: the same steps for every choice, by pairsan's own learner and input."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import open_clip
from safetensors.torch import load_file

from manifests import Label
from manifests.store import open_store
from pipeline.training.schedule import learning_rate, passes_of
from stages.pair import Pair
from stages.read.crops import Crop, Crops
from stages.read.shards import open_dataset
from stages.score.decode import Decode
from stages.score.models.encoders import image_size, preprocess_config
from stages.settings import ReadSettings
from stages.train.batches import PassRows, pass_batches
from stages.train.learner import ClipLearner, new_model
from stages.train.settings import TrainSettings
from stages.train.taught import Lessons

MODEL = f"local-dir:{Path(__file__).parent / 'model'}"


@dataclass(frozen=True)
class Choice:
    """Labels of every row, in memory, where a sealed round would be read from disk.

    Attributes:
        labels: Words of every shard, in row order.
    """

    labels: Mapping[str, list[str]]

    def join(
        self,
        shard: str,
        rows: Iterable[tuple[str, Pair]],
        *,
        sit_out: bool = False,
        image_of: Callable[[Pair], bytes | None] | None = None,
        caption_of: Callable[[Pair], str | None] | None = None,
    ) -> Iterator[tuple[str, Pair]]:
        """Yield the label of each row of a shard beside it, as `Manifest.join` does; nobody sits out, nothing is compared."""
        return ((label, row) for label, (_, row) in zip(self.labels[shard], rows, strict=True))


class PlainCrops(Crops):
    """No augmentation: the whole image, not mirrored (images are square here)."""

    def draw(self, step: int, row: int, num: int) -> tuple[Crop, ...]:
        """Return whole views."""
        return (Crop(1.0, 1.0, 0.0, 0.0, False),) * num


def train(
    shards: Path,
    out: Path,
    options: TrainSettings,
    num_steps: int,
    *,
    choice: Choice | None = None,
    make: Callable[..., ClipLearner] = ClipLearner,
    start: Path | None = None,
    crops: type[Crops] = Crops,
    every: Callable[[int, Path], None] | None = None,
    looks: int = 4,
    lessons: Lessons | None = None,
) -> float:
    """Train from random weights (or `start`) with the CLIP loss on the safe rows of a choice; return the seconds it took.

    Args:
        shards: Poisoned shards.
        out: Where the weights go.
        options: Learning rate, batch size, views, seed.
        num_steps: Steps to take; a smaller choice is seen more often.
        choice: Which rows are safe; all by default.
        make: Kind of learner.
        start: Weights to begin with.
        crops: How views are cut.
        every: Called with the number of a part and the weights, as often as a part of the steps is done.
        looks: How many such parts.
        lessons: Backdoors that are taught besides.
    """
    began, learner = time.monotonic(), make(new_model(MODEL, options.seed), open_clip.get_tokenizer(MODEL), options)
    if start is not None:
        learner.model.load_state_dict(load_file(start))
    dataset, preprocess = open_dataset([str(shards)]), preprocess_config(learner.model)
    decode = Decode(dataset.store, ReadSettings(), preprocess, num_threads=2)
    decode.open()
    views = crops(options.seed, options.least_crop, image_size(preprocess))
    labels, size, seed = (Label.SAFE,) * num_steps, options.train_batch_size, options.seed * 1009
    rows = PassRows(choice, dataset.shards, labels, size, seed, options.shuffle_rows, views, lessons=lessons)
    this = passes_of(options)[0]
    rate, part = learning_rate(options, this, num_steps, 0), max(1, num_steps // looks)

    def saved(_: object) -> None:
        learner.save_model(open_store(out.parent), out.name)
        if every is not None:
            every(learner.step // part, out)

    learner.learn(pass_batches(rows, decode), rate, every=(part, saved))
    learner.save_model(open_store(out.parent), out.name)
    return time.monotonic() - began


def one_pass(options: TrainSettings) -> TrainSettings:
    """Return options under which `train`'s schedule is one rise and one cosine over all its steps."""
    return options.model_copy(update={"warmup_passes": 1, "matching_passes": 0, "rounds": 0, "scorer": "model"})
