"""How many rows of the whole dataset share an image hash, or a caption hash: one grouping of two columns, out of core."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.layout import SCORES, part_name
from manifests.parts import write_part
from manifests.store import Store
from stages.out_of_core import write_counts
from stages.signals.components import components
from stages.signals.signal_parts import CLUSTERS, Known, SignalParts, Source
from stages.vectors import read_columns

Kind = Literal["image", "caption", "pixels"]
KINDS: Final[tuple[Kind, ...]] = ("image", "caption", "pixels")
REPEATS: Final = pa.schema([pa.field("hash", pa.int64(), nullable=False), pa.field("num_rows", pa.int64(), nullable=False)])
CLUSTER_SCHEMA: Final = REPEATS.append(pa.field("cluster", pa.int64(), nullable=False))


def write_repeats(parts: SignalParts) -> None:
    """Count equal hashes over all scores parts and write those that occur more than once, sorted by hash."""
    names = [part_name(parts.scores_round, SCORES, shard) for shard in parts.shards]
    for kind in KINDS:  # parts of the first schemas have no pixels_hash
        columns = ["pixels_hash", "image_hash"] if kind == "pixels" else [f"{kind}_hash"]
        write_counts(
            parts.run,
            parts.name(repeats_name(kind)),
            REPEATS,
            f"coalesce({', '.join(columns)})",
            parts=(names, pa.schema([pa.field(column, pa.int64()) for column in columns])),
            num_values=parts.num_scored,
            memory_bytes=parts.memory_bytes,
            fingerprint=parts.fingerprint,
        )


def repeats_name(kind: Kind) -> str:
    """Return the name of a kind's counts inside the folder of the signals."""
    return f"repeats-{kind}.parquet"


@dataclass(frozen=True)
class Repeats:
    """Hashes that occur more than once, or have near copies, and how often; 24 bytes each.

    Attributes:
        hashes: int64 (n,), ascending.
        counts: Rows that share the hash, or one of those that it is joined with, int64 (n,).
        clusters: The lowest hash of those that are joined, int64 (n,).
    """

    hashes: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    clusters: npt.NDArray[np.int64]

    @classmethod
    def read(cls, run: Store, name: str) -> "Repeats":
        """Read the counts that `write_repeats` left, or the clusters that `write` did."""
        table = read_columns(run, name, None)
        clusters = table["cluster" if "cluster" in table.column_names else "hash"]
        return cls(table["hash"].to_numpy(), table["num_rows"].to_numpy(), clusters.to_numpy())

    def write(self, run: Store, name: str, *, fingerprint: str) -> None:
        """Write the clusters as one part."""
        table = pa.table([self.hashes, self.counts, self.clusters], schema=CLUSTER_SCHEMA)
        write_part(run, name, CLUSTER_SCHEMA, [table], fingerprint=fingerprint)

    def joined(self, links: npt.NDArray[np.int64]) -> "Repeats":
        """Return what becomes of the counts when hashes are joined, in chains of any length.

        Args:
            links: Pairs of hashes, int64 (2, m).
        """
        nodes = np.unique(np.concatenate([self.hashes, links.ravel()]))
        a, b = np.searchsorted(nodes, links)
        first = components(a, b, len(nodes))
        totals = np.bincount(first, weights=self.of(nodes), minlength=len(nodes))[first]
        return Repeats(nodes, totals.astype(np.int64), nodes[first])

    def clusters_of(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the cluster of each hash, int64 (m,)."""
        return self._lookup(hashes, self.clusters, hashes)

    def of(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how many rows share each hash, 1 at least: int64 (m,)."""
        return self._lookup(hashes, self.counts, np.ones(len(hashes), np.int64))

    def _lookup(
        self, hashes: npt.NDArray[np.int64], values: npt.NDArray[np.int64], otherwise: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        if not len(self.hashes):
            return otherwise
        place = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[place] == hashes, values[place], otherwise)


class Commonness:
    """How common it is that something occurs so often: a p-value without a model or a sample."""

    def __init__(self, repeats: Repeats, num_rows: int) -> None:
        """Sum up.

        Args:
            repeats: Of all rows.
            num_rows: How many rows there are, those included whose hash occurs once.
        """
        self._repeats = repeats
        self._counts = np.sort(repeats.counts)
        above = self._counts[::-1].cumsum()[::-1] / max(1, num_rows)
        self._share = np.minimum(1.0, np.append(above, 1.0 / max(1, num_rows)))

    def __call__(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the share of all rows whose hash occurs at least as often, in (0, 1]; 1 for what occurs once: float64 (n,)."""
        counts = self._repeats.of(hashes)
        found: npt.NDArray[np.float64] = np.where(counts > 1, self._share[np.searchsorted(self._counts, counts)], 1.0)
        return found


class Counts:
    """How often everything occurs in a round; each is read when it is first asked for, once in a worker."""

    def __init__(self, parts: SignalParts) -> None:
        """Say of which round."""
        self.parts = parts

    @cached_property
    def images(self) -> Repeats:
        """Of image hashes."""
        return Repeats.read(self.parts.run, self.parts.name(repeats_name("image")))

    @cached_property
    def captions(self) -> Repeats:
        """Of caption hashes."""
        return Repeats.read(self.parts.run, self.parts.name(repeats_name("caption")))

    @cached_property
    def pixels(self) -> Repeats:
        """Of exact copies."""
        return Repeats.read(self.parts.run, self.parts.name(repeats_name("pixels")))

    @cached_property
    def clusters(self) -> Repeats | None:
        """Of near copies; None where only equal hashes are one picture."""
        return Repeats.read(self.parts.run, self.parts.name(CLUSTERS)) if self.parts.asked.copies else None

    def pictures(self, images: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return a number for each image hash that is the same for whatever counts as one picture, int64 (n,)."""
        return images if self.clusters is None else self.clusters.clusters_of(images)


def repeat_signals(counts: Counts) -> Source:
    """Return how often images and captions occur."""

    def source(rows: Known) -> dict[str, npt.NDArray[np.int64]]:
        found = {"image_cluster": rows.images, "image_cluster_size": counts.images.of(rows.images)}
        if rows.pixels is not None:
            found |= {"exact_copy_cluster": rows.pixels, "exact_copies": counts.pixels.of(rows.pixels)}
        return found if rows.captions is None else found | {"caption_cluster_size": counts.captions.of(rows.captions)}

    return source
