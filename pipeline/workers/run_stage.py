"""Run one stage over the shards of a round and say what became of each."""

import errno
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from manifests.errors import StageFailed
from manifests.layout import FAILURES, round_folder
from manifests.parts import write_json
from manifests.store import Store
from pipeline.workers.executors import Done, Executor, Failed
from pipeline.workers.progress import Progress
from stages.pair import Shard
from stages.stage import Stage

Out = TypeVar("Out")
_NAMED = 5
_FULL = tuple(f"[Errno {code}]" for code in (errno.ENOSPC, errno.EDQUOT))


def run_stage(
    executor: Executor,
    stage: Stage[Any, Out],
    shards: Sequence[Shard],
    *,
    what: str,
    folder: tuple[Store, int | None],
    collect: Callable[[Shard, Out], tuple[int, int]],
    num_done_before: int = 0,
    unit: str = "shards",
    num_rows: int | None = None,
) -> None:
    """Run a stage over shards; shards that fail do not stop the others.

    Args:
        executor: Where it runs.
        stage: The work.
        shards: What is left to do.
        what: Name of the stage, for people.
        folder: Run and round; failures are written there, for `pairsan status`. Without a round, into the folder itself.
        collect: Takes each output as it comes and returns its (rows, quarantined rows) for the progress line.
        num_done_before: Shards that an earlier run has finished.
        unit: What people call them: shards, or pieces where some are pieces of shards.
        num_rows: Rows of what is left, about; None where nobody knows.

    Raises:
        StageFailed: Some shards failed; names them and their errors.
        OSError: All of them for want of space.
    """
    failed: list[Failed] = []
    run, number = folder
    total = len(shards) + num_done_before
    told: dict[str, Any] = {"under_way": executor.under_way, "unit": unit, "num_rows": num_rows}
    with Progress(what, total, num_done_before, **told) as progress:
        for outcome in executor.map(stage, shards):
            if isinstance(outcome, Done):
                progress.shard_done(*collect(outcome.shard, outcome.output))
            else:
                failed.append(outcome)
                progress.shard_failed()
    name = FAILURES if number is None else f"{round_folder(number)}/{FAILURES}"
    if failed:
        failed.sort(key=lambda f: f.shard.title)
        entries = [{"shard": f.shard.title, "error": f.error, "trace": f.trace} for f in failed]
        write_json(run, name, {"stage": what, "failed": json.loads(json.dumps(entries, default=str))})
        if all(any(word in f.error for word in _FULL) for f in failed):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the place's fault, and said so, wherever it was met
        lines = "".join(f"\n  {f.shard.title}: {f.error[:400]}" for f in failed[:_NAMED])
        more = f"\n  and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        raise StageFailed(
            f"{len(failed)} of {len(shards)} {unit} failed to {what}; the others are kept:{lines}{more}\n"
            f"{'`pairsan status RUN`' if number is not None else run.path(name)} shows the traces; run the same command again "
            "to retry only what is missing."
        )
    run.delete(name)


def run_missing(
    executor: Executor,
    stage: Stage[Any, int],
    shards: Sequence[Shard],
    parts: str,
    *,
    what: str,
    folder: tuple[Store, int],
    suffix: str = ".parquet",
) -> None:
    """Run a stage that writes a part for each shard, over the shards whose part is missing.

    Args:
        executor: Where it runs.
        stage: Returns how much it wrote: rows, or links.
        shards: All shards.
        parts: Folder of the parts, below the run.
        what: Name of the stage, for people.
        folder: Run and round.
        suffix: Of the parts' names, after that of the shard.

    Raises:
        StageFailed: Some shards failed; names them and their errors.
    """
    done = folder[0].names(parts)
    todo = [shard for shard in shards if f"{shard.name}{suffix}" not in done]
    before = len(shards) - len(todo)
    run_stage(executor, stage, todo, what=what, folder=folder, collect=lambda _, num: (num, 0), num_done_before=before)
