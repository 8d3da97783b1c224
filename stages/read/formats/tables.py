"""Make pairs of the rows of tables: Parquet with images inside (img2dataset, Hugging Face) or with paths, TSV / CSV of paths.

Columns are found by their usual names, or named in the settings:

    image    jpg jpeg png webp image img image_bytes bytes, else filepath path file image_path file_name (a path)
    caption  caption text title txt
    key      key __key__ id; else the row number, zero-padded
    uid      uid

Names are compared without case and blanks around them. Paths are relative to the table's folder, or to `image_root`, and lead
nowhere else (`stages.read.paths`). A cell may also hold the image itself, as bytes, base64 or a `data:` URL, or a list of
images, of which the first is taken. Of a list of captions see the setting `caption`.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from manifests.errors import DataError
from manifests.labels import Reason
from manifests.store import Store, open_store
from stages.pair import UNREADABLE_KEY, Pair, Shard, make_uid
from stages.read.captions import captioned
from stages.read.paths import Roots, how_to_fetch, too_large
from stages.read.source import SourceReader
from stages.settings import ReadSettings

BYTES_COLUMNS: Final = ("jpg", "jpeg", "png", "webp", "image", "img", "image_bytes", "bytes")
PATH_COLUMNS: Final = ("filepath", "path", "file", "image_path", "file_name", "filename")
CAPTION_COLUMNS: Final = ("caption", "text", "title", "txt")
KEY_COLUMNS: Final = ("key", "__key__", "id")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{200,}={0,2}")
_DATA_URL: Final = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


class BadCell(str):
    """A value that could not be read; its text says why."""


class TableReader:
    """Turns rows (dicts of column to value) into pairs; one instance per shard."""

    def __init__(self, store: Store, shard: Shard, names: list[str], options: ReadSettings) -> None:
        self._shard, self._options = shard, options
        self._image = _choose("image", options.image_column, (*BYTES_COLUMNS, *PATH_COLUMNS), names, shard)
        self._caption = _choose("caption", options.caption_column, CAPTION_COLUMNS, names, shard)
        self._key = _choose("key", options.key_column, KEY_COLUMNS, names, shard, required=False)
        self._uid = "uid" if "uid" in names else None
        folder = shard.path.rpartition("/")[0]
        root = open_store(options.image_root) if options.image_root else Store(store.uri, store.fs, folder)
        self._roots = Roots(root, options.allow_outside, options.max_image_bytes)
        self._seen: set[str] = set()
        for name in options.kept_columns:
            _choose("keep", name, (), names, shard)
        self._source = SourceReader(options.kept_columns)
        self._of_source = self._source.columns(names)

    @property
    def columns(self) -> list[str]:
        """Columns that are read."""
        own = [name for name in (self._image, self._caption, self._key, self._uid) if name is not None]
        return list(dict.fromkeys([*own, *self._of_source]))

    @property
    def key_columns(self) -> list[str]:
        """The column of the key, where there is one."""
        return [] if self._key is None else [self._key]

    def pairs(self, index: int, row: dict[str, Any]) -> list[Pair]:
        """Return the pair of one row; several where each of its captions is to be one."""
        try:
            return list(self._pairs(index, row))
        except OSError:
            raise  # of the file system: worth another try
        except Exception as error:  # noqa: BLE001  # one row must not take its shard along
            key = f"{index:09d}"
            uid = make_uid(self._shard.name, f"{key}\0{index}")
            return [Pair(index, key, uid, None, None, Reason.READER_ERROR, f"{type(error).__name__}: {error}"[:300])]

    def _pairs(self, index: int, row: dict[str, Any]) -> Iterator[Pair]:
        key = self._key_of(index, row.get(self._key) if self._key else None)
        repeated = key in self._seen
        self._seen.add(key)
        uid = make_uid(self._shard.name, f"{key}\0{index}" if repeated else key, row.get(self._uid) if self._uid else None)
        raw, image = row.get(self._caption or ""), row.get(self._image or "")
        for bad in (raw, image):
            if isinstance(bad, BadCell):
                yield Pair(index, key, uid, None, None, Reason.ROW_MALFORMED, bad[:300])
                return
        image, note = _first_image(image)
        source = self._source({name: row.get(name) for name in self._of_source})
        for pair in captioned(Pair(index, key, uid, None, None, detail=note, source=source), raw, self._shard, self._options):
            if repeated:
                yield pair.quarantine(Reason.DUPLICATE_KEY, f"the key {key[:80]!r} was met before in this shard")
            elif pair.reason or index < self._shard.first:
                yield pair
            else:
                data, what = self._image_bytes(image)
                yield pair.quarantine(data, what) if isinstance(data, Reason) else replace(pair, image=data, path=what)

    def pass_over(self, index: int, row: dict[str, Any]) -> None:
        """Take note of the key of a row, and of nothing else of it."""
        if self._key is not None:
            self._seen.add(self._key_of(index, row.get(self._key)))

    def malformed(self, index: int, detail: str) -> Pair:
        """Return the row of a line that cannot be taken apart."""
        key = f"{index:09d}"
        return Pair(index, key, make_uid(self._shard.name, f"{key}\0{index}"), None, None, Reason.ROW_MALFORMED, detail)

    def _key_of(self, index: int, value: Any) -> str:
        known = value is not None and value != "" and not isinstance(value, BadCell)
        return _text(value) if known else f"{index:09d}"

    def _image_bytes(self, value: Any) -> tuple[bytes, str | None] | tuple[Reason, str]:
        """Return the encoded image of a cell (bytes, text, or struct of bytes and path) and its path; or why there is none."""
        if isinstance(value, dict):
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if isinstance(value, list):  # of numbers
            try:
                value = bytes(value)
            except (TypeError, ValueError) as error:
                return Reason.IMAGE_UNDECODABLE, f"column {self._image!r} holds a list that is no bytes: {error}"
        if value is None or value in ("", b""):
            return Reason.IMAGE_MISSING, f"column {self._image!r} is empty"
        if isinstance(value, str):
            url = _DATA_URL.match(value)
            if url is None and _BASE64.fullmatch(value) is None:
                return self._roots.read(value)
            value = _decoded(value[url.end() :] if url else value)
        if not isinstance(value, bytes):
            return Reason.IMAGE_MISSING, f"column {self._image!r} holds {type(value).__name__}, neither bytes nor a path"
        most = self._options.max_image_bytes
        return (value, None) if len(value) <= most else too_large(len(value), most)


def _first_image(value: Any) -> tuple[Any, str | None]:
    """Return the first of a list of images, and a note of how many there were; a list of numbers is an image."""
    if not isinstance(value, list) or (value and isinstance(value[0], int)):
        return value, None
    return (value[0] if value else None), f"the first of {len(value)} images" if len(value) > 1 else None


def _decoded(text: str) -> bytes:
    """Return the bytes of base64, in both its alphabets, padded or not; nothing where it is none."""
    try:
        return base64.b64decode(text.strip().rstrip("=").replace("-", "+").replace("_", "/") + "==")
    except (binascii.Error, ValueError):
        return b"no base64"


def _text(value: object) -> str:
    """Return a cell as text that any writer takes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value).encode("utf-8", "replace").decode()


def unreadable(shard: Shard, index: int, what: str, num_bytes: int = 0) -> Pair:
    """Return the row that stands for something in a shard that could not be read, and for how many bytes of it."""
    key = f"{UNREADABLE_KEY}{index}" if index else UNREADABLE_KEY
    place = (0, num_bytes) if num_bytes else None
    return Pair(index, key, make_uid(shard.name, key), None, None, Reason.SHARD_UNREADABLE, what[:300], place=place)


def _choose(
    what: str, wanted: str | None, usual: tuple[str, ...], names: list[str], shard: Shard, *, required: bool = True
) -> str | None:
    """Return the column to use.

    Raises:
        DataError: The wanted column, or any usual one, is missing.
    """
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"{shard.name} has no column {wanted!r} (--{what}-column); it has {names}")
        return wanted
    folded = {name.strip().casefold(): name for name in reversed(names)}
    found = next((folded[name] for name in usual if name in folded), None)
    if found is None and required:
        advice = how_to_fetch(shard.path, names, CAPTION_COLUMNS) if what == "image" else None
        raise DataError(
            f"{shard.name} has none of the usual {what} columns {list(usual)}; it has {names}. "
            + (advice or f"Name it with --{what}-column.")
        )
    return found
