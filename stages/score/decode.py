"""Read a shard and decode its images, in threads, into chunks of pixels that can travel between processes."""

import hashlib
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from manifests.labels import Reason
from manifests.store import Store
from stages.pair import Pair, Shard
from stages.read.count_rows import not_downloaded
from stages.read.crops import Change, Crop, Crops
from stages.read.images import UndecodableImage, decode_image
from stages.read.shards import read_shard
from stages.read.source import Denied
from stages.score.canaries import Canaries, canaries_of
from stages.score.models.encoders import image_size, pixel_preprocess
from stages.score.null_cosines import CHUNK_ROWS
from stages.settings import ReadSettings

_WAITING_PER_THREAD: Final = 8
_RECENT: Final = 64  # decoded images that are kept for rows to come
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive rows of a shard, decoded.

    Attributes:
        pairs: The rows, in order, without their encoded images.
        rows: Positions in `pairs` that have pixels, int64 (n,).
        pixels: Their preprocessed images, RGB uint8 (n, size, size, 3).
    """

    pairs: list[Pair]
    rows: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.uint8]

    @property
    def captions(self) -> list[str]:
        """Captions of the rows that have pixels, (n,)."""
        return [self.pairs[row].caption or "" for row in self.rows]


class Decode:
    """Reads a shard as chunks of pixels; the half of a stage that other nodes can do."""

    def __init__(
        self,
        store: Store,
        options: ReadSettings,
        preprocess: dict[str, Any],
        *,
        num_threads: int,
        prefetch: bool = False,
        denied: Denied | None = None,
    ) -> None:
        """Prepare.

        Args:
            store: Where the dataset lies.
            options: How pairs are read.
            preprocess: The checkpoint's own preprocessing, as `preprocess_config` returns it.
            num_threads: Decoding threads.
            prefetch: Whether to decode the next chunk while the last one is in use; for GPUs, which else would wait.
            denied: Rows of it are quarantined; None: of nothing.
        """
        self._store, self._options, self._config = store, options, preprocess
        self._num_threads, self._prefetch, self._denied = num_threads, prefetch, denied
        self._size = image_size(preprocess)

    def open(self) -> None:
        """Build the transform; no weights are needed."""
        warnings.filterwarnings("ignore", module="PIL")  # one crawl has every kind of odd EXIF block; rows carry the facts
        self._preprocess = pixel_preprocess(self._config)

    def run(self, shard: Shard, /) -> Iterator[Chunk]:
        """Yield the rows of a shard in order, in chunks of 512."""
        chunks = self._chunks(shard)
        return ahead(chunks, 1) if self._prefetch else chunks

    def pairs(self, shard: Shard) -> Iterator[Pair]:
        """Yield the rows of a shard in order with their encoded images, none decoded."""
        return read_shard(self._store, shard, self._options)

    def not_downloaded(self, shard: Shard) -> dict[str, int]:
        """Return how many rows of the crawl never reached a shard, by why; nothing where nobody says."""
        return not_downloaded(self._store, shard)

    def pixels(self, pairs: list[Pair], pool: ThreadPoolExecutor) -> list[npt.NDArray[np.uint8] | None]:
        """Return the pixels of each pair, uint8 (size, size, 3), decoded in the threads of a pool; None where it cannot be."""
        found = pool.map(self._decode, [None if pair.reason else pair.image for pair in pairs])
        return [decoded[0] if isinstance(decoded, tuple) else None for decoded in found]

    def views(
        self,
        pairs: list[Pair],
        crops: list[tuple[Crop, ...]],
        cutter: Crops,
        pool: ThreadPoolExecutor,
        changes: list[Change | None],
    ) -> list[tuple[npt.NDArray[np.uint8], ...] | None]:
        """Return the views of each pair, uint8 (size, size, 3) each, cut in the threads of a pool; None where it cannot be."""
        limit = self._options.max_image_pixels

        def cut(pair: Pair, wanted: tuple[Crop, ...], change: Change | None) -> tuple[npt.NDArray[np.uint8], ...] | None:
            try:
                return cutter.cut(pair.image or b"", wanted, max_pixels=limit, change=change)
            except UndecodableImage:
                return None

        return list(pool.map(cut, pairs, crops, changes))

    @property
    def num_threads(self) -> int:
        """Decoding threads."""
        return self._num_threads

    def _chunks(self, shard: Shard) -> Iterator[Chunk]:
        with ThreadPoolExecutor(self._num_threads) as pool:
            decoded = self._in_order(pool, read_shard(self._store, shard, self._options))
            while rows := list(islice(decoded, CHUNK_ROWS)):
                found = [(i, pixels) for i, (_, pixels) in enumerate(rows) if pixels is not None]
                stacked = np.empty((len(found), self._size, self._size, 3), np.uint8)
                for slot, (_, pixels) in enumerate(found):
                    stacked[slot] = pixels
                yield Chunk([pair for pair, _ in rows], np.asarray([i for i, _ in found], np.int64), stacked)

    def _in_order(self, pool: ThreadPoolExecutor, pairs: Iterator[Pair]) -> Iterator[tuple[Pair, npt.NDArray[np.uint8] | None]]:
        """Decode in parallel; few encoded images wait at a time, since one may have `max_image_bytes`.

        An image that one of the last few rows has had is not decoded again: several captions of a photograph stand together.
        """
        waiting: deque[tuple[Pair, Future[_Decoded]]] = deque()
        recent: OrderedDict[bytes, Future[_Decoded]] = OrderedDict()
        for pair in pairs:
            image = None if pair.reason else pair.image
            key = b"" if image is None else hashlib.sha256(image).digest()  # an image of 0 bytes is not no image
            if self._denied and not pair.reason and (what := self._denied(pair, key)):
                pair, image = pair.quarantine(Reason.DENIED, f"{what} is denied"), None  # as if read so
                key = b""
            recent[key] = recent.pop(key) if key in recent else pool.submit(self._decode, image)  # the newest is last
            waiting.append((replace(pair, image_sha256=key or None), recent[key]))
            if len(recent) > _RECENT:
                recent.popitem(last=False)
            if len(waiting) > _WAITING_PER_THREAD * self._num_threads:
                oldest, decoded = waiting.popleft()
                yield _with_pixels(oldest, decoded.result())
        while waiting:
            oldest, decoded = waiting.popleft()
            yield _with_pixels(oldest, decoded.result())

    def _decode(self, image: bytes | None) -> "_Decoded":
        if image is None:
            return None
        try:
            return decode_image(image, self._preprocess, size_px=self._size, max_pixels=self._options.max_image_pixels)
        except UndecodableImage as error:
            return error


_Decoded = tuple[npt.NDArray[np.uint8], int] | UndecodableImage | None


def _with_pixels(pair: Pair, found: _Decoded) -> tuple[Pair, npt.NDArray[np.uint8] | None]:
    """Return a pair with what its image turned out to be, and the pixels where there are any."""
    if found is None:
        return pair, None
    if isinstance(found, UndecodableImage):
        return pair.quarantine(found.reason, found.detail), None
    return replace(pair, image=None, edge=found[1]), found[0]


def following(chunks: Callable[[Shard], Iterable[Chunk]] | None, shard: Shard) -> Iterator[Chunk]:
    """Yield what follows a shard's first stretch: something may have to be made of its first chunk that will do."""
    if chunks is not None and shard.stretch is not None and shard.stretch.num_rows is not None:
        yield from islice(chunks(shard.whole), shard.stretch.num_rows // CHUNK_ROWS, None)


def with_canaries(
    chunks: Iterable[Chunk],
    read: Callable[[Shard], Iterable[Chunk]] | None,
    shard: Shard,
    num: int,
    write: Callable[[Canaries | None], object],
) -> Iterator[Chunk]:
    """Pass chunks on; at their end write the canaries of the shard's first one that has the rows for it, None where none has.

    Args:
        chunks: Of the shard, or of its first stretch.
        read: Reads them, if there is more than that.
        shard: The same.
        num: Canaries of each kind.
        write: Takes them.
    """
    made = None
    for chunk in chunks:
        made = made or canaries_of(shard.name, chunk.pixels, chunk.captions, num)
        yield chunk
    more = (canaries_of(shard.name, chunk.pixels, chunk.captions, num) for chunk in following(read, shard))
    write(made or first_of(more))


def first_of(found: Iterable[Item | None]) -> Item | None:
    """Return the first that is there."""
    return next((one for one in found if one is not None), None)


def ahead(items: Iterator[Item], num: int) -> Iterator[Item]:
    """Yield the items of an iterator while another thread makes the next few."""
    waiting: deque[Future[tuple[Item] | None]] = deque()
    with ThreadPoolExecutor(1) as thread:  # one thread, so the items keep their order
        waiting.extend(thread.submit(_next, items) for _ in range(num))
        while (found := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(_next, items))
            yield found[0]


def _next(items: Iterator[Item]) -> tuple[Item] | None:
    for item in items:
        return (item,)
    return None
