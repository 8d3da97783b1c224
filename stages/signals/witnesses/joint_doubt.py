"""Near copies are judged together: one doubt about each of a dozen copies is a strong one about all of them.

Families of pictures that look alike by nature (letters, clock faces, one product in many shops) are clusters of near copies
too, so the size of a cluster says little. Their captions belong to them, though, while those of a repeated poison do not.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import norm

from manifests.parts import write_part
from manifests.schema import COSINE_STEP
from manifests.signals import SIGNALS
from stages.histogram import on_grid
from stages.out_of_core import over_parts, write_answer, write_counts
from stages.pair import Shard
from stages.signals.repeats import REPEATS, Repeats
from stages.signals.signal_parts import GROUPS, PAIRS, WITNESS, SignalParts
from stages.stage import Stage
from stages.vectors import read_columns

SIGNALS_PART: Final = pa.schema([pa.field("signals", SIGNALS)])
WITNESSED: Final = SIGNALS_PART.append(pa.field("pair", pa.int64())).append(pa.field("doubt", pa.int64()))
_PAIR: Final = pa.schema([WITNESSED.field("pair")])
GROUP_SCHEMA: Final = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("cluster", "doubt", "num_rows")])
CORRELATION: Final = 0.3  # of the doubts about copies of one picture; 0.5 finds less of flooding (docs/method.md)
_DOUBT_UNIT: Final = 2.0**20  # doubts are summed as whole numbers, so that the order of shards does not matter


def witnessed(signals: pa.StructArray, clusters: npt.NDArray[np.int64], captions: npt.NDArray[np.int64]) -> pa.Table:
    """Return the signals of some rows with what their clusters need to know of them.

    Args:
        signals: Of the rows, with their own accord.
        clusters: Of near copies, int64 (n,).
        captions: Hashes of the captions, int64 (n,).
    """
    accord = signals.field("accord")
    values = accord.fill_null(0.5).to_numpy(zero_copy_only=False).astype(np.float64)
    doubt = np.rint(norm.isf(_open(values)) * _DOUBT_UNIT).astype(np.int64)
    missing = accord.is_null().to_numpy(zero_copy_only=False)
    columns = [signals, pa.array(mixed(clusters, captions), mask=missing), pa.array(doubt, mask=missing)]
    return pa.table(columns, schema=WITNESSED)


def jointly(accord: npt.NDArray[np.float64], groups: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the accord of rows that share the doubts about their group: their own, or that of the group where it is lower.

    Args:
        accord: Of each row, in [0, 1], float64 (n,).
        groups: The group of each, int64 (n,).
    """
    place = np.unique(groups, return_inverse=True)[1]
    num = np.bincount(place)
    shared = _shared(np.bincount(place, norm.isf(_open(accord))).astype(np.float64), num)
    return np.minimum(accord, shared[place])


def _shared(doubt: npt.NDArray[np.float64], num: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the accord of groups whose doubts sum up to so much: Stouffer's combination, of doubts that are correlated."""
    return on_grid(norm.sf(doubt / num * np.sqrt(num / (1 + (num - 1) * CORRELATION))))


def _open(accord: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return p-values within the open interval, so that no doubt is infinite."""
    return accord.clip(COSINE_STEP / 2, 1 - COSINE_STEP / 2)


def mixed(clusters: npt.NDArray[np.int64], captions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return one number for cluster and caption, int64 (n,). Both are hashes already, so a product mixes them enough."""
    with np.errstate(over="ignore"):
        mixed = clusters.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + captions.view(np.uint64)
        found: npt.NDArray[np.int64] = (mixed * np.uint64(0xBF58476D1CE4E5B9)).view(np.int64)
    return found


def write_groups(parts: SignalParts) -> None:
    """Sum up the doubts about every cluster of two rows and more, and count the rows of one cluster and caption."""
    names = [parts.part(shard, WITNESS) for shard in parts.shards]
    with over_parts(parts.run, names, WITNESSED, parts.memory_bytes) as connection:
        groups = connection.sql(
            "SELECT signals.near_copy_cluster AS cluster, sum(doubt)::BIGINT AS doubt, count(doubt) AS num_rows FROM parts "
            "WHERE signals.near_copies > 1 AND doubt IS NOT NULL GROUP BY 1 ORDER BY 1"
        )
        write_answer(groups, parts.run, parts.name(GROUPS), GROUP_SCHEMA, fingerprint=parts.fingerprint)
    limits = {"num_values": parts.num_scored, "memory_bytes": parts.memory_bytes}
    write_counts(parts.run, parts.name(PAIRS), REPEATS, "pair", parts=(names, _PAIR), **limits, fingerprint=parts.fingerprint)


class JoinCopies(Stage[SignalParts, int]):
    """Stage: a shard in, its signals part on disk out, in which copies share their doubts; returns its number of rows."""

    def open(self) -> None:
        """Load the groups."""
        parts = self.target
        groups = read_columns(parts.run, parts.name(GROUPS), None)
        self._clusters = groups["cluster"].to_numpy()
        self._shared = _shared(groups["doubt"].to_numpy() / _DOUBT_UNIT, groups["num_rows"].to_numpy())
        self._pairs = Repeats.read(parts.run, parts.name(PAIRS))

    def run(self, shard: Shard, /) -> int:
        """Join one shard."""
        parts = self.target
        found = read_columns(parts.run, parts.part(shard.name, WITNESS), None)
        signals, pair = found["signals"].combine_chunks(), found["pair"].combine_chunks()
        missing = pair.is_null().to_numpy(zero_copy_only=False)
        copies = self._pairs.of(pair.fill_null(0).to_numpy()).clip(max=2**31 - 1).astype(np.int32)
        joined = {"accord": self._accord(signals), "pair_copies": pa.array(copies, mask=missing)}
        columns = [joined.get(field.name, signals.field(field.name)) for field in SIGNALS]
        whole = pa.StructArray.from_arrays(columns, fields=list(SIGNALS), mask=signals.is_null())
        table = pa.table([whole], schema=SIGNALS_PART)
        return write_part(parts.run, parts.part(shard.name), SIGNALS_PART, [table], fingerprint=parts.fingerprint).num_rows

    def _accord(self, signals: pa.StructArray) -> pa.Array:
        """Return the accord of each row, or that of its group where it is lower."""
        own, clusters = signals.field("accord"), signals.field("near_copy_cluster").fill_null(0).to_numpy()
        if not len(self._clusters):
            return own
        place = np.minimum(np.searchsorted(self._clusters, clusters), len(self._clusters) - 1)
        shared = np.where(self._clusters[place] == clusters, self._shared[place], 1.0)
        return pc.min_element_wise(own, pa.array(shared), skip_nulls=False)
