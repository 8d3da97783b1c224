"""Near copies of a whole round: rows into cells, cells by blocks, links into clusters. Every step resumes."""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from manifests.layout import EMBEDDINGS, round_folder
from manifests.parts import write_json
from pipeline.steps.plan import Round
from pipeline.steps.witness_vectors import reference_folder
from pipeline.workers.executors import Executor
from pipeline.workers.run_stage import run_missing
from stages.signals.accord import SAME_PICTURE
from stages.signals.near_copies import CELLS, LINKS, PROBES, AssignCells, CopyTarget, LinkCells, near_copy_cut
from stages.signals.repeats import Repeats, repeats_name
from stages.signals.signal_parts import SignalParts
from stages.vectors import read_columns, unit, vectors_of

log = logging.getLogger("pairsan.signals")

CLUSTERS, _FACTS = "clusters-image.parquet", "near-copies.json"
_ROW_BYTES = 8 << 10  # of a row in a block, its vectors twice, generously
_MOST_BLOCKS, _MOST_CELLS = 4096, 1 << 18


def num_cells(num_scored: int, asked: dict[str, Any]) -> int:
    """Return how many cells so many rows are put into; beyond a quarter of a million, whose centres take 1 GB, cells grow."""
    return min(_MOST_CELLS, max(1, -(-num_scored // int(asked["copy_cell_rows"]))))


def find_copies(
    executor: Executor, round_: Round, parts: SignalParts, samples: tuple[str, str], num_scored: int, memory_bytes: int
) -> None:
    """Find near copies, and write the part that says which images belong together.

    Args:
        executor: Where shards and blocks are worked on.
        round_: Its plan says how similar copies are.
        parts: Where everything goes.
        samples: Names of the reference, which shows what is ordinary, and of the centres of cells.
        num_scored: Rows with a cosine.
        memory_bytes: That one block may take.
    """
    run, clusters = round_.run, f"{parts.folder}/{CLUSTERS}"
    if run.exists(clusters):
        return
    found, facts, targets = [np.zeros((2, 0), np.int64)], {}, []
    for space in _spaces(round_):
        target = _target(executor, round_, parts, samples, space, num_scored * PROBES * _ROW_BYTES / memory_bytes)
        _compare(executor, round_, target)
        for block in target.blocks():
            table = read_columns(run, f"{target.folder}/{LINKS}/{block.name}.parquet", ["a", "b"])
            found.append(np.stack([table["a"].to_numpy(), table["b"].to_numpy()]))
        facts[space.column] = {"asked": space.cosine, "cosine": target.cosine, "cells": target.num_cells}
        targets.append(target)
    write_json(run, f"{parts.folder}/{_FACTS}", facts)
    counts = Repeats.read(run, repeats_name(parts.folder, "image"))
    counts.joined(np.concatenate(found, axis=1)).write(run, clusters, fingerprint=parts.fingerprint)
    for target in targets:
        run.delete_folder(target.folder)


@dataclass(frozen=True)
class _Space:
    """Vectors by which copies are told: their folder, their column in the samples, and from which cosine on."""

    folder: str
    column: str
    cosine: float


def _spaces(round_: Round) -> list[_Space]:
    """Return the spaces that links come from: the checkpoint's own, and the reference encoder's where there is one.

    Each breaks other chains of copies, so together they find what one alone finds only at a lower cosine and a higher price.
    """
    asked, others = float(round_.plan["signals"]["near_copy_cosine"]), reference_folder(round_)
    own = f"{round_folder(round_.scores_round)}/{EMBEDDINGS}"
    if others is None:
        return [_Space(own, "image", asked)]
    return [_Space(own, "image", max(asked, SAME_PICTURE)), _Space(others, "other", asked)]


def _target(
    executor: Executor, round_: Round, parts: SignalParts, samples: tuple[str, str], space: _Space, num_blocks: float
) -> CopyTarget:
    """Say where and how near copies are sought in one space."""
    reference, centres = samples
    sample = unit(vectors_of(read_columns(round_.run, reference, [space.column])[space.column]))
    cosine = near_copy_cut(sample, int(round_.plan["signals"]["neighbours"]), space.cosine)
    if cosine > space.cosine:
        log.warning("all vectors lie close together: near copies are told by a cosine of %.6f", cosine)
    blocks = min(_MOST_BLOCKS, max(1, math.ceil(num_blocks)))
    return CopyTarget(
        run=round_.run,
        scores_round=round_.scores_round,
        vectors=space.folder,
        folder=f"{parts.folder}/copies-{space.column}-{blocks}",  # with another memory, whoever resumes this begins anew
        centres=centres,
        column=space.column,
        num_cells=pq.read_metadata(round_.run.path(centres), filesystem=round_.run.fs).num_rows,
        num_blocks=blocks,
        cosine=cosine,
        fingerprint=parts.fingerprint,
        num_threads=executor.num_threads,
    )


def _compare(executor: Executor, round_: Round, target: CopyTarget) -> None:
    """Put rows into cells and compare what is in each, where that is not done yet."""
    folder, names = (target.run, round_.number), [shard.name for shard in round_.shards]
    cells, links = f"{target.folder}/{CELLS}", f"{target.folder}/{LINKS}"
    run_missing(executor, AssignCells(target), round_.shards, cells, what="assign cells", folder=folder, suffix=".arrow")
    run_missing(executor, LinkCells(target, names), target.blocks(), links, what="link near copies", folder=folder)
