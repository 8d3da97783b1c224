"""What is done in a run, what is missing, what failed and why."""

from typing import Any

from manifests.layout import FAILURES, LABELS, SCORES, is_sealed, read_plan, read_seal, round_folder, round_numbers
from manifests.store import Store
from pipeline.plans import read_run

Report = dict[str, Any]


def of_run(run: Store) -> Report:
    """Return the state of every round as plain values.

    Raises:
        RunError: The folder holds no run.
    """
    shards = read_run(run).shards
    rounds = [_of_round(run, number, len(shards)) for number in round_numbers(run)]
    return {"run": run.uri, "num_shards": len(shards), "rounds": rounds}


def _of_round(run: Store, number: int, num_shards: int) -> Report:
    plan, folder = read_plan(run, number), round_folder(number)
    scored = _num_parts(run, f"{round_folder(plan['scores_round'])}/{SCORES}")
    report: Report = {
        "round": number,
        "kind": plan["kind"],
        "scores_round": plan["scores_round"],
        "architecture": plan["scores"]["model"]["architecture"],
        "state_sha256": plan["scores"]["model"]["state_sha256"],
        "shards_scored": scored,
        "shards_labelled": _num_parts(run, f"{folder}/{LABELS}"),
        "failed": run.read_json(f"{folder}/{FAILURES}")["failed"] if run.exists(f"{folder}/{FAILURES}") else [],
    }
    if is_sealed(run, number):
        seal = read_seal(run, number)
        keys = ("counts", "rule", "cut", "safe_share", "mixture", "doubts")
        return {**report, "state": "sealed", **{key: seal[key] for key in keys}}
    if report["failed"]:
        state = "failed"
    elif scored < num_shards:
        state = "scoring"
    else:
        state = "scored" if plan["kind"] == "embed" else "unsealed"
    return {**report, "state": state}


def _num_parts(run: Store, folder: str) -> int:
    return sum(name.endswith(".parquet") for name in run.names(folder))


def as_text(report: Report) -> str:
    """Return the state of a run, a line per round and a few for what failed."""
    total = report["num_shards"]
    lines = [f"{report['run']}: {total} shards, {len(report['rounds'])} rounds"]
    for entry in report["rounds"]:
        lines.append(f"  round {entry['round']}  {entry['state']:<9}{_facts(entry, total)}")
        for failure in entry["failed"]:
            lines.append(f"    {failure['shard']}: {failure['error'].splitlines()[0][:300]}")
    if any(entry["state"] in ("scoring", "failed") for entry in report["rounds"]):
        lines.append("the command that began it goes on from here; finished shards are kept")
    if any(entry["state"] == "unsealed" for entry in report["rounds"]):
        lines.append(f"all shards are scored: `pairsan split {report['run']}` with other split settings seals a new round")
    return "\n".join(lines)


def _facts(entry: Report, total: int) -> str:
    if entry["state"] != "sealed":
        return f"{entry['shards_scored']}/{total} shards scored, {entry['shards_labelled']} labelled"
    labels = entry["counts"]["labels"]
    where = f"cosine >= {entry['cut']:.4f}" if entry["cut"] is not None else "posterior"
    return (
        f"{labels['safe']:,} safe / {labels['risky']:,} risky / {labels['quarantined']:,} quarantined, "
        f"{entry['rule']} {where}, scores of round {entry['scores_round']}, weights {entry['state_sha256'][:12]}"
    )
