"""What is flagged where nothing is poisoned: shares by reason, what becomes of rare concepts, and pictures of the flagged rows.

    python -m benchmarks.studies.zero_poison OUT [--seed 0] [--passes 24]

Trains an undefended model on the bundled pairs as they are, and lets `pairsan clean` judge them by that model and a frozen
public encoder, with the limits of `benchmarks.evidence.signals_recall` and a scout's crowds. OUT/flagged-<reason>.webp shows
the first
rows of each reason; what is printed is kept in OUT/zero.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.common import header
from benchmarks.evidence.__main__ import TRAIN
from benchmarks.evidence.arms import run_cell
from benchmarks.evidence.arms.cell import Cell, Setting
from benchmarks.evidence.signals_recall import frozen_weights, scored

_EDGE, _COLUMNS, _SHOWN = 48, 12, 48
_SIZES: Final = ((1, 1), (2, 2), (3, 3), (4, 6), (7, 10**9))


def retention(rows: pd.DataFrame, sizes: np.ndarray) -> list[dict[str, Any]]:  # type: ignore[type-arg]
    """Return which share of the rows is safe, by how many rows their concept has."""
    safe = (rows["label"] == "safe").to_numpy()
    found = []
    for low, high in _SIZES:
        mine = (sizes >= low) & (sizes <= high)
        if mine.any():
            found.append({"rows of the concept": f"{low}-{high}" if high < 10**6 else f"{low}+", "rows": int(mine.sum())})
            found[-1] |= {"safe": float(safe[mine].mean()), "concepts lost": float(_lost(safe[mine], rows["concept"][mine]))}
    return found


def _lost(safe: np.ndarray, concepts: pd.Series) -> float:  # type: ignore[type-arg]
    """Return the share of concepts of which no row is safe."""
    return 1.0 - pd.Series(safe).groupby(concepts.to_numpy()).any().mean()


def sheet(pictures: list[np.ndarray], path: Path) -> None:  # type: ignore[type-arg]
    """Write pictures side by side."""
    lines = -(-len(pictures) // _COLUMNS)
    whole = Image.new("RGB", (_COLUMNS * _EDGE, lines * _EDGE), "white")
    for place, pixels in enumerate(pictures):
        whole.paste(Image.fromarray(pixels).resize((_EDGE, _EDGE)), (place % _COLUMNS * _EDGE, place // _COLUMNS * _EDGE))
    whole.save(path, quality=80)


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--passes", type=int, default=24)
    args = parser.parse_args()
    header("studies.zero_poison")
    cell = Cell(Setting(data="bundled", attacks=(), passes=args.passes, train=dict(TRAIN)), args.out, args.seed, "none")
    run_cell(cell)
    rows = scored(cell, frozen_weights(args.out), ["--crowded-tail", "0.02"])
    rows["concept"] = [row.label for row in cell.rows.rows]
    reasons = rows["reason"].astype(str).where(rows["label"] != "safe", "safe").value_counts(normalize=True)
    for reason in reasons.index.drop("safe", errors="ignore"):
        places = np.flatnonzero(rows["reason"].astype(str) == reason)[:_SHOWN]
        sheet([cell.rows.rows[place].pixels() for place in places], args.out / f"flagged-{reason}.webp")
    kept = retention(rows, cell.table["class_size"].to_numpy())
    (args.out / "zero.json").write_text(json.dumps({"reasons": reasons.to_dict(), "retention": kept}, indent=1))
    print(reasons.to_string())
    print(pd.DataFrame(kept).to_string(index=False))


if __name__ == "__main__":
    main()
