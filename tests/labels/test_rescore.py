"""Rounds after the first: other weights, a growing share, and a watcher that trainers do not know of."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from conftest import EMOJI, TINY, wait_for
from filelock import FileLock
from safetensors.torch import load_file, save_file

from manifests import Manifest, open_round
from manifests.errors import RunError
from pipeline.config.catalogue import RunConfig
from pipeline.config.load import load_config
from pipeline.rounds import rescore
from pipeline.watching import Watch, checkpoints, is_complete
from stages.train.learner import new_model

Pairsan = Callable[..., Result]


@pytest.fixture
def run(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> Path:
    out = tmp_path / "run"
    args = ("clean", crawl, "--checkpoint", tiny, "--out", out, "--executor", "local", "--keep-share", 0.3, "--keep-embeddings")
    pairsan(*args)
    return out


@pytest.fixture
def weights(tiny: str, tmp_path: Path) -> Callable[[int], Path]:
    """Writer of other weights, as open_clip_train writes them: epoch_N.pt, named and prefixed like under DDP."""
    state = load_file(Path(tiny) / "open_clip_model.safetensors")
    folder = tmp_path / "logs" / "x" / "checkpoints"
    folder.mkdir(parents=True)

    def write(epoch: int) -> Path:
        scale = torch.tensor(1 + 0.1 * epoch, dtype=torch.float16)
        changed = {
            **state,
            "text_projection": state["text_projection"] * scale,
            "ln_final.bias": state["ln_final.bias"] + 0.05 * epoch,
        }
        path = folder / f"epoch_{epoch}.pt"
        torch.save({"epoch": epoch, "state_dict": {f"module.{k}": v for k, v in {**state, **changed}.items()}}, path)
        os.utime(path, (time.time() - 60, time.time() - 60 + epoch % 10))
        return path

    return write


def safe_shares(run: Path) -> list[float]:
    numbers = range(1, 1 + len(list((run / "rounds").iterdir())))
    return [round(open_round(run, number).seal["safe_share"], 3) for number in numbers]


def test_other_weights_make_a_new_round_once(
    run: Path, weights: Callable[[int], Path], pairsan: Pairsan, tmp_path: Path
) -> None:
    path = weights(1)
    pairsan("rescore", run, "--checkpoint", path, "--growth", 0.1)
    assert open_round(run).number == 2
    assert open_round(run).seal["plan"]["scores_round"] == 2
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    pairsan("rescore", run, "--checkpoint", path, "--growth", 0.2)  # idempotent per checkpoint, whatever else is asked
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    assert "all as sealed" in pairsan("verify", run).output
    first, second = (open_round(run, n).to_pandas(["uid", "cosine"]) for n in (1, 2))
    assert (first.uid == second.uid).all()
    assert (first.cosine - second.cosine).abs().max() > 1e-3


def test_the_safe_share_grows_by_a_step_up_to_the_cap(run: Path, weights: Callable[[int], Path], pairsan: Pairsan) -> None:
    for epoch in (1, 2, 3):
        pairsan("rescore", run, "--checkpoint", weights(epoch), "--growth", 0.25, "--cap", 0.7)
    assert safe_shares(run) == [pytest.approx(0.316), pytest.approx(0.579), pytest.approx(0.711), pytest.approx(0.711)]
    assert open_round(run).seal["plan"]["split"]["keep_share"] == 0.7  # 27 of 38 rows is the first count to reach it


def test_an_interrupted_rescoring_goes_on(run: Path, weights: Callable[[int], Path], pairsan: Pairsan) -> None:
    path = weights(1)
    pairsan("rescore", run, "--checkpoint", path, "--growth", 0.1)
    whole = {p.name: p.read_bytes() for p in (run / "rounds/0002/manifest").iterdir()}
    (run / "rounds/0002/manifest.json").unlink()
    (run / "rounds/0002/scores/00001.tar.parquet").unlink()
    result = pairsan("rescore", run, "--checkpoint", path, "--growth", 0.2, code=5)  # other settings are refused ...
    assert "split.growth: 0.1 -> 0.2" in result.stderr
    result = pairsan("rescore", run, "--checkpoint", path, "--growth", 0.1)
    assert "2 done before" in result.stderr
    assert {p.name: p.read_bytes() for p in (run / "rounds/0002/manifest").iterdir()} == whole


def test_other_data_are_refused(run: Path, weights: Callable[[int], Path], crawl: Path, pairsan: Pairsan) -> None:
    (crawl / "00000.tar").write_bytes((crawl / "00001.tar").read_bytes())
    result = pairsan("rescore", run, "--checkpoint", weights(1), code=5)
    assert "fingerprint" in result.stderr


def test_half_written_checkpoints_are_left_alone(weights: Callable[[int], Path], tiny: str, tmp_path: Path) -> None:
    paths = [weights(epoch) for epoch in (10, 2, 1)]
    assert all(is_complete(path) for path in paths)
    pattern = str(tmp_path / "logs/*/checkpoints/epoch_*.pt")
    assert [path.name for path in checkpoints(pattern, 2)] == ["epoch_1.pt", "epoch_2.pt", "epoch_10.pt"]
    data = paths[0].read_bytes()
    paths[0].write_bytes(data[: len(data) - 100])
    assert not is_complete(paths[0])
    whole = (Path(tiny) / "open_clip_model.safetensors").read_bytes()
    other = tmp_path / "a.safetensors"
    for size in (len(whole) - 1, len(whole) // 2, 4, 0):
        other.write_bytes(whole[:size])
        assert not is_complete(other)
    other.write_bytes(whole)
    assert is_complete(other)
    assert checkpoints(str(other), settle_s=3600) == []  # it may still change


def test_watch_rescores_what_is_new_in_order_and_calls_back(
    run: Path, weights: Callable[[int], Path], pairsan: Pairsan, tmp_path: Path
) -> None:
    half = weights(3)
    half.write_bytes(half.read_bytes()[:-1000])
    weights(10)
    weights(2)
    callback = tmp_path / "call back.py"
    callback.write_text("import sys; open(sys.argv[1], 'a').write(sys.argv[2] + chr(10))")
    called = tmp_path / "called; touch injected"
    command = f"{sys.executable} '{callback}' '{called}'"
    args = (
        "watch",
        run,
        "--checkpoints",
        tmp_path / "logs/*/checkpoints/epoch_*.pt",
        "--once",
        "--keep-last",
        1,
        "--growth",
        0.1,
    )
    assert "2 new checkpoints" in pairsan(*args, "--on-sealed", command).output
    assert called.read_text().splitlines() == [f"{run}/rounds/0002", f"{run}/rounds/0003"]
    assert not (tmp_path / "injected").exists()
    assert [(run / f"rounds/000{n}/embeddings").exists() for n in (1, 2, 3)] == [False, False, True]
    assert "all as sealed" in pairsan("verify", run, "--round", 1).output  # labels outlive their embeddings
    assert "0 new checkpoints" in pairsan(*args).output


def test_a_bad_checkpoint_does_not_keep_later_ones_waiting(
    run: Path, weights: Callable[[int], Path], pairsan: Pairsan, tmp_path: Path
) -> None:
    save_file({"nothing": torch.zeros(1)}, tmp_path / "logs/x/checkpoints/epoch_1.safetensors")
    weights(2).rename(tmp_path / "logs/x/checkpoints/epoch_2.pt")
    args = ("watch", run, "--checkpoints", tmp_path / "logs/x/checkpoints/epoch_*", "--once", "--settle", 0)
    result = pairsan(*args, code=5)
    assert "1 checkpoints re-scored, 1 failed" in result.stderr
    assert "epoch_1.safetensors: CheckpointError" in result.stderr
    assert open_round(run).number == 2


def test_a_checkpoint_that_comes_after_its_successor_is_passed_over(
    run: Path, weights: Callable[[int], Path], pairsan: Pairsan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = ("watch", run, "--checkpoints", tmp_path / "logs/x/checkpoints/epoch_*", "--once", "--settle", 0)
    weights(2)
    assert "1 new checkpoints" in pairsan(*args).output
    weights(1)
    (tmp_path / "logs/x/checkpoints/epoch_9.pt").write_bytes(b"half")
    result = pairsan(*args)
    assert "there have their round; epoch_9.pt: is not whole, or no checkpoint" in result.output
    assert f"waiting for a new file that matches {tmp_path}/logs/x/checkpoints/epoch_*; 1 of 3" in result.output
    (tmp_path / "logs/x/checkpoints/epoch_9.pt").unlink()
    assert "epoch_1.pt: passed over, as" in caplog.text
    assert "0 new checkpoints" in result.output
    weights(3)
    assert "1 new checkpoints" in pairsan(*args).output
    assert open_round(run).number == 3


def test_a_clock_that_is_ahead_keeps_no_checkpoint_waiting(
    run: Path, weights: Callable[[int], Path], pairsan: Pairsan, tmp_path: Path
) -> None:
    os.utime(weights(1), (time.time() + 3600, time.time() + 3600))
    assert "1 new checkpoints" in pairsan("watch", run, "--checkpoints", tmp_path / "logs/x/checkpoints/*", "--once").output


def test_a_checkpoint_that_is_deleted_before_its_turn_is_named(
    run: Path, weights: Callable[[int], Path], tmp_path: Path
) -> None:
    settings = {"executor": "local", "growth": 0.1, "model": str(TINY)}
    paths, config = [weights(1), weights(2)], load_config(None, settings, command="watch")

    def trainer_keeps_one(out: str, asked: RunConfig) -> Manifest:
        paths[1].unlink(missing_ok=True)
        return rescore(out, asked)

    with pytest.raises(RunError, match=r"1 checkpoints re-scored, 1 failed:\n  .*epoch_2.pt: ") as caught:
        Watch(str(run), str(paths[0].parent / "*"), config, trainer_keeps_one).once()
    assert len(str(caught.value).splitlines()) == 2
    assert open_round(run).number == 2


def test_a_checkpoint_of_another_architecture_is_named_and_passed(
    run: Path, weights: Callable[[int], Path], pairsan: Pairsan, tmp_path: Path
) -> None:
    other = json.loads((EMOJI / "tiny-clip" / "open_clip_config.json").read_text())
    other["model_cfg"]["vision_cfg"]["width"] *= 2
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(other))
    torch.save(new_model(f"local-dir:{folder}", 0).state_dict(), weights(1))
    weights(2)
    result = pairsan("watch", run, "--checkpoints", tmp_path / "logs/x/checkpoints/*", "--once", "--settle", 0, code=5)
    assert "1 checkpoints re-scored, 1 failed" in result.stderr
    line = next(line for line in result.stderr.splitlines() if "epoch_1.pt: CheckpointError" in line)
    assert "visual" in line
    assert open_round(run).number == 2


def test_one_watcher_per_run(run: Path, pairsan: Pairsan) -> None:
    args = ("watch", run, "--checkpoints", "none-*.pt", "--once")
    with FileLock(run / "watch.lock"):
        assert "another watcher holds" in pairsan(*args, code=5).stderr
    assert "0 new checkpoints" in pairsan(*args).output
    assert "--break-lock is now gone: the system frees the lock" in pairsan(*args, "--break-lock", code=2).stderr
    assert "no run folder" in pairsan("watch", run / "none", "--checkpoints", "x", code=5).stderr
    assert "not at 's3://b/x'" in pairsan("watch", run, "--checkpoints", "s3://b/x", "--once", code=2).stderr


@pytest.mark.slow
def test_a_watcher_that_is_killed_starts_again_where_it_was(run: Path, weights: Callable[[int], Path], tmp_path: Path) -> None:
    pattern = str(tmp_path / "logs/*/checkpoints/epoch_*.pt")
    weights(1)
    command = [
        Path(sys.executable).parent / "pairsan",
        "watch",
        run,
        "--checkpoints",
        pattern,
        "--every",
        "0.2",
        "--growth",
        "0.1",
    ]
    watcher = subprocess.Popen([str(c) for c in command], stderr=subprocess.DEVNULL)
    wait_for(run / "rounds/0002/manifest.json")
    watcher.send_signal(signal.SIGKILL)
    watcher.wait()
    weights(2)
    watcher = subprocess.Popen([str(c) for c in command], stderr=subprocess.DEVNULL)  # the lock died with its holder
    wait_for(run / "rounds/0003/manifest.json")
    watcher.terminate()
    assert watcher.wait(30) == 130
    assert open_round(run).number == 3


def test_how_fast_a_pair_rose_is_told_against_the_last_other_weights(
    run: Path, weights: Callable[[int], Path], pairsan: Pairsan
) -> None:
    assert open_round(run, 1).seal["rise_since"] is None
    pairsan("rescore", run, "--checkpoint", weights(3))
    pairsan("split", run, "--keep-share", 0.6)
    first, second, third = (open_round(run, n) for n in (1, 2, 3))
    assert (second.seal["rise_since"], third.seal["rise_since"]) == (1, 1)  # round 3 has the scores of round 2
    ranks = [manifest.to_pandas(["rank"])["rank"] for manifest in (first, second)]
    for manifest in (second, third):
        rise = manifest.to_pandas(["signals"])["signals"].map(lambda row: row["cosine_rise"] if row else None).astype(float)
        scored = ranks[1].notna()
        assert rise[scored].tolist() == pytest.approx((ranks[0] - ranks[1])[scored].tolist(), abs=1e-6)
        assert rise[~scored].isna().all()
        assert rise.abs().max() > 0
    assert "all as sealed" in pairsan("verify", run).output
