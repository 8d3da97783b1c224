"""Write the labels of a round and seal it."""

import dataclasses
from typing import Any

import numpy as np

from manifests.errors import RunError
from manifests.layout import (
    EMBEDDINGS,
    LABELS,
    SCORES,
    SEAL,
    Seal,
    fingerprint,
    is_sealed,
    part_name,
    read_plan,
    round_folder,
    round_numbers,
)
from manifests.parts import Part, sweep_drafts, write_json
from manifests.schema import SCHEMA_VERSION, Label
from pipeline.steps.canary_leaks import leaks
from pipeline.steps.count import Totals
from pipeline.steps.plan import Round
from pipeline.workers.executors import Executor
from pipeline.workers.run_stage import run_stage
from stages.histogram import Histogram, grid_bins
from stages.label.decide import Decision
from stages.label.label_rows import Labelled, LabelRows
from stages.pair import Shard

_NULL_BINS = 256


def label_and_seal(executor: Executor, round_: Round, totals: Totals, decision: Decision) -> Seal:
    """Write every manifest part, check that the counts add up, and write the seal last.

    Raises:
        RunError: The counts do not add up.
    """
    written: dict[str, Labelled] = {}

    def collect(shard: Shard, labelled: Labelled) -> tuple[int, int]:
        written[shard.name] = labelled
        return labelled.part.num_rows, labelled.labels[Label.QUARANTINED]

    before = [n for n in round_numbers(round_.run) if n < round_.number and is_sealed(round_.run, n)]
    previous = max(before, default=None)
    stamp = fingerprint(round_.plan)
    since = max((n for n in before if _by_other_weights(round_, n)), default=None)
    reviews = round_.plan.get("reviews")
    until = None if reviews is None else reviews["until"]
    numbers = round_.scores_round, round_.number
    stage = LabelRows(round_.run, *numbers, stamp, decision, previous, totals.signal_parts, until, since)
    run_stage(executor, stage, round_.shards, what="label", folder=(round_.run, round_.number), collect=collect)
    seal = {**_seal(round_, totals, decision, written, previous), "rise_since": since}
    sweep_drafts(round_.run, round_folder(round_.number))
    write_json(round_.run, f"{round_folder(round_.number)}/{SEAL}", seal)
    return seal


def _by_other_weights(round_: Round, number: int) -> bool:
    """Return whether an earlier round has other scores of the same data."""
    plan = read_plan(round_.run, number)
    same = plan["scores"]["dataset"] == round_.plan["scores"]["dataset"]
    return bool(same and plan["scores_round"] != round_.scores_round)


def _seal(round_: Round, totals: Totals, decision: Decision, written: dict[str, Labelled], previous: int | None) -> Seal:
    labels = {str(label): sum(w.labels[label] for w in written.values()) for label in Label}
    reasons = _total([labelled.reasons for labelled in written.values()])
    overruled = _total([labelled.overruled for labelled in written.values()])
    limited = sum(labelled.limited for labelled in written.values())
    safe, quarantined = decision.num_safe - limited, sum(totals.quarantined.values())
    expected = (totals.num_rows, safe + _moved(overruled, Label.SAFE), quarantined + _moved(overruled, Label.QUARANTINED))
    if (sum(labels.values()), labels[Label.SAFE], labels[Label.QUARANTINED]) != expected:
        raise RunError(f"counts do not add up: labelled {labels}, expected {expected} rows, safe, quarantined; not sealed")
    mixture = decision.mixture
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint(round_.plan),
        "scores_fingerprint": round_.scores_fingerprint,
        "plan": round_.plan,
        "counts": {"rows": totals.num_rows, "scored": decision.num_scored, "labels": labels, "reasons": reasons},
        "changes": None
        if previous is None
        else {"from_round": previous, "labels": _total([w.changes for w in written.values()])},
        "rule": decision.rule,
        "cut": decision.cut,
        "min_posterior": decision.min_posterior,
        "safe_share": labels[Label.SAFE] / max(1, decision.num_scored),
        "share_above_cut": decision.share_above_cut,
        "overruled": overruled,
        "limits": [dataclasses.asdict(limit) for limit in decision.limits],
        "doubts": list(decision.doubts),
        "canaries": leaks(totals.canaries, decision),
        "null": _null(totals.nulls, decision),
        "strata": None if decision.strata is None else {"by": decision.strata.kind, "of": list(decision.strata.facts)},
        "mixture": None if mixture is None else {**dataclasses.asdict(mixture), "ashman_d": mixture.ashman_d},
        "parts": [_part_entry(round_, shard.name, totals, written[shard.name]) for shard in round_.shards],
    }


def _null(nulls: Histogram, decision: Decision) -> dict[str, Any] | None:
    """Return what is known of mismatched pairs: their number, a coarse histogram, and the calibration, where it was used."""
    if not nulls.num_rows:
        return None
    values, counts = nulls.coarse(_NULL_BINS)
    found = {"num": nulls.num_rows, "cosines": values.round(6).tolist(), "counts": counts.astype(int).tolist()}
    known = decision.calibration
    if known is not None and decision.cut is not None:
        tail = float(known.tail[int(grid_bins(np.asarray([decision.cut], np.float32))[0])])
        found |= {"mismatched_share": known.mismatched_share, "stated_mismatched_in_safe": tail}
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


def _part_entry(round_: Round, shard: str, totals: Totals, labelled: Labelled) -> dict[str, Any]:
    def entry(number: int, kind: str, part: Part) -> dict[str, Any]:
        return {"name": part_name(number, kind, shard), "size_bytes": part.size_bytes, "sha256": part.sha256}

    kept = totals.embeddings.get(shard)
    return {
        "shard": shard,
        "rows": labelled.part.num_rows,
        "labels": labelled.labels,
        "scores": entry(round_.scores_round, SCORES, totals.scores[shard]),
        "manifest": entry(round_.number, LABELS, labelled.part),
        **({"embeddings": entry(round_.scores_round, EMBEDDINGS, kept)} if kept else {}),
        **_signals_entry(shard, totals),
    }


def _signals_entry(shard: str, totals: Totals) -> dict[str, Any]:
    if totals.signal_parts is None:
        return {}
    part = totals.signals[shard]
    name = totals.signal_parts.part(shard)
    return {"signals": {"name": name, "size_bytes": part.size_bytes, "sha256": part.sha256}}
