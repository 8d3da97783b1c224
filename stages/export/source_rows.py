"""Chosen rows of a shard as they lie in the input, for exports: members of a tar with their bytes, cells of a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from manifests.errors import DataError
from manifests.store import Store
from stages.pair import Pair, Shard
from stages.read.formats.webdataset import Run, image_member, read_pairs
from stages.read.shards import read_shard
from stages.settings import ReadSettings

_MAGIC: Final = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
)


@dataclass(frozen=True, slots=True)
class OriginalRow:
    """One row.

    Attributes:
        index: Its place in the shard.
        key: Its key, as members of a tar are named.
        shown_key: Its key as the manifest has it.
        image: Its encoded image, None where there is none.
        caption: Its caption, cleaned as it was scored.
        members: Bytes by extension, ready for a tar: the original ones where it came from one.
        path: Local path of its image file, where it has one.
    """

    index: int
    key: str
    shown_key: str
    image: bytes | None
    caption: str
    members: dict[str, bytes]
    path: str | None = None


def original_rows(
    store: Store, shard: Shard, options: ReadSettings, chosen: Sequence[int] | npt.NDArray[np.int64]
) -> Iterator[OriginalRow]:
    """Yield some rows of a shard, in order.

    Args:
        store: Where it lies.
        shard: The shard.
        options: How it is read.
        chosen: Rows, ascending.

    Raises:
        DataError: The shard ends before the last of them.
    """
    wanted, last = {int(row) for row in chosen}, int(max(chosen, default=-1))
    num, read = 0, _from_tar if shard.format == "tar" else _others
    for row in read(store, shard, options, wanted):
        num += 1
        yield row
        if row.index == last:
            break
    if num != len(wanted):
        raise DataError(f"{shard.name} holds {num} of the {len(wanted)} rows that its manifest names; the data have changed")


def _from_tar(store: Store, shard: Shard, options: ReadSettings, wanted: set[int]) -> Iterator[OriginalRow]:
    with store.fs.open_input_stream(shard.path, compression=None, buffer_size=1 << 20) as stream:
        for run, pairs in read_pairs(stream, shard, options):
            for number, pair in enumerate(pairs):
                if pair.index in wanted and isinstance(run, Run):
                    members = {end: member.data for end, member in run.members.items() if member.data is not None}
                    if pair.caption and ("txt" not in members or options.caption != "first"):
                        members["txt"] = pair.caption.encode()  # else trainers would find no caption, or another
                    image = image_member(run.members, options)
                    key = f"{run.key}#{number}" if number else run.key
                    yield OriginalRow(pair.index, key, pair.key, image.data if image else None, pair.caption or "", members)


def _others(store: Store, shard: Shard, options: ReadSettings, wanted: set[int]) -> Iterator[OriginalRow]:
    for pair in read_shard(store, shard, options):
        if pair.index in wanted:
            yield OriginalRow(pair.index, _file_key(pair), pair.key, pair.image, pair.caption or "", _members(pair), pair.path)


def _members(pair: Pair) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    if pair.image is not None:
        found[extension_of(pair.image)] = pair.image
    if pair.caption is not None:
        found["txt"] = pair.caption.encode("utf-8", "surrogatepass")
    return found


def _file_key(pair: Pair) -> str:
    """Return a key that may name a member of a tar: no dot in its last part, no way out of its folder."""
    key = pair.key.replace("\\", "/").strip("/").replace("..", "_")
    folder, slash, name = key.rpartition("/")
    return folder.replace(".", "_") + slash + (name.replace(".", "_") or f"{pair.index:09d}")


def extension_of(image: bytes) -> str:
    """Return the usual extension of an encoded image, by its first bytes; `img` where they say nothing."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    if image[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return next((word for magic, word in _MAGIC if image.startswith(magic)), "img")
