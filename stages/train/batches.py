"""Stream the rows of a sealed round for training: joined by position inside each shard, shuffled in a bounded buffer.

Safe and risky rows come in two streams, each of which reads the shards for itself and decodes nothing but its own rows. So
which label a step has is planned from the seal alone: all workers take the same one at every step without a word between
them, and no buffer grows where one shard is all safe and another all risky. The price is that both streams read the shards'
bytes.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from manifests.errors import RunError
from manifests.labels import Label
from stages.pair import Pair, Shard
from stages.read.crops import Change, Crops
from stages.score.decode import Decode, ahead
from stages.score.models.cross_fit import folds_of
from stages.train.taught import Lessons

BUFFER_BYTES: Final = 1 << 30
_BATCHES_AHEAD: Final = 2
_TRIES: Final = 1000


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one label.

    Attributes:
        label: What they may be used for.
        views: Random crops, RGB uint8 (n, size, size, 3): two of every risky row, one of every safe one.
        folds: Fold of each row by its uncropped image, int64 (n,); all 0 where there is one fold.
        captions: Their captions, (n,).
        uids: 16 bytes each, for error messages.
        drawn: Rows of each label that were drawn from their streams up to here; where to go on after a stop.
    """

    label: Label
    views: tuple[npt.NDArray[np.uint8], ...]
    folds: npt.NDArray[np.int64]
    captions: list[str]
    uids: list[bytes]
    drawn: dict[str, int] = field(default_factory=dict)


class Labelled(Protocol):
    """Something that knows the label of every row of a shard; see `manifests.reading.Manifest.join`."""

    def join(
        self,
        shard: str,
        rows: Iterable[tuple[str, Pair]],
        *,
        sit_out: bool = False,
        image_of: Callable[[Pair], bytes | None] | None = None,
        caption_of: Callable[[Pair], str | None] | None = None,
    ) -> Iterator[tuple[str, Pair]]:
        """Yield the label of each row of a shard beside it."""
        ...


@dataclass(frozen=True, slots=True)
class PassRows:
    """What one worker reads in one pass.

    Attributes:
        manifest: The sealed round; None for a pass over all pairs before there is any round.
        shards: This worker's.
        labels: The label of every step, the same for all workers.
        batch_size: Rows per step of this worker.
        seed: Of this pass and worker.
        shuffle_rows: Encoded rows that each buffer holds.
        crops: How views are cut.
        first_step: Number of the pass's first step, counted over the whole training run.
        num_folds: Folds to tell apart; 1 if nothing needs them, which saves decoding whole images.
        lessons: Backdoors that are taught on purpose; None: none.
    """

    manifest: Labelled | None
    shards: tuple[Shard, ...]
    labels: tuple[Label, ...]
    batch_size: int
    seed: int
    shuffle_rows: int
    crops: Crops
    first_step: int = 0
    num_folds: int = 1
    lessons: Lessons | None = None


def pass_batches(rows: PassRows, decode: Decode, *, skip: int = 0, drawn: Mapping[str, int] | None = None) -> Iterator[Batch]:
    """Yield the batches of one pass, in an order that depends on the seed alone; two are made ahead in other threads.

    An image that cannot be decoded is passed over. A stream that runs out (by such images, or where another worker has
    more) begins anew, in another order.

    Args:
        rows: What to read.
        decode: Opened.
        skip: Batches that were taken before.
        drawn: The last of those batches' `drawn`.

    Raises:
        RunError: A shard has other rows than its manifest, or nothing in it can be decoded.
    """
    return ahead(_batches(rows, decode, skip, dict(drawn or {})), _BATCHES_AHEAD)


def _batches(rows: PassRows, decode: Decode, skip: int, drawn: dict[str, int]) -> Iterator[Batch]:
    streams = {label: _Stream(rows, label, decode, drawn.get(label, 0)) for label in dict.fromkeys(rows.labels[skip:])}
    with ThreadPoolExecutor(decode.num_threads) as pool:
        for step, label in enumerate(rows.labels[skip:], rows.first_step + skip):
            pairs, views = streams[label].take(step, pool)
            drawn = {**drawn, str(label): streams[label].num_drawn}
            stacked = tuple(np.stack(view) for view in zip(*views, strict=True))
            folds = _folds(pairs, rows.num_folds, decode, pool)
            yield Batch(label, stacked, folds, [p.caption or "" for p in pairs], [p.uid for p in pairs], drawn)


