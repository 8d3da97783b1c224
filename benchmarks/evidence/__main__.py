"""The evidence: attacks, defences and controls, on the same data, model, seeds and number of pairs seen.

    python -m benchmarks.evidence OUT --quick            # one seed, three defences, under 25 minutes on 2 cores
    python -m benchmarks.evidence OUT                    # the grid, hours; goes on where it was interrupted
    python -m benchmarks.evidence OUT --report           # only write the report of what is there

Cells run as processes of one thread each, --jobs at a time. OUT/results.parquet holds one line per figure, OUT/report.html and
OUT/report.md show them.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.common import header
from benchmarks.evidence.arms import ARMS, BUILDS_ON, NEEDS, lines_of, run_cell
from benchmarks.evidence.arms.cell import Cell, Setting
from benchmarks.evidence.report import write_report

ATTACKS: Final = (
    "tdpa:targets=100,rows=8",
    "patch:rows=350",
    "blended:rows=300,share=0.25",
    "sig:rows=350,amplitude=35",
    "colour:rows=280",
)
TRAIN: Final = {
    **{"train_batch_size": 128, "learning_rate": 2e-3, "least_crop": 0.85, "pool_size": 512},
    **{"p_caption_change": 0.0, "colour_strength": 0.0},
}
QUICK_ARMS: Final = ("none", "scout", "random filter")


def settings(args: argparse.Namespace) -> Setting:
    """Return what all cells share; --option changes single fields."""
    base = Setting(data="bundled", attacks=ATTACKS, passes=24, warmup_passes=6, cap=0.3, keep=0.3, train=dict(TRAIN))
    if args.quick:
        base = dataclasses.replace(base, warmup_passes=5)
    given = {key: json.loads(value) for key, _, value in (option.partition("=") for option in args.option)}
    train = {**base.train, **given.pop("train", {})}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return dataclasses.replace(base, train=train, **given)


def keep_settings(out: Path, setting: Setting) -> None:
    """Write the settings, or refuse to go on with others."""
    path, mine = out / "setting.json", json.dumps(dataclasses.asdict(setting), indent=1, sort_keys=True)
    if path.exists() and path.read_text() != mine:
        raise SystemExit(f"{out} was begun with other settings (setting.json); give another folder")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(mine)


def run_grid(args: argparse.Namespace, arms: list[str]) -> None:
    """Run every cell that is not finished, `--jobs` at a time, in the order of seeds and arms."""
    todo = [(seed, arm) for seed in args.seeds for arm in arms]
    running: list[tuple[subprocess.Popen[bytes], int, str, float]] = []
    finished = {(seed, arm) for seed in args.seeds for arm in ARMS if (args.out / f"seed-{seed}" / arm / "lines.json").exists()}
    waiting = [cell for cell in todo if cell not in finished]
    for arm in NEEDS.keys() & {arm for _, arm in waiting}:
        NEEDS[arm]()
    while waiting or running:
        for entry in [entry for entry in running if entry[0].poll() is not None]:
            running.remove(entry)
            process, seed, arm, start = entry
            if process.returncode:
                raise SystemExit(f"seed {seed}, {arm}: failed; its message stands above")
            print(f"seed {seed}, {arm}: {time.monotonic() - start:.0f} s", flush=True)
            finished.add((seed, arm))
        busy = {seed: {arm for _, s, arm, _ in running if s == seed} for seed in args.seeds}
        ready = [cell for cell in waiting if _can_start(args.out, cell, finished, busy)]
        if waiting and not ready and not running:
            raise SystemExit(f"{waiting} build on arms that are not asked for and have not run; add them to --arms")
        if len(running) < args.jobs and ready:
            waiting.remove(ready[0])
            seed, arm = ready[0]
            options = [f"--option={option}" for option in args.option] + ["--quick"] * args.quick
            command = [sys.executable, "-m", "benchmarks.evidence", str(args.out), "--cell", str(seed), arm, *options]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            running.append((subprocess.Popen(command, env=env), seed, arm, time.monotonic()))
        time.sleep(0.5)


def _can_start(out: Path, cell: tuple[int, str], finished: set[tuple[int, str]], busy: dict[int, set[str]]) -> bool:
    """Return whether what a cell builds on is done, and nobody is poisoning its data just now."""
    seed, arm = cell
    if arm in BUILDS_ON and (seed, BUILDS_ON[arm]) not in finished:
        return False
    return not busy[seed] or (out / f"seed-{seed}" / "data" / "truth.parquet").exists()  # is written last


def main() -> None:
    """Run the grid, or one cell of it, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--option", action="append", default=[], metavar="FIELD=JSON", help="change a field of the setting")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    setting = settings(args)
    if args.cell:
        run_cell(Cell(setting, args.out, int(args.cell[0]), args.cell[1]))
        return
    start = time.monotonic()
    if not args.report:
        keep_settings(args.out, setting)
        header("evidence")
        run_grid(args, list(args.arms or (QUICK_ARMS if args.quick else ARMS)))
    lines = lines_of(args.out)
    if lines.empty:
        raise SystemExit(f"{args.out} holds no finished cell yet")
    lines.to_parquet(args.out / "results.parquet")
    write_report(args.out, lines, json.loads((args.out / "setting.json").read_text()), time.monotonic() - start)
    print(f"report: {args.out.absolute()}/report.html")


if __name__ == "__main__":
    main()
