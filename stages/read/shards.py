"""Find the shards of a dataset, fingerprint it, and read one shard."""

import hashlib
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, Final

import pyarrow as pa
import pyarrow.fs as pafs

from manifests.errors import DataError
from manifests.store import Store
from stages.pair import Pair, Shard, ShardFormat
from stages.read.formats.delimited import read_text
from stages.read.formats.folders import UNNAMED, listed, read_folder
from stages.read.formats.parquet import read_parquet
from stages.read.formats.tables import unreadable
from stages.read.formats.webdataset import read_tar
from stages.read.listing import KNOWN, format_of, is_folder, matches, meant_by, source_of
from stages.settings import ReadSettings

_WHOLE: Final[dict[str, Callable[[Store, Shard, ReadSettings], Iterator[Pair]]]] = {
    "parquet": read_parquet,
    "folder": read_folder,
}
_EDGE_BYTES: Final = 64 << 10
_BUFFER_BYTES: Final = 1 << 20
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Dataset:
    """The shards of one dataset, in the order of their names.

    Attributes:
        store: Where they lie; names are relative to its root.
        shards: All of them.
        fingerprint: Hex digest over names, sizes and the first and last 64 KiB of every shard; of a folder of images over names
            and sizes of its files. The same data gives the same fingerprint in any folder or bucket.
        edges: Of each shard, a digest of those bytes, hex.
        skipped: What could not be read and was left out, with the reason; empty unless that was asked for.
    """

    store: Store
    shards: tuple[Shard, ...]
    fingerprint: str
    edges: tuple[str, ...]
    skipped: tuple[str, ...] = ()


def open_dataset(data: Sequence[str], *, skip_unreadable: bool = False) -> Dataset:
    """Find all shards of a dataset.

    Args:
        data: One or more folders, files, globs (`*`, `?`, `**`) or brace patterns (`{00000..00042}`, `{a,b}`), as
            paths or URIs. In a folder that holds tars, the Parquet and CSV files beside them (img2dataset's own
            bookkeeping) are left alone. Where there is neither, folders that hold images are the shards. `NAME=/PATH` is a
            source of its own, whose shards are named `NAME/...` and keep those names whatever else is given.
        skip_unreadable: Whether to leave out what cannot be read (dead links, folders that cannot be listed, shards that cannot
            be opened), named in `skipped`.

    Raises:
        DataError: Nothing is found, two sources share a file or lie on different file systems, or something cannot be read.
    """
    sources: dict[str, list[str]] = {}
    for name, entry in map(source_of, data):
        sources.setdefault(name, []).append(entry)
    lost: dict[str, str] = {}
    found = [_source(name, entries, lost) for name, entries in sources.items()]
    store, shards = found[0][0], sorted((shard for _, some in found for shard in some), key=lambda shard: shard.path)
    if any(type(other.fs) is not type(store.fs) for other, _ in found):
        raise DataError(f"all data must lie on one file system, got {list(data)}")
    if len(found) > 1:
        shards.sort(key=lambda shard: shard.name)
        _refuse_twice(shards)
    edges = _edges(store, shards, lost)
    if lost and not skip_unreadable:
        raise DataError(_why_not(lost))
    kept = [shard for shard in shards if shard.path not in lost]
    if not kept:
        raise DataError(f"no shards found at {list(data)}; known: {KNOWN}")
    digest = hashlib.sha256()
    for shard in kept:
        digest.update(f"{shard.name}\0{shard.size_bytes}\0".encode() + edges[shard.path])
    told = tuple(f"{path} {why}" for path, why in sorted(lost.items()))
    return Dataset(store, tuple(kept), digest.hexdigest(), tuple(edges[shard.path].hex()[:16] for shard in kept), told)


def _source(name: str, entries: Sequence[str], lost: dict[str, str]) -> tuple[Store, list[Shard]]:
    """Return the folder of a source, and its shards in the order of their paths; what cannot be read is added to the lost."""
    stores = [store for entry in entries for store in meant_by(entry)]
    if any(type(store.fs) is not type(stores[0].fs) for store in stores):
        raise DataError(f"all data must lie on one file system, got {list(entries)}")
    found = {info.path: info for store in stores for info in matches(store, lost.__setitem__)}
    store = Store(entries[0], stores[0].fs, _common_root(stores, list(found)) if found else "")
    names = {path: f"{name}/{_name(path, store.root)}" if name else _name(path, store.root) for path in found}
    return store, [Shard(names[path], path, _format_of(found[path]), int(found[path].size or 0)) for path in sorted(found)]


