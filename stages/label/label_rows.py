"""Write the manifest part of every shard: its scores and signals with what was decided of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.layout import LABELS, SCORES, part_name
from manifests.parts import Part, write_part
from manifests.reviews import newest, read_all
from manifests.schema import MANIFEST, Label
from manifests.store import Store
from stages.label.decide import Decision
from stages.label.label_table import Labelling, Verdicts, label_table
from stages.pair import Shard
from stages.signals.signal_parts import SignalParts


@dataclass(frozen=True, slots=True)
class Labelled:
    """One written manifest part.

    Attributes:
        part: Rows, size and hash.
        labels: Rows of each label.
        reasons: Rows of each reason.
        changes: Rows whose label the round before had otherwise, by `old>new`, e.g. `risky>safe`.
        limited: Rows above the cut that a signal's limit made risky, before any verdict.
        overruled: Rows whose label a verdict has changed, by `old>new`.
    """

    part: Part
    labels: dict[str, int]
    reasons: dict[str, int]
    changes: dict[str, int]
    limited: int
    overruled: dict[str, int]


class LabelRows:
    """Stage: a shard in, its manifest part on disk out. Row order is that of the scores."""

    def __init__(
        self,
        run: Store,
        scores_round: int,
        round_number: int,
        fingerprint: str,
        decision: Decision,
        previous: int | None = None,
        signals: SignalParts | None = None,
        reviews_until: str | None = None,
        rise_since: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            run: The run folder.
            scores_round: Round whose scores are read.
            round_number: Round whose manifest is written.
            fingerprint: Of that round's plan.
            decision: How rows are labelled.
            previous: Sealed round that labels are compared with.
            signals: Where the signals parts lie; None where there are none.
            reviews_until: Human verdicts up to this time are honoured; None where there are none.
            rise_since: Sealed round by other weights that ranks are compared with; None where there is none.
        """
        self._reviews_until = reviews_until
        self._verdicts: Verdicts | None = None
        self._run, self._scores_round, self._round = run, scores_round, round_number
        self._fingerprint, self._decision, self._previous = fingerprint, decision, previous
        self._signals, self._rise_since = signals, rise_since

    def open(self) -> None:
        """Read the human verdicts."""
        if self._reviews_until is not None:
            self._verdicts = Verdicts.of(newest(read_all(self._run, self._reviews_until)))

    def run(self, shard: Shard, /) -> Labelled:
        """Label one part."""
        labels: dict[str, int] = dict.fromkeys(Label, 0)
        reasons: dict[str, int] = {}
        labelling = Labelling()

        def tables() -> Iterator[pa.Table]:
            name = part_name(self._scores_round, SCORES, shard.name)
            signals, earlier, first = self._signals_of(shard), self._earlier(shard), 0
            with self._run.fs.open_input_file(self._run.path(name)) as file, pq.ParquetFile(file) as parquet:
                for group in range(parquet.num_row_groups):
                    scores = parquet.read_row_group(group)
                    if signals is not None:
                        place = scores.schema.get_field_index("signals")
                        scores = scores.set_column(place, "signals", signals.slice(first, scores.num_rows))
                    before = None if earlier is None else earlier.slice(first, scores.num_rows)
                    table = label_table(scores, shard.name, self._decision, self._verdicts, labelling, before)
                    first += scores.num_rows
                    _add_counts(labels, table["label"])
                    _add_counts(reasons, table["reason"])
                    yield table

        target = part_name(self._round, LABELS, shard.name)
        part = write_part(self._run, target, MANIFEST, tables(), fingerprint=self._fingerprint)
        return Labelled(part, labels, reasons, self._changes(shard), labelling.limited, labelling.overruled)

    def _signals_of(self, shard: Shard) -> pa.ChunkedArray | None:
        if self._signals is None:
            return None
        with self._run.fs.open_input_file(self._run.path(self._signals.part(shard.name))) as file:
            return pq.read_table(file)["signals"]

    def _earlier(self, shard: Shard) -> pa.ChunkedArray | None:
        return None if self._rise_since is None else self._column(self._rise_since, shard, "rank")

    def _changes(self, shard: Shard) -> dict[str, int]:
        if self._previous is None:
            return {}
        old, new = (self._column(number, shard, "label").cast(pa.string()) for number in (self._previous, self._round))
        if len(old) != len(new):
            return {}
        moved = pc.not_equal(old, new)
        pairs = pc.binary_join_element_wise(old.filter(moved), new.filter(moved), ">")
        return {row["values"]: row["counts"] for row in pc.value_counts(pairs).to_pylist()}

    def _column(self, number: int, shard: Shard, name: str) -> pa.ChunkedArray:
        with self._run.fs.open_input_file(self._run.path(part_name(number, LABELS, shard.name))) as file:
            return pq.read_table(file, columns=[name])[name]


def _add_counts(totals: dict[str, int], column: pa.ChunkedArray) -> None:
    for row in pc.value_counts(column.drop_null()).to_pylist():
        totals[row["values"]] = totals.get(row["values"], 0) + row["counts"]
