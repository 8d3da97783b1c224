"""Do further witnesses help beside those of `accord`? How fast a pair was learned, and the locked scorer.

    python -m benchmarks.evidence.signals_recall OUT --rate 0.01 --seeds 0 1      # first: data, signals and undefended model
    python -m benchmarks.studies.more_witnesses OUT --seeds 0 1 [--locked]

Trains the undefended model of `signals_recall` again, the same steps, and keeps its answers after some passes. A witness
`speed N` is the rank of negCLIPLoss at the end less that after pass N, low for pairs learned early; `pass N` is negCLIPLoss
after pass N itself; `two-sided N` how extreme the cosine was in either direction. `locked` is the cosine of the locked,
cross-fitted scorer of `pairsan run --scorer locked` (ten minutes a seed). Each joins the three of `accord` by Fisher, behind
the clusters of near copies; printed is the share of each attack within 10 % of the clean rows and its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.common import ROOT, header
from benchmarks.evidence.__main__ import TRAIN
from benchmarks.evidence.arms.cell import Cell, Setting
from benchmarks.evidence.detectors import neg_clip_loss
from benchmarks.evidence.signals_recall import MOST_COPIES, recalls
from benchmarks.evidence.training import MODEL, train
from manifests import open_round

PASSES: Final = (1, 2, 4, 6, 9)
BUDGET: Final = 0.1
Values = npt.NDArray[np.float64]


def ranks(values: Values) -> Values:
    """Return the share of values below each, in (0, 1)."""
    return (pd.Series(values).rank().to_numpy(np.float64) - 0.5) / len(values)


def answers(cell: Cell) -> dict[int, tuple[Values, Values]]:
    """Return cosine and negCLIPLoss of all rows after some passes, and at the end."""
    kept = cell.folder / f"seed-{cell.seed}" / "answers.npz"
    if not kept.exists():
        found: dict[str, Values] = {}
        weights = cell.folder / f"seed-{cell.seed}" / "answers.safetensors"

        def look(place: int, path: Path) -> None:
            if place in (*PASSES, cell.setting.passes):
                v, t = cell.rows.vectors(path, MODEL)
                found[str(place)] = np.stack([np.einsum("nd,nd->n", v, t), -neg_clip_loss(v, t, cell.seed)]).astype(np.float64)

        train(cell.shards, weights, cell.options, cell.num_steps, every=look, looks=cell.setting.passes)
        np.savez(kept, **found)
    with np.load(kept) as stored:
        return {int(name): (stored[name][0], stored[name][1]) for name in stored.files}


def locked(cell: Cell) -> Values:
    """Return the cosine of all rows by the locked scorer, cross-fitted over folds."""
    run, program = cell.folder / f"seed-{cell.seed}" / "locked", str(Path(sys.executable).parent / "pairsan")
    common = ["--model", MODEL.removeprefix("local-dir:"), "--executor", "local"]
    train = [f"--set={key}={value}" for key, value in TRAIN.items()]
    train += ["--scorer", "locked", "--warmup-passes", "6", "--rounds", "1", "--train-seed", str(cell.seed)]
    subprocess.run(
        [program, "run", str(cell.shards), "--until-round", "0", "--out", str(run), *common, *train], cwd=ROOT, check=True
    )
    if not list(run.glob("rounds/*/manifest.json")):
        scorer = [
            "--checkpoint",
            str(run / "checkpoints/scorer-0000.safetensors"),
            "--rule",
            "keep-share",
            "--keep-share",
            "0.5",
        ]
        subprocess.run([program, "rescore", str(run), *scorer, "--executor", "local"], cwd=ROOT, check=True)
    rows = cell.rows.join(open_round(run).to_pandas(["shard", "key", "label", "cosine"]))
    cosines: Values = rows["cosine"].to_numpy(np.float64)
    return cosines


def witnesses(cell: Cell, with_locked: bool) -> dict[str, Values]:
    """Return further witnesses by name; low values speak against a pair."""
    known = answers(cell)
    last = known[cell.setting.passes]
    found: dict[str, Values] = {"locked": locked(cell)} if with_locked else {}
    for place in PASSES:
        cosine, loss = known[place]
        found[f"speed {place}"] = ranks(last[1]) - ranks(loss)
        found[f"pass {place}"] = loss
        found[f"two-sided {place}"] = np.minimum(ranks(cosine), 1.0 - ranks(cosine))
    return found


def suspicions(cell: Cell, with_locked: bool) -> dict[str, Values]:
    """Return scores by method: `accord` as it is, each witness alone, and with it."""
    run = open_round(cell.folder / f"seed-{cell.seed}" / "none" / "signals")
    rows = pd.json_normalize(list(cell.rows.join(run.to_pandas(["shard", "key", "label", "signals"]))["signals"]))
    size = np.where(rows["near_copies"] > MOST_COPIES, rows["near_copies"], 0.0)
    own = [ranks(rows[name].to_numpy(np.float64)) for name in ("neg_clip_loss", "image_agreement", "reference_agreement")]

    def together(more: list[Values]) -> Values:
        doubt = -np.log([*own, *map(ranks, more)]).sum(axis=0)
        return np.where(size > 0, size, 0.0) + doubt / doubt.max()

    found = {"accord": together([])}
    for name, values in witnesses(cell, with_locked).items():
        found |= {f"{name} alone": -values, f"accord and {name}": together([values])}
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of signals_recall")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--locked", action="store_true")
    args = parser.parse_args()
    header("studies.more_witnesses")
    given = json.loads((args.out / "setting.json").read_text())
    setting = Setting(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
    lines = []
    for seed in args.seeds:
        cell = Cell(setting, args.out, seed, "none")
        attack = cell.table["attack"].to_numpy()
        for method, score in suspicions(cell, args.locked).items():
            for name in sorted(set(attack) - {""}):
                lines.append({"method": method, "attack": name, "share": recalls(attack, score, name)[BUDGET]})
    wide = pd.DataFrame(lines).pivot_table(index="method", columns="attack", values="share", sort=False)
    at_95, mean = (wide >= 0.95).sum(axis="columns"), wide.mean(axis="columns")
    table = (100 * wide.assign(mean=mean)).round().astype(int).assign(at_95=at_95)
    print(table.to_string())


if __name__ == "__main__":
    main()