def _refuse_twice(shards: Sequence[Shard]) -> None:
    """Refuse sources that share a file, or a name.

    Raises:
        DataError: Names it.
    """
    for what in ("path", "name"):
        seen = [getattr(shard, what) for shard in shards]
        if twice := sorted(value for value, num in Counter(seen).items() if num > 1):
            raise DataError(f"two sources have {len(twice)} shards of one {what}, e.g. {twice[0]}")


def _why_not(lost: dict[str, str]) -> str:
    some = "; ".join(f"{path} {why}" for path, why in sorted(lost.items())[:_NAMED])
    more = f"; and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    return f"rows would be missing, as {len(lost)} of the data cannot be read: {some}{more}. Mend them, or --skip-unreadable"


def read_shard(store: Store, shard: Shard, options: ReadSettings) -> Iterator[Pair]:
    """Yield the pairs of one shard, or of a stretch of it, in order; every row of it, whatever is wrong with it.

    Raises:
        OSError: The file system failed; worth another try.
        DataError: A table lacks the columns that were asked for.
    """
    pairs = _read(store, shard, options)
    yield from pairs if shard.stretch is None else islice(pairs, shard.stretch.num_rows)


def _read(store: Store, shard: Shard, options: ReadSettings) -> Iterator[Pair]:
    """Yield the pairs from the first row of a stretch on."""
    if shard.format in _WHOLE:
        yield from _WHOLE[shard.format](store, shard, options)
    elif shard.size_bytes == 0 and shard.format == "text":
        yield unreadable(shard, 0, "0 bytes")
    else:
        place = shard.stretch.place if shard.stretch else None
        with opened_at(store, shard, place.offset if place else 0) as stream:
            yield from read_tar(stream, shard, options) if shard.format == "tar" else read_text(store, stream, shard, options)


@contextmanager
def opened_at(store: Store, shard: Shard, offset: int = 0) -> Iterator[IO[bytes]]:
    """Open a shard for reading from a place on, to its end."""
    if not offset:
        # compression=None: arrow would otherwise unpack by the file's ending, before the reader can see where it breaks
        with store.fs.open_input_stream(shard.path, compression=None, buffer_size=_BUFFER_BYTES) as stream:
            yield stream
        return
    with store.fs.open_input_file(shard.path) as file:
        file.seek(offset)
        yield pa.BufferedInputStream(file, _BUFFER_BYTES)


def _format_of(info: pafs.FileInfo) -> ShardFormat:
    return "folder" if info.type == pafs.FileType.Directory else format_of(info.path) or "tar"


def _name(path: str, root: str) -> str:
    return path.removeprefix(root.rstrip("/") + "/") if path != root else UNNAMED


def _common_root(stores: list[Store], paths: list[str]) -> str:
    """Return the folder that shard names are relative to: the one given, else the deepest that holds all shards."""
    if len(stores) == 1 and is_folder(stores[0], stores[0].root.split("/")):
        return stores[0].root
    folders = [posixpath.dirname(path) for path in paths]
    return posixpath.commonpath(folders) if len(set(folders)) > 1 else folders[0]


def _edges(store: Store, shards: Sequence[Shard], lost: dict[str, str]) -> dict[str, bytes]:
    """Return a digest of the edges of each shard, by path; those that cannot be opened are added to the lost ones."""

    def edges(shard: Shard) -> bytes:
        if shard.format == "folder":
            facts = [f"{posixpath.basename(info.path)}\0{info.size}\n" for info in listed(store, shard.path)]
            return hashlib.sha256("".join(facts).encode("utf-8", "replace")).digest()
        with store.fs.open_input_file(shard.path) as file:
            head = file.read(_EDGE_BYTES)
            file.seek(max(len(head), shard.size_bytes - _EDGE_BYTES))
            return hashlib.sha256(bytes(head) + bytes(file.read())).digest()

    def tried(shard: Shard) -> bytes:
        try:
            return edges(shard)
        except OSError as error:
            lost[shard.path] = f"cannot be read: {error.strerror or error}"[:300]
            return b""

    with ThreadPoolExecutor(32) as pool:
        return dict(zip((shard.path for shard in shards), pool.map(tried, shards), strict=True))
