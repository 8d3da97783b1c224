"""Run a stage over shards: on Ray, or in this process. Only this and `pipeline.workers.train_on_ray` import ray.

A worker opens a stage once and then takes shards one by one. Faults of the infrastructure (a lost worker, a failed read)
are retried a bounded number of times; any other error is the shard's own, fails it at once, and is reported by name.
"""

import heapq
import logging
import os
import random
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RaySystemError, RayTaskError, WorkerCrashedError

from manifests.errors import ConfigError, PairsanError
from pipeline.config.catalogue import ExecutorSettings
from pipeline.config.provenance import code_sha256
from stages.pair import Shard
from stages.stage import Stage

log = logging.getLogger("pairsan.executors")

Out = TypeVar("Out")
_INFRASTRUCTURE = (RayActorError, WorkerCrashedError, OutOfMemoryError, RaySystemError)
_DECODED_AHEAD = 3  # chunks of one shard that may wait in the object store


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


class Executor(Protocol):
    """Runs one stage at a time over many shards.

    Attributes:
        num_threads: CPU threads that each worker has.
    """

    num_threads: int

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
        self._max_retries, self.num_threads = max_retries, num_threads

    def map(self, stage: Stage[Any, Out], shards: Sequence[Shard]) -> Iterator[Done[Out] | Failed]:
        """Yield one outcome per shard, in order."""
        if shards:
            stage.open()
        for shard in shards:
            yield self._run(stage, shard)

    def _run(self, stage: Stage[Any, Out], shard: Shard) -> Done[Out] | Failed:
        for attempt in range(self._max_retries + 1):
            try:
                return Done(shard, stage.run(shard))
            except Exception as error:  # noqa: BLE001  # whatever a shard raises is its outcome
                if not is_transient(error) or attempt == self._max_retries:
                    return Failed(shard, f"{type(error).__name__}: {error}", traceback.format_exc())
                time.sleep(_pause_s(attempt))
        raise AssertionError("unreachable")


