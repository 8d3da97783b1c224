"""Begin a run or a round: write what was decided, or refuse to go on under other settings."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from manifests.errors import RunError
from manifests.layout import (
    CHECKPOINTS,
    PLAN,
    RUN,
    Plan,
    fingerprint,
    is_sealed,
    read_plan,
    require_same_plan,
    round_folder,
    round_numbers,
    sealed_rounds,
)
from manifests.parts import write_json
from manifests.reviews import snapshot
from manifests.schema import SCHEMA_VERSION
from manifests.store import Store
from pipeline.config.catalogue import RunConfig
from pipeline.config.load import of_another_version
from stages.label.fit.strata import StrataKind
from stages.label.settings import SplitSettings
from stages.pair import Shard
from stages.read.listing import source_of
from stages.read.shards import Dataset, open_dataset
from stages.signals.signal_parts import Asked

_OTHER_SETTINGS = (
    "Other reading settings need another --out; other weights make a new round by `pairsan rescore {run}`; other split "
    "settings need only `pairsan split {run}`, which reuses the scores."
)
_RESTART = " Nothing of it is sealed or trained yet: --restart of `clean` and `embed` deletes what is there and begins anew."


@dataclass(frozen=True)
class Round:
    """A round as it is planned; `begin` writes the plan.

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

    def begin(self) -> None:
        """Write the plan, before the first part of the round; or go on where it is the same.

        Raises:
            PlanMismatch: The round was begun under another plan.
        """
        if self.number in round_numbers(self.run):
            old, where = read_plan(self.run, self.number), f"round {self.number} of {self.run.uri}"
            hint = _OTHER_SETTINGS.format(run=shlex.quote(self.run.uri)) + ("" if _done_in(self.run) else _RESTART)
            require_same_plan(old, self.plan, where=where, hint=hint)
        else:
            write_json(self.run, f"{round_folder(self.number)}/{PLAN}", self.plan)

    @property
    def place(self) -> tuple[Store, int]:
        """Run and number, for the record of what failed."""
        return self.run, self.number

    @property
    def is_sealed(self) -> bool:
        """Whether it carries its seal."""
        return is_sealed(self.run, self.number)

    @property
    def scores_round(self) -> int:
        """The round whose scores are labelled."""
        return int(self.plan["scores_round"])

    @property
    def scores_fingerprint(self) -> str:
        """What the footers of its scores carry."""
        return fingerprint(self.plan["scores"])

    @cached_property
    def split(self) -> SplitSettings:
        """How it is split."""
        return SplitSettings.model_validate(self.plan["split"])

    @property
    def strata(self) -> StrataKind | None:
        """How its rows are grouped; a round that grows by a share has no null, so no groups either."""
        if self.before is not None:
            return "before"
        return self.split.null_strata if self.split.rule == "calibrated" else None

    @property
    def before(self) -> int | None:
        """The sealed round that it looks again at; None for a split that begins anew."""
        return self.plan.get("before")

    @property
    def trained_on(self) -> int | None:
        """The round that its weights trained on; None where that is the one it looks again at, or nobody asks."""
        return self.plan.get("trained_on")

    @cached_property
    def asked(self) -> Asked | None:
        """Which signals it has; None for none."""
        return None if self.plan.get("signals") is None else Asked(**self.plan["signals"])


def planned(
    run: Store, number: int, shards: tuple[Shard, ...], *, kind: str, scores: dict[str, Any], config: RunConfig, **more: Any
) -> Round:
    """Return a round that nothing is written of yet.

    Args:
        run: The run folder.
        number: Of the round.
        shards: All of the dataset.
        kind: `clean`, `embed`, `rescore` or `split`; for `pairsan status`.
        scores: `scores` (what decides them) and `scores_round` (where they lie).
        config: Names the profile, where there is one.
        more: `split` and `signals`; None where nothing is labelled.
    """
    profile = {"profile": config.profile} if config.profile else {}
    begun = read_plan(run, number) if number in round_numbers(run) else None
    kept = {
        "reviews": snapshot(run),
        "weights": _weights(run, scores["scores_round"], config),
    }  # as they were when it was begun
    known = {name: value if begun is None else begun.get(name) for name, value in kept.items()}
    plan = {"schema_version": SCHEMA_VERSION, "round": number, "kind": kind, **scores, **more, **known, **profile}
    return Round(run, number, plan, shards)


