"""Count a scores part, and a signals part: what the driver needs of a shard to decide, never its rows."""

import json
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import RunError
from manifests.labels import Reason
from manifests.layout import EMBEDDINGS, SCORES, part_name
from manifests.parts import Part
from manifests.reading import open_part
from manifests.schema import NOT_DOWNLOADED_KEY, NUM_NULLS
from manifests.signals import LIMITS
from manifests.store import Store
from stages.histogram import SparseCounts, count
from stages.label.fit.strata import COLUMN, Codes, StrataKind, strata_of
from stages.label.history import Before
from stages.label.limits import counted_as
from stages.pair import Shard
from stages.score.null_cosines import caption_rows
from stages.signals.signal_parts import SignalParts
from stages.stage import Stage

COUNTED: Final = sorted({limit.counted for limit, _ in LIMITS if limit.counted is not None})


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
        unread_bytes: Of the shard, that rows of damage stand for.
        not_downloaded: Rows of the crawl that never reached the shard, by why.
    """

    part: Part
    cosines: SparseCounts
    reasons: dict[str, int]
    embeddings: Part | None
    nulls: SparseCounts
    strata: dict[int, tuple[SparseCounts, SparseCounts]] = field(default_factory=dict)
    unread_bytes: int = 0
    not_downloaded: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoresTarget:
    """The scores of a round, as they are counted.

    Attributes:
        run: The run folder.
        scores_round: Round whose scores are counted.
        fingerprint: Of the plan they must have been written under.
        with_embeddings: Whether there are embeddings parts, to be hashed too.
        strata: How rows are grouped; None: not at all.
        before: Sealed round that rows are grouped by, for `before`.
        trained_on: Round that the weights trained on, where that is an older one.
        signals: What neighbours are sought by; for canaries.
    """

    run: Store
    scores_round: int
    fingerprint: str
    with_embeddings: bool = False
    strata: StrataKind | None = None
    before: int | None = None
    trained_on: int | None = None
    signals: SignalParts | None = None


class Tally(Stage[ScoresTarget, Tallied]):
    """Stage: a shard in, the counts of its scores part out. Reads the score columns only, and hashes the file."""

    def run(self, shard: Shard, /) -> Tallied:
        """Count one part.

        Raises:
            RunError: It was written under another plan, or by a version that did not write what groups rows.
        """
        target = self.target
        name = part_name(target.scores_round, SCORES, shard.name)
        grouping = ["image_hash", COLUMN[target.strata]] if target.strata in COLUMN else []
        table, part = open_part(
            target.run, name, ["cosine", "reason", "null_cosines", "image_bytes", *grouping], target.fingerprint
        )
        kept = part_name(target.scores_round, EMBEDDINGS, shard.name)
        embeddings = open_part(target.run, kept, [], target.fingerprint)[1] if target.with_embeddings else None
        cosines = table["cosine"].drop_null().to_numpy()
        reasons = {row["values"]: row["counts"] for row in pc.value_counts(table["reason"].drop_null()).to_pylist()}
        nulls = table["null_cosines"].combine_chunks().flatten() if "null_cosines" in table.column_names else pa.nulls(0)
        counted = count(nulls.drop_null().cast(pa.float32()).to_numpy())
        strata = _by_stratum(table, self._codes(table, shard, name), target.strata) if target.strata else {}
        lost = json.loads((table.schema.metadata or {}).get(NOT_DOWNLOADED_KEY, b"{}"))
        return Tallied(part, count(cosines), reasons, embeddings, counted, strata, _unread(table), lost)

    def _codes(self, table: pa.Table, shard: Shard, name: str) -> Codes:
        """Return the stratum of every row."""
        target = self.target
        if target.before is not None:
            return Before.read(target.run, target.before, shard.name, target.trained_on).places
        assert target.strata is not None
        if COLUMN[target.strata] not in table.column_names or "null_cosines" not in table.column_names:
            wanted = COLUMN[target.strata]
            raise RunError(f"{name} has no {wanted}, by which --null-strata {target.strata} groups rows; score again")
        return strata_of(target.strata, table[COLUMN[target.strata]])


def _unread(table: pa.Table) -> int:
    """Return how many bytes of a shard the rows of damage stand for; scores of the first schema do not say."""
    if "image_bytes" not in table.column_names:
        return 0
    damage = pc.is_in(table["reason"].cast(pa.string()), pa.array([Reason.SHARD_UNREADABLE, Reason.TAR_TRUNCATED], pa.string()))
    return pc.sum(table["image_bytes"].filter(damage)).as_py() or 0


def _by_stratum(table: pa.Table, codes: Codes, kind: StrataKind) -> dict[int, tuple[SparseCounts, SparseCounts]]:
    """Count the cosines of every stratum, and of mismatched pairs whose caption, or image, is in it."""
    cosine, nulls = table["cosine"].combine_chunks(), table["null_cosines"].combine_chunks()
    grouped = np.repeat(codes[:, None], NUM_NULLS, axis=1)
    if COLUMN.get(kind) == "caption":
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
        values: Occupied histogram bins of the signals of which shares are limited, by name; empty where one was not computed.
        promises: Rows by what came of what an index promised.
    """

    part: Part
    values: dict[str, SparseCounts]
    promises: dict[str, int] = field(default_factory=dict)


class TallySignals(Stage[SignalParts, TalliedSignals]):
    """Stage: a shard in, the counts of its signals part out; hashes the file."""

    def run(self, shard: Shard, /) -> TalliedSignals:
        """Count one part.

        Raises:
            RunError: It was written under another plan.
        """
        parts = self.target
        found, part = open_part(parts.run, parts.part(shard.name), ["signals"], parts.fingerprint)
        values = {name: pc.struct_field(found["signals"], name).drop_null().to_numpy() for name in COUNTED}
        there = found["signals"].type.get_field_index("promise") >= 0  # parts of older schemas have none
        kept = pc.value_counts(pc.struct_field(found["signals"], "promise").drop_null()).to_pylist() if there else []
        promises = {row["values"]: row["counts"] for row in kept}
        return TalliedSignals(part, {name: count(counted_as(name, some)) for name, some in values.items()}, promises)
