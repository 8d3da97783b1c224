"""Open a sealed round and read its labels. This is what a trainer imports; it needs numpy and pyarrow only."""

import hashlib
import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from manifests.errors import RunError, SchemaError
from manifests.labels import Label
from manifests.layout import Seal, read_seal
from manifests.parts import Part
from manifests.schema import FINGERPRINT_KEY, MANIFEST, SCHEMA_VERSION, VERSION_KEY
from manifests.store import Store, open_store

if TYPE_CHECKING:
    import pandas as pd

Row = TypeVar("Row")
_DIGEST: Final = "image_sha256"


@dataclass(frozen=True)
class Manifest:
    """One sealed round: the labels of all pairs, shard by shard, in input order.

    Attributes:
        run: The run folder.
        number: The round's number.
        seal: The parsed `manifest.json`: plan, counts, mixture, cut, parts.
        is_signed: Whether the seal was read under its signature; then every part is compared with it before it is read.
    """

    run: Store
    number: int
    seal: Seal
    is_signed: bool = False

    @property
    def shards(self) -> list[str]:
        """Input shards in their order, relative to the dataset root."""
        return [part["shard"] for part in self.seal["parts"]]

    @property
    def num_rows(self) -> int:
        """Rows of all shards together."""
        return int(self.seal["counts"]["rows"])

    @property
    def path(self) -> str:
        """Folder of this round's manifest parts, on the run's file system."""
        return self.run.path(f"rounds/{self.number:04d}/manifest")

    def files(self) -> list[str]:
        """Return the paths of all parts, from the seal, never from a listing."""
        return [self.run.path(part["manifest"]["name"]) for part in self.seal["parts"]]

    def table(self, shard: str, columns: Sequence[str] | None = None, *, check_hash: bool = False) -> pa.Table:
        """Return the labels of one shard, row i for its row i.

        Args:
            shard: Name of the input shard.
            columns: Columns to read; all by default.
            check_hash: Compare the part's sha256 with the seal first; reads the whole part.

        Raises:
            RunError: The shard is not part of this round, or its part is not the sealed one.
            SchemaError: The part was written by a newer pairsan, or has another number of rows than the seal says.
        """
        return self._part(shard, "manifest", columns, check_hash=check_hash)

    def image_digests(self, shard: str) -> list[bytes | None] | None:
        """Return the sha256 of each row's encoded image as it was scored; None in a row without one.

        Returns:
            None where the scores are older than schema 7, which brought them.

        Raises:
            RunError: The scores part is not the sealed one.
            SchemaError: It was written by a newer pairsan, or has another number of rows than the seal says.
        """
        table = self._part(shard, "scores", ["index", _DIGEST], check_hash=True)
        found: list[bytes | None] | None = table[_DIGEST].to_pylist() if _DIGEST in table.column_names else None
        return found

    def _part(self, shard: str, kind: str, columns: Sequence[str] | None, *, check_hash: bool) -> pa.Table:
        entry = self._entry(shard)
        name = entry[kind]["name"]
        with self.run.fs.open_input_file(self.run.path(name)) as file:
            if (check_hash or self.is_signed) and hashlib.file_digest(file, "sha256").hexdigest() != entry[kind]["sha256"]:
                raise RunError(f"{name} is not the part that was sealed (sha256 differs); run `pairsan verify`")
            file.seek(0)
            parquet = pq.ParquetFile(file)
            check_version(parquet.schema_arrow, name)
            table = parquet.read(columns=list(columns) if columns is not None else None)  # those that it has
        if table.num_rows != entry["rows"]:
            raise SchemaError(f"{name} has {table.num_rows} rows where the seal says {entry['rows']}; run `pairsan verify`")
        return table

    def mask(self, shard: str, label: Label | str = Label.SAFE) -> npt.NDArray[np.bool_]:
        """Return which rows of a shard carry a label: bool, shape (rows of the shard,), in input order."""
        words = self.table(shard, ["label"])["label"].cast(pa.string())
        equal: npt.NDArray[np.bool_] = words.to_numpy(zero_copy_only=False) == str(Label(label))
        return equal

    def masks(self, label: Label | str = Label.SAFE) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
        """Yield (shard, mask) for every shard in order."""
        return ((shard, self.mask(shard, label)) for shard in self.shards)

    def join(
        self,
        shard: str,
        rows: Iterable[tuple[str, Row]],
        *,
        sit_out: bool = False,
        image_of: Callable[[Row], bytes | None] | None = None,
        caption_of: Callable[[Row], str | None] | None = None,
    ) -> Iterator[tuple[str, Row]]:
        """Yield the label of each row of a shard beside it; a label never goes to another row.

        Args:
            shard: Name of the input shard.
            rows: Key and whatever else of each of its rows, in order, by any reader of such files.
            sit_out: Whether safe rows whose turn it is to sit out are yielded as risky; a trainer asks for that, so that the
                next look scores them out of sample.
            image_of: Gives the encoded image of what stands beside a key, to be compared with the one that was scored.
            caption_of: The same of the caption, cleaned as pairsan's own reader does; nothing is compared where none was kept.

        Raises:
            RunError: The rows are not those that were labelled: names shard, row and both keys, or how many rows there are, or
                the row whose image or caption is another one.
        """
        digests = self.image_digests(shard) if image_of is not None else None
        columns = [
            "key",
            "label",
            *(["caption"] if caption_of is not None else []),
            *(["sits_out"] if sit_out and self.seal.get("sitting_out") else []),
        ]
        table = self.table(shard, columns, check_hash=True)
        keys, labels, num = table["key"].to_pylist(), table["label"].cast(pa.string()).to_pylist(), 0
        captions = table["caption"].to_pylist() if caption_of is not None else None
        if "sits_out" in columns:
            turns = table["sits_out"].to_pylist()
            labels = [str(Label.RISKY) if turn else label for label, turn in zip(labels, turns, strict=True)]
        for num, (key, row) in enumerate(rows, start=1):
            shown = key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            if num > len(keys) or shown != keys[num - 1]:
                known = repr(keys[num - 1]) if num <= len(keys) else f"no row after {len(keys):,}"
                raise RunError(f"{shard} [{num - 1}] is {shown!r}, its manifest has {known}; were the data changed?")
            if image_of is not None and digests is not None and not same_image(image_of(row), digests[num - 1]):
                raise RunError(
                    f"{shard} [{num - 1}] ({shown!r}): its image is not the one that was scored; were the data changed?"
                )
            if caption_of is not None and captions is not None and captions[num - 1] not in (None, caption_of(row)):
                raise RunError(
                    f"{shard} [{num - 1}] ({shown!r}): its caption is not the one that was scored; were the data changed?"
                )
            yield labels[num - 1], row
        # what nothing could score may be a stretch that this reader does not count
        if left := sum(label != Label.QUARANTINED for label in labels[num:]):
            raise RunError(f"{shard} ends after {num:,} rows, its manifest has {left:,} more; were the data changed?")

    def dataset(self) -> pads.Dataset:
        """Return all parts as one lazy pyarrow dataset (for filters, DuckDB, polars)."""
        return pads.dataset(self.files(), schema=MANIFEST, format="parquet", filesystem=self.run.fs)

    def to_pandas(self, columns: Sequence[str] | None = None, where: pads.Expression | None = None) -> "pd.DataFrame":
        """Return rows as a pandas frame; `where` is a pyarrow filter such as `ds.field("label") == "risky"`."""
        frame: pd.DataFrame = (
            self.dataset()
            .scanner(columns=list(columns) if columns else None, filter=where, cache_metadata=False)
            .to_table()
            .to_pandas()
        )
        return frame

    def _repr_html_(self) -> str:
        """Return the round as a notebook shows it: how many rows of each label, by which cut, with which doubts."""
        counts, cut = self.seal["counts"], self.seal["cut"]
        rows = [
            f"<tr><td>{label}</td><td>{num:,}</td><td>{num / max(1, counts['rows']):.2%}</td></tr>"
            for label, num in counts["labels"].items()
        ]
        where = "" if cut is None else f", cosine at least {cut:.4f}"
        doubts = "".join(f"<p>Doubt: {html.escape(str(doubt))}</p>" for doubt in self.seal["doubts"])
        title = f"<p>round {self.number} of {html.escape(self.run.uri)}: rule {html.escape(self.seal['rule'])}{where}</p>"
        return f"{title}<table><tr><th>label</th><th>rows</th><th>share</th></tr>{''.join(rows)}</table>{doubts}"

    def _entry(self, shard: str) -> dict[str, Any]:
        for part in self.seal["parts"]:
            if part["shard"] == shard:
                return dict(part)
        raise RunError(f"round {self.number} of {self.run.uri} has no shard {shard!r}; it has {self.shards[:3]}...")


