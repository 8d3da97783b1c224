"""Vectors of all images by the reference encoder: made once for a run, whatever checkpoints score it later."""

from typing import TYPE_CHECKING

from manifests.layout import REFERENCE_VECTORS, Plan, fingerprint, read_plan
from pipeline.config.catalogue import RunConfig
from pipeline.steps.plan import Round, read_run
from pipeline.workers.executors import Executor
from pipeline.workers.run_in_pieces import run_in_pieces
from pipeline.workers.run_stage import run_stage
from stages.pair import Shard
from stages.settings import ReadSettings

if TYPE_CHECKING:
    from stages.signals.witnesses.witness_tower import Tower


def tower_of(config: RunConfig) -> "Tower | None":
    """Return the reference encoder of the settings, if any.

    Raises:
        PairsanError: It cannot be found.
    """
    signals = config.signals
    if signals.reference_encoder is None or signals.signals != "all":
        return None
    # torch: seconds, and a gigabyte, that a split need not wait for
    from stages.signals.witnesses.witness_tower import resolve_tower

    return resolve_tower(signals.reference_encoder, signals.reference_checkpoint, signals.reference_image_size)


def reference_folder(round_: Round) -> str | None:
    """Return the folder of the reference encoder's vectors below the run; None where the round uses none."""
    if round_.asked is None or round_.asked.reference_encoder is None:
        return None
    return f"{REFERENCE_VECTORS}-{_stamp(round_)[:8]}"


def canary_folder(round_: Round) -> str | None:
    """Return the folder of its vectors of canaries; None where the round uses none, or has no canaries."""
    folder, num = reference_folder(round_), _num_canaries(round_)
    return f"{folder}-canaries-{num}" if folder and num else None


def _num_canaries(round_: Round) -> int:
    """Return how many canaries of each kind every shard has."""
    return -(-int(round_.plan["scores"].get("canaries") or 0) // max(1, len(round_.shards)))


def _stamp(round_: Round, dataset: Plan | None = None) -> str:
    scores = round_.plan["scores"]
    encoder = round_.plan["signals"]["reference_encoder"]
    return fingerprint({"dataset": dataset or scores["dataset"], "read": scores["read"], "encoder": encoder})


def add_reference(executor: Executor, round_: Round, config: RunConfig) -> None:
    """Encode the shards that have no reference vectors yet.

    Args:
        executor: Where shards are worked on.
        round_: Its plan names the encoder.
        config: Says where its weights lie.

    Raises:
        PairsanError: The encoder cannot be loaded.
    """
    folder, tower, canaries = reference_folder(round_), tower_of(config), canary_folder(round_)
    if folder is None or tower is None:
        return
    _take_over(executor, round_, folder)
    done = [round_.run.names(name) for name in (folder, canaries) if name]
    todo = [shard for shard in round_.shards if not all(f"{shard.name}.parquet" in names for names in done)]
    if not todo:
        return
    from stages.score.decode import Decode
    from stages.signals.witnesses.witness_tower import EmbedReference, ReferenceTarget, load_tower

    preprocess = load_tower(tower)[1]
    dataset = read_run(round_.run).open_data()
    options = ReadSettings.model_validate(round_.plan["scores"]["read"])
    decode = Decode(dataset.store, options, preprocess, num_threads=executor.num_threads)
    target = ReferenceTarget(
        decode=decode,
        tower=tower,
        run=round_.run,
        folder=folder,
        canaries=canaries,
        fingerprint=_stamp(round_),
        num_threads=executor.num_threads,
        num_canaries=_num_canaries(round_),
    )
    run_in_pieces(
        executor,
        EmbedReference(target),
        todo,
        [folder],
        source=(dataset.store, options),
        what="embed for reference",
        folder=round_.place,
        collect=_rows,
        num_done_before=len(round_.shards) - len(todo),
    )


def _take_over(executor: Executor, round_: Round, folder: str) -> None:
    """Write the vectors of shards that had them before the data grew."""
    source = round_.plan.get("taken_over")
    if source is None:
        return
    from stages.score.pieces import CopyParts, CopyTarget

    old = f"{REFERENCE_VECTORS}-{_stamp(round_, read_plan(round_.run, source['round'])['scores']['dataset'])[:8]}"
    known = round_.run.names(old) - round_.run.names(folder)
    todo = [shard for shard in round_.shards if f"{shard.name}.parquet" in known]
    if todo:
        stage, what = CopyParts(CopyTarget(round_.run, old, folder, _stamp(round_))), "take over vectors for reference"
        run_stage(executor, stage, todo, what=what, folder=round_.place, collect=_rows)


def _rows(_: Shard, num: int) -> tuple[int, int]:
    return num, 0
