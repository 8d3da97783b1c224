"""Near copies of a whole round: rows into cells, cells by blocks, links into clusters. Every step resumes."""

import logging
import math
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from manifests.layout import EMBEDDINGS, round_folder
from manifests.parts import write_json
from pipeline.steps.plan import Round
from pipeline.workers.executors import Executor
from pipeline.workers.run_stage import run_missing
from stages.signals.near_copies import CELLS, LINKS, PROBES, AssignCells, CopyTarget, LinkCells, near_copy_cut
from stages.signals.repeats import Counts
from stages.signals.signal_parts import CENTRES, CLUSTERS, REFERENCE, Asked, SignalParts
from stages.signals.witnesses.accord import SAME_PICTURE
from stages.vectors import read_columns, unit, vectors_of

log = logging.getLogger("pairsan.signals")

_FACTS = "near-copies.json"
_ROW_BYTES = 8 << 10  # of a row in a block, its vectors twice, generously
_MOST_BLOCKS, _MOST_CELLS = 4096, 1 << 18


def num_cells(num_scored: int, asked: Asked) -> int:
    """Return how many cells so many rows are put into; beyond a quarter of a million, whose centres take 1 GB, cells grow."""
    return min(_MOST_CELLS, max(1, -(-num_scored // asked.copy_cell_rows)))


def find_copies(executor: Executor, round_: Round, parts: SignalParts) -> None:
    """Find near copies, and write the part that says which images belong together.

    Args:
        executor: Where shards and blocks are worked on.
        round_: The round.
        parts: Says how similar copies are, and holds the samples: what is ordinary, and the centres of cells.
    """
    found, facts, targets = [np.zeros((2, 0), np.int64)], {}, []
    for space in _spaces(parts):
        target = _target(parts, space)
        _compare(executor, round_, target)
        for block in target.blocks():
            table = read_columns(parts.run, f"{target.folder}/{LINKS}/{block.name}.parquet", ["a", "b"])
            found.append(np.stack([table["a"].to_numpy(), table["b"].to_numpy()]))
        facts[space.column] = {"asked": space.cosine, "cosine": target.cosine, "cells": target.num_cells}
        targets.append(target)
    write_json(parts.run, parts.name(_FACTS), facts)
    joined = Counts(parts).images.joined(np.concatenate(found, axis=1))
    joined.write(parts.run, parts.name(CLUSTERS), fingerprint=parts.fingerprint)
    for target in targets:
        parts.run.delete_folder(target.folder)


@dataclass(frozen=True)
class _Space:
    """Vectors by which copies are told: their folder, their column in the samples, and from which cosine on."""

    folder: str
    column: str
    cosine: float


def _spaces(parts: SignalParts) -> list[_Space]:
    """Return the spaces that links come from: the checkpoint's own, and the reference encoder's where there is one.

    Each breaks other chains of copies, so together they find what one alone finds only at a lower cosine and a higher price.
    """
    asked = float(parts.asked.near_copy_cosine or 1.0)
    own = f"{round_folder(parts.scores_round)}/{EMBEDDINGS}"
    if parts.others is None:
        return [_Space(own, "image", asked)]
    return [_Space(own, "image", max(asked, SAME_PICTURE)), _Space(parts.others, "other", asked)]


def _target(parts: SignalParts, space: _Space) -> CopyTarget:
    """Say where and how near copies are sought in one space."""
    sample = unit(vectors_of(read_columns(parts.run, parts.name(REFERENCE), [space.column])[space.column]))
    cosine = near_copy_cut(sample, parts.asked.neighbours, space.cosine)
    if cosine > space.cosine:
        log.warning("all vectors lie close together: near copies are told by a cosine of %.6f", cosine)
    blocks = min(_MOST_BLOCKS, max(1, math.ceil(parts.num_scored * PROBES * _ROW_BYTES / parts.memory_bytes)))
    centres = parts.name(CENTRES)
    return CopyTarget(
        run=parts.run,
        scores_round=parts.scores_round,
        shards=parts.shards,
        vectors=space.folder,
        folder=parts.name(f"copies-{space.column}-{blocks}"),  # with another memory, whoever resumes this begins anew
        centres=centres,
        column=space.column,
        num_cells=pq.read_metadata(parts.run.path(centres), filesystem=parts.run.fs).num_rows,
        num_blocks=blocks,
        cosine=cosine,
        fingerprint=parts.fingerprint,
        num_threads=parts.num_threads,
    )


def _compare(executor: Executor, round_: Round, target: CopyTarget) -> None:
    """Put rows into cells and compare what is in each, where that is not done yet."""
    cells, links, place = f"{target.folder}/{CELLS}", f"{target.folder}/{LINKS}", round_.place
    run_missing(executor, AssignCells(target), round_.shards, cells, what="assign cells", folder=place, suffix=".arrow")
    run_missing(executor, LinkCells(target), target.blocks(), links, what="link near copies", folder=place)