def same_image(image: bytes | None, digest: bytes | None) -> bool:
    """Return whether an encoded image is the one of a digest; True where there is no digest to compare with."""
    return digest is None or hashlib.sha256(image or b"").digest() == digest


def check_version(schema: pa.Schema, name: str) -> int:
    """Return the schema version a part was written under.

    Raises:
        SchemaError: It is newer than this reader, or missing.
    """
    version = int((schema.metadata or {}).get(VERSION_KEY, b"0"))
    if not 1 <= version <= SCHEMA_VERSION:
        raise SchemaError(
            f"{name} was written under manifest schema {version or 'unknown'}; this pairsan reads 1 to {SCHEMA_VERSION}. "
            "Upgrade pairsan to read it."
        )
    return version


def open_part(run: Store, name: str, columns: list[str], fingerprint: str) -> tuple[pa.Table, Part]:
    """Return those of some columns that a part has, and its rows, size and hash.

    Raises:
        RunError: It was written under another plan.
    """
    with run.fs.open_input_file(run.path(name)) as file:
        digest, size = hashlib.file_digest(file, "sha256"), file.size()
        file.seek(0)
        with pq.ParquetFile(file) as parquet:
            check_version(parquet.schema_arrow, name)
            stamp = (parquet.schema_arrow.metadata or {}).get(FINGERPRINT_KEY, b"").decode()
            if stamp != fingerprint:
                raise RunError(f"{name} was written under another plan ({stamp[:12]}, not {fingerprint[:12]})")
            known = [name for name in columns if name in parquet.schema_arrow.names]  # older schemas have fewer
            return parquet.read(columns=known), Part(parquet.metadata.num_rows, size, digest.hexdigest())


def open_round(run: str | Path | Store, number: int | None = None, *, public_key: str | Path | None = None) -> Manifest:
    """Open a sealed round of a run, the newest one by default.

    Args:
        run: Run folder, as a path or any URI that pyarrow.fs or fsspec opens.
        number: Round to open.
        public_key: File of an Ed25519 key (PEM or OpenSSH); the round must be signed by its holder.

    Raises:
        NotSealed: There is no such sealed round.
        RunError: It is not signed by that key, or the seal of another round lies in its place.
        SchemaError: The seal was written by a newer pairsan.
    """
    store = run if isinstance(run, Store) else open_store(run)
    seal = read_seal(store, number)
    if int(seal["schema_version"]) > SCHEMA_VERSION:
        raise SchemaError(f"{store.uri} is sealed under schema {seal['schema_version']}; this pairsan reads {SCHEMA_VERSION}")
    number = int(seal["plan"]["round"])
    if public_key is None:
        return Manifest(store, number, seal)
    from manifests.signing import signed_seal

    return Manifest(store, number, signed_seal(store, number, Path(public_key)), is_signed=True)
