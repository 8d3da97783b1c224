"""Open image files that a table names: regular files below the folders that were allowed, wherever links lead."""

import errno
import os
import posixpath
import shlex
import stat
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import pyarrow.fs as pafs

from manifests.labels import Reason
from manifests.store import Store

_NOT_THERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EACCES)
_DESCRIPTORS: Final = Path("/proc/self/fd")
_URL_COLUMNS: Final = ("url", "urls", "image_url", "img_url", "link")
_INDEX_FORMATS: Final = ("parquet", "tsv.gz", "tsv", "csv.gz", "csv", "jsonl.gz", "jsonl")  # as img2dataset calls them
Trouble = tuple[Reason, str]


class Roots:
    """The folders in which rows of one table may name files."""

    def __init__(self, root: Store, allow_outside: str | None, max_bytes: int) -> None:
        """Say where.

        Args:
            root: Folder that paths are relative to.
            allow_outside: Further local folders, joined by the system's path separator.
            max_bytes: Larger files are not read.
        """
        self._root, self._max_bytes = root, max_bytes
        more = allow_outside.split(os.pathsep) if allow_outside else []
        local = [root.root] if root.is_local else []
        self._allowed = [os.path.realpath(Path(folder).expanduser()) for folder in [*local, *more]]

    def read(self, path: str) -> tuple[bytes, str | None] | Trouble:
        """Return the bytes of a file, and its local path where it has one; or why there are none.

        A path is tried as it stands, then with slashes for backslashes, then with URL codes (`%20`) decoded.

        Raises:
            OSError: The file system failed; worth another try.
        """
        if "://" in path:  # a crawled row must not choose what this machine connects to
            what = f"URLs in rows are not fetched: {path[:200]!r}; download with img2dataset, and name its image column"
            return Reason.IMAGE_MISSING, what
        found: tuple[bytes, str | None] | Trouble = (Reason.IMAGE_MISSING, f"{path[:200]!r}: empty")
        for spelling in dict.fromkeys((path, path.replace("\\", "/"), unquote(path))):
            found = self._read(spelling)
            if found[0] is not Reason.IMAGE_MISSING:
                break
        return found

    def _read(self, path: str) -> tuple[bytes, str | None] | Trouble:
        if not self._root.is_local and not path.startswith("/"):
            return self._read_remote(path)
        try:
            real = os.path.realpath(path if path.startswith("/") else f"{self._allowed[0]}/{path}")
            if not self._inside(real):
                return self._outside(path)
            if not stat.S_ISREG(Path(real).stat().st_mode):  # before it is opened: a tape or a FIFO would notice
                return Reason.IMAGE_MISSING, f"{path[:200]!r} is no regular file"
            descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                # what was opened counts, not what its name meant a moment ago
                opened = os.path.realpath(_DESCRIPTORS / str(descriptor)) if _DESCRIPTORS.is_dir() else real
                facts = os.fstat(descriptor)
                if not self._inside(opened) or not stat.S_ISREG(facts.st_mode):
                    return self._outside(path)
                return self._within(file.read(self._max_bytes + 1), facts.st_size, real)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NOT_THERE:
                raise
            return Reason.IMAGE_MISSING, f"{path[:200]!r}: {type(error).__name__}"

    def _read_remote(self, path: str) -> tuple[bytes, str | None] | Trouble:
        if posixpath.normpath(path).startswith(".."):
            return self._outside(path)
        try:
            info = self._root.fs.get_file_info(self._root.path(path))
            if info.type != pafs.FileType.File:
                return Reason.IMAGE_MISSING, f"{path[:200]!r} is not there"
            with self._root.fs.open_input_stream(info.path) as stream:
                return self._within(bytes(stream.read(self._max_bytes + 1)), info.size, None)
        except (ValueError, FileNotFoundError) as error:
            return Reason.IMAGE_MISSING, f"{path[:200]!r}: {type(error).__name__}"

    def _within(self, data: bytes, size: int, path: str | None) -> tuple[bytes, str | None] | Trouble:
        return (data, path) if len(data) <= self._max_bytes else too_large(size, self._max_bytes)

    def _inside(self, real: str) -> bool:
        return any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in self._allowed)

    def _outside(self, path: str) -> Trouble:
        return Reason.OUTSIDE_ROOT, f"{path[:200]!r} leads out of {self._root.uri}; see --image-root, --allow-outside"


def how_to_fetch(path: str, names: list[str], captions: tuple[str, ...]) -> str | None:
    """Return how to download what a table only lists the addresses of, as a command; None where it has no column of them.

    Args:
        path: Of the table.
        names: Of its columns.
        captions: What caption columns are usually called.
    """
    folded = {name.strip().casefold(): name for name in reversed(names)}
    url = next((folded[name] for name in _URL_COLUMNS if name in folded), None)
    if url is None:
        return None
    caption = next((folded[name] for name in captions if name in folded), None)
    form = next((end for end in _INDEX_FORMATS if path.lower().endswith(f".{end}")), "csv")
    given = {"url_list": path, "input_format": form, "url_col": url, "caption_col": caption}
    words = " ".join(f"--{name} {shlex.quote(word)}" for name, word in given.items() if word)
    return (
        f"It lists addresses of images (column {url!r}) and holds none. Fetch them first: `img2dataset {words} --output_format "
        "webdataset --output_folder images`, then name that folder"
    )


def too_large(size: int, limit: int) -> Trouble:
    """Return why an encoded image is not read."""
    return Reason.IMAGE_TOO_LARGE, f"{size} bytes, allowed are {limit} (max_image_bytes)"
