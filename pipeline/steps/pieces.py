"""Run a stage that encodes images over shards, big ones in pieces."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from manifests.store import Store
from pipeline.steps.plan import Round
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
    round_: Round,
    todo: Sequence[Shard],
    folders: Sequence[str],
    *,
    source: tuple[Store, ReadSettings],
    what: str,
    collect: Callable[[Shard, Out], tuple[int, int]],
) -> None:
    """Run a stage over the shards whose parts are missing, and delete what is left of pieces.

    Args:
        executor: Where it runs.
        stage: The work; what it writes for a piece of a shard is joined once all of them are there.
        round_: The round.
        todo: The shards.
        folders: Of the parts, that which says "done" last.
        source: Where the dataset lies, and how it is read.
        what: Name of the stage, for people.
        collect: As for `run_stage`.

    Raises:
        StageFailed: Some shards failed.
    """
    there = {f"{folders[-1]}{PIECES}/{name}" for name in round_.run.names(f"{folders[-1]}{PIECES}")}
    pieces = _pieces(executor, round_, _big(todo, executor.num_workers, there), source)
    missing = [piece for shard in pieces for piece in pieces[shard] if piece.part(folders[-1]) not in there]
    whole = sorted((shard for shard in todo if shard not in pieces), key=lambda shard: -shard.size_bytes)
    before = len(round_.shards) - len(todo) + sum(map(len, pieces.values())) - len(missing)
    if units := [*missing, *whole]:  # the last to finish is a small one
        unit = "pieces" if pieces else "shards"
        run_stage(executor, stage, units, what=what, unit=unit, folder=round_.place, collect=collect, num_done_before=before)
    _join(executor, round_, list(pieces), folders)


def _big(todo: Sequence[Shard], num_workers: int, there: Collection[str]) -> list[Shard]:
    """Return the shards that are big, for themselves or among the others, and those of which pieces are there."""
    sizes = {shard: shard.size_bytes * (_PER_NAME if shard.format == "text" else 1) for shard in todo}
    share = sum(sizes.values()) // (_SHARES * max(1, num_workers))
    begun = {name.rpartition("/")[0] for name in there}
    limit = max(_SMALL_BYTES, min(_LARGE_BYTES, share))
    return [shard for shard in todo if sizes[shard] > limit or any(name.endswith(f"{PIECES}/{shard.name}") for name in begun)]


def _pieces(
    executor: Executor, round_: Round, big: Sequence[Shard], source: tuple[Store, ReadSettings]
) -> dict[Shard, list[Shard]]:
    """Return the pieces of each shard that can be divided."""
    if not big:
        return {}
    from stages.score.pieces import Survey, SurveyTarget

    found: dict[Shard, list[Shard]] = {}

    def note(shard: Shard, stretches: tuple[Stretch, ...]) -> tuple[int, int]:
        if stretches:
            found[shard] = [replace(shard, stretch=stretch) for stretch in stretches]
        return 0, 0

    run_stage(executor, Survey(SurveyTarget(*source)), big, what="divide", folder=round_.place, collect=note)
    return found


def _join(executor: Executor, round_: Round, shards: list[Shard], folders: Sequence[str]) -> None:
    """Join the pieces of some shards, then delete all pieces."""
    if shards:
        from stages.score.pieces import JoinPieces, JoinTarget

        stage = JoinPieces(JoinTarget(round_.run, tuple(folders)))
        run_stage(executor, stage, shards, what="join", folder=round_.place, collect=lambda _, num: (num, 0))
    for folder in folders:
        if round_.run.exists(f"{folder}{PIECES}"):
            round_.run.delete_folder(f"{folder}{PIECES}")
