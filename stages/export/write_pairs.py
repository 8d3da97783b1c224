"""Write chosen pairs of a sealed round in the formats that trainers read; images and captions byte for byte as they came."""

import csv
import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, BinaryIO, Final, TextIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import DataError
from manifests.parts import write_file
from manifests.reading import same_image
from manifests.store import Store
from stages.export.source_rows import OriginalRow, original_rows
from stages.export.target import Exported, ExportTarget, Piece
from stages.pair import Shard
from stages.stage import Stage


@dataclass
class _Written:
    rows: int = 0
    missing: int = 0
    keys: set[str] = field(default_factory=set)


class Export(Stage[ExportTarget, Exported]):
    """Stage: a file to be made in, its facts out. The file's name is that of the `Shard` it is handed."""

    def run(self, unit: Shard, /) -> Exported:
        """Write one file whole or not at all.

        Raises:
            DataError: The input is not as it was scored, or the format cannot hold it.
        """
        writers: dict[str, Callable[[BinaryIO, str, _Written], None]] = {
            "webdataset": self._tar,
            "openclip-tsv": self._tsv,
            "parquet": self._parquet,
            "hf": self._parquet,
            "urls": self._parquet,
            "keys": self._keys,
        }
        written = _Written()
        write = writers[self.target.form]
        size, digest = write_file(self.target.out, unit.name, lambda file: write(file, unit.name, written))
        return Exported(unit.name, written.rows, size, digest, written.missing)

    def _tar(self, file: BinaryIO, name: str, written: _Written) -> None:
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for row, facts in self._originals(name):
                key = row.key if row.key not in written.keys else f"{row.key}-{facts['uid'].hex()[:8]}"
                written.keys.add(key)
                members = dict(row.members)
                more = self._more(facts)
                if more:
                    members["json"] = json.dumps({**_parsed(members.get("json")), **more}).encode()
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                written.rows += 1

    def _tsv(self, file: BinaryIO, name: str, written: _Written) -> None:
        text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        lines = csv.writer(text, delimiter="\t", lineterminator="\n")
        for row, facts in self._originals(name):
            if row.path is None and row.image is not None:
                raise DataError(
                    f"{row.key}: its image is no file of its own, and openclip-tsv lists files; archives are not extracted. "
                    "Use --format webdataset."
                )
            if row.path is None:
                written.missing += 1
                continue
            more = [facts[self.target.weights]] if self.target.weights else []
            lines.writerow([row.path, row.caption, *more])
            written.rows += 1
        _let_go(text)

    def _keys(self, file: BinaryIO, name: str, written: _Written) -> None:
        for piece in self.target.pieces[name]:
            chosen = self._chosen(piece)
            keys = self.target.manifest.table(piece.shard.name, ["key"])["key"].take(chosen).to_pylist()
            file.write("".join(key.replace("\n", " ") + "\n" for key in keys).encode("utf-8", "surrogatepass"))
            written.rows += len(keys)

    def _parquet(self, file: BinaryIO, name: str, written: _Written) -> None:
        tables = self._tables(name)
        first = next(tables)
        schema = first.schema.with_metadata(_HF_METADATA) if self.target.form == "hf" else first.schema
        with pq.ParquetWriter(pa.PythonFile(file, mode="w"), schema, compression="zstd") as writer:
            for table in itertools.chain([first], tables):
                if self.target.form == "urls":
                    written.missing += table["url"].null_count
                    table = table.filter(table["url"].is_valid())
                writer.write_table(table.cast(schema))
                written.rows += table.num_rows

    def _tables(self, name: str) -> Iterator[pa.Table]:
        for piece in self.target.pieces[name]:
            table = self.target.manifest.table(piece.shard.name).take(self._chosen(piece))
            if self.target.form == "urls":
                yield _addresses(table)
                continue
            columns = {n: table[n] for n in table.column_names if n not in ("uid", "shard", "label", "reason")}
            columns["uid"] = pa.array([uid.hex() for uid in table["uid"].to_pylist()], pa.string())
            columns |= {n: table[n].cast(pa.string()) for n in ("shard", "label", "reason")}
            if self.target.weights:
                columns["weight"] = table[self.target.weights].cast(pa.float32())
            if self.target.form == "hf":
                images = [{"bytes": row.image, "path": None} for row, _ in self._rows_of(piece)]
                columns = {"image": pa.array(images, _IMAGE), **columns}
            yield pa.table(columns)

    def _originals(self, name: str) -> Iterator[tuple[OriginalRow, dict[str, Any]]]:
        """Yield the chosen rows of a file as they lie in the input, each with its row of the manifest."""
        for piece in self.target.pieces[name]:
            yield from self._rows_of(piece)

    def _rows_of(self, piece: Piece) -> Iterator[tuple[OriginalRow, dict[str, Any]]]:
        target, chosen = self.target, self._chosen(piece)
        table = target.manifest.table(piece.shard.name, ["uid", "key", "caption", "cosine", "p_safe", "rank"]).take(chosen)
        rows, digests = (
            original_rows(target.data, piece.shard, target.read, chosen),
            target.manifest.image_digests(piece.shard.name),
        )
        for row, facts in zip(rows, table.to_pylist(), strict=True):
            if row.shown_key != facts["key"]:
                raise _changed(piece.shard, row, f"is {row.shown_key!r}, its manifest says {facts['key']!r}")
            if digests is not None and row.image is not None and not same_image(row.image, digests[row.index]):
                raise _changed(piece.shard, row, f"({row.shown_key!r}) has another image than the one that was scored")
            if facts["caption"] is not None and row.caption != facts["caption"]:
                raise _changed(piece.shard, row, f"({row.shown_key!r}) has another caption than the one that was scored")
            yield row, facts

    def _chosen(self, piece: Piece) -> npt.NDArray[np.int64]:
        rows = self.target.choice.rows(self.target.manifest, piece.shard.name)
        return rows[piece.skip : piece.skip + piece.num]

    def _more(self, facts: dict[str, Any]) -> dict[str, Any]:
        found = {"uid": facts["uid"].hex(), "cosine": facts["cosine"], "p_safe": facts["p_safe"]} if self.target.inject else {}
        return found | ({"weight": facts[self.target.weights]} if self.target.weights else {})


