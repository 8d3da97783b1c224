"""Find the files of a dataset: folders, globs and brace patterns, what is no data left out, what cannot be read named."""

import os
import posixpath
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Final

import pyarrow.fs as pafs

from manifests.errors import DataError
from manifests.store import Store, open_store
from stages.pair import ShardFormat
from stages.read.formats.folders import image_folders

_PACKED: Final[dict[str, ShardFormat]] = {".tar": "tar", ".tsv": "text", ".csv": "text", ".jsonl": "text", ".ndjson": "text"}
_SUFFIXES: Final[dict[str, ShardFormat]] = {
    **{ending + packer: form for ending, form in _PACKED.items() for packer in ("", ".gz", ".zst")},
    ".tgz": "tar",
    ".parquet": "parquet",
}
KNOWN: Final = f"{', '.join(_PACKED)}, each also with .gz or .zst, .tgz, .parquet, and folders of images with .txt files"
_WILD: Final = re.compile(r"[*?\[]")
_OWN: Final = ("run.json", "export-plan.json")
_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_SOURCE: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(/.*|[a-z0-9+]+://.*)", re.DOTALL)
Skip = Callable[[str, str], None]


def source_of(entry: str) -> tuple[str, str]:
    """Return the name of a source and where it lies, of `NAME=/PATH` or `NAME=URI`; of anything else no name and the whole."""
    found = _SOURCE.fullmatch(entry)
    return (found[1], found[2]) if found else ("", entry)


def meant_by(entry: str) -> list[Store]:
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
    return next((i for i in range(len(parts) - 1, 0, -1) if is_folder(store, parts[:i])), 0)


def matches(store: Store, skip: Skip) -> list[pafs.FileInfo]:
    """Return the shards that one pattern names: files, or folders of images; a file named outright must exist.

    Args:
        store: The pattern.
        skip: Is told of what cannot be read, and why; it may raise.

    Raises:
        DataError: There is nothing of that name, or it is no shard.
    """
    info = store.fs.get_file_info(store.root)
    if info.type == pafs.FileType.NotFound:
        return _globbed(store)
    if info.type == pafs.FileType.File:
        if format_of(info.path) is None:
            raise DataError(f"{store.uri} has no known ending; known: {KNOWN}")
        return [info]
    there = _local_files(store, skip) if store.is_local else list(store.files())
    ours = _own_folders([i.path for i in there]) - {store.root}
    files = [i for i in there if not posixpath.basename(i.path).startswith((".", "_"))]
    files = [i for i in files if not any(i.path.startswith(f"{folder}/") for folder in ours)]
    infos = [i for i in files if format_of(i.path)]
    tars = [i for i in infos if format_of(i.path) == "tar"]
    return tars or [i for i in infos if format_of(i.path) == "parquet"] or infos or image_folders(files)


def _local_files(store: Store, skip: Skip) -> list[pafs.FileInfo]:
    """Return all files below a local folder; what lies behind links is there once, however many lead to it."""
    seen, paths = {os.path.realpath(store.root)}, []
    lost = lambda error: skip(str(error.filename), f"cannot be listed: {error.strerror}")  # noqa: E731
    for folder, inner, names in os.walk(store.root, followlinks=True, onerror=lost):
        for name in names:
            if _is_text(name):
                paths.append(f"{folder}/{name}")
            else:
                skip(f"{folder}/{name}".encode("utf-8", "replace").decode(), "has a name that is not UTF-8")
        new = {os.path.realpath(f"{folder}/{name}"): name for name in sorted(inner, reverse=True)}
        inner[:] = [name for real, name in new.items() if real not in seen]
        seen |= set(new)
    infos = store.fs.get_file_info(paths)
    for info in infos:
        if info.type == pafs.FileType.NotFound and format_of(info.path):
            skip(info.path, "is a link to nothing")
    return [info for info in infos if info.type == pafs.FileType.File]


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


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
        raise DataError(f"{store.uri} {_why_missing(store)} (looked for {store.root})")
    base = Store(store.uri, store.fs, "/".join(parts[:fixed]))
    return [info for info in base.files() if _glob(info.path.removeprefix(f"{base.root}/"), pattern) and format_of(info.path)]


def _why_missing(store: Store) -> str:
    """Return what is said of a name at which nothing was found; fsspec calls a server that does not answer missing, too."""
    if not store.uri.startswith(("http://", "https://")):
        return "does not exist"
    try:
        store.fs.handler.fs.cat_file(store.root, start=0, end=1)
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"cannot be reached: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "cannot be listed"


def is_folder(store: Store, parts: list[str]) -> bool:
    """Return whether a path, in parts, is a folder."""
    return bool(store.fs.get_file_info("/".join(parts) or "/").type == pafs.FileType.Directory)


def _glob(path: str, pattern: str) -> bool:
    """Match like a shell: `*` stays inside one folder, `**` spans folders."""
    if "**" in pattern:
        return fnmatchcase(path, pattern.replace("**/", "*").replace("**", "*"))
    return path.count("/") == pattern.count("/") and all(
        fnmatchcase(a, b) for a, b in zip(path.split("/"), pattern.split("/"), strict=True)
    )


def format_of(path: str) -> ShardFormat | None:
    """Return the format of a file by the ending of its name; None where it is no shard."""
    name = path.lower()
    return next((_SUFFIXES[s] for s in sorted(_SUFFIXES, key=len, reverse=True) if name.endswith(s)), None)


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
