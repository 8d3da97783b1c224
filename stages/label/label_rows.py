"""Write the manifest part of every shard: its scores and signals with what was decided of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.labels import Label
from manifests.layout import LABELS, SCORES, part_name
from manifests.parts import Part, write_part
from manifests.reviews import newest, read_all
from manifests.schema import MANIFEST
from manifests.store import Store
from stages.label.copies.kept import Kept
from stages.label.copies.twins import read_twins
from stages.label.decision import Decision
from stages.label.history import Before
from stages.label.label_table import LOOKED_AT, Beside, Labelling, label_table
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
        kept: Part with the copies of which one is kept; None where none is.
        number_of: Of each shard in that part, by name.
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
    kept: str | None = None
    number_of: Mapping[str, int] = field(default_factory=dict)


class RowGroups:
    """Reads the rows of shards with all that is known of them; the human verdicts, and which uids are twins, only once."""

    def __init__(self, target: LabelTarget) -> None:
        """Read what is the same for all shards."""
        self._target, until = target, target.reviews_until
        self._twins = None if target.twins is None else read_twins(target.run, target.twins)
        self._verdicts = None if until is None else Verdicts.of(newest(read_all(target.run, until)))

    def of(self, shard: Shard) -> Iterator[tuple[pa.Table, Beside]]:
        """Yield the scores of a shard with their signals, a row group at a time, and what else is known of the same rows."""
        target, previous, first = self._target, previous_of(self._target, shard), 0
        old = None if previous is None else Before.read(target.run, previous, shard.name, target.trained_on)
        # signals and earlier ranks lie in parts of their own with other row groups, so they are sliced alongside
        parts, since = target.signals, target.rise_since
        signals = None if parts is None else read_columns(target.run, parts.part(shard.name), ["signals"])["signals"]
        earlier = None if since is None else _column(target.run, since, shard, "rank")
        kept = None if target.kept is None else Kept.read(target.run, target.kept, target.number_of[shard.name])
        columns = {*LOOKED_AT, *(name for limit in target.decision.limits for name in limit.cluster)}
        name = part_name(target.scores_round, SCORES, shard.name)
        with target.run.fs.open_input_file(target.run.path(name)) as file, pq.ParquetFile(file) as parquet:
            there = columns.intersection(parquet.schema_arrow.names)
            wanted = sorted(there if signals is None else there - {"signals"})
            for group in range(parquet.num_row_groups):
                scores = parquet.read_row_group(group, columns=wanted)
                if signals is not None:
                    scores = scores.append_column("signals", signals.slice(first, scores.num_rows))
                yield (
                    scores,
                    Beside(
                        number=target.round_number,
                        verdicts=self._verdicts,
                        twins=self._twins,
                        earlier=None if earlier is None else earlier.slice(first, scores.num_rows),
                        before=None if old is None else old.slice(first, scores.num_rows),
                        num_folds=target.num_folds,
                        kept={} if kept is None else kept.among(first, scores.num_rows),
                    ),
                )
                first += scores.num_rows


def previous_of(target: LabelTarget, shard: Shard) -> int | None:
    """Return the sealed round before, where it had this shard: the data may have grown since."""
    number = target.previous
    there = number is not None and target.run.exists(part_name(number, LABELS, shard.name))
    return number if there else None


class LabelRows(Stage[LabelTarget, Labelled]):
    """Stage: a shard in, its manifest part on disk out. Row order is that of the scores."""

    def open(self) -> None:
        """Read what `RowGroups` reads."""
        self._rows = RowGroups(self.target)

    def run(self, shard: Shard, /) -> Labelled:
        """Label one part, a row group at a time."""
        target = self.target
        labels: dict[str, int] = dict.fromkeys(Label, 0)
        reasons: dict[str, int] = {}
        labelling = Labelling()

        def tables() -> Iterator[pa.Table]:
            for scores, beside in self._rows.of(shard):
                table = label_table(scores, shard.name, target.decision, beside, labelling)
                _add_counts(labels, table["label"])
                _add_counts(reasons, table["reason"])
                yield table

        name = part_name(target.round_number, LABELS, shard.name)
        part = write_part(target.run, name, MANIFEST, tables(), fingerprint=target.fingerprint)
        said = (labelling.limited, labelling.overruled, labelling.voices, labelling.sitting_out)
        return Labelled(part, labels, reasons, self._changes(shard), *said)

    def _changes(self, shard: Shard) -> dict[str, int]:
        """Count the rows whose label the previous round had otherwise; nothing where it had other rows."""
        previous = previous_of(self.target, shard)
        if previous is None:
            return {}
        rounds = (previous, self.target.round_number)
        old, new = (_column(self.target.run, number, shard, "label").cast(pa.string()) for number in rounds)
        if len(old) != len(new):
            return {}
        moved = pc.not_equal(old, new)
        pairs = pc.binary_join_element_wise(old.filter(moved), new.filter(moved), ">")
        return {row["values"]: row["counts"] for row in pc.value_counts(pairs).to_pylist()}


def _column(run: Store, number: int, shard: Shard, name: str) -> pa.ChunkedArray:
    return read_columns(run, part_name(number, LABELS, shard.name), [name])[name]


def _add_counts(totals: dict[str, int], column: pa.ChunkedArray) -> None:
    for row in pc.value_counts(column.drop_null()).to_pylist():
        totals[row["values"]] = totals.get(row["values"], 0) + row["counts"]
