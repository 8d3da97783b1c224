"""What scouts of other seeds find that one has only half learned, and whether taught canaries tell of it.

    python -m benchmarks.studies.scouts OUT --data photos --seeds 0 1 --models 2 [--taught 0.03] [--jobs 2]

For every seed of the data: plants the attacks of `benchmarks.evidence` once, trains several models on all of it that differ in
their own seed alone, and asks each for its crowds. First table: rows of each attack that a model's crowds leave (its attack
success in brackets), what any of several models finds, and the clean rows that are flagged: by k neighbours, by half of them
too, and by k and what doubted pairs look like. With `--taught`, the models
are taught eight backdoors of that share besides (`stages.train.taught`), and the second table says how many rows of those the
crowds show. `--attacks` without any attack gives what happens where nothing is planted.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.attacks.world import Row, encode_like
from benchmarks.common import header
from benchmarks.evidence.__main__ import ATTACKS, TRAIN
from benchmarks.evidence.arms.cell import Cell, Setting
from benchmarks.evidence.data import write_rows
from benchmarks.evidence.detectors import cut_of
from benchmarks.evidence.judging import Judge
from benchmarks.evidence.rows import PoisonedRows
from benchmarks.evidence.training import MODEL, train
from stages.pair import make_uid
from stages.score.looks import looks
from stages.signals.neighbourhood import Nearby, Neighbourhood
from stages.signals.sample import Reference
from stages.signals.witnesses.accord import Accord, Rows
from stages.signals.witnesses.suspects import Suspects
from stages.train.taught import Lessons, lessons_of

WAYS: Final = ("k", "k, k/2", "k, looks")  # lessons, which no sample of the data holds, are asked of crowds alone
TAIL, LOOK_TAIL = 0.02, 0.05
AGREEMENT_ROWS, NEIGHBOURS = 16384, 8
SAMPLED: Final = 4096
Vectors = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


class Scout(Cell):
    """One model of a seed of the data; its weights depend on both, and on what it is taught."""

    def __init__(self, setting: Setting, folder: Path, seed: int, model: int, share: float) -> None:
        """Plant what is to be planted, unless that was done."""
        super().__init__(setting, folder, seed, f"model-{model}" + (f"-taught-{share:g}" if share else ""))
        self.model, self.share = model, share
        self.options = self.options.model_copy(update={"train_seed": seed + 1000 * model})

    @property
    def lessons(self) -> Lessons | None:
        """What it is taught."""
        captions = [row.caption for row in self.rows.rows[:SAMPLED]]
        return lessons_of(captions, self.share, self.options.seed) if self.share else None

    def run(self) -> None:
        """Train it, keep its vectors and what it answers."""
        done, lessons = self.out / "lines.json", self.lessons
        if done.exists():
            return
        train(self.shards, self.weights, self.options, self.num_steps, lessons=lessons)
        v, t = self.rows.vectors(self.weights, MODEL)
        np.savez(self.out / "vectors.npz", v=v, t=t)
        if lessons is not None:
            numbers, shards = _write_taught(self.rows, lessons, self.out / "taught")
            v, t = PoisonedRows(shards).vectors(self.weights, MODEL)
            np.savez(self.out / "taught.npz", v=v, t=t, number=numbers)
        judge = Judge(self.held_out, self.truth, list(self.setting.attacks), self.seed)
        done.write_text(json.dumps(judge(self.weights)))


def _write_taught(rows: PoisonedRows, lessons: Lessons, folder: Path) -> tuple[npt.NDArray[np.int64], Path]:
    """Write the rows that were taught as they were shown; return the number of each one's lesson, and where they lie."""
    shown = [(row, lessons.of(make_uid(row.shard, row.key))) for row in rows.rows]
    used = [(row, taught) for row, taught in shown if taught is not None]
    write_rows(
        folder,
        [
            Row(f"{place:08d}", encode_like(taught.lesson.change(row.pixels()), b""), taught.caption, row.label)
            for place, (row, taught) in enumerate(used)
        ],
    )
    return np.asarray([taught.number for _, taught in used]), folder


def crowded(v: Vectors, t: Vectors, k: int, num: int, seed: int, taught: Vectors | None) -> tuple[list[Flags], list[Flags]]:
    """Return which rows a scout's cut calls crowded, (n,), and which taught canaries, (m,): by k neighbours, and by k/2 too.

    The canaries are judged as if they were rows: a part of them is in their sample, as large as that of the rows in theirs.
    """
    rng, hashes = np.random.default_rng(seed), np.arange(len(v))
    chosen = np.sort(rng.choice(len(v), min(num, len(v)), replace=False))
    sample = Reference(hashes[chosen], v[chosen], t[chosen])
    near = Neighbourhood(sample, k)(v, t, hashes)
    cuts = [cut_of(near.outlier, TAIL), cut_of(near.half_outlier, TAIL)]
    if taught is None:
        return _flags(near, cuts), [np.zeros(0, bool)] * 2
    theirs = len(v) + np.arange(len(taught))
    some = rng.random(len(taught)) < len(chosen) / len(v)
    both = sample.with_rows(Reference(theirs[some], taught[some], taught[some]))
    return _flags(near, cuts), _flags(Neighbourhood(both, k)(taught, taught, theirs), cuts)


