"""Rows of a scores part as rows of the manifest: the cut, then the limits of signals, then what humans said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.labels import Label, Reason
from manifests.schema import MANIFEST
from manifests.signals import SIGNALS
from stages.label.copies.twins import are_twins
from stages.label.decision import Decision
from stages.label.fit.strata import COLUMN, Codes, strata_of
from stages.label.history import OPEN, SAT_OUT, Before, Places, sits_out, spoken
from stages.label.limits import Limit
from stages.label.verdicts import NOTHING, Verdicts

LOOKED_AT: Final = frozenset({*MANIFEST.names, *COLUMN.values(), "image_hash"})  # columns of a scores part that have a use here
_SAFE: Final = -1
_LABELS: Final = tuple(str(label) for label in Label)


@dataclass
class Labelling:
    """What happened while rows were labelled; counts.

    Attributes:
        limited: Rows above the cut that a signal's limit made risky.
        overruled: Rows whose label a verdict has changed, by `old>new`.
        voices: Rows that became what they are in this round, by who made them so.
        sitting_out: Safe rows that sit out.
    """

    limited: int = 0
    overruled: dict[str, int] = field(default_factory=dict)
    voices: dict[str, int] = field(default_factory=dict)
    sitting_out: int = 0

    def overrule(self, old: npt.NDArray[np.int32], new: npt.NDArray[np.int32]) -> None:
        """Count the rows whose label has changed."""
        moved = np.flatnonzero(old != new)
        pairs, counts = np.unique(old[moved] * len(_LABELS) + new[moved], return_counts=True)
        for pair, num in zip(pairs.tolist(), counts.tolist(), strict=True):
            word = f"{_LABELS[pair // len(_LABELS)]}>{_LABELS[pair % len(_LABELS)]}"
            self.overruled[word] = self.overruled.get(word, 0) + num

    def count(self, number: int, since: npt.NDArray[np.int32], voices: pa.Array, out: npt.NDArray[np.bool_]) -> None:
        """Count who spoke of what is new in a round, and who sits out."""
        self.sitting_out += int(out.sum())
        for row in pc.value_counts(voices.filter(pa.array(since == number)).drop_null()).to_pylist():
            self.voices[row["values"]] = self.voices.get(row["values"], 0) + row["counts"]


@dataclass(frozen=True)
class Beside:
    """What rows are labelled with beside their scores and the decision.

    Attributes:
        number: Of the round.
        verdicts: What humans said; it wins, but for rows without a cosine, which nothing makes safe or risky.
        twins: Uids that several rows have; None where there are none.
        earlier: Ranks of the same rows in an earlier round by other weights; None where there is none.
        before: The same rows in the sealed round before; None where there is none.
        num_folds: Rounds in which every safe row sits out once; 0 where none does.
        kept: Of copies, those of which one is kept, by the place of the limit, bool (n,) each.
    """

    number: int = 1
    verdicts: Verdicts | None = None
    twins: pa.Array | None = None
    earlier: pa.ChunkedArray | None = None
    before: Before | None = None
    num_folds: int = 0
    kept: Mapping[int, npt.NDArray[np.bool_]] = field(default_factory=dict)


def label_table(
    scores: pa.Table, shard: str, decision: Decision, beside: Beside | None = None, labelling: Labelling | None = None
) -> pa.Table:
    """Return rows of the scores part as rows of the manifest.

    Args:
        scores: Rows, with their signals where limits ask for them.
        shard: Name of their shard.
        decision: How rows are labelled; one that looks again needs `beside.before`.
        beside: What else is known of them.
        labelling: Is told how many rows were limited and overruled.
    """
    labelling, beside = labelling if labelling is not None else Labelling(), beside or Beside()
    judged = judge(scores, shard, decision, beside)
    labelling.limited += int((judged.above & (judged.why != _SAFE)).sum())
    labelling.overrule(judged.codes, judged.final)
    reasons = _reasons(scores["reason"], judged, decision, beside.before)
    voices, since = _history(judged, reasons, beside)
    out = (judged.final == 0) & sits_out(_hashes(scores), beside.number, beside.num_folds)
    labelling.count(beside.number, since, voices, out)
    columns = {
        "shard": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(scores), np.int32)), pa.array([shard])),
        "label": pa.DictionaryArray.from_arrays(pa.array(judged.final), pa.array([str(label) for label in Label])),
        # the words in the order of the rows, each once: a dictionary that lists one twice is not written the same way each time
        "reason": reasons.dictionary_encode(),
        **_figures(scores, judged, decision, beside.earlier),
        "voice": voices.dictionary_encode(),
        "since": pa.array(since),
        "sits_out": pa.array(out),
    }
    there = {name: scores[name] for name in scores.column_names} | columns
    # parts of older schemas have fewer columns
    return pa.table({field.name: there.get(field.name, pa.nulls(len(scores), field.type)) for field in MANIFEST})


@dataclass(frozen=True)
class Judged:
    """What was found of each row.

    Attributes:
        scored: Which have a cosine, bool (n,).
        cosines: Of those, float32 (num_scored,).
        strata: Stratum of each row, int8 (n,); None where the decision has none.
        places: The same in a round that looks again, else None.
        above: Which are at or above the cut, bool (n,).
        why: What speaks against each, int32 (n,); see `_why`.
        codes: Labels before any verdict, int32 (n,).
        reviewed: On which a verdict counts, bool (n,).
        final: Labels, int32 (n,).
    """

    scored: npt.NDArray[np.bool_]
    cosines: npt.NDArray[np.float32]
    strata: Codes | None
    places: Places | None
    above: npt.NDArray[np.bool_]
    why: npt.NDArray[np.int32]
    codes: npt.NDArray[np.int32]
    reviewed: npt.NDArray[np.bool_]
    final: npt.NDArray[np.int32]

    @property
    def mine(self) -> Codes | None:
        """Strata of the scored rows, int8 (num_scored,)."""
        return None if self.strata is None else self.strata[self.scored]


def judge(scores: pa.Table, shard: str, decision: Decision, beside: Beside) -> Judged:
    """Apply the cut, the limits and what humans said."""
    cosine = scores["cosine"].combine_chunks()
    scored, cosines = cosine.is_valid().to_numpy(zero_copy_only=False), cosine.drop_null().to_numpy()
    strata = _strata(scores, decision, beside.before)
    places = strata if decision.strata is not None and decision.strata.kind == "before" else None
    twin = np.zeros(len(scored), bool) if beside.twins is None else are_twins(scores["uid"], beside.twins).to_numpy()
    above = np.zeros(len(scored), bool)
    above[scored] = decision.is_safe(cosines, None if strata is None else strata[scored])
    why = _why(scores, decision, scored, above, twin, places, beside.kept)
    codes = np.where(scored, np.where(why == _SAFE, 0, 1), 2).astype(np.int32)
    said = beside.verdicts.on(scores, shard, twin) if beside.verdicts is not None else np.full(len(scored), NOTHING, np.int32)
    # a human may drop any row, but can call no row safe or risky that nothing could score
    reviewed = (said != NOTHING) & (scored | (said == 2))
    final = np.where(reviewed, said, codes).astype(np.int32)
    return Judged(scored, cosines, strata, places, above, why, codes, reviewed, final)


def _history(judged: Judged, reasons: pa.Array, beside: Beside) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """Return who made each row what it is, strings (n,), and since which round, int32 (n,)."""
    said = spoken(judged.why, judged.reviewed, judged.places)
    voices = pc.if_else(pa.array(judged.final != 2), said, pa.scalar(None, pa.string()))
    if beside.before is not None:
        return beside.before.history(beside.number, judged.final, reasons, voices)
    return voices, np.full(len(judged.final), beside.number, np.int32)


def _hashes(scores: pa.Table) -> pa.ChunkedArray:
    """Return the hash of each image, int64 (n,); scores of the first schema have none, so nobody of theirs sits out."""
    known = "image_hash" in scores.column_names
    return scores["image_hash"] if known else pa.chunked_array([pa.nulls(len(scores), pa.int64())])


def _figures(
    scores: pa.Table, judged: Judged, decision: Decision, earlier: pa.ChunkedArray | None
) -> dict[str, pa.Array | pa.ChunkedArray | pa.StructArray]:
    """Return the columns of numbers: p_safe, rank, and the signals with those that follow from the decision."""
    scored, cosines, mine = judged.scored, judged.cosines, judged.mine
    p_safe, rank = np.zeros(len(scored), np.float32), np.zeros(len(scored), np.float32)
    p_safe[scored], rank[scored] = decision.p_safe(cosines, mine), decision.rank(cosines)
    found = {"p_mismatch": _masked(decision.p_mismatch(cosines, mine), scored)}
    if earlier is not None:
        found["cosine_rise"] = pc.subtract(earlier, pa.array(rank, mask=~scored))
    signals = _whole(scores["signals"], scored, {name: values for name, values in found.items() if values is not None})
    return {"signals": signals, "p_safe": pa.array(p_safe), "rank": pa.array(rank, mask=~scored)}


def _strata(scores: pa.Table, decision: Decision, before: Before | None) -> Codes | None:
    """Return the stratum of every row, int8 (n,); None where the decision has none."""
    if decision.strata is None:
        return None
    if decision.strata.kind == "before":
        if before is None:
            raise ValueError("a round that looks again needs the rows of the one before")
        return before.places
    return strata_of(decision.strata.kind, scores[COLUMN[decision.strata.kind]])


def _why(
    scores: pa.Table,
    decision: Decision,
    scored: npt.NDArray[np.bool_],
    above: npt.NDArray[np.bool_],
    twin: npt.NDArray[np.bool_],
    places: Places | None,
    kept: Mapping[int, npt.NDArray[np.bool_]],
) -> npt.NDArray[np.int32]:
    """Return what speaks against each row: -1 nothing, 0 the cut, else the place of the first limit that it breaks.

    In a round that looks again limits veto rows below the cut too, since a later look would take those back.
    """
    why = np.where(scored & ~above, 0, _SAFE).astype(np.int32)
    limited = scored & (above if places is None else above | (places == OPEN))
    signals = looked_at(scores, decision.limits)
    for place, limit in enumerate(decision.limits, start=1):
        asked = scored if limit.reason == Reason.REPLACED else limited  # what was replaced is called so below the cut, too
        broken = asked & (why <= 0) & ~limit.allows(signals)
        why[broken & ~kept[place] if place in kept else broken] = place
    why[limited & (why <= 0) & twin] = len(decision.limits) + 1
    return why


def looked_at(scores: pa.Table, limits: Sequence[Limit]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the signals that some limits look at, by name, float64 (n,) each."""
    names = {name for limit in limits for name in limit.reads()}
    return {name: pc.struct_field(scores["signals"], name).cast(pa.float64()).to_numpy() for name in names}


