"""One table of several grids: attack x data set x defence, with intervals and what each defence costs.

    python -m benchmarks.evidence.across "drawings=OUT1" "photographs=OUT2,OUT3"

OUT is what `python -m benchmarks.evidence OUT` has left, or several of the same data. A cell is the mean attack success over
seeds in %, and in brackets from the lowest lower to the highest upper end of the seeds' 95 % intervals (Clopper-Pearson).
"""

import argparse
import sys
from pathlib import Path
from typing import Final

import pandas as pd

from benchmarks.evidence.arms import BUILDS_ON, lines_of

ATTACKS: Final = {"tdpa": "TDPA", "patch": "patch", "blended": "Blended", "sig": "SIG", "colour": "tone curve"}
_HEAD: Final = ("defence, seeds", *ATTACKS.values(), "top-5; clean rows kept", "trainings; CPU-hours")
_MORE_TRAININGS: Final = {"CleanCLIP": 1.1, "scout of a third, look again": 1.33}


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grids", nargs="+", metavar="NAME=OUT[,OUT]")
    grids = dict(grid.partition("=")[::2] for grid in parser.parse_args().grids)
    rows = [row for name, folders in grids.items() for row in rows_of(name, [Path(folder) for folder in folders.split(",")])]
    print("\n".join(f"| {' | '.join(row)} |" for row in [_HEAD, ("---",) * len(_HEAD), *rows]))


def rows_of(name: str, folders: list[Path]) -> list[tuple[str, ...]]:
    """Return a line per defence that has a finished cell in one of the folders, in the order in which they were found.

    Raises:
        SystemExit: A folder has none, or two have the same cell.
    """
    parts = [lines_of(folder) for folder in folders]
    if empty := [str(folder) for folder, lines in zip(folders, parts, strict=True) if lines.empty]:
        raise SystemExit(f"{', '.join(empty)}: no finished cell")
    cells = pd.concat([lines[["seed", "arm"]].drop_duplicates() for lines in parts])
    if twice := cells[cells.duplicated()].to_dict("records"):
        raise SystemExit(f"{name}: in two of the folders: {twice}; give them names of their own")
    lines = pd.concat(parts)
    return [_row(name, str(arm), mine) for arm, mine in lines.groupby("arm", sort=False)]


def _row(name: str, arm: str, lines: pd.DataFrame) -> tuple[str, ...]:
    if "refused" in set(lines["metric"]):
        print(f"{name}, {arm}: refused in some seed, which the means leave out", file=sys.stderr)
    judged = lines[(lines["kind"] == "model") & (lines["metric"] == "asr")]
    success = (_interval(judged[judged["attack"] == attack]) for attack in ATTACKS)
    model = lines[lines["kind"] == "model"]
    top = model.loc[model["metric"] == "top-5", "share"].mean()
    # what the last round keeps; a filter has one
    rounds = lines[lines["metric"] == "clean kept"].groupby("seed", sort=False).tail(1)
    kept = f"; {100 * rounds['share'].mean():.0f} %" if len(rounds) else ""
    seeds = ", ".join(map(str, sorted(set(lines["seed"]))))
    trainings = _MORE_TRAININGS.get(arm, 2 if arm in BUILDS_ON or arm.startswith("scout") else 1)
    hours = lines.loc[lines["metric"] == "seconds", "share"].mean() / 3600
    return f"{name}: {arm} ({seeds})", *success, f"{100 * top:.1f}{kept}", f"{trainings:g}; {hours:.2f}"


def _interval(judged: pd.DataFrame) -> str:
    if judged.empty:
        return ""
    share, low, high = (100 * value for value in (judged["share"].mean(), judged["low"].min(), judged["high"].max()))
    return f"{share:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
