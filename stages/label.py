"""The two light stages after scoring: count a scores part, and turn it into a manifest part."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import RunError
from manifests.layout import EMBEDDINGS, LABELS, SCORES, part_name
from manifests.parts import Part, write_part
from manifests.reading import check_version
from manifests.schema import FINGERPRINT_KEY, MANIFEST, Label, Reason
from manifests.store import Store
from stages.histogram import SparseCounts, count
from stages.pair import Shard
from stages.split import Decision


@dataclass(frozen=True, slots=True)
class Tallied:
    """What the driver needs of one scores part: counts, never rows.

    Attributes:
        part: Rows, size and hash of the part.
        cosines: Its occupied histogram bins.
        reasons: Quarantined rows per reason.
        embeddings: Rows, size and hash of the embeddings part, where there is one.
    """

    part: Part
    cosines: SparseCounts
    reasons: dict[str, int]
    embeddings: Part | None


class Tally:
    """Stage: a shard in, the counts of its scores part out. Reads the score columns only, and hashes the file."""

    def __init__(self, run: Store, scores_round: int, fingerprint: str, *, with_embeddings: bool) -> None:
        """Prepare.

        Args:
            run: The run folder.
            scores_round: Round whose scores are counted.
            fingerprint: Of the plan they must have been written under.
            with_embeddings: Whether there are embeddings parts, to be hashed too.
        """
        self._run, self._round, self._fingerprint = run, scores_round, fingerprint
        self._with_embeddings = with_embeddings

    def open(self) -> None:
        """Do nothing; there is nothing to load."""

    def run(self, shard: Shard, /) -> Tallied:
        """Count one part.

        Raises:
            RunError: It was written under another plan.
        """
        name = part_name(self._round, SCORES, shard.name)
        table, part = self._open(name, ["cosine", "reason"])
        embeddings = self._open(part_name(self._round, EMBEDDINGS, shard.name), [])[1] if self._with_embeddings else None
        cosines = table["cosine"].drop_null().to_numpy()
        reasons = {row["values"]: row["counts"] for row in pc.value_counts(table["reason"].drop_null()).to_pylist()}
        return Tallied(part, count(cosines), reasons, embeddings)

    def _open(self, name: str, columns: list[str]) -> tuple[pa.Table, Part]:
        with self._run.fs.open_input_file(self._run.path(name)) as file:
            digest, size = hashlib.file_digest(file, "sha256"), file.size()
            file.seek(0)
            with pq.ParquetFile(file) as parquet:
                check_version(parquet.schema_arrow, name)
                stamp = (parquet.schema_arrow.metadata or {}).get(FINGERPRINT_KEY, b"").decode()
                if stamp != self._fingerprint:
                    raise RunError(f"{name} was written under another plan ({stamp[:12]}, not {self._fingerprint[:12]})")
                return parquet.read(columns=columns), Part(parquet.metadata.num_rows, size, digest.hexdigest())


@dataclass(frozen=True, slots=True)
class Labelled:
    """One written manifest part.

    Attributes:
        part: Rows, size and hash.
        labels: Rows of each label.
        reasons: Rows of each reason.
        changes: Rows whose label the round before had otherwise, by `old>new`, e.g. `risky>safe`.
    """

    part: Part
    labels: dict[str, int]
    reasons: dict[str, int]
    changes: dict[str, int]


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
    ) -> None:
        """Prepare.

        Args:
            run: The run folder.
            scores_round: Round whose scores are read.
            round_number: Round whose manifest is written.
            fingerprint: Of that round's plan.
            decision: How rows are labelled.
            previous: Sealed round that labels are compared with.
        """
        self._run, self._scores_round, self._round = run, scores_round, round_number
        self._fingerprint, self._decision, self._previous = fingerprint, decision, previous

    def open(self) -> None:
        """Do nothing; there is nothing to load."""

    def run(self, shard: Shard, /) -> Labelled:
        """Label one part."""
        labels: dict[str, int] = dict.fromkeys(Label, 0)
        reasons: dict[str, int] = {}

        def tables() -> Iterator[pa.Table]:
            name = part_name(self._scores_round, SCORES, shard.name)
            with self._run.fs.open_input_file(self._run.path(name)) as file, pq.ParquetFile(file) as parquet:
                for group in range(parquet.num_row_groups):
                    table = label_table(parquet.read_row_group(group), shard.name, self._decision)
                    _add_counts(labels, table["label"])
                    _add_counts(reasons, table["reason"])
                    yield table

        target = part_name(self._round, LABELS, shard.name)
        part = write_part(self._run, target, MANIFEST, tables(), fingerprint=self._fingerprint)
        return Labelled(part, labels, reasons, self._changes(shard))

    def _changes(self, shard: Shard) -> dict[str, int]:
        if self._previous is None:
            return {}
        old, new = (self._labels(number, shard) for number in (self._previous, self._round))
        if len(old) != len(new):
            return {}
        moved = pc.not_equal(old, new)
        pairs = pc.binary_join_element_wise(old.filter(moved), new.filter(moved), ">")
        return {row["values"]: row["counts"] for row in pc.value_counts(pairs).to_pylist()}

    def _labels(self, number: int, shard: Shard) -> pa.ChunkedArray:
        with self._run.fs.open_input_file(self._run.path(part_name(number, LABELS, shard.name))) as file:
            return pq.read_table(file, columns=["label"])["label"].cast(pa.string())


def label_table(scores: pa.Table, shard: str, decision: Decision) -> pa.Table:
    """Return rows of the scores part as rows of the manifest."""
    cosine = scores["cosine"].combine_chunks()
    scored = cosine.is_valid().to_numpy(zero_copy_only=False)
    finite = cosine.drop_null().to_numpy()
    safe = np.zeros(len(scored), bool)
    safe[scored] = decision.is_safe(finite)
    p_safe, rank = np.zeros(len(scored), np.float32), np.zeros(len(scored), np.float32)
    p_safe[scored], rank[scored] = decision.p_safe(finite), decision.rank(finite)
    codes = np.where(scored, np.where(safe, 0, 1), 2).astype(np.int32)
    columns = {
        "shard": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(scored), np.int32)), pa.array([shard])),
        "label": pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([str(label) for label in Label])),
        "reason": _reasons(scores["reason"], codes),
        "p_safe": pa.array(p_safe),
        "rank": pa.array(rank, mask=~scored),
    }
    return pa.table({name: columns.get(name, scores[name] if name in scores.column_names else None) for name in MANIFEST.names})


def _reasons(reasons: pa.ChunkedArray, codes: npt.NDArray[np.int32]) -> pa.DictionaryArray:
    """Return the reasons of the scores part, with `below_cut` where a scored row is risky."""
    known = reasons.unify_dictionaries().combine_chunks()
    if isinstance(known, pa.ChunkedArray):
        known = pa.concat_arrays(known.chunks) if known.num_chunks else pa.array([], MANIFEST.field("reason").type)
    words = [*known.dictionary.to_pylist(), str(Reason.BELOW_CUT)]
    indices = known.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    indices = np.where(codes == 1, len(words) - 1, indices).astype(np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(indices, mask=codes == 0), pa.array(words, pa.string()))


def _add_counts(totals: dict[str, int], column: pa.ChunkedArray) -> None:
    for row in pc.value_counts(column.drop_null()).to_pylist():
        totals[row["values"]] = totals.get(row["values"], 0) + row["counts"]