def _weights(run: Store, scores_round: int, config: RunConfig) -> str | None:
    """Return what the weights of some scores are called, for people: their file, folder or tag."""
    if scores_round in round_numbers(run):
        return read_plan(run, scores_round).get("weights")
    name = config.model.checkpoint or config.model.pretrained or config.model.model
    return name and name.rstrip("/").rpartition("/")[2]


def forget_unsealed(run: Store) -> None:
    """Delete all that was begun in a run folder of which nothing is sealed or trained, so that another run may begin there.

    Raises:
        RunError: There is a sealed round, or a checkpoint.
    """
    if not run.exists(RUN):
        return
    if done := _done_in(run):
        raise RunError(f"{run.uri} holds {done}, which --restart does not delete; give another --out")
    if run.exists("rounds"):
        run.delete_folder("rounds")
    run.delete(RUN)  # last, so that a restart that was interrupted is one again


def _done_in(run: Store) -> str:
    """Return what a run folder holds that no restart deletes; nothing where it holds nothing such."""
    if sealed := sealed_rounds(run):
        return f"sealed rounds ({', '.join(map(str, sealed))})"
    return "checkpoints" if run.exists(CHECKPOINTS) else ""


def begin_run(run: Store, dataset: Dataset, data: Sequence[str], config: RunConfig) -> None:
    """Write `run.json`, or check that the folder belongs to this dataset.

    Raises:
        PlanMismatch: The folder was begun with other data.
    """
    if run.exists(RUN):
        old, hint = run.read_json(RUN)["dataset"], "Give another --out for other data." + ("" if _done_in(run) else _RESTART)
        now = {"fingerprint": dataset.fingerprint, "num_shards": len(dataset.shards)}
        require_same_plan({key: old[key] for key in now}, now, where=run.uri, hint=hint)
        return
    write_json(run, RUN, {**facts_of(dataset, data), "config": reachable(config).model_dump()})


def facts_of(dataset: Dataset, data: Sequence[str]) -> dict[str, Any]:
    """Return what `run.json` says of the data."""
    shards = [[shard.name, shard.path, shard.format, shard.size_bytes] for shard in dataset.shards]
    facts = {"fingerprint": dataset.fingerprint, "num_shards": len(shards), "shards": shards, "edges": list(dataset.edges)}
    return {"data": [from_anywhere(entry) for entry in data], "dataset": facts}


def reachable(config: RunConfig) -> RunConfig:
    """Return the settings with local paths made absolute, so that a later command may start in another folder."""
    named = {
        "model": {"checkpoint": config.model.checkpoint, "model": config.model.model, "tokenizer": config.model.tokenizer},
        "train": {"scout_model": config.train.scout_model},
        "signals": {name: getattr(config.signals, name) for name in ("reference_encoder", "reference_checkpoint")},
    }
    update: dict[str, Any] = {
        table: {name: from_anywhere(path) for name, path in paths.items() if path and Path(path).exists()}
        for table, paths in named.items()
    }
    update["data"] = {"image_root": from_anywhere(config.data.image_root)} if config.data.image_root else {}
    if config.data.deny:
        update["data"]["deny"] = ",".join(from_anywhere(name.strip()) for name in config.data.deny.split(","))
    if config.signals.index:  # a glob, perhaps, so no file of that name is there
        update["signals"]["index"] = from_anywhere(config.signals.index)
    return config.model_copy(update={table: getattr(config, table).model_copy(update=new) for table, new in update.items()})


def from_anywhere(path: str) -> str:
    """Return a path, URI or `NAME=/PATH` so that it means the same in another folder."""
    return path if "://" in path or source_of(path)[0] else str(Path(path).expanduser().absolute())


@dataclass(frozen=True)
class RunFacts:
    """What `run.json` holds: the settings a run was begun with, its shards, and where its data lie."""

    config: RunConfig
    shards: tuple[Shard, ...]
    data: list[str]

    def open_data(self) -> Dataset:
        """Find the data again.

        Raises:
            DataError: They are no longer there.
        """
        return open_dataset(self.data, skip_unreadable=self.config.data.skip_unreadable)


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
        config = RunConfig.model_validate(of_another_version(document["config"]))
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        raise RunError(
            f"{run.uri} was begun by another version of pairsan, with settings unknown to this one: {fields}"
        ) from None
    return RunFacts(config, shards, document["data"])
