"""Seal a labelled round."""

import dataclasses
from typing import Any

import pyarrow.compute as pc

from manifests.errors import RunError, SplitRefused
from manifests.labels import Label
from manifests.layout import EMBEDDINGS, LABELS, SCORES, SEAL, fingerprint, part_name, read_seal, round_folder
from manifests.parts import Part, sweep_drafts, write_json
from manifests.schema import SCHEMA_VERSION
from pipeline.steps import audit
from pipeline.steps.count import Totals
from pipeline.steps.label import Decided, earlier
from pipeline.steps.plan import Round
from pipeline.steps.signals.add import Signals
from stages.histogram import Histogram
from stages.label.decision import Decision
from stages.label.label_rows import Labelled
from stages.signals.signal_parts import HONEST
from stages.vectors import read_columns

_NULL_BINS = 256
_MOST_LOST = 0.5  # as for crowds: what is most of the rows is no crowd


def seal(round_: Round, totals: Totals, signals: Signals | None, decided: Decided, written: dict[str, Labelled]) -> None:
    """Check that the counts add up, and write the seal last.

    Raises:
        RunError: They do not.
    """
    labels = {str(label): sum(w.labels[label] for w in written.values()) for label in Label}
    overruled = _total([labelled.overruled for labelled in written.values()])
    safe = decided.decision.num_safe - sum(labelled.limited for labelled in written.values())
    quarantined = sum(totals.quarantined.values())
    expected = (totals.num_rows, safe + _moved(overruled, Label.SAFE), quarantined + _moved(overruled, Label.QUARANTINED))
    if (sum(labels.values()), labels[Label.SAFE], labels[Label.QUARANTINED]) != expected:
        raise RunError(f"counts do not add up: labelled {labels}, expected {expected} rows, safe, quarantined; not sealed")
    previous, since = earlier(round_)
    _check_look(round_, previous, written)
    changes = {"from_round": previous, "labels": _total([w.changes for w in written.values()])}
    document = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint(round_.plan),
        "scores_fingerprint": round_.scores_fingerprint,
        "plan": round_.plan,
        "counts": {
            "rows": totals.num_rows,
            "scored": decided.decision.num_scored,
            "labels": labels,
            "reasons": _total([labelled.reasons for labelled in written.values()]),
        },
        "promises": _promises(round_, signals),
        "not_downloaded": dict(sorted(totals.not_downloaded.items())),
        "changes": None if previous is None else changes,
        "before": round_.before,
        "trained_on": round_.trained_on,
        "voices": _total([labelled.voices for labelled in written.values()]),
        "sitting_out": sum(labelled.sitting_out for labelled in written.values()),
        "rise_since": since,
        "safe_share": labels[Label.SAFE] / max(1, decided.decision.num_scored),
        "overruled": overruled,
        "audit": _audit(round_),
        **_decided(decided, totals),
        "parts": [_part_entry(round_, shard.name, totals, signals, written[shard.name]) for shard in round_.shards],
    }
    sweep_drafts(round_.run, round_folder(round_.number))
    write_json(round_.run, f"{round_folder(round_.number)}/{SEAL}", document)


def _decided(decided: Decided, totals: Totals) -> dict[str, Any]:
    """Return what the seal says of the cut, and of what speaks for and against it."""
    decision = decided.decision
    mixture, strata = decision.mixture, decision.strata
    return {
        "separation": decision.separation,
        "rule": decision.rule,
        "cut": decision.cut,
        "min_posterior": decision.min_posterior,
        "share_above_cut": decision.share_above_cut,
        "people": _people(decision),
        "limits": [dataclasses.asdict(limit) for limit in decision.limits],
        "doubts": list(decision.doubts),
        "canaries": decided.leaks,
        "null": _null(totals.nulls, decision),
        "strata": None if strata is None else {"by": strata.kind, "of": list(strata.facts)},
        "mixture": None if mixture is None else {**dataclasses.asdict(mixture), "ashman_d": mixture.ashman_d},
    }


