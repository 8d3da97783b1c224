"""Run a stage that encodes images over shards, big ones in pieces."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from manifests.store import Store
from pipeline.workers.executors import Executor
from pipeline.workers.run_stage import run_stage
from stages.pair import PIECES, Shard, Stretch
from stages.settings import ReadSettings
from stages.stage import Stage

Out = TypeVar("Out")
_SMALL_BYTES: Final = 16 << 20  # no less is divided
_LARGE_BYTES: Final = 1 << 30  # whatever is more is, lest a lost worker lose hours
_SHARES: Final = 4  # of what a worker gets: smaller shards fill its time well enough
_PER_NAME: Final = 64  # times the length of a table of text is the length of what it names, at least


def run_in_pieces(
    executor: Executor,
    stage: Stage[Any, Out],
    shards: Sequence[Shard],
    parts: Sequence[str],
    *,
    source: tuple[Store, ReadSettings],
    what: str,
    folder: tuple[Store, int],
    collect: Callable[[Shard, Out], tuple[int, int]],
    num_done_before: int = 0,
    num_rows: int | None = None,
) -> None:
    """Run a stage over shards, and delete what is left of pieces; but for the following see `run_stage`.

    Args:
        executor: Where it runs.
        stage: The work; what it writes for a piece of a shard is joined once all of them are there.
        shards: What is left to do.
        parts: Folders of the parts, that which says "done" last.
        source: Where the dataset lies, and how it is read.
        what: Name of the stage, for people.
        folder: Run and round.
        collect: Takes each output as it comes.
        num_done_before: Shards that an earlier run has finished.
        num_rows: Rows of what is left, about.

    Raises:
        StageFailed: Some shards failed.
    """
    run, pieces_folder = folder[0], f"{parts[-1]}{PIECES}"
    names = run.names(pieces_folder)
    there, begun = {f"{pieces_folder}/{name}" for name in names}, {name.rpartition("/")[0] for name in names}
    pieces = _pieces(executor, _big(shards, executor.num_workers, begun), source, folder)
    missing = [piece for mine in pieces.values() for piece in mine if piece.part(parts[-1]) not in there]
    whole = sorted((shard for shard in shards if shard not in pieces), key=lambda shard: -shard.size_bytes)
    before = num_done_before + sum(map(len, pieces.values())) - len(missing)
    if units := [*missing, *whole]:  # the last to finish is a small one
        unit = "pieces" if pieces else "shards"
        told: dict[str, Any] = {"what": what, "unit": unit, "num_done_before": before, "num_rows": num_rows}
        run_stage(executor, stage, units, folder=folder, collect=collect, **told)
    if pieces:
        from stages.score.pieces import JoinPieces, JoinTarget

        join = JoinPieces(JoinTarget(run, tuple(parts)))
        run_stage(executor, join, list(pieces), what="join", folder=folder, collect=lambda _, num: (num, 0))
    for name in parts:
        if run.exists(f"{name}{PIECES}"):
            run.delete_folder(f"{name}{PIECES}")


def _big(shards: Sequence[Shard], num_workers: int, begun: Collection[str]) -> list[Shard]:
    """Return the shards that are big, for themselves or among the others, and those of which pieces are there."""
    sizes = {shard: shard.size_bytes * (_PER_NAME if shard.format == "text" else 1) for shard in shards}
    limit = max(_SMALL_BYTES, min(_LARGE_BYTES, sum(sizes.values()) // (_SHARES * max(1, num_workers))))
    return [shard for shard in shards if sizes[shard] > limit or shard.name in begun]


def _pieces(
    executor: Executor, big: Sequence[Shard], source: tuple[Store, ReadSettings], folder: tuple[Store, int]
) -> dict[Shard, list[Shard]]:
    """Return the pieces of each shard that can be divided."""
    found: dict[Shard, list[Shard]] = {}
    if not big:
        return found
    from stages.score.pieces import Survey, SurveyTarget

    def note(shard: Shard, stretches: tuple[Stretch, ...]) -> tuple[int, int]:
        if stretches:
            found[shard] = [replace(shard, stretch=stretch) for stretch in stretches]
        return 0, 0

    run_stage(executor, Survey(SurveyTarget(*source)), big, what="divide", folder=folder, collect=note)
    return found
