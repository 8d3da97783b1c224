"""What a plan asks for of signals, and where it all lies: one value for every stage and step that makes or reads them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.store import Store

REFERENCE, AGREEMENT, CENTRES = "reference.parquet", "agreement.parquet", "centres.parquet"
CLUSTERS: Final = "clusters-image.parquet"
BANDS, BAND_COUNTS = "bands", "repeats-bands.parquet"
PROMISES, HONEST = "promises", "honest.parquet"
WITNESS, GROUPS, PAIRS = "witness", "groups.parquet", "repeats-pairs.parquet"


@dataclass(frozen=True)
class Asked:
    """The `signals` of a plan; the fields are the settings of `[signals]` that can change one.

    Attributes:
        exact_copies: Whether the parts have that field; those of before it are made anew.
        neighbour_outlier: The same of this one.
        half_outlier: And of this.
        looks: And of `look_accord`.
        reference_encoder: Name, sha256 and size_px of the tower; None without one.
        index: Names and sizes of the index's files, key and score column; None without one.
    """

    signals: str = "repeats"
    exact_copies: bool = False
    neighbours: int = 0
    reference_rows: int = 0
    signals_seed: int = 0
    agreement_rows: int = 0
    agreement_neighbours: int = 0
    common_captions: bool = False
    near_copy_cosine: float | None = None
    copy_cell_rows: int = 1000
    neighbour_outlier: bool = False
    half_outlier: bool = False
    looks: bool = False
    caption_shingles: bool = False
    reference_encoder: dict[str, Any] | None = None
    index: dict[str, Any] | None = None

    @property
    def near(self) -> bool:
        """Whether neighbours are sought, in a sample of all rows' vectors."""
        return self.signals == "all"

    @property
    def accord(self) -> bool:
        """Whether captions are compared with a sample of others."""
        return self.near and self.agreement_rows > 0

    @property
    def copies(self) -> bool:
        """Whether near copies are sought."""
        return self.near and self.near_copy_cosine is not None

    @property
    def joins(self) -> bool:
        """Whether near copies are judged together: there are copies, and something to judge them by."""
        return self.copies and self.accord


@dataclass(frozen=True)
class SignalParts:
    """The signals of a round.

    Attributes:
        run: The run folder.
        scores_round: Round whose scores, and embeddings, are read.
        shards: Names of all shards.
        folder: Of the signals parts, below the run.
        fingerprint: For the footers.
        asked: What is computed.
        others: Folder of the reference encoder's vectors; None without one.
        canaries: Folder of its vectors of canaries; None without.
        num_scored: Rows with a cosine.
        num_threads: Threads of a search in one worker.
        memory_bytes: What one step may take; more is spilled to disk, or done block by block.
    """

    run: Store
    scores_round: int
    shards: tuple[str, ...]
    folder: str
    fingerprint: str
    asked: Asked = Asked()
    others: str | None = None
    canaries: str | None = None
    num_scored: int = 0
    num_threads: int = 1
    memory_bytes: int = 2 << 30

    def name(self, of: str) -> str:
        """Return the name below the run of something in the folder."""
        return f"{self.folder}/{of}"

    def part(self, shard: str, within: str = "") -> str:
        """Return the name of one shard's part, in the folder or in one `within` it."""
        return self.name(f"{within}/{shard}.parquet" if within else f"{shard}.parquet")


@dataclass(frozen=True)
class Known:
    """What is known of some rows that have a cosine: the scored ones of a shard, or its canaries.

    Attributes:
        images: Hashes of how the images look, int64 (n,).
        captions: Hashes of the captions, int64 (n,); None where captions are not known.
        v: Unit vectors of the images, float32 (n, d); None where no vectors were kept, as is the next.
        t: Unit vectors of the captions, float32 (n, d).
        others: Unit vectors of the images by the reference encoder, float32 (n, e); None without one.
        words: The captions, with a reference encoder; else none.
        bands: Of the captions' wording, int64 (n, 6), and which rows have them, bool (n,); None where wording is not counted.
        pixels: Hashes of the images' pixels, int64 (n,); None where they are not known.
        looks: What the images are like, uint8 (n, w); None where that was not kept, or is not asked for.
        promises: What the index promised of them, by the columns of `stages.signals.index.promises`; None without an index.
    """

    images: npt.NDArray[np.int64]
    captions: npt.NDArray[np.int64] | None = None
    v: npt.NDArray[np.float32] | None = None
    t: npt.NDArray[np.float32] | None = None
    others: npt.NDArray[np.float32] | None = None
    words: tuple[str, ...] = ()
    bands: tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]] | None = None
    pixels: npt.NDArray[np.int64] | None = None
    looks: npt.NDArray[np.uint8] | None = None
    promises: pa.Table | None = None


# from rows to fields of the `signals` column, (n,) each
Source = Callable[[Known], dict[str, npt.NDArray[Any]]]
