"""Let a run go on with data that have grown: what is new is scored, what was scored is taken over, old rounds stay."""

import logging
from collections.abc import Collection, Sequence
from typing import Any, Final

from manifests.errors import ConfigError, PlanMismatch, RunError
from manifests.layout import (
    CHECKPOINTS,
    RUN,
    Plan,
    read_plan,
    require_same_plan,
    round_numbers,
    sealed_rounds,
)
from manifests.parts import write_json
from manifests.schema import LOOKS_SINCE, SCORES_SINCE
from manifests.store import Store
from pipeline.config.catalogue import RunConfig
from pipeline.steps.numbering import shards_of
from pipeline.steps.plan import facts_of, from_anywhere, reachable, read_run
from stages.read.listing import source_of
from stages.read.shards import Dataset

log = logging.getLogger("pairsan.growth")
_NAMED: Final = 5
_OTHERWISE: Final = ("dataset", "versions")  # in which scores may differ and still be the same of a shard


def grow(run: Store, dataset: Dataset, data: Sequence[str], config: RunConfig, *, drop_missing: bool) -> None:
    """Make a run that has sealed rounds one of the data as they are now; any other is left as it is.

    Args:
        run: The run folder.
        dataset: The data as they are now.
        data: Where they lie.
        config: The settings; the data must be read as before.
        drop_missing: Whether shards may be gone.

    Raises:
        PlanMismatch: Shards have changed, or are gone.
    """
    if not run.exists(RUN) or not sealed_rounds(run) or run.exists(CHECKPOINTS):
        return
    document = run.read_json(RUN)
    old = document["dataset"]
    if old["fingerprint"] == dataset.fingerprint or "edges" not in old:
        return
    was = {shard[0]: (shard[3], edge) for shard, edge in zip(old["shards"], old["edges"], strict=True)}
    now = {shard.name: (shard.size_bytes, edge) for shard, edge in zip(dataset.shards, dataset.edges, strict=True)}
    if changed := [name for name in sorted(was.keys() & now.keys()) if was[name] != now[name]]:
        raise PlanMismatch(f"{_some(changed, was)} no longer what {run.uri} has scored; give another --out for other data")
    gone = sorted(was.keys() - now.keys())
    if gone and not drop_missing:
        raise PlanMismatch(f"{_some(gone, was)} gone since {run.uri} was scored; bring them back, or --drop-missing")
    how = "Data that have grown are read as before; give another --out for other settings."
    require_same_plan(read_run(run).config.data.model_dump(), reachable(config).data.model_dump(), where=run.uri, hint=how)
    log.info("%s: %d shards are new, %d are gone", run.uri, len(now.keys() - was.keys()), len(gone))
    write_json(run, RUN, {**document, **facts_of(dataset, data), "grown_from": old["fingerprint"]})


def with_source(run: Store, data: Sequence[str], name: str | None) -> list[str]:
    """Return the data of a run and a further source, as entries of `open_dataset`.

    Args:
        run: The run folder.
        data: Where the source lies.
        name: Of the source; that of the first folder or file if None.

    Raises:
        ConfigError: The name is none.
        RunError: Nothing of the run is sealed yet, or it trains.
    """
    known = read_run(run).data
    if not sealed_rounds(run) or run.exists(CHECKPOINTS):
        why = "trains on its data" if run.exists(CHECKPOINTS) else "has no sealed round yet"
        raise RunError(f"{run.uri} {why}, so nothing is added to it; give all data to a command with another --out")
    name = name or data[0].rstrip("/").rpartition("/")[2].partition(".")[0]
    more = [f"{name}={from_anywhere(entry)}" for entry in data]
    if any(source_of(entry)[0] != name for entry in more):
        raise ConfigError(f"--name {name!r}: a source is called by letters, digits, and `._-` between them")
    return [*known, *(entry for entry in more if entry not in known)]


def _some(names: list[str], of: Collection[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} of {len(of)} shards ({', '.join(names[:_NAMED])}{more}) {'is' if len(names) == 1 else 'are'}"


def round_of_data(run: Store, fingerprint: str) -> int:
    """Return the round of a dataset's first scores, or the next free number."""
    plans = {number: read_plan(run, number) for number in round_numbers(run)}
    mine = [
        number
        for number, plan in plans.items()
        if plan["kind"] in ("clean", "embed") and plan["scores"]["dataset"]["fingerprint"] == fingerprint
    ]
    return max(mine, default=max(plans, default=0) + 1)


def taken_over(run: Store, scores: Plan) -> dict[str, Any]:
    """Return, for a plan, the round before the data grew whose scores are as these would be, and who made them.

    Nothing where the data have not grown, or no such round is complete.
    """
    grown_from = run.read_json(RUN).get("grown_from")
    for number in reversed(round_numbers(run)) if grown_from else ():
        plan = read_plan(run, number)
        same = plan["scores_round"] == number and plan["scores"]["dataset"]["fingerprint"] == grown_from
        since = LOOKS_SINCE if scores["keep"]["embeddings"] else SCORES_SINCE
        same = same and plan["schema_version"] >= since and _essence(plan["scores"]) == _essence(scores)
        if same and len(shards_of(run, number)) >= plan["scores"]["dataset"]["num_shards"]:
            return {"taken_over": {"round": number, "versions": plan["scores"]["versions"]}}
    return {}


def _essence(scores: Plan) -> Plan:
    return {key: value for key, value in scores.items() if key not in _OTHERWISE}
