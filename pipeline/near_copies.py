"""Near copies of a whole round: rows into cells, cells by blocks, links into clusters. Every step resumes."""

import logging
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from manifests.layout import EMBEDDINGS, round_folder
from pipeline.executors import Executor
from pipeline.plans import Round
from pipeline.reference_vectors import reference_folder
from pipeline.work import run_stage
from stages.copies import CELLS, LINKS, PROBES, AssignCells, CopyTarget, LinkCells, near_copy_cut
from stages.label import SignalParts
from stages.reference import read_columns, unit, vectors_of
from stages.repeats import Repeats, repeats_name

log = logging.getLogger("pairsan.signals")

_CLUSTERS = "clusters-image.parquet"
_ROW_BYTES = 8 << 10  # of a row in a block, its vectors twice, generously
_MOST_BLOCKS = 4096


def num_cells(num_scored: int, asked: dict[str, Any]) -> int:
    """Return how many cells so many rows are put into."""
    return max(1, -(-num_scored // int(asked["copy_cell_rows"])))


def find_copies(
    executor: Executor, round_: Round, parts: SignalParts, samples: tuple[str, str], num_scored: int, memory_bytes: int
) -> str:
    """Find near copies and return the name of the part that says which images belong together.

    Args:
        executor: Where shards and blocks are worked on.
        round_: Its plan says how similar copies are.
        parts: Where everything goes.
        samples: Names of the reference, which shows what is ordinary, and of the centres of cells.
        num_scored: Rows with a cosine.
        memory_bytes: That one block may take.
    """
    reference, centres = samples
    run, asked, clusters = round_.run, round_.plan["signals"], f"{parts.folder}/{_CLUSTERS}"
    if run.exists(clusters):
        return clusters
    column = "other" if reference_folder(round_) else "image"
    sample = unit(vectors_of(read_columns(run, reference, [column])[column]))
    cosine = near_copy_cut(sample, int(asked["neighbours"]), float(asked["near_copy_cosine"]))
    if cosine > asked["near_copy_cosine"]:
        log.warning("all vectors lie close together: near copies are told by a cosine of %.6f", cosine)
    target = CopyTarget(
        run=run,
        scores_round=round_.scores_round,
        vectors=reference_folder(round_) or f"{round_folder(round_.scores_round)}/{EMBEDDINGS}",
        folder=parts.folder,
        centres=centres,
        column=column,
        num_cells=pq.read_metadata(run.path(centres), filesystem=run.fs).num_rows,
        num_blocks=min(_MOST_BLOCKS, max(1, -(-num_scored * PROBES * _ROW_BYTES // memory_bytes))),
        cosine=cosine,
        fingerprint=parts.fingerprint,
        num_threads=executor.num_threads,
    )
    folder = (run, round_.number)
    done = run.names(f"{parts.folder}/{CELLS}")
    todo = [shard for shard in round_.shards if f"{shard.name}.arrow" not in done]
    before = len(round_.shards) - len(todo)
    run_stage(
        executor, AssignCells(target), todo, what="assign cells", folder=folder, collect=lambda _, rows: (rows, 0),
        num_done_before=before,
    )  # fmt: skip
    linked = run.names(f"{parts.folder}/{LINKS}")
    blocks = [block for block in target.blocks() if f"{block.name}.parquet" not in linked]
    stage = LinkCells(target, [shard.name for shard in round_.shards])
    run_stage(executor, stage, blocks, what="link near copies", folder=folder, collect=lambda _, links: (links, 0))
    found = [np.zeros((2, 0), np.int64)]
    for block in target.blocks():
        table = pq.read_table(run.path(f"{parts.folder}/{LINKS}/{block.name}.parquet"), filesystem=run.fs)
        found.append(np.stack([table["a"].to_numpy(), table["b"].to_numpy()]))
    counts = Repeats.read(run, repeats_name(parts.folder, "image"))
    counts.joined(np.concatenate(found, axis=1)).write(run, clusters, fingerprint=parts.fingerprint)
    run.delete_folder(f"{parts.folder}/{CELLS}")
    return clusters
