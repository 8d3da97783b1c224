"""What only a cluster shows: lost workers, lost drivers, decoding elsewhere."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import Result
from conftest import EMOJI, parts_of

from manifests import open_round
from manifests.errors import CheckpointError, ConfigError, PairsanError
from manifests.store import Store, open_store
from pipeline.config.catalogue import ExecutorSettings
from pipeline.workers.connect import make_executor, refuse_silence
from pipeline.workers.executors import Done, Failed, LocalExecutor, is_transient
from pipeline.workers.ray_pool import RayExecutor
from stages.pair import Shard
from stages.stage import Stage

pytestmark = pytest.mark.whole

PAIRSAN = Path(sys.executable).parent / "pairsan"
WORKER = "ray::Worker"  # what Ray calls the processes of our actor: its class, then the method in work
SHARDS = [Shard(f"{i:05d}.tar", f"/x/{i:05d}.tar", "tar", 1) for i in range(6)]


class Flaky:
    """A stage that goes wrong on shard 2 in a chosen way, the first `times` times."""

    def __init__(self, folder: Path, how: str, times: int) -> None:
        self._folder, self._how, self._times = folder, how, times

    def open(self) -> None:
        (self._folder / f"opened-{os.getpid()}-{time.monotonic_ns()}").touch()

    def run(self, shard: Shard, /) -> str:
        if shard == SHARDS[2] and len(list(self._folder.glob("try-*"))) < self._times:
            (self._folder / f"try-{time.monotonic_ns()}").touch()
            if self._how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"read": OSError("connection reset"), "bug": ValueError("a bug"), "gone": FileNotFoundError("x")}[self._how]
        return shard.name


def outcomes(executor: LocalExecutor | RayExecutor, stage: Flaky) -> dict[str, object]:
    return {o.shard.name: o.output if isinstance(o, Done) else o for o in executor.map(stage, SHARDS)}


@pytest.fixture(params=["local", "ray"])
def executor(request: pytest.FixtureRequest) -> LocalExecutor | RayExecutor:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    options = ExecutorSettings(executor=request.param, max_retries=2)
    return make_executor(options, use_gpus=False)


class Known:
    """A stage that says in which process it ran, and whether a module was imported there before it was."""

    def open(self) -> None:
        self._there = "wave" in sys.modules

    def run(self, shard: Shard, /) -> tuple[int, bool]:
        time.sleep(0.2)
        return os.getpid(), self._there


def test_workers_that_start_beforehand_import_what_is_said_and_are_those_that_work(ray_cluster: None) -> None:
    executor = make_executor(ExecutorSettings(executor="ray", workers=2), use_gpus=False)
    for _ in range(2):
        executor.start(len(SHARDS), "wave")  # of the standard library, and used by nothing
    found = [outcome.output for outcome in executor.map(Known(), SHARDS) if isinstance(outcome, Done)]
    assert len(found) == len(SHARDS)
    assert all(there for _, there in found)
    assert len({process for process, _ in found}) <= 2


def test_a_failed_read_is_tried_again(executor: LocalExecutor, tmp_path: Path) -> None:
    assert set(outcomes(executor, Flaky(tmp_path, "read", 2)).values()) == {s.name for s in SHARDS}
    first, second = sorted(path.stat().st_mtime for path in tmp_path.glob("try-*"))
    assert second - first >= 0.04  # not at once: what failed needs a moment (0.05 s at least; file times tick)


@pytest.mark.parametrize(("how", "tries"), [("read", 3), ("bug", 1), ("gone", 1)])
def test_retries_are_bounded_and_only_for_faults_that_may_pass(
    executor: LocalExecutor, tmp_path: Path, how: str, tries: int
) -> None:
    found = outcomes(executor, Flaky(tmp_path, how, 99))
    failed = found.pop(SHARDS[2].name)
    assert isinstance(failed, Failed)
    assert failed.error.startswith({"read": "OSError: ", "bug": "ValueError: a bug", "gone": "FileNotFoundError"}[how])
    assert "Flaky" in failed.trace or "test_ray.py" in failed.trace
    assert len(found) == 5
    assert len(list(tmp_path.glob("try-*"))) == tries


def test_a_worker_that_dies_costs_a_retry_not_the_run(ray_cluster: None, tmp_path: Path) -> None:
    executor = RayExecutor(ExecutorSettings(max_retries=2), num_gpus=0)
    assert set(outcomes(executor, Flaky(tmp_path, "die", 1)).values()) == {s.name for s in SHARDS}


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_fails_alone(ray_cluster: None, tmp_path: Path) -> None:
    executor = RayExecutor(ExecutorSettings(max_retries=1), num_gpus=0)
    found = outcomes(executor, Flaky(tmp_path, "die", 99))
    failed = found.pop(SHARDS[2].name)
    assert isinstance(failed, Failed)
    assert "on 2 workers in turn" in failed.error
    assert len(found) == 5


@pytest.mark.slow
def test_a_worker_opens_its_stage_once(ray_cluster: None, tmp_path: Path) -> None:
    executor = RayExecutor(ExecutorSettings(workers=1), num_gpus=0)
    outcomes(executor, Flaky(tmp_path, "read", 0))
    assert len(list(tmp_path.glob("opened-*"))) == 1


class Stuck(Flaky):
    """Its first call on shard 2 never ends."""

    def run(self, shard: Shard, /) -> str:
        if shard == SHARDS[2] and not (self._folder / "stuck").exists():
            (self._folder / "stuck").touch()
            time.sleep(1000)
        return f"{shard.name} by {os.getpid()}"


@pytest.mark.slow
def test_a_shard_that_takes_far_longer_than_others_is_started_a_second_time(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.workers.ray_pool._LATE_S", 0.5)
    executor, start = RayExecutor(ExecutorSettings(), num_gpus=0), time.monotonic()
    found = outcomes(executor, Stuck(tmp_path, "bug", 0))
    assert {str(value).split(" by ")[0] for value in found.values()} == {shard.name for shard in SHARDS}
    assert time.monotonic() - start < 500
    assert re.search(r"00002.tar: on node [\d.]+ for \d+ s, others took 0 s; started a second time elsewhere", caplog.text)
    again = outcomes(executor, Stuck(tmp_path, "bug", 0))  # the worker that hangs still was let go
    assert len(again) == len(SHARDS)


class Elsewhere(Stage["Elsewhere.Target", str]):
    """Writes into a run folder, its target; shard 2 is not where it was."""

    class Target(NamedTuple):
        run: Store

    def run(self, shard: Shard, /) -> str:
        if shard == SHARDS[2]:
            raise FileNotFoundError("x")
        return shard.name


@pytest.mark.slow
def test_a_node_that_sees_another_run_folder_is_refused_and_one_without_the_data_is_named(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = RayExecutor(ExecutorSettings(workers=1), num_gpus=0)
    (tmp_path / "run.json").write_text("{}")
    stage = Elsewhere(Elsewhere.Target(open_store(str(tmp_path))))
    failed = [outcome for outcome in executor.map(stage, SHARDS) if isinstance(outcome, Failed)]
    assert [outcome.shard for outcome in failed] == [SHARDS[2]]
    assert re.search(r"FileNotFoundError: x \(on node [\d.]+\)", failed[0].error)
    monkeypatch.setattr("pipeline.workers.ray_pool.run_marker", lambda _: "what the driver sees on its own disk")
    with pytest.raises(PairsanError, match=r"node [\d.]+ does not see the run folder .* that the driver sees; give --out"):
        list(executor.map(stage, SHARDS))


class Unopenable(Flaky):
    def open(self) -> None:
        raise CheckpointError("no such weights on this node")


def test_a_stage_that_cannot_be_opened_ends_the_run_at_once(executor: LocalExecutor, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such weights on this node"):
        outcomes(executor, Unopenable(tmp_path, "bug", 0))


def test_an_address_where_nothing_answers_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = f"127.0.0.1:{server.getsockname()[1]}"
        refuse_silence(gone, "--ray-address")  # somebody listens
        refuse_silence(f"ray://{gone}", "--ray-address")
    with pytest.raises(ConfigError, match="auto: no Ray cluster runs on this machine"):
        refuse_silence("auto", "--ray-address")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(gone)
    for address, said_by, text in (
        (gone, "--ray-address", f"--ray-address: nothing answers at {gone}"),
        (f"ray://{gone}", "RAY_ADDRESS", f"RAY_ADDRESS: nothing answers at ray://{gone}"),
        ("auto", "--ray-address", f"--ray-address auto, by .*ray_current_cluster: nothing answers at {gone}"),
        ("nowhere", "--ray-address", "'nowhere' is no HOST:PORT"),
    ):
        with pytest.raises(ConfigError, match=text):
            refuse_silence(address, said_by)


def test_what_may_pass_and_what_may_not() -> None:
    assert is_transient(ConnectionResetError())
    assert is_transient(OSError("5xx"))
    assert not is_transient(PermissionError())
    assert not is_transient(ValueError())


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    """A run over the evaluation part on the local executor."""
    from click.testing import CliRunner

    from pipeline.cli.main import main

    run = tmp_path_factory.mktemp("uncut") / "run"
    args = ["clean", str(EMOJI / "eval"), "--checkpoint", tiny, "--out", str(run), "--executor", "local", "--keep-share", "0.5"]
    assert CliRunner().invoke(main, args).exit_code == 0
    return run


@pytest.mark.parametrize(
    "options",
    [
        ("--workers", 2),
        pytest.param(("--workers", 1), marks=pytest.mark.slow),
        pytest.param(("--decode", "cluster"), marks=pytest.mark.slow),
    ],
)
def test_ray_gives_the_same_bytes_as_one_process(
    ray_cluster: None, uncut: Path, tmp_path: Path, tiny: str, pairsan: Callable[..., Result], options: tuple[object, ...]
) -> None:
    args = ("clean", EMOJI / "eval", "--checkpoint", tiny, "--out", tmp_path / "run", "--keep-share", 0.5)
    pairsan(*args, *options)
    assert parts_of(tmp_path / "run") == parts_of(uncut)


@contextmanager
def begun(data: Path, out: Path, tiny: str) -> Iterator[subprocess.Popen[str]]:
    """Run `pairsan clean` beside the test, and no longer than it."""
    command = [PAIRSAN, "clean", data, "--checkpoint", tiny, "--out", out, "--keep-share", "0.5", "--workers", "1"]
    with subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        try:
            yield driver
        finally:
            driver.kill()


def wait_for_parts(run: Path, number: int) -> None:
    deadline = time.monotonic() + 180
    while len(list(run.glob("rounds/0001/scores/*.parquet"))) < number:
        assert time.monotonic() < deadline, "no part was written"
        time.sleep(0.02)


def processes(pattern: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.slow
def test_kill_9_of_a_worker_and_of_the_driver_leaves_what_an_uncut_run_leaves(
    tmp_path: Path, tiny: str, pairsan: Callable[..., Result]
) -> None:
    """One run loses its worker, then its driver, and is started again; another is never touched."""
    data, cut, whole = EMOJI / "train", tmp_path / "cut", tmp_path / "whole"
    before = set(processes(WORKER))
    with begun(data, cut, tiny) as driver:
        wait_for_parts(cut, 2)
        workers = set(processes(WORKER)) - before
        assert workers, driver.poll()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        wait_for_parts(cut, 4)
    assert not (cut / "rounds/0001/manifest.json").exists()
    with begun(data, cut, tiny) as again:
        output, _ = again.communicate(timeout=180)
    assert again.returncode == 0, output
    done_before = re.search(r"embed: 11/11 shards, (\d+) done before", output)
    assert done_before is not None, output
    assert 4 <= int(done_before[1]) < 11
    pairsan("clean", data, "--checkpoint", tiny, "--out", whole, "--keep-share", "0.5", "--executor", "local")
    assert parts_of(cut) == parts_of(whole)
    assert open_round(cut).num_rows == 5217