def _folds(pairs: list[Pair], num_folds: int, decode: Decode, pool: ThreadPoolExecutor) -> npt.NDArray[np.int64]:
    """Return the fold of each row, by the very pixels that will be scored."""
    folds = np.zeros(len(pairs), np.int64)
    if num_folds > 1:
        whole = enumerate(decode.pixels(pairs, pool))
        found = [(row, pixels) for row, pixels in whole if pixels is not None]
        if found:
            folds[[row for row, _ in found]] = folds_of(np.stack([pixels for _, pixels in found]), num_folds)
    return folds


class _Stream:
    """The rows of one label, without end."""

    def __init__(self, rows: PassRows, label: Label, decode: Decode, num_drawn: int) -> None:
        self._rows, self._label, self._decode = rows, label, decode
        self._num_views = 2 if label == Label.RISKY else 1
        self.num_drawn = 0
        self._pairs = self._shuffled()
        for _ in range(num_drawn):
            self._draw()

    def take(self, step: int, pool: ThreadPoolExecutor) -> tuple[list[Pair], list[tuple[npt.NDArray[np.uint8], ...]]]:
        """Return the rows of a step and their views."""
        found: list[tuple[Pair, tuple[npt.NDArray[np.uint8], ...]]] = []
        num, first = self._rows.batch_size, self.num_drawn
        while len(found) < num:
            places = range(self.num_drawn - first, self.num_drawn - first + num - len(found))
            drawn = [self._draw() for _ in places]
            crops = [self._rows.crops.draw(step, place, self._num_views) for place in places]
            changes = [self._change(pair) for pair in drawn]
            views = self._decode.views(drawn, crops, self._rows.crops, pool, changes)
            tried = self.num_drawn - first
            if not found and tried >= _TRIES and all(view is None for view in views):
                raise RunError(f"none of {tried} {self._label} rows in a row can be decoded, the last is {drawn[-1].key!r}")
            found += [(pair, view) for pair, view in zip(drawn, views, strict=True) if view is not None]
        return [pair for pair, _ in found], [view for _, view in found]

    def _draw(self) -> Pair:
        self.num_drawn += 1
        pair, lessons = next(self._pairs), self._rows.lessons
        taught = lessons.of(pair.uid) if lessons else None
        return replace(pair, caption=taught.caption) if taught else pair

    def _change(self, pair: Pair) -> Change | None:
        lessons = self._rows.lessons
        taught = lessons.of(pair.uid) if lessons else None
        return taught.lesson.change if taught else None

    def _shuffled(self) -> Iterator[Pair]:
        epoch = 0
        while True:
            rng = random.Random(f"{self._rows.seed}/{self._label}/{epoch}")  # noqa: S311  # an order, no secret
            num = 0
            for pair in _shuffle(self._one_epoch(rng), self._rows.shuffle_rows, rng):
                num += 1
                yield pair
            if num == 0:
                raise RunError(f"{len(self._rows.shards)} shards hold no {self._label} row to train on")
            epoch += 1

    def _one_epoch(self, rng: random.Random) -> Iterator[Pair]:
        order = list(self._rows.shards)
        rng.shuffle(order)
        for shard in order:
            yield from _rows_of(self._rows.manifest, shard, self._decode, self._label)


def _shuffle(pairs: Iterator[Pair], size: int, rng: random.Random) -> Iterator[Pair]:
    """Yield pairs out of a buffer of so many, or of 1 GiB, in random order."""
    buffer: list[Pair] = []
    num_bytes = 0
    for pair in pairs:
        buffer.append(pair)
        num_bytes += len(pair.image or b"")
        while len(buffer) > size or num_bytes > BUFFER_BYTES:
            num_bytes -= len(_swap_out(buffer, rng).image or b"")
            yield buffer.pop()
    while buffer:
        _swap_out(buffer, rng)
        yield buffer.pop()


def _swap_out(buffer: list[Pair], rng: random.Random) -> Pair:
    """Bring a random pair to the end."""
    place = rng.randrange(len(buffer))
    buffer[place], buffer[-1] = buffer[-1], buffer[place]
    return buffer[-1]


def _rows_of(manifest: Labelled | None, shard: Shard, decode: Decode, label: Label) -> Iterator[Pair]:
    """Yield the rows of a shard that have a label; all that can be read where there is no manifest."""
    if manifest is None:
        yield from (pair for pair in decode.pairs(shard) if pair.reason is None)
        return
    pairs = ((pair.key, pair) for pair in decode.pairs(shard))
    compared = {"image_of": attrgetter("image"), "caption_of": attrgetter("caption")}
    joined = manifest.join(shard.name, pairs, sit_out=True, **compared)
    yield from (pair for word, pair in joined if word == label)
