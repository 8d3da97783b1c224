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
from stages.label.history import Before
from stages.label.label_table import LOOKED_AT, Beside, Labelling, label_table
from stages.label.twins import read_twins
from stages.label.verdicts import Verdicts
from stages.pair import Shard
from stages.signals.signal_parts import SignalParts
from stages.stage import Stage
from stages.vectors import read_columns


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
        voices: Rows that became what they are in this round, by who made them so.
        sitting_out: Safe rows that sit out until the next look.
    """

    part: Part
    labels: dict[str, int]
    reasons: dict[str, int]
    changes: dict[str, int]
    limited: int
    overruled: dict[str, int]
    voices: dict[str, int]
    sitting_out: int


@dataclass(frozen=True)
class LabelTarget:
    """How the rows of a round are labelled.

    Attributes:
        run: The run folder.
        scores_round: Round whose scores are read.
        round_number: Round whose manifest is written.
        fingerprint: Of that round's plan.
        decision: The cut, and the limits of signals.
        previous: Sealed round that labels are compared with, and whose history goes on.
        trained_on: Round that the weights trained on, where they look again after a later one.
        signals: Where the signals parts lie; None where there are none.
        reviews_until: Human verdicts up to this time are honoured; None where there are none.
        rise_since: Sealed round by other weights that ranks are compared with; None where there is none.
        twins: Part with the uids of more than one row; None where nobody looked.
        num_folds: Rounds in which every safe row sits out once; 0 where none does.
    """

    run: Store
    scores_round: int
    round_number: int
    fingerprint: str
    decision: Decision
    previous: int | None = None
    trained_on: int | None = None
    signals: SignalParts | None = None
    reviews_until: str | None = None
    rise_since: int | None = None
    twins: str | None = None
    num_folds: int = 0


class LabelRows(Stage[LabelTarget, Labelled]):
    """Stage: a shard in, its manifest part on disk out. Row order is that of the scores."""

    def open(self) -> None:
        """Read the human verdicts, and which uids are those of several rows."""
        until, twins = self.target.reviews_until, self.target.twins
        self._twins = None if twins is None else read_twins(self.target.run, twins)
        self._verdicts = None if until is None else Verdicts.of(newest(read_all(self.target.run, until)))

    def run(self, shard: Shard, /) -> Labelled:
        """Label one part, a row group at a time."""
        target = self.target
        labels: dict[str, int] = dict.fromkeys(Label, 0)
        reasons: dict[str, int] = {}
        labelling = Labelling()
        previous = self._previous(shard)
        old = None if previous is None else Before.read(target.run, previous, shard.name, target.trained_on)

        def tables() -> Iterator[pa.Table]:
            # signals and earlier ranks lie in parts of their own with other row groups, so they are sliced alongside
            parts, since, first = target.signals, target.rise_since, 0
            signals = None if parts is None else read_columns(target.run, parts.part(shard.name), ["signals"])["signals"]
            earlier = None if since is None else self._column(since, shard, "rank")
            name = part_name(target.scores_round, SCORES, shard.name)
            with target.run.fs.open_input_file(target.run.path(name)) as file, pq.ParquetFile(file) as parquet:
                there = LOOKED_AT.intersection(parquet.schema_arrow.names)
                wanted = sorted(there if signals is None else there - {"signals"})
                for group in range(parquet.num_row_groups):
                    scores = parquet.read_row_group(group, columns=wanted)
                    if signals is not None:
                        scores = scores.append_column("signals", signals.slice(first, scores.num_rows))
                    beside = Beside(
                        number=target.round_number,
                        verdicts=self._verdicts,
                        twins=self._twins,
                        earlier=None if earlier is None else earlier.slice(first, scores.num_rows),
                        before=None if old is None else old.slice(first, scores.num_rows),
                        num_folds=target.num_folds,
                    )
                    table = label_table(scores, shard.name, target.decision, beside, labelling)
                    first += scores.num_rows
                    _add_counts(labels, table["label"])
                    _add_counts(reasons, table["reason"])
                    yield table

        name = part_name(target.round_number, LABELS, shard.name)
        part = write_part(target.run, name, MANIFEST, tables(), fingerprint=target.fingerprint)
        said = (labelling.limited, labelling.overruled, labelling.voices, labelling.sitting_out)
        return Labelled(part, labels, reasons, self._changes(shard), *said)

    def _previous(self, shard: Shard) -> int | None:
        """Return the sealed round before, where it had this shard: the data may have grown since."""
        number = self.target.previous
        there = number is not None and self.target.run.exists(part_name(number, LABELS, shard.name))
        return number if there else None

    def _changes(self, shard: Shard) -> dict[str, int]:
        """Count the rows whose label the previous round had otherwise; nothing where it had other rows."""
        previous = self._previous(shard)
        if previous is None:
            return {}
        rounds = (previous, self.target.round_number)
        old, new = (self._column(number, shard, "label").cast(pa.string()) for number in rounds)
        if len(old) != len(new):
            return {}
        moved = pc.not_equal(old, new)
        pairs = pc.binary_join_element_wise(old.filter(moved), new.filter(moved), ">")
        return {row["values"]: row["counts"] for row in pc.value_counts(pairs).to_pylist()}

    def _column(self, number: int, shard: Shard, name: str) -> pa.ChunkedArray:
        return read_columns(self.target.run, part_name(number, LABELS, shard.name), [name])[name]


def _add_counts(totals: dict[str, int], column: pa.ChunkedArray) -> None:
    for row in pc.value_counts(column.drop_null()).to_pylist():
        totals[row["values"]] = totals.get(row["values"], 0) + row["counts"]
