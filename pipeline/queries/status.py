"""What is done in a run, what is missing, what failed and why."""

import shlex
from typing import Any, Final

from manifests.layout import (
    FAILURES,
    HISTORY,
    LABELS,
    SCORES,
    TAUGHT,
    is_sealed,
    read_plan,
    read_seal,
    round_folder,
    round_numbers,
)
from manifests.store import Store
from pipeline.queries.summary import profile_of, taught_text, voices_of
from pipeline.steps.plan import read_run
from stages.pair import PIECES

Report = dict[str, Any]
_LOOKS: Final = ("before", "trained_on", "voices", "sitting_out", "separation")  # seals before schema 5 have none


def of_run(run: Store) -> Report:
    """Return the state of every round as plain values.

    Raises:
        RunError: The folder holds no run.
    """
    shards = read_run(run).shards
    history = run.read_json(HISTORY) if run.exists(HISTORY) else []
    rounds = [_of_round(run, number, len(shards), history) for number in round_numbers(run)]
    taught = run.read_json(TAUGHT) if run.exists(TAUGHT) else None
    return {"run": run.uri, "num_shards": len(shards), "warmup": _trained(history, None), "taught": taught, "rounds": rounds}


def _of_round(run: Store, number: int, num_shards: int, history: list[Report]) -> Report:
    plan, folder = read_plan(run, number), round_folder(number)
    scores = f"{round_folder(plan['scores_round'])}/{SCORES}"
    scored = _num_parts(run, scores)
    report: Report = {
        "round": number,
        "kind": plan["kind"],
        "profile": profile_of(plan),
        "scores_round": plan["scores_round"],
        "architecture": plan["scores"]["model"]["architecture"],
        "state_sha256": plan["scores"]["model"]["state_sha256"],
        "weights": plan.get("weights"),  # plans before schema 6 have no name
        "shards_scored": scored,
        "pieces_scored": _num_parts(run, f"{scores}{PIECES}"),  # of shards that are not
        "shards_labelled": _num_parts(run, f"{folder}/{LABELS}"),
        "failed": run.read_json(f"{folder}/{FAILURES}")["failed"] if run.exists(f"{folder}/{FAILURES}") else [],
    }
    if is_sealed(run, number):
        seal = read_seal(run, number)
        keys = ("counts", "changes", "rule", "cut", "safe_share", "mixture", "doubts", "canaries", *_LOOKS)
        facts = {key: seal.get(key) for key in keys}  # seals of 0.1.0 have no changes
        return {**report, "state": "sealed", **facts, "training": _trained(history, number)}
    if report["failed"]:
        state = "failed"
    elif scored < num_shards:
        state = "scoring"
    else:
        state = "scored" if plan["kind"] == "embed" else "unsealed"
    return {**report, "state": state}


def _trained(history: list[Report], manifest: int | None) -> Report | None:
    """Return what was trained on a sealed round, or before any: passes, steps, hours, and the losses of the last ones."""
    passes = [entry for entry in history if entry["manifest"] == manifest]
    if not passes:
        return None

    def newest(name: str) -> float | None:
        found = [entry[name] for entry in passes if entry[name] is not None and entry["subject"] == "model"]
        return found[-1] if found else None

    return {
        "passes": len(passes),
        "steps": sum(entry["steps"] for entry in passes),
        "hours": sum(entry["seconds"] for entry in passes) / 3600,
        "clip_loss": newest("clip_loss"),
        "unimodal_loss": newest("unimodal_loss"),
    }


def _num_parts(run: Store, folder: str) -> int:
    return sum(name.endswith(".parquet") for name in run.names(folder))


def as_text(report: Report) -> str:
    """Return the state of a run, a line per round and a few for what failed."""
    total = report["num_shards"]
    lines = [f"{report['run']}: {total} shards, {len(report['rounds'])} rounds"]
    if report["warmup"]:
        lines.append(f"  warm-up  {_training(report['warmup'])}")
    if report["taught"]:
        lines.append(f"  round {report['taught']['round']}: {taught_text(report['taught'])}")
    for entry in report["rounds"]:
        lines.append(f"  round {entry['round']}  {entry['state']:<9}{_facts(entry, total)}")
        if entry.get("training"):
            lines.append(f"           trained: {_training(entry['training'])}")
        for failure in entry["failed"]:
            lines.append(f"    {failure['shard']}: {failure['error'].splitlines()[0][:300]}")
    if any(entry["state"] in ("scoring", "failed") for entry in report["rounds"]):
        lines.append("the command that began it goes on from here; finished shards are kept")
    if any(entry["state"] == "unsealed" for entry in report["rounds"]):
        lines.append(
            f"all shards are scored: `pairsan split {shlex.quote(report['run'])}` with other split settings seals a new round"
        )
    return "\n".join(lines)


def _facts(entry: Report, total: int) -> str:
    if entry["state"] != "sealed":
        pieces = f" and {entry['pieces_scored']} pieces of others" if entry["pieces_scored"] else ""
        return f"{entry['shards_scored']}/{total} shards{pieces} scored, {entry['shards_labelled']} labelled"
    labels = entry["counts"]["labels"]
    where = f"cosine >= {entry['cut']:.4f}" if entry["cut"] is not None else "posterior"
    facts = [
        f"{labels['safe']:,} safe ({entry['safe_share']:.1%}) / {labels['risky']:,} risky / "
        f"{labels['quarantined']:,} quarantined",
        voices_of(entry) if entry["before"] is not None else f"{entry['rule']} {where}",
    ]
    if entry["canaries"]:
        shares = ", ".join(f"{kind} {leak['share']:.1%}" for kind, leak in entry["canaries"].items())
        facts.append(f"canaries called safe: {shares}")
    if entry["changes"]:
        num = sum(entry["changes"]["labels"].values())
        facts.append(f"{num:,} labels changed since round {entry['changes']['from_round']}")
    if entry["sitting_out"]:
        facts.append(f"{entry['sitting_out']:,} sit out")
    scored = "" if entry["scores_round"] == entry["round"] else f"scores of round {entry['scores_round']}, "
    named = entry["weights"] or f"{entry['architecture']}, state {entry['state_sha256'][:12]}"
    facts.append(f"{scored}weights {named}")
    return ", ".join([*facts, f"profile {entry['profile']}"])


def _training(trained: Report) -> str:
    losses = {"CLIP loss": trained["clip_loss"], "unimodal loss": trained["unimodal_loss"]}
    found = [f"{name} {value:.3f}" for name, value in losses.items() if value is not None]
    return ", ".join([f"{trained['passes']} passes, {trained['steps']:,} steps", *found, f"{trained['hours']:.2f} h"])
