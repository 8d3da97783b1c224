"""Find the shards of a dataset, fingerprint it, and read one shard."""

import hashlib
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

import pyarrow.fs as pafs

from manifests.errors import DataError
from manifests.store import Store, open_store
from stages.pair import Pair, Shard, ShardFormat
from stages.read.delimited import read_text
from stages.read.folders import UNNAMED, image_folders, listed, read_folder
from stages.read.tables import read_parquet, unreadable
from stages.read.webdataset import read_tar
from stages.settings import ReadSettings

_PACKED: Final[dict[str, ShardFormat]] = {".tar": "tar", ".tsv": "text", ".csv": "text", ".jsonl": "text", ".ndjson": "text"}
_SUFFIXES: Final[dict[str, ShardFormat]] = {
    **{ending + packer: form for ending, form in _PACKED.items() for packer in ("", ".gz", ".zst")},
    ".tgz": "tar",
    ".parquet": "parquet",
}
_KNOWN: Final = f"{', '.join(_PACKED)}, each also with .gz or .zst, .tgz, .parquet, and folders of images with .txt files"
_WHOLE: Final[dict[str, Callable[[Store, Shard, ReadSettings], Iterator[Pair]]]] = {
    "parquet": read_parquet,
    "folder": read_folder,
}
_EDGE_BYTES: Final = 64 << 10
_WILD: Final = re.compile(r"[*?\[]")
_OWN: Final = ("run.json", "export-plan.json")
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Dataset:
    """The shards of one dataset, in the order of their names.

    Attributes:
        store: Where they lie; names are relative to its root.
        shards: All of them.
        fingerprint: Hex digest over names, sizes and the first and last 64 KiB of every shard; of a folder of images over names
            and sizes of its files. The same data gives the same fingerprint in any folder or bucket.
    """

    store: Store
    shards: tuple[Shard, ...]
    fingerprint: str


def open_dataset(data: Sequence[str]) -> Dataset:
    """Find all shards of a dataset.

    Args:
        data: One or more folders, files, globs (`*`, `?`, `**`) or brace patterns (`{00000..00042}`, `{a,b}`), as
            paths or URIs. In a folder that holds tars, the Parquet and CSV files beside them (img2dataset's own
            bookkeeping) are left alone. Where there is neither, folders that hold images are the shards.

    Raises:
        DataError: Nothing is found, or the patterns lie on different file systems.
    """
    stores = [store for entry in data for store in _meant(entry)]
    if any(type(store.fs) is not type(stores[0].fs) for store in stores):
        raise DataError(f"all data must lie on one file system, got {list(data)}")
    found = {info.path: info for store in stores for info in _matches(store)}
    if not found:
        raise DataError(f"no shards found at {list(data)}; known: {_KNOWN}")
    root = _common_root(stores, list(found))
    store = Store(data[0], stores[0].fs, root)
    shards = tuple(Shard(_name(path, root), path, _format_of(found[path]), int(found[path].size)) for path in sorted(found))
    return Dataset(store, shards, _fingerprint(store, shards))


def read_shard(store: Store, shard: Shard, options: ReadSettings) -> Iterator[Pair]:
    """Yield the pairs of one shard in order; every row of it, whatever is wrong with it.

    Raises:
        OSError: The file system failed; worth another try.
        DataError: A table lacks the columns that were asked for.
    """
    if shard.format in _WHOLE:
        yield from _WHOLE[shard.format](store, shard, options)
        return
    # compression=None: arrow would otherwise unpack by the file's ending, before the reader can see where it breaks
    with store.fs.open_input_stream(shard.path, compression=None, buffer_size=1 << 20) as stream:
        if shard.format == "tar":
            yield from read_tar(stream, shard, options)
        elif shard.size_bytes == 0:
            yield unreadable(shard, 0, "0 bytes")
        else:
            yield from read_text(store, stream, shard, options)