def suspect(v: Vectors, t: Vectors, rows: PoisonedRows, seed: int) -> Flags:
    """Return which rows are suspect by their looks, (n,), as a scout's round judges them without copies among its limits."""
    images = np.unique([hashlib.sha256(row.image).hexdigest() for row in rows.rows], return_inverse=True)[1].astype(np.int64)
    seen = np.concatenate([looks(row.pixels()[None]) for row in rows.rows])
    drawn = np.random.default_rng(seed).permutation(len(v))[:AGREEMENT_ROWS]
    chosen = drawn[np.sort(np.unique(images[drawn], return_index=True)[1])]
    accord = Accord(Reference(images[chosen], v[chosen], t[chosen]), NEIGHBOURS, None)
    suspects = Suspects(images[chosen], seen[chosen], accord.own)
    return suspects(images, seen, accord(Rows(v, t, images)).accord) < LOOK_TAIL


def _flags(near: Nearby, cuts: list[float]) -> list[Flags]:
    whole = (near.outlier < cuts[0]) | (near.neighbour_outlier < cuts[0])
    return [whole, whole | (near.half_outlier < cuts[1]) | (near.neighbour_half_outlier < cuts[1])]


def lines(scouts: list[Scout], k: int, num: int, way: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what each model and several together leave, in rows of each attack, and what each shows of its lessons."""
    attack, seed = scouts[0].table["attack"].to_numpy(), scouts[0].seed
    names, clean = sorted(set(attack) - {""}), attack == ""
    flags, found, lessons = [], [], []
    for scout in scouts:
        kept = np.load(scout.out / "vectors.npz")
        taught = np.load(scout.out / "taught.npz") if scout.share else None
        both = crowded(kept["v"], kept["t"], k, num, seed, None if taught is None else taught["v"])
        mine, theirs = (part[way == WAYS[1]] for part in both)
        if way == WAYS[2]:
            mine = mine | suspect(kept["v"], kept["t"], scout.rows, seed)
        flags.append(mine)
        judged = json.loads((scout.out / "lines.json").read_text())
        success = {line["attack"]: line["share"] for line in judged if line["metric"] == "asr"}
        line = {
            "data": seed,
            "models": str(scout.model),
            "by": way,
            "clean flagged %": 100 * mine[clean].mean(),
        }
        line |= {name: f"{int((~mine)[attack == name].sum())} ({100 * success[name]:.0f} %)" for name in names}
        found.append(line | {"top-5": next((line["share"] for line in judged if line["metric"] == "top-5"), None)})
        if taught is not None and scout.lessons is not None:
            for number, lesson in enumerate(scout.lessons.lessons):
                here = taught["number"] == number
                line = {"data": seed, "model": scout.model, "trigger": lesson.trigger, "target": lesson.target}
                line |= {"captions": len(lesson.captions), "rows": int(here.sum()), "by": way}
                lessons.append(line | {"found %": 100 * theirs[here].mean()})
    for together in range(2, len(scouts) + 1):
        for chosen in itertools.combinations(range(len(scouts)), together):
            either = np.any([flags[number] for number in chosen], axis=0)
            line = {
                "data": seed,
                "models": "+".join(map(str, chosen)),
                "by": way,
                "clean flagged %": 100 * either[clean].mean(),
            }
            found.append(line | {name: str(int((~either)[attack == name].sum())) for name in names})
    return found, lessons


def main() -> None:
    """Train what is missing, `--jobs` processes of one thread at a time, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="photos", choices=("bundled", "emoji", "full", "photos", "photos-5"))
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--passes", type=int, default=24)
    parser.add_argument("--taught", type=float, default=0.0)
    parser.add_argument("--neighbours", type=int, default=64)
    parser.add_argument("--sample", type=int, default=8192)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    setting = Setting(data=args.data, attacks=tuple(args.attacks), passes=args.passes, train=dict(TRAIN))
    if args.one:
        Scout(setting, args.out, *args.one, args.taught).run()
        return
    header("studies.scouts")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "setting.json").write_text(json.dumps(dataclasses.asdict(setting), indent=1))
    scouts = {seed: [Scout(setting, args.out, seed, model, args.taught) for model in range(args.models)] for seed in args.seeds}
    _run([scout for mine in scouts.values() for scout in mine], args.jobs)
    tables = [lines(mine, args.neighbours, args.sample, way) for way in WAYS for mine in scouts.values()]
    with pd.option_context("display.width", 250, "display.max_columns", 40, "display.max_rows", 200):
        for found in (list(itertools.chain.from_iterable(part)) for part in zip(*tables, strict=True)):
            if found:
                print(pd.DataFrame(found).to_string(index=False, float_format="{:.3g}".format))


def _run(scouts: list[Scout], jobs: int) -> None:
    todo = [scout for scout in scouts if not (scout.out / "lines.json").exists()]
    command = [sys.executable, "-m", "benchmarks.studies.scouts", *sys.argv[1:], "--one"]
    for start in range(0, len(todo), jobs):
        running = [
            subprocess.Popen([*command, str(scout.seed), str(scout.model)], env={**os.environ, "OMP_NUM_THREADS": "1"})
            for scout in todo[start : start + jobs]
        ]
        if max(process.wait() for process in running):
            raise SystemExit("a model failed; its message stands above")


if __name__ == "__main__":
    main()
