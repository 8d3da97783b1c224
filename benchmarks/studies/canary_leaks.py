"""Does what a split would do to canaries predict what it does to real poison? Over attacks, seeds and thresholds.

    python -m benchmarks.studies.canary_leaks OUT [--seeds 0 1 2]

OUT is a folder of `python -m benchmarks.evidence.signals_recall`, whose undefended models and poisoned data are used. The
data are
scored, with canaries and neighbour signals but no reference encoder, by the model that was trained on them, and by a
checkpoint that has seen the clean rows and none of the poison. For thresholds that keep 50 to 99 % of the
rows, by cosine and by accord, the leak of the canaries with foreign captions (mean of their kinds) is set beside the share of
each attack's rows that stay safe. OUT/leaks.parquet holds the points, OUT/leaks.svg shows them.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr

from benchmarks.common import ROOT, header
from benchmarks.evidence.arms.cell import SURROGATE, Cell, Setting
from benchmarks.evidence.training import MODEL
from manifests import open_round
from manifests.layout import read_plan, read_seal
from manifests.store import open_store
from pipeline.config.catalogue import ExecutorSettings
from pipeline.steps.canary_leaks import count_canaries
from pipeline.steps.plan import Round, read_run
from pipeline.steps.signals.asked import signal_parts
from pipeline.workers.connect import make_executor
from stages.score.canaries import FOREIGN, CanaryScores

SCORERS: Final = ("trained", "independent")
KEPT: Final = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)


def scored(cell: Cell, run: Path, checkpoint: list[str]) -> pd.DataFrame:
    """Score a cell's data with canaries; return cosine, accord and attack of all rows."""
    command = [
        str(Path(sys.executable).parent / "pairsan"),
        "clean",
        str(cell.shards),
        "--out",
        str(run),
        "--executor",
        "local",
    ]
    command += [*checkpoint, "--canaries", "1100"]
    command += ["--rule", "keep-share", "--keep-share", "1.0", "--signals", "all"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = cell.rows.join(open_round(run).to_pandas(["shard", "key", "label", "cosine", "signals"]))
    accord = [signals["accord"] for signals in rows["signals"]]
    return pd.DataFrame({"cosine": rows["cosine"], "accord": accord, "attack": cell.table["attack"]})


def canaries_of(run: Path) -> dict[str, CanaryScores]:
    """Return what is known of a run's canaries with foreign captions, by kind."""
    store = open_store(run)
    round_ = Round(store, 1, read_plan(store, 1), read_run(store).shards)
    executor = make_executor(ExecutorSettings(executor="local"), use_gpus=False)
    num_scored = int(read_seal(store, 1)["counts"]["scored"])
    found = count_canaries(executor, round_, signal_parts(round_, num_scored))
    return {kind: CanaryScores.joined(found[kind]) for kind in FOREIGN}


def points(cell: Cell, attack_success: dict[str, float], scorer: str) -> list[dict[str, Any]]:
    """Return one point per signal, threshold and attack."""
    run = cell.out / f"leaks-{scorer}"
    own = ["--model", MODEL.removeprefix("local-dir:"), "--checkpoint", str(cell.weights)]
    rows = scored(cell, run, own if scorer == "trained" else ["--checkpoint", SURROGATE])
    found, lines = canaries_of(run), []
    for signal in ("cosine", "accord"):
        values = rows[signal].to_numpy(np.float64)
        theirs = [scores.cosines if signal == "cosine" else scores.signals["accord"] for scores in found.values()]
        for kept in KEPT:
            cut = float(np.quantile(values, 1.0 - kept))
            predicted = float(np.mean([(kind >= cut).mean() for kind in theirs]))
            for attack, group in rows.groupby("attack"):
                real = float((group[signal] >= cut).mean())
                line = {
                    "scorer": scorer,
                    "seed": cell.seed,
                    "signal": signal,
                    "kept": kept,
                    "attack": attack,
                    "canaries": predicted,
                    "real": real,
                }
                lines.append({**line, "success": attack_success.get(str(attack))})
    return lines


def draw(found: pd.DataFrame, path: Path) -> None:
    """Draw the leak of canaries against that of poison, learned attacks apart."""
    mpl.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 4), sharey=True)
    for axis, ((scorer, signal), mine) in zip(axes, found[found["attack"] != ""].groupby(["scorer", "signal"]), strict=True):
        for learned, group in mine.groupby("learned"):
            axis.scatter(group["canaries"], group["real"], s=7, label="learned by the model" if learned else "not learned")
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.6)
        axis.set(
            title=f"{scorer}, by {signal}",
            xlabel="canaries that would be safe, share",
            ylabel="planted rows that stay safe, share",
        )
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Collect the points and say how they go together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    header("studies.canary_leaks")
    setting = Setting(**json.loads((args.out / "setting.json").read_text()))
    setting = dataclasses.replace(setting, attacks=tuple(setting.attacks))
    lines: list[dict[str, Any]] = []
    for seed in args.seeds:
        cell = Cell(setting, args.out, seed, "none")
        judged = json.loads((cell.out / "lines.json").read_text())
        success = {line["attack"]: line["share"] for line in judged if line["metric"] == "asr"}
        lines += [line for scorer in SCORERS for line in points(cell, success, scorer)]
    found = pd.DataFrame(lines)
    found["learned"] = (found["success"].fillna(0.0) >= 0.1) | found["attack"].isin(["natural", "mmpoison"])
    found.to_parquet(args.out / "leaks.parquet")
    draw(found, args.out / "leaks.svg")
    for (scorer, signal, learned), mine in found[found["attack"] != ""].groupby(["scorer", "signal", "learned"]):
        pearson, rank = pearsonr(mine["canaries"], mine["real"]), spearmanr(mine["canaries"], mine["real"])
        error = float((mine["real"] - mine["canaries"]).abs().mean())
        names = ", ".join(sorted(set(mine["attack"])))
        print(
            f"scored by {scorer}, by {signal}, {'learned' if learned else 'not learned'} ({names}): {len(mine)} points, ",
            end="",
        )
        print(f"Pearson {pearson.statistic:.2f}, Spearman {rank.statistic:.2f}, mean difference {error:.3f}")
    keys = ["scorer", "signal", "kept"]
    wide = found[found["kept"].isin([0.9, 0.95])].pivot_table(index=keys, columns="attack", values="real")
    print(wide.assign(canaries=found.groupby(keys)["canaries"].mean()).round(2).to_string())


if __name__ == "__main__":
    main()
