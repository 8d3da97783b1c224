"""What all benchmarks share: the header that makes a number worth quoting, and a clock for whole process trees."""

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("PAIRSAN_CACHE", Path.home() / ".cache" / "pairsan"))
_PR_SET_CHILD_SUBREAPER = 36
_SAMPLE_S = 0.05


@dataclass(frozen=True)
class Usage:
    """What a command took: wall seconds, and CPU seconds of its whole process tree."""

    wall_s: float
    cpu_s: float


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


def run_tree(command: list[object]) -> Usage:
    """Run a command and count the CPU time of every process it starts, daemons that outlive their parents included.

    Processes are sampled every 50 ms, so up to that much of each one's end is missed. (The kernel's own sum for waited-for
    children is no use here: Ray's raylet ignores SIGCHLD, and the times of its workers are lost.)

    Raises:
        SystemExit: The command failed.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans stay below this process
    seen: dict[tuple[int, float], float] = {}
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            _sample(seen)
            time.sleep(_SAMPLE_S)
        wall = time.monotonic() - start
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{command} ended with {process.returncode}:\n{errors.read()[-2000:]}")
    _, left = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=30)
    if left:
        raise SystemExit(f"{command} left processes behind: {left}")
    return Usage(wall, sum(seen.values()))


def _sample(seen: dict[tuple[int, float], float]) -> None:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            seen[process.pid, process.create_time()] = times.user + times.system


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
