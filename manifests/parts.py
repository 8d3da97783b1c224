"""Write files whole or not at all: draft, fsync, rename. The only place that writes into a run.

On object stores a PUT is atomic by itself, so a part is drafted on the local disk and uploaded once it is complete.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.schema import FINGERPRINT_KEY, ROW_GROUP_ROWS, SCHEMA_VERSION, VERSION_KEY
from manifests.store import Store

_DRAFT_SUFFIX = ".draft"
_DICTIONARY_COLUMNS = ["shard", "label", "reason", "detail"]


@dataclass(frozen=True)
class Part:
    """One written part.

    Attributes:
        num_rows: Rows in it.
        size_bytes: Length of the file.
        sha256: Hex digest of the file.
    """

    num_rows: int
    size_bytes: int
    sha256: str


class _HashingFile(io.RawIOBase):
    """A write-only file that hashes what passes, so that a part need not be read again to be sealed."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size_bytes += len(data)
        return self._target.write(data)

    def tell(self) -> int:
        return self.size_bytes


def write_part(
    store: Store,
    name: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch | pa.Table],
    *,
    fingerprint: str,
    footer: Mapping[bytes, bytes] | None = None,
) -> Part:
    """Write one Parquet part, streaming, in row groups of about 25,000 rows.

    Args:
        store: Where the run lies.
        name: Name of the part below it.
        schema: Columns of the part; stored with schema version and fingerprint in the footer.
        batches: Rows in order; each is at most a few row groups, since one at a time is held in memory.
        fingerprint: Of the plan under which the part was made.
        footer: What else stands in the footer.

    Returns:
        Rows, size and hash of what was written.
    """
    stamps = {VERSION_KEY: str(SCHEMA_VERSION).encode(), FINGERPRINT_KEY: fingerprint.encode()}
    stamped = schema.with_metadata({**(schema.metadata or {}), **(footer or {}), **stamps})
    num_rows = 0

    def write(target: _HashingFile) -> None:
        nonlocal num_rows
        options: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "write_page_index": True}
        options["write_batch_size"] = ROW_GROUP_ROWS  # a quarter faster than the default of 1,024
        dictionary = [column for column in _DICTIONARY_COLUMNS if column in schema.names]
        with pq.ParquetWriter(pa.PythonFile(target), stamped, use_dictionary=dictionary, **options) as writer:
            for table in _row_groups(schema, batches):
                writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
                num_rows += table.num_rows

    done = _write_whole(store, name, write)
    return Part(num_rows, done.size_bytes, done.digest.hexdigest())


def write_bytes(store: Store, name: str, payload: bytes) -> None:
    """Write one small file whole or not at all."""
    _write_whole(store, name, lambda target: target.write(payload))


def write_file(store: Store, name: str, write: Callable[[BinaryIO], object]) -> tuple[int, str]:
    """Write one file whole or not at all, as a stream; return its size in bytes and its sha256.

    Args:
        store: Where it goes.
        name: Its name below the store.
        write: Gets a file that can be written to, but neither read nor moved in.
    """
    done = _write_whole(store, name, lambda target: write(cast(BinaryIO, target)))
    return done.size_bytes, done.digest.hexdigest()


def write_json(store: Store, name: str, document: Any) -> None:
    """Write one JSON document whole or not at all; equal documents give equal bytes."""
    write_bytes(store, name, (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def sweep_drafts(store: Store, folder: str) -> int:
    """Delete drafts that killed writers left below a folder and return how many there were."""
    if not store.is_local:
        return 0  # drafts of remote parts lie in the writer's own temporary folder
    drafts = [info.path for info in store.files(folder) if info.path.endswith(_DRAFT_SUFFIX)]
    for path in drafts:
        with contextlib.suppress(FileNotFoundError):
            store.fs.delete_file(path)
    return len(drafts)


def _row_groups(schema: pa.Schema, batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterable[pa.Table]:
    """Regroup batches into tables of whole row groups, without holding more than one row group and one batch."""
    waiting: list[pa.Table] = []
    for batch in batches:
        waiting.append(batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch]))
        if sum(table.num_rows for table in waiting) >= ROW_GROUP_ROWS:
            table = pa.concat_tables(waiting)
            whole = table.num_rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS
            yield table.slice(0, whole).cast(schema)
            waiting = [table.slice(whole)]
    rest = pa.concat_tables(waiting) if waiting else schema.empty_table()
    if rest.num_rows:
        yield rest.cast(schema)


def _write_whole(store: Store, name: str, write: Callable[[_HashingFile], object]) -> _HashingFile:
    if store.is_local:
        return _write_local(Path(store.path(name)), write)
    with tempfile.TemporaryFile() as draft:
        target = _HashingFile(draft)
        write(target)
        draft.seek(0)
        try:
            with store.fs.open_output_stream(store.path(name)) as upload:
                shutil.copyfileobj(draft, upload, 8 << 20)
        except BaseException:
            with contextlib.suppress(OSError):  # closing the stream may have published what was uploaded so far
                store.delete(name)
            raise
    return target


def _write_local(path: Path, write: Callable[[_HashingFile], object]) -> _HashingFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_DRAFT_SUFFIX}")
    try:
        with draft.open("xb", buffering=1 << 20) as file:
            target = _HashingFile(file)
            write(target)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)
    return target
