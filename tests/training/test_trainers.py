"""Trainers that are not ours, between two re-scorings."""

import os
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from conftest import EMOJI, ROOT, make_tar, wait_for

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


def begin(*command: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_trainer_of_ones_own_and_a_watcher_wait_for_each_other_and_may_both_be_killed(
    tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    run, data, logs = tmp_path / "run", tmp_path / "data", tmp_path / "logs"
    data.mkdir()
    with tarfile.open(EMOJI / "eval" / "00000.tar.gz") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m, _ in zip(tar, range(900), strict=False)]
    for shard in range(3):
        (data / f"{shard}.tar").write_bytes(make_tar(members[shard * 300 : (shard + 1) * 300]))
    pairsan("clean", data, "--checkpoint", tiny, "--out", run, "--executor", "local", "--keep-share", 0.5)
    options = shlex.split(f"--model local-dir:{tiny} --out {logs} --batch-size 25 --rounds 3 --patience 120 --lr 1e-5")
    trainer = (sys.executable, ROOT / "examples" / "own_trainer.py", run, data, *options)
    rule = shlex.split("--rule look-again --growth 0.02 --sit-out-folds 4 --executor local --every 0.2 --settle 0")
    watcher = (Path(sys.executable).parent / "pairsan", "watch", run, "--checkpoints", f"{logs}/epoch_*.pt", *rule)
    running = [begin(*trainer), begin(*watcher)]
    try:
        wait_for(logs / "epoch_1.pt")
        for process in running:
            process.kill()
            process.wait()
        running = [begin(*trainer), begin(*watcher)]
        assert running[0].wait(300) == 0
        wait_for(run / "rounds/0004/manifest.json")
    finally:
        for process in running:
            process.kill()
            process.wait()
    seals = [open_round(run, number).seal for number in (1, 2, 3, 4)]
    assert len({seal["plan"]["scores"]["model"]["state_sha256"] for seal in seals}) == 4
    assert [seal["before"] for seal in seals] == [None, 1, 2, 3]
    assert all(seal["sitting_out"] > 10 for seal in seals[1:])
    assert all(seal["separation"] > 0.7 for seal in seals[1:])


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
