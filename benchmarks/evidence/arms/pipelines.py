"""Arms that are runs of `pairsan run`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.common import ROOT
from benchmarks.evidence.arms.cell import Cell, Setting
from benchmarks.evidence.arms.filters import filtered
from benchmarks.evidence.referee import Line, leakage, ranking
from benchmarks.evidence.training import MODEL
from benchmarks.photos.data import DATA, dino
from manifests import open_round
from manifests.errors import SplitRefused

_PAIRSAN: Final = str(Path(sys.executable).parent / "pairsan")
# the same image tower, in whose vectors crowds are sought, and a quarter of the text tower, which takes most of the time
SMALL: Final = str(ROOT / "benchmarks" / "evidence" / "scout_model")
SCOUT_SAFE: Final = 0.58  # of the rows, as its first run had it; sets the number of rounds
LOOKS: Final = ["--look-again", "1", "--sit-out-folds", "8"]
# a model that has hardly trained has all images nearly in one place: no cosine says there what a copy is; crowds are relative
CROWDS: Final = ["--look-again", "4", "--crowded-tail", "0.02", "--max-image-repeats", "2"]
ALL: Final = ["--scorer", "model", "--set", "matching_passes=0", "--keep-share", "1"]
PIPELINES: Final[dict[str, list[str]]] = {
    "published": ["--scorer", "model", "--first-matching", "slow", "--rule", "published", "--set", "order=sequential"],
    "slow": ["--scorer", "model", "--first-matching", "slow"],
    "locked": ["--scorer", "locked"],
    "scout": [],  # what `pairsan run` does by itself; until 27f36ca this was the next, and the default "scout, risky unimodal"
    "scout, risky skipped": ["--risky", "skip"],
    "scout, look again": ["--scorer", "scout", *LOOKS],
    "scout, small": ["--scorer", "scout", "--scout-model", SMALL],
    "scout, small, look again": ["--scorer", "scout", "--scout-model", SMALL, *LOOKS],
    "scout of a third, look again": ["--scorer", "scout", "--set", "scout_passes=8", *LOOKS, *CROWDS],
    "locked, look again": ["--scorer", "locked", *LOOKS, "--max-image-repeats", "2"],
    "all, look again": [*ALL, *LOOKS, *CROWDS],
    "all, look again every 2": [*ALL, *LOOKS, *CROWDS, "--look-again", "2"],
    "all, look again, a quarter longer": [*ALL, *LOOKS, *CROWDS, "--rounds", "29"],
    "all, look again every 12": [*ALL, *LOOKS, *CROWDS, "--look-again", "12"],
}


def pipeline_arm(cell: Cell) -> list[Line]:
    """Run `pairsan run` and look at every sealed round."""
    run = cell.out / "run"
    _borrow_scout(cell, run)
    command = [_PAIRSAN, "run", str(cell.shards), "--out", str(run)]
    command += run_options(cell.setting, cell.arm, cell.seed)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (cell.out / "log.txt").write_text(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    if done.returncode == SplitRefused.exit_code:  # a result, not a failure of the benchmark
        return [{"kind": "round", "metric": "refused", "attack": "", "share": 1.0, "detail": done.stderr[-300:]}]
    if done.returncode:
        raise SystemExit(f"{cell.arm} ended with {done.returncode}: {done.stderr[-1000:]}")
    return _rounds(cell, run)


def run_options(setting: Setting, arm: str, seed: int) -> list[str]:
    """Return the options by which `pairsan run` is an arm."""
    flags: dict[str, Any] = {
        "model": MODEL.removeprefix("local-dir:"),
        "executor": "local",
        **(_scout_flags(setting, arm) if arm.startswith("scout") else _growing_flags(setting, arm)),
        "train_seed": seed,
        **setting.train,
    }
    return [*(f"--set={key}={value}" for key, value in flags.items()), *PIPELINES[arm], *setting.run_options]


def _borrow_scout(cell: Cell, run: Path) -> None:
    """Take over the scout of `scout`, where that has run: same data, seed and settings, so the same weights."""
    lent = cell.folder / f"seed-{cell.seed}" / "scout" / "run" / "checkpoints"
    if cell.arm.startswith("scout, look again") and lent.exists() and not run.exists():
        (run / "checkpoints").mkdir(parents=True)
        for name in ("scout-state.safetensors", "scout-0000.safetensors", "train.json"):
            (run / "checkpoints" / name).write_bytes((lent / name).read_bytes())


def _growing_flags(setting: Setting, arm: str) -> dict[str, Any]:
    if arm.startswith("all"):
        return {"rounds": setting.passes - 1, "warmup_passes": 1}
    fallback = {"rule": "monotone", "if_unseparable": "quantile", "fallback_share": setting.first_share}
    return {
        "rounds": setting.passes - setting.warmup_passes,
        "warmup_passes": setting.warmup_passes,
        **({} if arm == "published" else fallback),
        "growth": setting.growth,
        "cap": setting.cap,
    }


def _scout_flags(setting: Setting, arm: str) -> dict[str, Any]:
    """Return rounds by which the model that stays sees as many pairs as any other arm's; the scout's are an extra cost."""
    seen = SCOUT_SAFE if "skip" in PIPELINES[arm] else 1.0
    return {"rounds": round(setting.passes / seen), "scout_passes": setting.scout_passes}


def _rounds(cell: Cell, run: Path) -> list[Line]:
    found: list[Line] = []
    ever = np.zeros(len(cell.table), bool)
    trained = [entry for entry in json.loads((run / "checkpoints" / "history.json").read_text()) if entry["kind"] == "round"]
    for entry in trained:
        manifest = open_round(run, entry["manifest"])
        rows = cell.rows.join(manifest.to_pandas(["shard", "key", "label", "cosine"]))
        safe = (rows["label"] == "safe").to_numpy()
        ever |= safe
        lines = [*leakage(cell.table, safe), *({**x, "metric": f"ever {x['metric']}"} for x in leakage(cell.table, ever))]
        found += [{**x, "kind": "round", "round": entry["round_number"], "cut": manifest.seal["cut"]} for x in lines]
        if entry in (trained[0], trained[-1]):
            name = "first" if entry is trained[0] else "last"
            rows.assign(attack=cell.table["attack"])[["attack", "cosine", "label"]].to_parquet(cell.out / f"{name}.parquet")
            ranks = ranking(cell.table, -rows["cosine"].to_numpy(np.float64))
            found += [{**x, "kind": "ranking", "round": entry["round_number"]} for x in ranks]
    last = run / "checkpoints" / f"round-{trained[-1]['round_number']:04d}.safetensors"
    cell.weights.write_bytes(last.read_bytes())
    return found


def profile_arm(cell: Cell) -> list[Line]:
    """Train on what `--profile thorough` leaves safe, by a model that was trained on everything, and DINOv2-S as reference."""
    run, weights = cell.out / "run", cell.of("scout") / "run" / "checkpoints" / "scout-0000.safetensors"
    command = [_PAIRSAN, "clean", str(cell.shards), "--out", str(run), "--executor", "local"]
    command += ["--profile", "thorough", "--canaries", "0"]
    command += ["--checkpoint", str(weights), "--model", MODEL.removeprefix("local-dir:")]
    command += ["--reference-encoder", "timm:vit_small_patch16_224", "--reference-checkpoint", str(dino(DATA))]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = cell.rows.join(open_round(run).to_pandas(["shard", "key", "label"]))
    return filtered(cell, (rows["label"] == "safe").to_numpy())
