"""What all benchmarks share: the header that makes a number worth quoting, and a clock for whole process trees."""

import contextlib
import ctypes
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from manifests.schema import SCORES

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("PAIRSAN_CACHE", Path.home() / ".cache" / "pairsan"))
_PR_SET_CHILD_SUBREAPER = 36
_SAMPLE_S = 0.05
_MEMORY_EVERY = 20


@dataclass(frozen=True)
class Usage:
    """What a command took: wall seconds, CPU seconds of its whole process tree, and the tree's largest memory (PSS)."""

    wall_s: float
    cpu_s: float
    peak_bytes: int = 0


def header(name: str) -> None:
    """Print command, machine and commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False)
    state = commit.stdout.strip() + (" + uncommitted changes" if dirty.stdout.strip() else "")
    print(f"# python -m benchmarks.{name} {' '.join(sys.argv[1:])}".rstrip())
    print(f"# {os.cpu_count()} cores, {machine()}; commit {state}")


def machine() -> str:
    """Return the processor's name."""
    return next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())


def run_tree(command: list[object], limit_s: float | None = None) -> Usage:
    """Run a command and count the CPU time of every process it starts, daemons that outlive their parents included.

    Processes are sampled every 50 ms, so up to that much of each one's end is missed. (The kernel's own sum for waited-for
    children is no use here: Ray's raylet ignores SIGCHLD, and the times of its workers are lost.) Memory shared by several
    processes counts once.

    Raises:
        SystemExit: The command failed, or had not ended after `limit_s` seconds.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans stay below this process
    seen: dict[tuple[int, float], float] = {}
    start, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=errors)
        for turn in itertools.count():
            if process.poll() is not None:
                break
            _sample(seen)
            if turn % _MEMORY_EVERY == 0:
                peak = max(peak, _memory())
            if limit_s is not None and time.monotonic() - start > limit_s:
                _kill_tree()
                raise SystemExit(f"no end in {limit_s:.0f} s")
            time.sleep(_SAMPLE_S)
        wall = time.monotonic() - start
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{command} ended with {process.returncode}:\n{errors.read()[-2000:]}")
    _, left = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=30)
    if left:
        raise SystemExit(f"{command} left processes behind: {left}")
    return Usage(wall, sum(seen.values()), peak)


def _sample(seen: dict[tuple[int, float], float]) -> None:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            seen[process.pid, process.create_time()] = times.user + times.system


def scores_table(columns: dict[str, Any]) -> pa.Table:
    """Return synthetic rows of a scores part; columns that are not given, as those of a later schema, are null."""
    num = len(columns["uid"])
    return (
        pa.table(
            {field.name: columns.get(field.name, pa.nulls(num, field.type)) for field in SCORES if field.name != "reason"}
            | {"reason": pa.nulls(num, pa.string()).dictionary_encode()},
        )
        .select(SCORES.names)
        .cast(SCORES)
    )


def _memory() -> int:
    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def _kill_tree() -> None:
    started = psutil.Process().children(recursive=True)
    for process in started:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(started, timeout=30)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
