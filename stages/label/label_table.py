"""Rows of a scores part as rows of the manifest: the cut, then the limits of signals, then what humans said."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.reviews import VERDICTS
from manifests.schema import MANIFEST, SIGNALS, Label, Reason
from stages.label.decide import Decision
from stages.label.history import OPEN, SAT_OUT, Before, Places, sits_out, spoken
from stages.label.strata import COLUMN, Codes, strata_of
from stages.label.twins import are_twins

_SAFE, _NOTHING = -1, -1
_LABELS: Final = tuple(str(label) for label in Label)


@dataclass(frozen=True)
class Verdicts:
    """The newest human verdict of every pair that has one.

    Attributes:
        uids: Of the pairs.
        codes: Places in `VERDICTS`, int32; they are those of the labels that they lead to.
        shards: Where each pair lies.
        rows: Its place in the shard, int32.
    """

    uids: pa.Array
    codes: npt.NDArray[np.int32]
    shards: npt.NDArray[np.object_]
    rows: npt.NDArray[np.int32]

    @classmethod
    def of(cls, newest: pa.Table) -> "Verdicts":
        """Take over a table with uid, verdict, shard and index."""
        codes = pc.index_in(newest["verdict"].combine_chunks(), pa.array(VERDICTS)).to_numpy().astype(np.int32)
        shards, rows = (newest[name].to_numpy() for name in ("shard", "index"))
        return cls(newest["uid"].combine_chunks(), codes, shards, rows)

    def on(self, scores: pa.Table, shard: str, twin: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        """Return the verdict on each pair, -1 where there is none: int32 (n,).

        Args:
            scores: uid and index of the pairs.
            shard: Their shard.
            twin: Which share their uid with others: of these only the one that was looked at is meant, bool (n,).
        """
        if not len(self.codes):
            return np.full(len(scores), _NOTHING, np.int32)
        place = pc.index_in(scores["uid"], self.uids).fill_null(-1).to_numpy()
        meant = ~twin | ((self.shards[place] == shard) & (self.rows[place] == scores["index"].to_numpy()))
        found: npt.NDArray[np.int32] = np.where((place >= 0) & meant, self.codes[place], _NOTHING).astype(np.int32)
        return found


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
    """

    number: int = 1
    verdicts: Verdicts | None = None
    twins: pa.Array | None = None
    earlier: pa.ChunkedArray | None = None
    before: Before | None = None
    num_folds: int = 0


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
    cosine = scores["cosine"].combine_chunks()
    scored, finite = cosine.is_valid().to_numpy(zero_copy_only=False), cosine.drop_null().to_numpy()
    strata = _strata(scores, decision, beside.before)
    mine = None if strata is None else strata[scored]
    places = strata if decision.strata is not None and decision.strata.kind == "before" else None
    twin = np.zeros(len(scored), bool) if beside.twins is None else are_twins(scores["uid"], beside.twins).to_numpy()
    above = np.zeros(len(scored), bool)
    above[scored] = decision.is_safe(finite, mine)
    why = _why(scores, decision, scored, above, twin, places)
    labelling.limited += int((above & (why != _SAFE)).sum())
    codes = np.where(scored, np.where(why == _SAFE, 0, 1), 2).astype(np.int32)
    said = beside.verdicts.on(scores, shard, twin) if beside.verdicts is not None else np.full(len(scored), _NOTHING, np.int32)
    # a human may drop any row, but can call no row safe or risky that nothing could score
    reviewed = (said != _NOTHING) & (scored | (said == 2))
    final = np.where(reviewed, said, codes).astype(np.int32)
    labelling.overrule(codes, final)
    words = [
        Reason.BELOW_CUT,
        *(limit.reason for limit in decision.limits),
        Reason.DUPLICATE_UID,
        Reason.REVIEW,
        Reason.PUT_OUT,
    ]
    named = np.where(reviewed & scored, words.index(Reason.REVIEW), why)
    if places is not None:
        named[(named == 0) & (places == SAT_OUT)] = len(words) - 1
    reasons = _reasons(scores["reason"], codes, named, words, beside.before if places is not None else None)
    p_safe, rank = np.zeros(len(scored), np.float32), np.zeros(len(scored), np.float32)
    p_safe[scored], rank[scored] = decision.p_safe(finite, mine), decision.rank(finite)
    found = {"p_mismatch": _masked(decision.p_mismatch(finite, mine), scored)}
    if beside.earlier is not None:
        found["cosine_rise"] = pc.subtract(beside.earlier, pa.array(rank, mask=~scored))
    voices = pc.if_else(pa.array(final != 2), spoken(why, reviewed, places), pa.scalar(None, pa.string()))
    since = np.full(len(scored), beside.number, np.int32)
    if beside.before is not None:
        voices, since = beside.before.history(beside.number, final, reasons, voices)
    known = "image_hash" in scores.column_names  # scores of the first schema have no hashes, so nobody sits out
    hashes = scores["image_hash"] if known else pa.chunked_array([pa.nulls(len(scored), pa.int64())])
    out = (final == 0) & sits_out(hashes, beside.number, beside.num_folds)
    labelling.count(beside.number, since, voices, out)
    columns = {
        "shard": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(scored), np.int32)), pa.array([shard])),
        "label": pa.DictionaryArray.from_arrays(pa.array(final), pa.array([str(label) for label in Label])),
        # the words in the order of the rows, each once: a dictionary that lists one twice is not written the same way each time
        "reason": reasons.dictionary_encode(),
        "signals": _whole(scores["signals"], scored, {name: values for name, values in found.items() if values is not None}),
        "p_safe": pa.array(p_safe),
        "rank": pa.array(rank, mask=~scored),
        "voice": voices.dictionary_encode(),
        "since": pa.array(since),
        "sits_out": pa.array(out),
    }
    return pa.table({name: columns.get(name, scores[name] if name in scores.column_names else None) for name in MANIFEST.names})


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
) -> npt.NDArray[np.int32]:
    """Return what speaks against each row: -1 nothing, 0 the cut, else the place of the first limit that it breaks.

    In a round that looks again limits veto rows below the cut too, since a later look would take those back.
    """
    why = np.where(scored & ~above, 0, _SAFE).astype(np.int32)
    limited = scored & (above if places is None else above | (places == OPEN))
    for place, limit in enumerate(decision.limits, start=1):
        values = pc.struct_field(scores["signals"], limit.signal).cast(pa.float64()).to_numpy()
        why[limited & (why <= 0) & ~limit.allows(values)] = place
    why[limited & (why <= 0) & twin] = len(decision.limits) + 1
    return why


def _reasons(
    reasons: pa.ChunkedArray,
    codes: npt.NDArray[np.int32],
    why: npt.NDArray[np.int32],
    words: list[Reason],
    before: Before | None,
) -> pa.Array:
    """Return the reasons of the scores part; of scored rows the word that `why` names, if any, or the one they had before."""
    found = pa.array(words, pa.string()).take(pa.array(why, mask=why == _SAFE))
    if before is not None:
        kept = (why == 0) & (before.labels == 1)
        # what only a verdict said, and no verdict says any more, is below the cut
        known = pc.and_(pa.array(kept), pc.not_equal(before.reasons, str(Reason.REVIEW)).fill_null(False))
        found = pc.if_else(known, before.reasons, found)
    return pc.if_else(pa.array(codes != 2), found, reasons.cast(pa.string())).combine_chunks()


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
