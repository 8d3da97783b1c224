"""Read pairs from tables: Parquet with images inside (img2dataset, Hugging Face) or with paths, and TSV / CSV of paths.

Columns are found by their usual names, or named in the settings:

    image    jpg jpeg png webp image img image_bytes bytes, else filepath path file image_path file_name (a path)
    caption  caption text title txt
    key      key __key__ id; else the row number, zero-padded
    uid      uid

Paths are relative to the table's folder, or to `image_root`; absolute paths stand as they are; URIs in rows are never followed.
"""

import csv
import io
from collections.abc import Iterator
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.errors import DataError
from manifests.schema import Reason
from manifests.store import Store, open_store
from stages.pair import UNREADABLE_KEY, Pair, Shard, make_uid
from stages.read.captions import clean_caption
from stages.settings import ReadSettings

BYTES_COLUMNS: Final = ("jpg", "jpeg", "png", "webp", "image", "img", "image_bytes", "bytes")
PATH_COLUMNS: Final = ("filepath", "path", "file", "image_path", "file_name", "filename")
CAPTION_COLUMNS: Final = ("caption", "text", "title", "txt")
KEY_COLUMNS: Final = ("key", "__key__", "id")
_BATCH_ROWS: Final = 256

csv.field_size_limit(1 << 30)  # a 200 kB caption is cut and noted later; it must not end the shard


class TableReader:
    """Turns rows (dicts of column to value) into pairs; one instance per shard."""

    def __init__(self, store: Store, shard: Shard, names: list[str], options: ReadSettings) -> None:
        self._shard, self._options = shard, options
        self._image = _choose("image", options.image_column, (*BYTES_COLUMNS, *PATH_COLUMNS), names, shard)
        self._caption = _choose("caption", options.caption_column, CAPTION_COLUMNS, names, shard)
        self._key = _choose("key", options.key_column, KEY_COLUMNS, names, shard, required=False)
        self._uid = "uid" if "uid" in names else None
        folder = shard.path.rpartition("/")[0]
        self._root = open_store(options.image_root) if options.image_root else Store(store.uri, store.fs, folder)
        self._seen: set[str] = set()

    @property
    def columns(self) -> list[str]:
        """Columns that are read."""
        return [name for name in (self._image, self._caption, self._key, self._uid) if name is not None]

    def pair(self, index: int, row: dict[str, Any]) -> Pair:
        """Return the pair of one row."""
        found = row.get(self._key) if self._key else None
        key = f"{index:09d}" if found is None or found == "" else str(found).encode("utf-8", "replace").decode()
        repeated = key in self._seen
        self._seen.add(key)
        uid = make_uid(self._shard.name, f"{key}\0{index}" if repeated else key, row.get(self._uid) if self._uid else None)
        raw = row.get(self._caption) if self._caption else None
        caption = clean_caption(raw if isinstance(raw, (str, bytes)) else None, self._options.max_caption_bytes)
        pair = Pair(index, key, uid, None, caption.text, caption.reason, caption.detail)
        if repeated:
            return pair.quarantine(Reason.DUPLICATE_KEY, f"the key {key[:80]!r} was met before in this shard")
        if pair.reason:
            return pair
        image = self._image_bytes(row.get(self._image or ""))
        if isinstance(image, bytes):
            return Pair(index, key, uid, image, caption.text, None, caption.detail, self._path_of(row))
        return pair.quarantine(*image)

    def _path_of(self, row: dict[str, Any]) -> str | None:
        """Return the local path of a row's image file; None where the image is inside the table or on no local disk."""
        value = row.get(self._image or "")
        if isinstance(value, dict):
            value = None if value.get("bytes") is not None else value.get("path")
        if not isinstance(value, str) or "://" in value or not (value.startswith("/") or self._root.is_local):
            return None
        return value if value.startswith("/") else self._root.path(value)

    def malformed(self, index: int, num_fields: int, num_expected: int) -> Pair:
        """Return the row of a text line with another number of fields than the header."""
        key = f"{index:09d}"
        detail = f"{num_fields} fields where the header has {num_expected}"
        return Pair(index, key, make_uid(self._shard.name, f"{key}\0{index}"), None, None, Reason.ROW_MALFORMED, detail)

    def _image_bytes(self, value: Any) -> bytes | tuple[Reason, str]:
        """Return the encoded image of a cell (bytes, path, or struct of both), or why there is none."""
        if isinstance(value, dict):
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if value is None or value == "":
            return Reason.IMAGE_MISSING, f"column {self._image!r} is empty"
        if isinstance(value, bytes):
            return value if len(value) <= self._options.max_image_bytes else self._too_large(len(value))
        return self._read_path(str(value))

    def _read_path(self, path: str) -> bytes | tuple[Reason, str]:
        if "://" in path:  # a crawled row must not choose what this machine connects to
            return Reason.IMAGE_MISSING, f"URIs in rows are not followed: {path[:200]!r}; see --image-root"
        store, name = (open_store(path), "") if path.startswith("/") else (self._root, path)
        try:
            info = store.fs.get_file_info(store.path(name))
            if info.size is not None and info.size > self._options.max_image_bytes:
                return self._too_large(info.size)
            return store.read_bytes(name)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError) as error:
            return Reason.IMAGE_MISSING, f"{path[:200]!r}: {type(error).__name__}"

    def _too_large(self, size: int) -> tuple[Reason, str]:
        limit = self._options.max_image_bytes
        return Reason.IMAGE_TOO_LARGE, f"{size} bytes, allowed are {limit} (max_image_bytes)"


def read_parquet(store: Store, shard: Shard, options: ReadSettings) -> Iterator[Pair]:
    """Yield one pair for every row of a Parquet file; rows of a damaged row group are quarantined one by one."""
    with store.fs.open_input_file(shard.path) as file:
        try:
            parquet = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            yield unreadable(shard, 0, str(error))
            return
        reader = TableReader(store, shard, parquet.schema_arrow.names, options)
        index = 0
        for group in range(parquet.num_row_groups):
            start, num_rows = index, parquet.metadata.row_group(group).num_rows
            try:
                for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=reader.columns):
                    for row in batch.to_pylist():
                        yield reader.pair(index, row)
                        index += 1
            except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
                for lost in range(index, start + num_rows):
                    yield unreadable(shard, lost, f"row group {group}: {error}")
                index = start + num_rows


def read_text(store: Store, stream: IO[bytes], shard: Shard, options: ReadSettings) -> Iterator[Pair]:
    """Yield one pair for every row of a TSV or CSV file with a header line."""
    separator = options.separator or ("," if shard.name.lower().removesuffix(".gz").endswith(".csv") else "\t")
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, delimiter=separator)
    header = next(rows, None)
    if not header:
        yield unreadable(shard, 0, "no header line")
        return
    reader = TableReader(store, shard, header, options)
    for index, fields in enumerate(row for row in rows if row):
        if len(fields) != len(header):
            yield reader.malformed(index, len(fields), len(header))
        else:
            yield reader.pair(index, dict(zip(header, fields, strict=True)))


def unreadable(shard: Shard, index: int, what: str) -> Pair:
    """Return the row that stands for something in a shard that could not be read."""
    key = f"{UNREADABLE_KEY}{index}" if index else UNREADABLE_KEY
    return Pair(index, key, make_uid(shard.name, key), None, None, Reason.SHARD_UNREADABLE, what[:300])


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
    found = next((name for name in usual if name in names), None)
    if found is None and required:
        raise DataError(
            f"{shard.name} has none of the usual {what} columns {list(usual)}; it has {names}. Name it with --{what}-column."
        )
    return found