def expand_braces(pattern: str) -> list[str]:
    """Expand shell-like braces: `{00..12}` keeps its zeros, `{a,b}` lists.

    Raises:
        DataError: A brace holds neither a range nor a list.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    before, body, after = pattern[: match.start()], match[1], pattern[match.end() :]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", body):
        low, high = int(numbers[1]), int(numbers[2])
        words = [f"{i:0{len(numbers[1])}d}" for i in range(low, high + 1)]
    else:
        words = body.split(",") if "," in body else []
    if not words:
        raise DataError(f"cannot expand {{{body}}} in {pattern!r}: write {{00000..00042}} or {{a,b}}")
    return [text for word in words for text in expand_braces(before + word + after)]


def _meant(entry: str) -> list[Store]:
    """Return what a path or pattern stands for: itself, where it is there, whatever a shell would make of its name.

    Else braces are expanded behind the last folder that is there.
    """
    store = open_store(entry)
    if store.exists():
        return [store]
    parts, fixed = store.root.split("/"), _num_fixed(store)
    texts = expand_braces("/".join(parts[fixed:]))
    return [Store(entry, store.fs, "/".join([*parts[:fixed], text])) for text in texts]


def _num_fixed(store: Store) -> int:
    """Return how many parts of a path name a folder that is there."""
    parts = store.root.split("/")
    return next((i for i in range(len(parts) - 1, 0, -1) if _is_folder(store, parts[:i])), 0)


def _matches(store: Store) -> list[pafs.FileInfo]:
    """Return the shard files that one pattern names; a file named outright must exist."""
    info = store.fs.get_file_info(store.root)
    if info.type == pafs.FileType.NotFound:
        return _globbed(store)
    if info.type == pafs.FileType.File:
        if _format(info.path) is None:
            raise DataError(f"{store.uri} has no known ending; known: {_KNOWN}")
        return [info]
    there = _local_files(store) if store.is_local else list(store.files())
    ours = _own_folders([i.path for i in there]) - {store.root}
    files = [i for i in there if not posixpath.basename(i.path).startswith((".", "_"))]
    files = [i for i in files if not any(i.path.startswith(f"{folder}/") for folder in ours)]
    infos = [i for i in files if _format(i.path)]
    tars = [i for i in infos if _format(i.path) == "tar"]
    return tars or [i for i in infos if _format(i.path) == "parquet"] or infos or image_folders(files)


def _local_files(store: Store) -> list[pafs.FileInfo]:
    """Return all files below a local folder; what lies behind links is there once, however many lead to it.

    Raises:
        DataError: A folder cannot be listed, or shards are links to nothing: their rows would be missing in silence.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}; its rows would be missing")

    seen, paths = {os.path.realpath(store.root)}, []
    for folder, inner, names in os.walk(store.root, followlinks=True, onerror=fail):
        paths += [f"{folder}/{name}" for name in names]
        new = {os.path.realpath(f"{folder}/{name}"): name for name in sorted(inner, reverse=True)}
        inner[:] = [name for real, name in new.items() if real not in seen]
        seen |= set(new)
    infos = store.fs.get_file_info(paths)
    lost = [info.path for info in infos if info.type == pafs.FileType.NotFound and _format(info.path)]
    if lost:
        raise DataError(f"{len(lost)} shards of {store.uri} are links to nothing, e.g. {lost[:3]}; remove or mend them")
    return [info for info in infos if info.type == pafs.FileType.File]


def _own_folders(paths: list[str]) -> set[str]:
    """Return the folders that pairsan itself has written, a run inside the data for one: their Parquet files are no shards."""
    folders = {name: {posixpath.dirname(path) for path in paths if posixpath.basename(path) == name} for name in _OWN}
    return folders["export-plan.json"] | {
        folder for folder in folders["run.json"] if any(path.startswith(f"{folder}/rounds/") for path in paths)
    }


def _globbed(store: Store) -> list[pafs.FileInfo]:
    """Return the shard files that a glob finds below the last of its folders that is there as it stands."""
    parts, fixed = store.root.split("/"), _num_fixed(store)
    pattern = "/".join(parts[fixed:])
    if not _WILD.search(pattern):
        raise DataError(f"{store.uri} does not exist (looked for {store.root})")
    base = Store(store.uri, store.fs, "/".join(parts[:fixed]))
    return [info for info in base.files() if _glob(info.path.removeprefix(f"{base.root}/"), pattern) and _format(info.path)]


def _is_folder(store: Store, parts: list[str]) -> bool:
    return bool(store.fs.get_file_info("/".join(parts) or "/").type == pafs.FileType.Directory)


def _glob(path: str, pattern: str) -> bool:
    """Match like a shell: `*` stays inside one folder, `**` spans folders."""
    if "**" in pattern:
        return fnmatchcase(path, pattern.replace("**/", "*").replace("**", "*"))
    return path.count("/") == pattern.count("/") and all(
        fnmatchcase(a, b) for a, b in zip(path.split("/"), pattern.split("/"), strict=True)
    )


def _format(path: str) -> ShardFormat | None:
    name = path.lower()
    return next((_SUFFIXES[s] for s in sorted(_SUFFIXES, key=len, reverse=True) if name.endswith(s)), None)


def _format_of(info: pafs.FileInfo) -> ShardFormat:
    return "folder" if info.type == pafs.FileType.Directory else _format(info.path) or "tar"


def _name(path: str, root: str) -> str:
    return path.removeprefix(root.rstrip("/") + "/") if path != root else UNNAMED


def _common_root(stores: list[Store], paths: list[str]) -> str:
    """Return the folder that shard names are relative to: the one given, else the deepest that holds all shards."""
    if len(stores) == 1 and _is_folder(stores[0], stores[0].root.split("/")):
        return stores[0].root
    folders = [posixpath.dirname(path) for path in paths]
    return posixpath.commonpath(folders) if len(set(folders)) > 1 else folders[0]


def _fingerprint(store: Store, shards: Sequence[Shard]) -> str:
    def edges(shard: Shard) -> bytes:
        if shard.format == "folder":
            facts = [f"{posixpath.basename(info.path)}\0{info.size}\n" for info in listed(store, shard.path)]
            return hashlib.sha256("".join(facts).encode("utf-8", "replace")).digest()
        with store.fs.open_input_file(shard.path) as file:
            head = file.read(_EDGE_BYTES)
            file.seek(max(len(head), shard.size_bytes - _EDGE_BYTES))
            return hashlib.sha256(bytes(head) + bytes(file.read())).digest()

    digest = hashlib.sha256()
    with ThreadPoolExecutor(32) as pool:
        for shard, edge in zip(shards, pool.map(edges, shards), strict=True):
            digest.update(f"{shard.name}\0{shard.size_bytes}\0".encode() + edge)
    return digest.hexdigest()
