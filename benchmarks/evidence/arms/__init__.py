"""A cell of the grid is a seed and a defence; it leaves the trained weights and one line per figure."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pandas as pd

from benchmarks.evidence.arms import filters, peers
from benchmarks.evidence.arms.cell import Cell
from benchmarks.evidence.arms.pipelines import PIPELINES, pipeline_arm, profile_arm
from benchmarks.evidence.frozen import load_tower
from benchmarks.evidence.judging import Judge
from benchmarks.evidence.referee import Line
from benchmarks.photos.data import DATA, dino

ARMS: Final[dict[str, Callable[[Cell], list[Line]]]] = {
    "none": filters.undefended,
    "none, plain views": filters.plain_views,
    "random filter": filters.random_filter,
    "oracle": filters.oracle,
    "oracle, same size": filters.oracle_small,
    "CLIP-score filter": filters.clip_score_filter,
    "self-score filter": filters.self_score_filter,
    **dict.fromkeys(filters.TAILS, filters.scouts_choice),
    **dict.fromkeys(PIPELINES, pipeline_arm),
    "locked, trained anew": filters.locked_filter,
    "dense and repeats filter": filters.dense_filter,
    "RoCLIP": peers.roclip,
    "CleanCLIP": peers.cleanclip,
    "thorough": profile_arm,
}

# arms that start from what another has left
BUILDS_ON: Final = {
    **dict.fromkeys(("self-score filter", "CleanCLIP", "dense and repeats filter"), "none"),
    "locked, trained anew": "locked",
    **dict.fromkeys((*filters.TAILS, "thorough"), "scout"),
}

# what an arm needs after an hour of training is asked for before any arm begins
NEEDS: Final[dict[str, Callable[[], object]]] = {"none": load_tower, "thorough": lambda: dino(DATA)}


def run_cell(cell: Cell) -> None:
    """Train one arm, judge it, and leave `lines.json` last."""
    done = cell.out / "lines.json"
    if done.exists():
        return
    start = time.monotonic()
    lines = ARMS[cell.arm](cell)
    seconds = time.monotonic() - start
    judge = Judge(cell.held_out, cell.truth, list(cell.setting.attacks), cell.seed)
    if cell.weights.exists():
        lines += [{**found, "kind": "model"} for found in judge(cell.weights)]
    lines.append({"kind": "cost", "metric": "seconds", "attack": "", "share": seconds})
    part = done.with_suffix(".part")
    part.write_text(json.dumps([{"seed": cell.seed, "arm": cell.arm, **found} for found in lines]))
    part.replace(done)


def lines_of(folder: Path) -> pd.DataFrame:
    """Return the lines of all finished cells."""
    found = [line for path in sorted(folder.glob("seed-*/*/lines.json")) for line in json.loads(path.read_text())]
    return pd.DataFrame(found)