class RayExecutor:
    """Workers on a Ray cluster; each is an actor that survives from stage to stage."""

    def __init__(self, options: ExecutorSettings, *, num_gpus: int, num_shards: int) -> None:
        """Size the pool: one worker per GPU, else as many as the CPUs hold, never more than shards.

        Raises:
            ConfigError: The cluster has no room for even one worker.
        """
        self._options = options
        available = ray.cluster_resources()
        cpus = available.get("CPU", 1.0)
        threads = options.threads_per_worker or (max(1, int(cpus // num_gpus)) if num_gpus else 1)
        self.num_threads = threads
        fitting = int(num_gpus or cpus // threads)
        if options.decode == "cluster" and not num_gpus:
            fitting = max(1, int((cpus - 1) // threads))  # decoding tasks need a CPU of their own
            if cpus < threads + 1:
                raise ConfigError(
                    f"--decode cluster needs a CPU beside the {threads} of a worker, the cluster has {cpus:g}; "
                    "lower --threads-per-worker or decode in the worker"
                )
        if fitting < 1:
            raise ConfigError(f"--threads-per-worker {threads} exceeds the {cpus:g} CPUs of the cluster")
        self._size = max(1, min(options.workers or fitting, fitting, num_shards))
        if options.workers and self._size < min(options.workers, num_shards):
            log.warning("the cluster has room for %d workers of the %d asked for", self._size, options.workers)
        self._resources: dict[str, Any] = {"num_cpus": threads, "num_gpus": 1 if num_gpus else 0, "max_restarts": 0}
        self._idle: list[Any] = []

    def map(self, stage: Stage[Any, Out], shards: Sequence[Shard]) -> Iterator[Done[Out] | Failed]:
        """Yield one outcome per shard, in the order in which they finish."""
        stage_ref = ray.put(stage)
        queue = _Queue(shards)
        running: dict[Any, tuple[Shard, int, Any]] = {}
        while queue or running:
            while len(running) < self._size and (due := queue.take()) is not None:
                worker = self._idle.pop() if self._idle else self._start()
                running[worker.run.remote(stage_ref, stage_ref.hex(), due[0])] = (*due, worker)
            if not running:
                time.sleep(queue.pause() or 0.0)
                continue
            ready, _ = ray.wait(list(running), num_returns=1, timeout=queue.pause() if len(running) < self._size else None)
            for ref in ready:
                shard, attempt, worker = running.pop(ref)
                outcome = self._outcome(ref, shard, attempt, worker)
                if outcome is None:
                    queue.again(shard, attempt)
                else:
                    yield outcome

    def _start(self) -> Any:
        options = {**self._resources, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(self.num_threads)}}}
        return _Worker.options(**options).remote(self._options.decode == "cluster", code_sha256())  # type: ignore[attr-defined]

    def _outcome(self, ref: Any, shard: Shard, attempt: int, worker: Any) -> Done[Any] | Failed | None:
        """Return what became of a shard; None where it shall be tried again."""
        try:
            output = ray.get(ref)
        except _INFRASTRUCTURE as error:  # the worker is gone; a new one is started for the next shard
            if attempt < self._options.max_retries:
                log.warning("%s: worker lost (%s); retry %d", shard.name, type(error).__name__, attempt + 1)
                return None
            what = f"{type(error).__name__} on {attempt + 1} workers in turn: {str(error).strip()[:500]}"
            return Failed(shard, what, what)
        except RayTaskError as error:
            self._idle.append(worker)
            cause = error.cause
            if isinstance(cause, _NotOpened):
                raise cause.args[0] from None
            if isinstance(cause, Exception) and is_transient(cause) and attempt < self._options.max_retries:
                log.warning("%s: %s: %s; retry %d", shard.name, type(cause).__name__, cause, attempt + 1)
                return None
            return Failed(shard, f"{type(cause).__name__}: {cause}", str(error))
        self._idle.append(worker)
        return Done(shard, output)


class _Queue:
    """Shards that wait for a worker; those that are tried again wait a while first."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._fresh = deque(shards)
        self._again: list[tuple[float, int, Shard, int]] = []  # a heap: when, a number against ties, shard, attempt

    def __bool__(self) -> bool:
        return bool(self._fresh or self._again)

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


class _NotOpened(Exception):
    """A stage could not be opened: that is no shard's fault and would happen to every one of them."""


@ray.remote
class _Worker:
    """One process that keeps its stage open from shard to shard."""

    def __init__(self, decode_elsewhere: bool, code: str) -> None:
        if code != code_sha256():
            raise PairsanError("this node runs other pairsan code than the driver; install one version on every node")
        self._decode_elsewhere = decode_elsewhere
        self._stage: Any = None
        self._stage_id = ""

    def run(self, stage: Any, stage_id: str, shard: Shard) -> Any:
        if stage_id != self._stage_id:
            self._stage, self._stage_id = None, ""  # let go of the last stage's weights first
            if self._decode_elsewhere and hasattr(stage, "read_from"):
                stage.read_from(_RemoteChunks(stage.target.decode))
            try:
                stage.open()
            except PairsanError as error:
                raise _NotOpened(error) from error
            self._stage, self._stage_id = stage, stage_id
        return self._stage.run(shard)


class _RemoteChunks:
    """Decoded chunks of a shard from a task on any node with a free CPU; only a few wait at a time."""

    def __init__(self, decode: Any) -> None:
        self._decode = ray.put(decode)

    def __call__(self, shard: Shard) -> Iterator[Any]:
        for ref in _decode_shard.remote(self._decode, shard):
            yield ray.get(ref)


@ray.remote(  # type: ignore[untyped-decorator]  # ray ships no types for it
    num_cpus=1, num_returns="streaming", _generator_backpressure_num_objects=_DECODED_AHEAD, max_retries=3
)
def _decode_shard(decode: Any, shard: Shard) -> Iterator[Any]:
    decode.open()
    yield from decode.run(shard)


def num_gpus(settings: ExecutorSettings) -> int:
    """Return how many GPUs workers can have: of the connected cluster, or of this process."""
    if settings.executor == "ray":
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()


@contextmanager
def connected(options: ExecutorSettings, *, verbose: bool) -> Iterator[None]:
    """Connect to Ray, or start a local cluster, for as long as the block runs; nothing for the local executor."""
    if options.executor == "local" or ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # never whatever cluster happens to run here: somebody else's would be joined in silence
    address = options.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    level = logging.INFO if verbose else logging.ERROR
    logging.getLogger("ray").setLevel(level)
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            logging_level=level,
            log_to_driver=verbose,
            configure_logging=verbose,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot connect to Ray at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def make_executor(options: ExecutorSettings, *, use_gpus: bool, num_shards: int) -> Executor:
    """Return the executor that the settings ask for, inside `connected`."""
    if options.executor == "local":
        if options.decode == "cluster":
            raise ConfigError("--decode cluster needs --executor ray")
        return LocalExecutor(options.max_retries, options.threads_per_worker or 1)
    return RayExecutor(options, num_gpus=num_gpus(options) if use_gpus else 0, num_shards=num_shards)
