"""Begin a run or a round: write what was decided, or refuse to go on under other settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from manifests.errors import RunError
from manifests.layout import (
    PLAN,
    RUN,
    SCORES,
    Plan,
    fingerprint,
    read_plan,
    require_same_plan,
    round_folder,
    round_numbers,
)
from manifests.parts import write_json
from manifests.schema import SCHEMA_VERSION
from manifests.store import Store
from pipeline.config.load import RunConfig
from stages.pair import Shard
from stages.read.shards import Dataset


@dataclass(frozen=True)
class Round:
    """A round that has its plan.

    Attributes:
        run: The run folder.
        number: From 1.
        plan: Everything that could change a label.
        shards: All shards of the dataset, in order.
    """

    run: Store
    number: int
    plan: Plan
    shards: tuple[Shard, ...]

    @property
    def scores_round(self) -> int:
        """The round whose scores are labelled."""
        return int(self.plan["scores_round"])

    @property
    def scores_fingerprint(self) -> str:
        """What the footers of its scores carry."""
        return fingerprint(self.plan["scores"])

    def missing_scores(self) -> list[Shard]:
        """Return the shards that have no scores part yet, largest first, so that the last to finish is a small one."""
        done = self.run.names(f"{round_folder(self.scores_round)}/{SCORES}")
        todo = [shard for shard in self.shards if f"{shard.name}.parquet" not in done]
        return sorted(todo, key=lambda shard: -shard.size_bytes)


def begin_run(run: Store, dataset: Dataset, data: list[str], config: RunConfig) -> None:
    """Write `run.json`, or check that the folder belongs to this dataset.

    Raises:
        PlanMismatch: The folder was begun with other data.
    """
    facts = {"fingerprint": dataset.fingerprint, "num_shards": len(dataset.shards)}
    if run.exists(RUN):
        old = run.read_json(RUN)["dataset"]
        require_same_plan({key: old[key] for key in facts}, facts, where=run.uri, hint="Give another --out for other data.")
        return
    shards = [[shard.name, shard.path, shard.format, shard.size_bytes] for shard in dataset.shards]
    document = {
        "data": [_from_anywhere(entry) for entry in data],
        "dataset": {**facts, "shards": shards},
        "config": _reachable(config).model_dump(),
    }
    write_json(run, RUN, document)


def _reachable(config: RunConfig) -> RunConfig:
    """Return the settings with local paths made absolute, so that a later command may start in another folder."""
    model = config.model
    paths = {"checkpoint": model.checkpoint, "model": model.model}
    absolute = {key: _from_anywhere(path) for key, path in paths.items() if path and Path(path).exists()}
    signals = config.signals
    known = {"reference_encoder": signals.reference_encoder, "reference_checkpoint": signals.reference_checkpoint}
    reference = {key: _from_anywhere(path) for key, path in known.items() if path and Path(path).exists()}
    root = {"image_root": _from_anywhere(config.data.image_root)} if config.data.image_root else {}
    update = {"model": model.model_copy(update=absolute), "signals": signals.model_copy(update=reference)}
    return config.model_copy(update={**update, "data": config.data.model_copy(update=root)})


def _from_anywhere(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())


@dataclass(frozen=True)
class RunFacts:
    """What `run.json` holds: the settings a run was begun with, its shards, and where its data lie."""

    config: RunConfig
    shards: tuple[Shard, ...]
    data: list[str]


def read_run(run: Store) -> RunFacts:
    """Return what a run was begun with.

    Raises:
        RunError: The folder holds no run, or one of another version.
    """
    if not run.exists(RUN):
        raise RunError(f"{run.uri} is no run folder: it has no {RUN}; `pairsan clean DATA --out {run.uri}` begins one")
    document = run.read_json(RUN)
    shards = tuple(Shard(*entry) for entry in document["dataset"]["shards"])
    try:
        config = RunConfig.model_validate(document["config"])
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        raise RunError(
            f"{run.uri} was begun by another version of pairsan, with settings unknown to this one: {fields}"
        ) from None
    return RunFacts(config, shards, document["data"])


def begin_round(run: Store, number: int, plan: dict[str, Any], shards: tuple[Shard, ...], *, hint: str) -> Round:
    """Write the plan of a round, or go on with it where it is the same.

    Raises:
        PlanMismatch: The round was begun under another plan.
    """
    whole: Plan = {"schema_version": SCHEMA_VERSION, "round": number, **plan}
    if number in round_numbers(run):
        require_same_plan(read_plan(run, number), whole, where=f"round {number} of {run.uri}", hint=hint)
    else:
        write_json(run, f"{round_folder(number)}/{PLAN}", whole)
    return Round(run, number, whole, shards)
