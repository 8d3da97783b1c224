"""A folder on a local disk or behind any URI that pyarrow.fs or fsspec opens."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from manifests.errors import DataError

_ANSWER_S = 30


@dataclass(frozen=True)
class Store:
    """A root folder and the file system it lies on; picklable, so that it travels to workers.

    Attributes:
        uri: What the user wrote; for messages.
        fs: The file system.
        root: Path of the folder on `fs`, without a trailing slash.
    """

    uri: str
    fs: pafs.FileSystem
    root: str

    @property
    def is_local(self) -> bool:
        """Whether files can be opened by plain paths."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    def path(self, name: str = "") -> str:
        """Return the path on `fs` of a name below the root."""
        return f"{self.root}/{name}" if name else self.root

    def exists(self, name: str = "") -> bool:
        """Return whether a file or folder of that name is there."""
        return bool(self.fs.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def files(self, folder: str = "") -> Iterator[pafs.FileInfo]:
        """Yield all files below a folder, recursively; nothing where the folder is missing."""
        selector = pafs.FileSelector(self.path(folder), recursive=True, allow_not_found=True)
        return (info for info in self.fs.get_file_info(selector) if info.type == pafs.FileType.File)

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders right inside a folder; nothing where it is missing."""
        selector = pafs.FileSelector(self.path(folder), recursive=False, allow_not_found=True)
        return [info.base_name for info in self.fs.get_file_info(selector) if info.type == pafs.FileType.Directory]

    def names(self, folder: str) -> set[str]:
        """Return the names, relative to `folder`, of all files below it."""
        prefix = self.path(folder).rstrip("/") + "/"
        return {info.path.removeprefix(prefix) for info in self.files(folder)}

    def read_bytes(self, name: str) -> bytes:
        """Return a whole file."""
        with self.fs.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def read_json(self, name: str) -> Any:
        """Return a parsed JSON document."""
        return json.loads(self.read_bytes(name))

    def delete_folder(self, name: str) -> None:
        """Delete a folder with all that is in it."""
        self.fs.delete_dir(self.path(name))

    def delete(self, name: str) -> None:
        """Delete a file; silently nothing where it is missing."""
        if self.exists(name):
            self.fs.delete_file(self.path(name))


def open_store(uri: str | Path) -> Store:
    """Open a local path or URI as a store; the folder need not exist yet.

    Args:
        uri: A path (`runs/a`, `~/runs`), or a URI such as `s3://bucket/prefix`, `gs://...`, `memory://...`. For S3,
            `?endpoint_override=host:port&scheme=http` and the usual AWS variables are honoured.

    Raises:
        DataError: No library here can open that kind of URI.
    """
    text = str(uri)
    if "://" not in text:
        return Store(text, pafs.LocalFileSystem(), str(Path(text).expanduser().absolute()))
    try:
        fs, root = pafs.FileSystem.from_uri(_patient(text))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        fs, root = _open_with_fsspec(text)
    return Store(text, fs, root.rstrip("/"))


def _patient(uri: str) -> str:
    """Return a URI with an end to how long an answer is waited for: Google's client tries for a quarter of an hour."""
    if not uri.startswith("gs://") or "retry_limit_seconds" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={_ANSWER_S}"


def _open_with_fsspec(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        from fsspec.core import url_to_fs

        filesystem, root = url_to_fs(uri)
    except (ImportError, ValueError) as error:
        scheme = uri.split("://")[0]
        raise DataError(
            f"Cannot open {uri!r}: neither pyarrow nor fsspec knows {scheme}:// here ({error}). "
            f"Install fsspec's driver for it, e.g. s3fs for s3 (pairsan's extra `s3`)."
        ) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), str(root)
