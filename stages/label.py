"""The two light stages after scoring: count a scores part, and turn it into a manifest part."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import RunError
from manifests.layout import EMBEDDINGS, LABELS, SCORES, part_name
from manifests.parts import Part, write_part
from manifests.reading import check_version
from manifests.reviews import newest, read_all
from manifests.schema import FINGERPRINT_KEY, MANIFEST, NUM_NULLS, Label
from manifests.store import Store
from stages.histogram import SparseCounts, count
from stages.label_rows import Labelling, Verdicts, label_table
from stages.null import caption_rows
from stages.pair import Shard
from stages.split import Decision
from stages.strata import COLUMN, StrataKind, strata_of


@dataclass(frozen=True, slots=True)
class Tallied:
    """What the driver needs of one scores part: counts, never rows.

    Attributes:
        part: Rows, size and hash of the part.
        cosines: Its occupied histogram bins.
        reasons: Quarantined rows per reason.
        embeddings: Rows, size and hash of the embeddings part, where there is one.
        nulls: Occupied histogram bins of cosines of mismatched pairs; none in scores of the first schema.
        strata: Both kinds of bins of every stratum, by its code, where strata were asked for.
    """

    part: Part
    cosines: SparseCounts
    reasons: dict[str, int]
    embeddings: Part | None
    nulls: SparseCounts
    strata: dict[int, tuple[SparseCounts, SparseCounts]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SignalParts:
    """Where the signals of a round lie.

    Attributes:
        folder: Below the run.
        fingerprint: In their footers.
        near: Whether neighbours were sought.
    """

    folder: str
    fingerprint: str
    near: bool

    def part(self, shard: str) -> str:
        """Return the name of one shard's part."""
        return f"{self.folder}/{shard}.parquet"


class Tally:
    """Stage: a shard in, the counts of its scores part out. Reads the score columns only, and hashes the file."""

    def __init__(
        self, run: Store, scores_round: int, fingerprint: str, *, with_embeddings: bool, strata: StrataKind | None = None
    ) -> None:
        """Prepare.

        Args:
            run: The run folder.
            scores_round: Round whose scores are counted.
            fingerprint: Of the plan they must have been written under.
            with_embeddings: Whether there are embeddings parts, to be hashed too.
            strata: How rows are grouped; None: not at all.
        """
        self._run, self._round, self._fingerprint = run, scores_round, fingerprint
        self._with_embeddings, self._strata = with_embeddings, strata

    def open(self) -> None:
        """Do nothing; there is nothing to load."""

    def run(self, shard: Shard, /) -> Tallied:
        """Count one part.

        Raises:
            RunError: It was written under another plan, or by a version that did not write what groups rows.
        """
        name = part_name(self._round, SCORES, shard.name)
        grouping = ["image_hash", COLUMN[self._strata]] if self._strata else []
        table, part = open_part(self._run, name, ["cosine", "reason", "null_cosines", *grouping], self._fingerprint)
        kept = part_name(self._round, EMBEDDINGS, shard.name)
        embeddings = open_part(self._run, kept, [], self._fingerprint)[1] if self._with_embeddings else None
        cosines = table["cosine"].drop_null().to_numpy()
        reasons = {row["values"]: row["counts"] for row in pc.value_counts(table["reason"].drop_null()).to_pylist()}
        nulls = table["null_cosines"].combine_chunks().flatten() if "null_cosines" in table.column_names else pa.nulls(0)
        counted = count(nulls.drop_null().cast(pa.float32()).to_numpy())
        strata = _by_stratum(table, self._strata, name) if self._strata else {}
        return Tallied(part, count(cosines), reasons, embeddings, counted, strata)


def _by_stratum(table: pa.Table, kind: StrataKind, name: str) -> dict[int, tuple[SparseCounts, SparseCounts]]:
    """Count the cosines of every stratum, and of mismatched pairs whose caption, or image, is in it."""
    if COLUMN[kind] not in table.column_names or "null_cosines" not in table.column_names:
        raise RunError(f"{name} has no {COLUMN[kind]}, by which --null-strata {kind} groups rows; score again")
    cosine, nulls = table["cosine"].combine_chunks(), table["null_cosines"].combine_chunks()
    codes = strata_of(kind, table[COLUMN[kind]])
    grouped = np.repeat(codes[:, None], NUM_NULLS, axis=1)
    if COLUMN[kind] == "caption":
        rows = caption_rows(table["image_hash"].is_valid().to_numpy())
        grouped = np.where(rows >= 0, codes[rows], grouped)
    known, scored = nulls.flatten().is_valid().to_numpy(zero_copy_only=False), cosine.is_valid().to_numpy(zero_copy_only=False)
    values, of = nulls.flatten().drop_null().to_numpy(), grouped.ravel()[known]
    pairs, mine = cosine.drop_null().to_numpy(), codes[scored]
    return {int(code): (count(pairs[mine == code]), count(values[of == code])) for code in np.unique(mine)}


@dataclass(frozen=True, slots=True)
class TalliedSignals:
    """What the driver needs of one signals part.

    Attributes:
        part: Rows, size and hash of the part.
        closeness: Occupied histogram bins of 1 - outlier; empty where that signal was not computed.
        accord: Occupied histogram bins of accord; the same.
    """

    part: Part
    closeness: SparseCounts
    accord: SparseCounts


class TallySignals:
    """Stage: a shard in, the counts of its signals part out; hashes the file."""

    def __init__(self, run: Store, parts: SignalParts) -> None:
        """Say where the parts lie."""
        self._run, self._parts = run, parts

    def open(self) -> None:
        """Do nothing; there is nothing to load."""

    def run(self, shard: Shard, /) -> TalliedSignals:
        """Count one part.

        Raises:
            RunError: It was written under another plan.
        """
        found, part = open_part(self._run, self._parts.part(shard.name), ["signals"], self._parts.fingerprint)
        outlier, accord = (pc.struct_field(found["signals"], name).drop_null().to_numpy() for name in ("outlier", "accord"))
        return TalliedSignals(part, count((1.0 - outlier.astype(np.float64)).astype(np.float32)), count(accord))


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