def _audit(round_: Round) -> dict[str, Any] | None:
    """Return what people found in a random sample of an earlier round, as far as this round honours their verdicts."""
    reviews = round_.plan.get("reviews")
    if reviews is None:
        return None
    sample = audit.sample_at(round_.run, round_.number, reviews["until"])
    return None if sample is None else audit.estimate(round_.run, sample, reviews["until"])


def _promises(round_: Round, signals: Signals | None) -> dict[str, Any] | None:
    """Return how many scored rows kept what an index promised, and by how many honest distances the others were judged."""
    if signals is None or signals.parts.asked.index is None:
        return None
    honest = read_columns(round_.run, signals.parts.name(HONEST), ["kind"])["kind"]
    judged = {row["values"]: row["counts"] for row in pc.value_counts(honest).to_pylist()}
    return {"rows": dict(sorted(signals.promises.items())), "judged_by": judged}


def _people(decision: Decision) -> dict[str, Any] | None:
    """Return what the verdicts state of the safe rows, before limits, where they made the cut."""
    if decision.people is None or decision.cut is None:
        return None
    share, low, high = decision.people.at(decision.cut)
    return {"judged": decision.people.calibration.num_nulls, "wrong_in_safe": share, "low": low, "high": high}


def _check_look(round_: Round, previous: int | None, written: dict[str, Labelled]) -> None:
    """Refuse a look that would make most of the safe rows risky: its vectors are not yet, or no more, worth asking.

    Raises:
        SplitRefused: With the counts.
    """
    if round_.before is None or previous is None:
        return
    lost = sum(labelled.changes.get(f"{Label.SAFE}>{Label.RISKY}", 0) for labelled in written.values())
    before = read_seal(round_.run, previous)["counts"]["labels"][Label.SAFE]
    if lost > _MOST_LOST * before:
        raise SplitRefused(
            f"this look would make {lost:,} of {before:,} safe rows risky, believed is at most {_MOST_LOST:.0%}: vectors of a "
            "model that has hardly trained lie so close that copies and crowds are everywhere. The round stays unsealed, and "
            "the last sealed one in force"
        )


def _null(nulls: Histogram, decision: Decision) -> dict[str, Any] | None:
    """Return what is known of mismatched pairs, and by them of the score, whatever the rule; see `fit.reliability`."""
    if not nulls.num_rows:
        return None
    values, counts = nulls.coarse(_NULL_BINS)
    found = {"num": nulls.num_rows, "cosines": values.round(6).tolist(), "counts": counts.astype(int).tolist()}
    known = decision.reliability
    if known is not None:
        found |= {"separation": known.separation, "separates": known.separates, "mismatched_share": known.mismatched_share}
        found |= {"stated_mismatched_in_safe": known.of_safe, "stated_low": known.low, "stated_high": known.high}
    return found


def _moved(overruled: dict[str, int], label: Label) -> int:
    """Return how many rows verdicts have added to a label, less those they took from it."""
    into = sum(num for word, num in overruled.items() if word.endswith(f">{label}"))
    return into - sum(num for word, num in overruled.items() if word.startswith(f"{label}>"))


def _total(counts: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for word, num in count.items():
            total[word] = total.get(word, 0) + num
    return dict(sorted(total.items()))


def _part_entry(round_: Round, shard: str, totals: Totals, signals: Signals | None, labelled: Labelled) -> dict[str, Any]:
    def entry(name: str, part: Part) -> dict[str, Any]:
        return {"name": name, "size_bytes": part.size_bytes, "sha256": part.sha256}

    found = {
        "shard": shard,
        "rows": labelled.part.num_rows,
        "labels": labelled.labels,
        "sitting_out": labelled.sitting_out,
        "scores": entry(part_name(round_.scores_round, SCORES, shard), totals.scores[shard]),
        "manifest": entry(part_name(round_.number, LABELS, shard), labelled.part),
    }
    if shard in totals.embeddings:
        found["embeddings"] = entry(part_name(round_.scores_round, EMBEDDINGS, shard), totals.embeddings[shard])
    if shard in totals.unread:
        found["unread_bytes"] = totals.unread[shard]
    if signals is not None:
        found["signals"] = entry(signals.parts.part(shard), signals.written[shard])
    return found
