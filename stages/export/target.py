"""What an export writes and where, and what one written file was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.reading import Manifest
from manifests.store import Store
from stages.pair import Shard
from stages.settings import ReadSettings

Format = Literal["webdataset", "openclip-tsv", "datacomp-npy", "parquet", "hf", "keys", "urls"]


@dataclass(frozen=True)
class Choice:
    """Which pairs of a round are exported.

    Attributes:
        labels: Any of these; empty for all.
        reasons: Any of these; empty for all.
    """

    labels: tuple[str, ...] = ("safe",)
    reasons: tuple[str, ...] = ()

    def rows(self, manifest: Manifest, shard: str) -> npt.NDArray[np.int64]:
        """Return the chosen rows of a shard, ascending."""
        table = manifest.table(shard, ["label", "reason"])
        chosen = np.ones(table.num_rows, bool)
        for name, words in (("label", self.labels), ("reason", self.reasons)):
            if words:
                inside = pc.is_in(table[name].cast(pa.string()), pa.array(words, pa.string()))
                chosen &= inside.fill_null(False).to_numpy()
        return np.flatnonzero(chosen)


@dataclass(frozen=True)
class Piece:
    """Consecutive chosen rows of one input shard.

    Attributes:
        shard: The input shard.
        skip: Chosen rows before the first of this piece.
        num: Chosen rows in it.
    """

    shard: Shard
    skip: int
    num: int


@dataclass(frozen=True)
class ExportTarget:
    """What an export writes and where.

    Attributes:
        out: Its folder.
        manifest: The sealed round.
        choice: Which pairs.
        form: The format.
        data: Where the input shards lie.
        read: How they are read.
        inject: Whether uid, cosine and p_safe go into the JSON of every pair.
        pieces: What goes into each file.
        weights: Column that goes along as `weight`; None for none.
    """

    out: Store
    manifest: Manifest
    choice: Choice
    form: Format
    data: Store
    read: ReadSettings
    pieces: Mapping[str, Sequence[Piece]]
    inject: bool = False
    weights: str | None = None


@dataclass(frozen=True)
class Exported:
    """One written file.

    Attributes:
        name: Below the export.
        rows: Pairs in it.
        size_bytes: Its length.
        sha256: Hex digest.
        missing: Chosen pairs left out since their image file is gone.
    """

    name: str
    rows: int
    size_bytes: int
    sha256: str
    missing: int = 0