def _addresses(table: pa.Table) -> pa.Table:
    """Return rows as a list to fetch: url and caption, and what names them here; url is null where none is known."""
    known = "source" in table.column_names
    urls = pc.struct_field(table["source"], "url") if known else pa.nulls(len(table), pa.string())
    uids = pa.array([uid.hex() for uid in table["uid"].to_pylist()], pa.string())
    words = {name: table[name].cast(pa.string()) for name in ("shard", "key", "label", "reason")}
    return pa.table({"url": urls, "caption": table["caption"], "uid": uids, **words})


def _changed(shard: Shard, row: OriginalRow, what: str) -> DataError:
    why = "the data have changed since they were scored; nothing was exported of this shard"
    return DataError(f"{shard.name} [{row.index}] {what}: {why}")


_IMAGE: Final = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


# By this `datasets` knows that the column holds encoded images; it infers the other columns from the Parquet schema.
_HF_METADATA: Final = {b"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}}).encode()}


def _parsed(data: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _let_go(text: TextIO) -> None:
    """Flush a wrapper and leave the file below open, for who opened it."""
    text.flush()
    if isinstance(text, io.TextIOWrapper):
        text.detach()


def join(store: Store, name: str, parts: Sequence[str], head: bytes = b"") -> tuple[int, str]:
    """Write several files one after the other into one, then delete them; return size and sha256."""

    def write(file: IO[bytes]) -> None:
        file.write(head)
        for part in parts:
            with store.fs.open_input_stream(store.path(part)) as stream:
                while chunk := stream.read(8 << 20):
                    file.write(chunk)

    return write_file(store, name, write)


def digest_of(rows: Sequence[Exported]) -> str:
    """Return one digest of several files, by name."""
    whole = hashlib.sha256()
    for row in sorted(rows, key=lambda row: row.name):
        whole.update(f"{row.name}\0{row.sha256}\n".encode())
    return whole.hexdigest()
