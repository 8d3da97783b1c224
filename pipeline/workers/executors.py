"""What comes of a shard, and the executor that works in this process; the other is `pipeline.workers.ray_pool`.

A worker opens a stage once and then takes shards one by one. Faults of the infrastructure (a lost worker, a failed read)
are retried a bounded number of times; any other error is the shard's own, fails it at once, and is reported by name.
"""

import heapq
import random
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from stages.pair import Shard
from stages.stage import Stage

Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Done(Generic[Out]):
    """A shard that went through: its output."""

    shard: Shard
    output: Out


@dataclass(frozen=True, slots=True)
class Failed:
    """A shard that did not: what was raised, and where."""

    shard: Shard
    error: str
    trace: str


class UnderWay(NamedTuple):
    """What is known of the shards that are being worked on.

    Attributes:
        rows: Rows that are done in them, as far as was said.
        quarantined: Of those, how many could not be scored.
        last: Where no other shard is left to begin: the one that has run longest, its node, and for how long.
    """

    rows: int = 0
    quarantined: int = 0
    last: str = ""


class Executor(Protocol):
    """Runs one stage at a time over many shards.

    Attributes:
        num_threads: CPU threads that each worker has.
        num_workers: How many there is room for, as far as is known.
    """

    num_threads: int
    num_workers: int

    def under_way(self) -> UnderWay:
        """Return what is known of the shards that are being worked on."""
        ...

    def start(self, num_shards: int, module: str) -> None:
        """Start the workers that so many shards will need, and let each import a module; returns at once."""
        ...

    def map(self, stage: Stage[Any, Out], shards: Sequence[Shard]) -> Iterator[Done[Out] | Failed]:
        """Yield one outcome per shard, in the order in which they finish.

        Raises:
            PairsanError: The stage could not be opened.
        """
        ...


class LocalExecutor:
    """Everything in this process, one shard after the other; for debugging, and for machines without Ray."""

    def __init__(self, max_retries: int, num_threads: int) -> None:
        """Set how often a failed read is tried again, and how many threads the stage may use."""
        self._max_retries, self.num_threads, self.num_workers = max_retries, num_threads, 1
        self._stage: Stage[Any, Any] | None = None

    def under_way(self) -> UnderWay:
        """Return rows, and quarantined rows, of the shard that is being worked on."""
        return UnderWay() if self._stage is None else UnderWay(*self._stage.so_far)

    def start(self, num_shards: int, module: str) -> None:
        """Do nothing: this process is the worker."""

    def map(self, stage: Stage[Any, Out], shards: Sequence[Shard]) -> Iterator[Done[Out] | Failed]:
        """Yield one outcome per shard, in order."""
        if shards:
            stage.open()
        self._stage = stage
        for shard in shards:
            outcome = self._run(stage, shard)
            stage.so_far = (0, 0)
            yield outcome

    def _run(self, stage: Stage[Any, Out], shard: Shard) -> Done[Out] | Failed:
        for attempt in range(self._max_retries + 1):
            try:
                stage.so_far = (0, 0)
                return Done(shard, stage.run(shard))
            except Exception as error:  # noqa: BLE001  # whatever a shard raises is its outcome
                if not is_transient(error) or attempt == self._max_retries:
                    return Failed(shard, f"{type(error).__name__}: {error}", traceback.format_exc())
                time.sleep(_pause_s(attempt))
        raise AssertionError("unreachable")


class ShardQueue:
    """Shards that wait for a worker; those that are tried again wait a while first."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Let all of them wait, in order."""
        self._fresh = deque(shards)
        self._again: list[tuple[float, int, Shard, int]] = []  # a heap: when, a number against ties, shard, attempt

    def __len__(self) -> int:
        """Return how many shards wait, due or not."""
        return len(self._fresh) + len(self._again)

    def take(self) -> tuple[Shard, int] | None:
        """Return the next shard and which attempt it is, from 0; None where none is due."""
        if self._again and self._again[0][0] <= time.monotonic():
            return heapq.heappop(self._again)[2:]
        return (self._fresh.popleft(), 0) if self._fresh else None

    def again(self, shard: Shard, attempt: int) -> None:
        """Try a shard once more, after a while."""
        heapq.heappush(self._again, (time.monotonic() + _pause_s(attempt), len(self._again), shard, attempt + 1))

    def pause(self) -> float | None:
        """Return for how many seconds none will be due; None where none waits."""
        return max(0.0, self._again[0][0] - time.monotonic()) if self._again else None


def _pause_s(attempt: int) -> float:
    """Return how long to wait before the next attempt, in s: twice as long each time, and never for all shards alike."""
    return min(2.0**attempt * 0.1, 5.0) * random.uniform(0.5, 1.5)  # noqa: S311  # no secret


def is_transient(error: Exception) -> bool:
    """Return whether another try may help: reads that failed, but not files that are missing or forbidden."""
    return isinstance(error, OSError) and not isinstance(
        error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    )
