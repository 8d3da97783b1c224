"""A look that is taken on other workers while a round trains, and what is left when either side dies."""

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from conftest import EMOJI, SMALL_MODEL, make_tar, parts_of
from raylets import in_a_process

from manifests import open_round

pytestmark = [pytest.mark.whole]

Pairsan = Callable[..., Result]
# the first matching trains the model itself, on all pairs, so that there is something to look with after seconds
SETTINGS = {
    **{"model": SMALL_MODEL, "scorer": "model", "warmup_passes": 1, "matching_passes": 1, "slow_learning_rate": 2e-3},
    **{
        "rounds": 4,
        "train_batch_size": 32,
        "keep_share": 0.4,
        "if_unseparable": "accept",
        "growth": 0.05,
        "sit_out_folds": 4,
        "look_again": 1,
    },
    **{"learning_rate": 1e-3, "least_crop": 0.85, "alpha": 0.5, "max_p_mismatch": 0.9},
}
GIVEN = [*(f"--set={name}={value}" for name, value in SETTINGS.items()), "--overlap", "--workers", "1"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums of several threads differ in the last bits from run to run


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three tars of 156 real pairs each."""
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(EMOJI / "eval" / "00000.tar.gz") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    for shard in range(3):
        (folder / f"{shard}.tar").write_bytes(make_tar(members[shard * 468 : (shard + 1) * 468]))
    return folder


def run(data: Path, out: Path) -> "subprocess.Popen[str]":
    command = [str(Path(sys.executable).parent / "pairsan"), "run", str(data), "--out", str(out), *GIVEN]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ONE_THREAD)


def labels_and_weights(out: Path) -> dict[str, bytes]:
    parts = {name: data for name, data in parts_of(out).items() if "/manifest/" in name or name.startswith("checkpoints/round")}
    assert len(parts) == 3 * 3 + 5  # three shards in three sealed rounds; the weights of all rounds and of the warm-up
    return parts


def test_overlap_needs_workers_and_looks(few: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    command = ("run", few, "--out", tmp_path / "run", "--model", SMALL_MODEL, "--overlap")
    failed = pairsan(*command, "--look-again", 1, "--executor", "local", code=2)
    assert "--overlap looks on Ray's workers while this process trains; it needs --executor ray" in failed.output
    assert "overlap = True has no effect: it acts with look_again set" in pairsan(*command, code=2).output


@pytest.mark.slow
def test_a_look_goes_on_beside_training_and_either_side_may_be_lost(shards: Path, tmp_path: Path) -> None:
    whole, cut, lost = (tmp_path / name for name in ("whole", "cut", "lost"))
    output, _ = (process := run(shards, whole)).communicate(timeout=400)
    assert process.returncode == 0, output
    history = [e for e in json.loads((whole / "checkpoints/history.json").read_text()) if e["kind"] == "round"]
    assert [entry["manifest"] for entry in history] == [1, 1, 2, 3]  # the look before round 2 would have untrained weights
    seals = [open_round(whole, number).seal for number in (2, 3)]
    assert all(seal["voices"]["taken_back"] > 0 for seal in seals)
    assert [(seal["before"], seal["trained_on"]) for seal in seals] == [(1, None), (2, 1)]
    when = [(whole / name).stat().st_mtime for name in ("rounds/0002/plan.json", "checkpoints/round-0002.safetensors")]
    assert when[0] < when[1]  # planned before the round beside it had trained

    driver, deadline = run(shards, cut), time.monotonic() + 240
    while not (cut / "rounds/0002/plan.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    driver.kill()
    driver.communicate()
    assert not (cut / "rounds/0002/manifest.json").exists()
    output, _ = (driver := run(shards, cut)).communicate(timeout=400)
    assert driver.returncode == 0, output
    assert labels_and_weights(cut) == labels_and_weights(whole)

    body = f"""
    import torch
    from pipeline.config.load import load_config
    from pipeline.training import loop

    torch.set_num_threads(1)
    made, nodes = cluster(0, 1, 1)
    settings = { ({**SETTINGS, "overlap": True, "model": str(SMALL_MODEL)})!r}
    config, out = load_config(None, settings, command="run"), Path({str(lost)!r})
    thread = threading.Thread(target=loop.run, args=([{str(shards)!r}], str(out), config), daemon=True)
    thread.start()
    while not list(out.glob("rounds/0002/scores/*")):
        time.sleep(0.01)
    made.remove_node(nodes[0], allow_graceful=False)
    thread.join()
    """
    in_a_process(body, tmp_path, 1, timeout_s=400)
    assert labels_and_weights(lost) == labels_and_weights(whole)
