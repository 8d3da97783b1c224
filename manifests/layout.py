"""Names of everything inside a run folder, and the two documents of a round: its plan and its seal."""

import hashlib
import json
from typing import Any

from manifests.errors import NotSealed, PlanMismatch, RunError
from manifests.store import Store

Plan = dict[str, Any]
Seal = dict[str, Any]

RUN, PLAN, SEAL = "run.json", "plan.json", "manifest.json"
FAILURES = "failures.json"
SCORES, EMBEDDINGS, LABELS, SIGNAL_PARTS = "scores", "embeddings", "manifest", "signals"
CANARY_PARTS = "canaries"
REENCODED = "reencoded"
REFERENCE_VECTORS = "reference"
CHECKPOINTS = "checkpoints"
HISTORY = "checkpoints/history.json"
TAUGHT = "checkpoints/taught.json"


def round_folder(number: int) -> str:
    """Return the folder of a round, e.g. `rounds/0003`."""
    return f"rounds/{number:04d}"


def part_name(number: int, kind: str, shard: str) -> str:
    """Return the name of one shard's part inside the run, e.g. `rounds/0003/scores/00000.tar.parquet`."""
    return f"{round_folder(number)}/{kind}/{shard}.parquet"


def fingerprint(document: Any) -> str:
    """Return a hex digest of a JSON document that does not depend on the order of its keys."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def round_numbers(run: Store) -> list[int]:
    """Return the numbers of all rounds that have a plan, ascending."""
    numbers = sorted(int(name) for name in run.folders("rounds") if name.isdigit())
    return [number for number in numbers if run.exists(f"{round_folder(number)}/{PLAN}")]


def is_sealed(run: Store, number: int) -> bool:
    """Return whether a round carries its seal."""
    return run.exists(f"{round_folder(number)}/{SEAL}")


def sealed_rounds(run: Store, before: int | None = None) -> list[int]:
    """Return the numbers of all sealed rounds, ascending; with `before`, of those that are lower."""
    return [number for number in round_numbers(run) if is_sealed(run, number) and (before is None or number < before)]


def read_plan(run: Store, number: int) -> Plan:
    """Return the plan of a round.

    Raises:
        RunError: There is no such round.
    """
    name = f"{round_folder(number)}/{PLAN}"
    if not run.exists(name):
        raise RunError(f"{run.uri} has no round {number}; rounds with a plan: {round_numbers(run) or 'none'}")
    plan: Plan = run.read_json(name)
    return plan


def read_seal(run: Store, number: int | None = None) -> Seal:
    """Return the seal of a round, of the newest sealed one by default.

    Raises:
        NotSealed: The round, or every round, lacks its seal.
        RunError: The seal of another round lies in its place.
    """
    numbers, sealed = round_numbers(run), sealed_rounds(run)
    if not numbers and not run.exists(RUN):
        raise NotSealed(f"{run.uri} is no run folder: it has no {RUN}; `pairsan clean DATA --out {run.uri}` begins one")
    chosen = number if number is not None else max(sealed, default=None)
    if chosen is None or chosen not in sealed:
        which = "no sealed round" if number is None else f"no seal on round {number}"
        raise NotSealed(
            f"{run.uri} has {which} (planned: {numbers or 'none'}, sealed: {sealed or 'none'}). "
            "`pairsan status` says what is missing; running the same command again goes on where it stopped."
        )
    seal: Seal = run.read_json(f"{round_folder(chosen)}/{SEAL}")
    if seal["plan"]["round"] != chosen:
        raise RunError(f"where round {chosen} of {run.uri} should be lies the seal of round {seal['plan']['round']}")
    return seal


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Return a line for every field in which two documents differ, e.g. `model.precision: 'fp32' -> 'bf16'`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            line for key in keys for line in differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
        ]
    return [] if old == new else [f"{where}: {old!r} -> {new!r}"]


def require_same_plan(old: Plan, new: Plan, *, where: str, hint: str) -> None:
    """Refuse to go on under another plan.

    Raises:
        PlanMismatch: Names every field that differs.
    """
    if lines := differences(old, new):
        raise PlanMismatch(f"{where} was begun under another plan:\n  " + "\n  ".join(lines) + f"\n{hint}")
