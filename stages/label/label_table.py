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
from stages.label.strata import COLUMN, strata_of
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
    """

    limited: int = 0
    overruled: dict[str, int] = field(default_factory=dict)

    def overrule(self, old: npt.NDArray[np.int32], new: npt.NDArray[np.int32]) -> None:
        """Count the rows whose label has changed."""
        moved = np.flatnonzero(old != new)
        pairs, counts = np.unique(old[moved] * len(_LABELS) + new[moved], return_counts=True)
        for pair, num in zip(pairs.tolist(), counts.tolist(), strict=True):
            word = f"{_LABELS[pair // len(_LABELS)]}>{_LABELS[pair % len(_LABELS)]}"
            self.overruled[word] = self.overruled.get(word, 0) + num


def label_table(
    scores: pa.Table,
    shard: str,
    decision: Decision,
    verdicts: Verdicts | None = None,
    labelling: Labelling | None = None,
    earlier: pa.ChunkedArray | None = None,
    twins: pa.Array | None = None,
) -> pa.Table:
    """Return rows of the scores part as rows of the manifest.

    Args:
        scores: Rows, with their signals where limits ask for them.
        shard: Name of their shard.
        decision: How rows are labelled.
        verdicts: What humans said; it wins, but for rows without a cosine, which nothing makes safe or risky.
        labelling: Is told how many rows were limited and overruled.
        earlier: Ranks of the same rows in an earlier round by other weights; None where there is none.
        twins: Uids that several rows have; None where there are none.
    """
    labelling = labelling if labelling is not None else Labelling()
    cosine = scores["cosine"].combine_chunks()
    scored = cosine.is_valid().to_numpy(zero_copy_only=False)
    finite = cosine.drop_null().to_numpy()
    kind = decision.strata.kind if decision.strata else None
    codes_of = strata_of(kind, scores[COLUMN[kind]])[scored] if kind else None
    # why[row]: -1 while nothing speaks against it, 0 for the cut, else the place of the first limit that it breaks
    why = np.full(len(scored), _SAFE, np.int32)
    why[np.flatnonzero(scored)[~decision.is_safe(finite, codes_of)]] = 0
    for place, limit in enumerate(decision.limits, start=1):
        values = pc.struct_field(scores["signals"], limit.signal).cast(pa.float64()).to_numpy()
        why[scored & (why == _SAFE) & ~limit.allows(values)] = place
    twin = np.zeros(len(scored), bool) if twins is None else are_twins(scores["uid"], twins).to_numpy()
    why[scored & (why == _SAFE) & twin] = len(decision.limits) + 1
    labelling.limited += int((why > 0).sum())
    codes = np.where(scored, np.where(why == _SAFE, 0, 1), 2).astype(np.int32)
    said = verdicts.on(scores, shard, twin) if verdicts is not None else np.full(len(scored), _NOTHING, np.int32)
    # a human may drop any row, but can call no row safe or risky that nothing could score
    reviewed = (said != _NOTHING) & (scored | (said == 2))
    final = np.where(reviewed, said, codes).astype(np.int32)
    labelling.overrule(codes, final)
    p_safe, rank = np.zeros(len(scored), np.float32), np.zeros(len(scored), np.float32)
    p_safe[scored], rank[scored] = decision.p_safe(finite, codes_of), decision.rank(finite)
    found = {"p_mismatch": _masked(decision.p_mismatch(finite, codes_of), scored)}
    if earlier is not None:
        found["cosine_rise"] = pc.subtract(earlier, pa.array(rank, mask=~scored))
    signals = _whole(scores["signals"], scored, {name: values for name, values in found.items() if values is not None})
    words = [Reason.BELOW_CUT, *(limit.reason for limit in decision.limits), Reason.DUPLICATE_UID, Reason.REVIEW]
    columns = {
        "shard": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(scored), np.int32)), pa.array([shard])),
        "label": pa.DictionaryArray.from_arrays(pa.array(final), pa.array([str(label) for label in Label])),
        "reason": _reasons(scores["reason"], codes, np.where(reviewed & scored, len(words) - 1, why), words),
        "signals": signals,
        "p_safe": pa.array(p_safe),
        "rank": pa.array(rank, mask=~scored),
    }
    return pa.table({name: columns.get(name, scores[name] if name in scores.column_names else None) for name in MANIFEST.names})


def _reasons(
    reasons: pa.ChunkedArray, codes: npt.NDArray[np.int32], why: npt.NDArray[np.int32], words: list[Reason]
) -> pa.DictionaryArray:
    """Return the reasons of the scores part; of scored rows the word that `why` names, if any."""
    found = pa.array(words, pa.string()).take(pa.array(why, mask=why == _SAFE))
    # the words in the order of the rows, each once: a dictionary that lists one twice is not written the same way each time
    return pc.if_else(pa.array(codes != 2), found, reasons.cast(pa.string())).combine_chunks().dictionary_encode()


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
