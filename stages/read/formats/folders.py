"""Read pairs from a folder of image files with a text file of the same name beside each."""

import posixpath
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pyarrow.fs as pafs

from manifests.labels import Reason
from manifests.store import Store
from stages.pair import Pair, Shard, make_uid
from stages.read.captions import captioned
from stages.read.formats.webdataset import CAPTION_EXTENSIONS, IMAGE_EXTENSIONS
from stages.read.paths import Roots
from stages.settings import ReadSettings

UNNAMED: Final = "__folder__"  # name of the shard that is the dataset's own folder


def image_folders(infos: list[pafs.FileInfo]) -> list[pafs.FileInfo]:
    """Return the folders that hold images, each with the number of bytes of its files."""
    files: dict[str, list[pafs.FileInfo]] = {}
    for info in infos:
        files.setdefault(posixpath.dirname(info.path), []).append(info)
    return [
        pafs.FileInfo(folder, type=pafs.FileType.Directory, size=sum(info.size or 0 for info in inside))
        for folder, inside in files.items()
        if any(_is_image(info.path) for info in inside)
    ]


def read_folder(store: Store, shard: Shard, options: ReadSettings) -> Iterator[Pair]:
    """Yield one pair for every image of a folder, by name; folders in it are shards of their own.

    Args:
        store: Where it lies.
        shard: The folder.
        options: Endings of images and captions, if not the usual ones.

    Raises:
        OSError: The file system failed; worth another try.
    """
    names = [posixpath.basename(info.path) for info in listed(store, shard.path)]
    roots = Roots(Store(store.uri, store.fs, shard.path), options.allow_outside, options.max_image_bytes)
    endings = (options.caption_column,) if options.caption_column else CAPTION_EXTENSIONS
    texts = {name.rpartition(".")[0]: name for ending in reversed(endings) for name in names if _ends(name, ending)}
    images, index, seen = [name for name in names if _is_image(name, options)], 0, set[str]()
    for name in images:
        stem = name.rpartition(".")[0]
        key = stem.encode("utf-8", "replace").decode()
        repeated = key in seen
        base = Pair(index, key, make_uid(shard.name, f"{name}\0" if repeated else key), None, None)
        seen.add(key)
        if index < shard.first:  # only where each image is a pair; see `stages.score.pieces`
            index += 1
            continue
        text = roots.read(texts[stem])[0] if stem in texts else None
        pairs = [_with_image(pair, name, roots) for pair in captioned(base, text, shard, options)]
        if repeated:
            pairs = [base.quarantine(Reason.DUPLICATE_KEY, f"two images are named {key[:80]!r}")]
        yield from pairs
        index += len(pairs)


def count_images(store: Store, shard: Shard, options: ReadSettings) -> int:
    """Return how many images a folder holds."""
    return sum(_is_image(posixpath.basename(info.path), options) for info in listed(store, shard.path))


def listed(store: Store, folder: str) -> list[pafs.FileInfo]:
    """Return what lies in a folder itself and may be a file, by name."""
    infos = store.fs.get_file_info(pafs.FileSelector(folder))
    return sorted((info for info in infos if info.type != pafs.FileType.Directory), key=lambda info: str(info.path))


def _with_image(pair: Pair, name: str, roots: Roots) -> Pair:
    if pair.reason is not None:
        return pair
    data, what = roots.read(name)
    return pair.quarantine(data, what) if isinstance(data, Reason) else replace(pair, image=data, path=what)


def _is_image(name: str, options: ReadSettings | None = None) -> bool:
    wanted = (options.image_column,) if options and options.image_column else IMAGE_EXTENSIONS
    return any(_ends(name, ending) for ending in wanted)


def _ends(name: str, ending: str) -> bool:
    return name.lower().endswith(f".{ending.lower()}") and not name.startswith(".")
