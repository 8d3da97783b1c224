"""Trainers that are not ours, between two re-scorings."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from conftest import EMOJI, ROOT

from manifests import Manifest, open_round

Pairsan = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, tiny: str, pairsan: Pairsan) -> Path:
    args = ("--checkpoint", tiny, "--out", tmp_path / "run", "--executor", "local", "--keep-share", 0.5)
    pairsan("clean", EMOJI / "eval", *args)
    return tmp_path / "run"


def rescore(pairsan: Pairsan, run: Path, pattern: str) -> Manifest:
    args = ("watch", run, "--checkpoints", pattern, "--once", "--settle", 0, "--growth", 0.05, "--executor", "local")
    assert "1 new checkpoints" in pairsan(*args).output
    return open_round(run)


def test_a_loop_of_ones_own_trains_on_the_newest_safe_rows(run: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    script = [sys.executable, str(ROOT / "examples" / "train_openclip.py"), str(run), str(EMOJI / "eval")]
    options = ["--model", f"local-dir:{tiny}", "--out", str(tmp_path / "logs"), "--batch-size", "100"]
    pattern = str(tmp_path / "logs/checkpoints/epoch_*.pt")
    done = subprocess.run([*script, *options], capture_output=True, text=True, check=True)
    assert "epoch 1: round 1, 7 steps" in done.stdout  # 703 safe rows
    second = rescore(pairsan, run, pattern)
    assert (second.number, second.seal["counts"]["labels"]["safe"]) == (2, 774)  # 55 % of 1,406 rows
    more = ["--resume", str(tmp_path / "logs/checkpoints/epoch_1.pt"), "--first-epoch", "2"]
    done = subprocess.run([*script, *options, *more], capture_output=True, text=True, check=True)
    assert "epoch 2: round 2, 7 steps" in done.stdout
    third = rescore(pairsan, run, pattern)
    assert third.number == 3
    hashes = [open_round(run, n).seal["plan"]["scores"]["model"]["state_sha256"] for n in (1, 2, 3)]
    assert len(set(hashes)) == 3


@pytest.mark.slow
def test_open_clip_train_runs_an_epoch_between_two_rescorings(run: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    """The real trainer of the open_clip_torch package, on a CSV of the safe rows that is made from the manifest."""
    listing = tmp_path / "safe.tsv"
    lines = ["filepath\ttitle"]
    for shard, safe in open_round(run).masks("safe"):
        with tarfile.open(EMOJI / "eval" / shard) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar]
        for row, is_safe in enumerate(safe):
            (name, image), (_, caption) = members[3 * row], members[3 * row + 1]
            if is_safe:
                (tmp_path / name).write_bytes(image)
                lines.append(f"{tmp_path / name}\t{caption.decode()}")
    listing.write_text("\n".join(lines) + "\n")
    options = {"train-data": listing, "dataset-type": "csv", "model": f"local-dir:{tiny}", "logs": tmp_path / "logs"}
    options |= {"name": "x", "epochs": 1, "batch-size": 64, "workers": 0, "lr": 1e-4, "warmup": 2, "device": "cpu"}
    options |= {"precision": "fp32", "save-frequency": 1}
    command = [sys.executable, "-m", "open_clip_train.main", *(f"--{key}={value}" for key, value in options.items())]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    second = rescore(pairsan, run, str(tmp_path / "logs/*/checkpoints/epoch_*.pt"))
    assert second.number == 2
    assert (
        second.seal["plan"]["scores"]["model"]["state_sha256"]
        != open_round(run, 1).seal["plan"]["scores"]["model"]["state_sha256"]
    )
    assert second.seal["safe_share"] == pytest.approx(0.55, abs=0.001)
