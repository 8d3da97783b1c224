"""Write which copies would be safe, were it not for their number; of those `stages.label.copies.kept` keeps one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.parts import write_part
from manifests.signals import SIGNALS
from stages.label.copies.kept import OFFERS
from stages.label.label_rows import LabelTarget, RowGroups
from stages.label.label_table import judge, looked_at
from stages.pair import Shard
from stages.signals.witnesses.joint_doubt import mixed
from stages.stage import Stage

_SIGNALS: Final = frozenset(field.name for field in SIGNALS)


@dataclass(frozen=True)
class OfferTarget:
    """What is asked of copies.

    Attributes:
        labels: How the rows of the round are labelled.
        folder: Where the offers go, below the run.
        ages: First round that has each shard, by name.
    """

    labels: LabelTarget
    folder: str
    ages: Mapping[str, int]


class OfferCopies(Stage[OfferTarget, int]):
    """Stage: a shard in, its rows that may be kept on disk out; returns their number."""

    def open(self) -> None:
        """Read what `RowGroups` reads."""
        self._rows = RowGroups(self.target.labels)

    def run(self, shard: Shard, /) -> int:
        """Write the offers of one shard."""
        run = self.target.labels.run
        part = write_part(
            run, shard.part(self.target.folder), OFFERS, self._offers(shard), fingerprint=self.target.labels.fingerprint
        )
        return part.num_rows

    def _offers(self, shard: Shard) -> Iterator[pa.Table]:
        labels, first = self.target.labels, 0
        alone = replace(labels.decision, limits=tuple(limit for limit in labels.decision.limits if not limit.cluster))
        for scores, beside in self._rows.of(shard):
            safe = judge(scores, shard.name, alone, beside).final == 0
            signals = looked_at(scores, labels.decision.limits)
            for place, limit in enumerate(labels.decision.limits, start=1):
                if limit.cluster:
                    yield self._table(shard, scores, place, limit.cluster, np.flatnonzero(safe & ~limit.allows(signals)), first)
            first += scores.num_rows

    def _table(
        self, shard: Shard, scores: pa.Table, place: int, cluster: tuple[str, ...], rows: npt.NDArray[np.int64], first: int
    ) -> pa.Table:
        """Return some rows of a row group, which begins at `first`, as offers; those of no cluster are left out."""
        some = scores.take(pa.array(rows))
        shared = [pc.struct_field(some["signals"], name) if name in _SIGNALS else some[name] for name in cluster]
        numbers = [column.fill_null(0).to_numpy() for column in shared]
        num, number = len(rows), self.target.labels.number_of[shard.name]
        table = pa.table(
            {
                "place": np.full(num, place, np.int32),
                "cluster": numbers[0] if len(numbers) == 1 else mixed(*numbers),
                "cosine": some["cosine"],
                "age": np.full(num, self.target.ages[shard.name], np.int32),
                "shard": np.full(num, number, np.int32),
                "row": rows + first,
            }
        ).cast(OFFERS)
        return table.filter(shared[0].is_valid())
