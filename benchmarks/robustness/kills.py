"""Does a run that is killed again and again leave the bytes of one that never was? With all signals, on both executors.

    python -m benchmarks.robustness.kills OUT [--kills 20] [--executors local ray]

Runs of the bundled held-out pairs, with a reference tower, near copies, crowds and canaries, on 1, 2 or 4 threads a worker in
turn, are begun and killed with all their processes (SIGKILL) at a moment drawn at random, and begun again until they end; a run
that ends is compared, file by file, with one of one process that nobody touched. Ends with 1 where a file differs.
"""

import argparse
import hashlib
import itertools
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from benchmarks.common import header
from benchmarks.robustness.same_bytes import DATA, MANY, NEAR, TINY, TOWER

PAIRSAN: Final = Path(sys.executable).parent / "pairsan"
THREADS: Final = (1, 2, 4)
_LIMIT_S: Final = 600.0
_IN_A_RUN: Final = 4  # kills at most, so that several runs share them


def main() -> None:
    """Kill, begin again, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=20, help="for each executor")
    parser.add_argument("--executors", nargs="+", choices=["local", "ray"], default=["local", "ray"])
    args = parser.parse_args()
    header("studies.kills")
    rng, failures = random.Random(0), 0
    _end_of(args.out / "whole", "local", 1)
    whole = _files_of(args.out / "whole")
    for executor in args.executors:
        start = time.monotonic()
        _end_of(args.out / f"{executor}-uncut", executor, 2)
        seconds = time.monotonic() - start
        failures += _told(
            f"{executor}, 2 threads, never killed, {seconds:.0f} s", _files_of(args.out / f"{executor}-uncut"), whole
        )
        kills = 0
        for number in itertools.count():
            threads, run = min(THREADS[number % len(THREADS)], _most(executor)), args.out / f"{executor}-{number}"
            within: Counter[str] = Counter()
            while (
                sum(within.values()) < _IN_A_RUN
                and kills < args.kills
                and _killed(run, executor, threads, rng.uniform(0.3, 1.0) * seconds)
            ):
                kills += 1
                within[_how_far(run)] += 1
            _end_of(run, executor, threads)
            words = ", ".join(f"{num} x {step}" for step, num in within.items()) or "never killed"
            failures += _told(f"{executor}, {threads} threads, {words}", _files_of(run), whole)
            if kills >= args.kills:
                break
    sys.exit(1 if failures else 0)


def _most(executor: str) -> int:
    """Return how many threads a worker can have: on Ray, no more than there are CPUs."""
    return max(THREADS) if executor == "local" else psutil.cpu_count() or 1


def _begun(run: Path, executor: str, threads: int) -> "subprocess.Popen[bytes]":
    command = [str(PAIRSAN), "clean", DATA, "--out", str(run), "--checkpoint", TINY, "--executor", executor, "--device", "cpu"]
    command += ["--threads-per-worker", str(threads)]
    with run.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([*command, *NEAR, *MANY, *TOWER], stdout=log, stderr=log)


def _killed(run: Path, executor: str, threads: int, after_s: float) -> bool:
    """Begin a run and kill it, with all its processes, after a while; return whether it had not ended by then."""
    process = _begun(run, executor, threads)
    try:
        if process.wait(after_s) != 0:
            raise SystemExit(f"{run} ended with {process.returncode}; see {run.with_suffix('.log')}")
        return False
    except subprocess.TimeoutExpired:
        for victim in (psutil.Process(process.pid), *_below(process.pid)):
            with suppress(psutil.Error):
                victim.send_signal(signal.SIGKILL)
        process.wait()
        return True


def _below(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _end_of(run: Path, executor: str, threads: int) -> None:
    run.parent.mkdir(parents=True, exist_ok=True)
    if _begun(run, executor, threads).wait(_LIMIT_S) != 0:
        raise SystemExit(f"{run} did not end well; see {run.with_suffix('.log')}")


def _how_far(run: Path) -> str:
    """Return during which step a run was killed, as its files tell."""
    folder = run / "rounds/0001"
    for step in ("manifest", "signals", "reference", "scores"):
        if any((folder / step).glob("*.parquet")):
            return f"after {step} were begun"
    return "before any part"


def _files_of(run: Path) -> dict[str, str]:
    return dict(_digests(run / "rounds"))


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()


def _told(what: str, found: dict[str, str], whole: dict[str, str]) -> bool:
    """Print how a run compares; return whether a file differs."""
    differ = sorted(name for name in found.keys() | whole.keys() if found.get(name) != whole.get(name))
    print(f"{what}: {len(whole)} files, {len(differ)} differ {differ[:5] or ''}".rstrip(), flush=True)
    return bool(differ)


if __name__ == "__main__":
    main()
