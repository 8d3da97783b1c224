"""Can canaries choose the learning rate of the slow first pass? What they say of it against what real poison does.

    python -m benchmarks.studies.slow_rates OUT [--rates 5e-6 2e-5 8e-5 3e-4 1e-3]

Five attacks of the evidence among the bundled pairs. For every rate: the paper's warm-up (unimodal passes, then a slow pass of
the whole model), then all pairs and 2,000 canaries of each kind are scored with it. Printed is, at the best 10 and 30 % of all
rows, which share of the canaries and of each attack's rows is among them; by chance it would be 10 and 30 %.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from benchmarks.common import ROOT, header
from benchmarks.evidence.__main__ import ATTACKS, TRAIN
from benchmarks.evidence.arms.cell import Cell, Setting
from benchmarks.evidence.training import MODEL
from manifests import open_round

RATES: Final = (5e-6, 2e-5, 8e-5, 3e-4, 1e-3)
KEPT: Final = (0.1, 0.3)
_FLAGS: Final = (
    "--scorer",
    "model",
    "--first-matching",
    "slow",
    "--warmup-passes",
    "5",
    "--rounds",
    "1",
    "--executor",
    "local",
)


def pairsan(*args: object) -> None:
    """Run one command of ours."""
    subprocess.run([str(Path(sys.executable).parent / "pairsan"), *map(str, args)], cwd=ROOT, check=True, capture_output=True)


def scored(cell: Cell, out: Path, rate: float) -> Path:
    """Warm up with a rate and score; return the run."""
    run = out / f"rate-{rate:g}"
    train = [f"--set={key}={value}" for key, value in TRAIN.items()]
    pairsan(
        "run",
        cell.shards,
        "--until-round",
        0,
        "--out",
        run,
        "--model",
        MODEL.removeprefix("local-dir:"),
        *_FLAGS,
        *train,
        "--set",
        f"slow_learning_rate={rate}",
    )
    if not (run / "rounds/0001/manifest.json").exists():
        weights = run / "checkpoints/round-0000.safetensors"
        pairsan(
            "rescore",
            run,
            "--checkpoint",
            weights,
            "--canaries",
            2000,
            "--rule",
            "keep-share",
            "--keep-share",
            0.1,
            "--if-unseparable",
            "accept",
        )
    return run


def line(cell: Cell, run: Path, rate: float) -> dict[str, float]:
    """Return the shares of canaries and attacks among the best rows, and how well true pairs stand out from canaries."""
    rows = cell.rows.join(open_round(run).to_pandas(["shard", "key", "label", "cosine"]))
    parts = sorted((run / "rounds/0001/canaries").rglob("*.parquet"))
    canaries = pd.concat([pq.read_table(part, columns=["kind", "cosine"]).to_pandas() for part in parts])
    attack, found = cell.table["attack"].to_numpy(), {"rate": rate}
    foreign = canaries.loc[canaries["kind"] == "mismatched", "cosine"].to_numpy()
    own = rows.loc[attack == "", "cosine"].to_numpy()
    found["true above canary"] = float(np.mean(np.searchsorted(np.sort(foreign), own) / len(foreign)))
    for kept in KEPT:
        cut = np.quantile(rows["cosine"], 1.0 - kept)
        for kind in ("mismatched", "patch"):
            found[f"{kind} canaries, {kept:.0%}"] = float((canaries.loc[canaries["kind"] == kind, "cosine"] >= cut).mean())
        for name in sorted(set(attack) - {""}):
            found[f"{name}, {kept:.0%}"] = float((rows.loc[attack == name, "cosine"] >= cut).mean())
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    header("studies.slow_rates")
    cell = Cell(Setting(data="bundled", attacks=ATTACKS, train=dict(TRAIN)), args.out, args.seed, "slow pass")
    table = pd.DataFrame([line(cell, scored(cell, args.out, rate), rate) for rate in args.rates])
    print((100 * table.set_index("rate")).round(1).T.to_string())


if __name__ == "__main__":
    main()