def _reasons(column: pa.ChunkedArray, judged: Judged, decision: Decision, before: Before | None) -> pa.Array:
    """Return why each row is not safe: what the scores part says of rows without a cosine, else what `why` stands for.

    In a round that looks again, what was risky before and stays below the cut keeps the reason it had.
    """
    limits = [limit.reason for limit in decision.limits]
    words = [Reason.BELOW_CUT, *limits, Reason.DUPLICATE_UID, Reason.REVIEW, Reason.PUT_OUT]
    why = np.where(judged.reviewed & judged.scored, words.index(Reason.REVIEW), judged.why)
    if judged.places is not None:
        why[(why == 0) & (judged.places == SAT_OUT)] = words.index(Reason.PUT_OUT)
    found = pa.array(words, pa.string()).take(pa.array(why, mask=why == _SAFE))
    if before is not None and judged.places is not None:
        kept = (why == 0) & (before.labels == 1)
        # what only a verdict said, and no verdict says any more, is below the cut
        known = pc.and_(pa.array(kept), pc.not_equal(before.reasons, str(Reason.REVIEW)).fill_null(False))
        found = pc.if_else(known, before.reasons, found)
    return pc.if_else(pa.array(judged.codes != 2), found, column.cast(pa.string())).combine_chunks()


def _masked(values: npt.NDArray[np.float32] | None, scored: npt.NDArray[np.bool_]) -> pa.Array | None:
    """Return values of the scored rows as a column of all rows."""
    if values is None:
        return None
    whole = np.zeros(len(scored), np.float32)
    whole[scored] = values
    return pa.array(whole, mask=~scored)


def _whole(
    signals: pa.ChunkedArray, scored: npt.NDArray[np.bool_], found: dict[str, pa.Array | pa.ChunkedArray]
) -> pa.ChunkedArray | pa.StructArray:
    """Return the signals with the fields of today's schema, some of them filled with what was found of the scored rows."""
    if not found and signals.type.equals(SIGNALS):
        return signals
    known = {field.name: pc.struct_field(signals, field.name) for field in signals.type} | found
    missing = ~scored if found else ~signals.is_valid().to_numpy()
    columns = [known.get(field.name, pa.nulls(len(signals), field.type)) for field in SIGNALS]
    arrays = [column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in columns]
    return pa.StructArray.from_arrays(arrays, fields=list(SIGNALS), mask=pa.array(missing))
