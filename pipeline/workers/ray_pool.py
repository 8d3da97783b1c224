"""Workers on a Ray cluster, each an actor that survives from stage to stage; they come and go with the nodes.

A shard is handed only to a worker that is there. One that was lost is asked for anew, and so is one for each place on a node
that joins; what the cluster cannot place stays pending, which an autoscaler sees, and keeps no shard waiting.
"""

import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RaySystemError, RayTaskError, WorkerCrashedError

from manifests.errors import ConfigError, PairsanError
from pipeline.config.catalogue import ExecutorSettings
from pipeline.config.provenance import code_sha256
from pipeline.workers.executors import Done, Failed, ShardQueue, UnderWay, is_transient
from pipeline.workers.listening import Listener
from pipeline.workers.progress import clock
from pipeline.workers.ray_worker import NotOpened, Worker, run_marker
from stages.pair import Shard
from stages.stage import Stage

log = logging.getLogger("pairsan.executors")

Out = TypeVar("Out")
_INFRASTRUCTURE: Final = (RayActorError, WorkerCrashedError, OutOfMemoryError, RaySystemError)
_LOOK_S: Final = 2.0  # between two looks at which nodes there are
_WORD_S: Final = 30.0  # of waiting for any worker at all, before a word is said
_FALSE_STARTS: Final = 10  # workers in a row that end before they have begun
# a shard is started a second time where it has run so many s, and so many times what is usual, after so many have ended
_LATE_S, _LATE_TIMES, _LATE_AFTER = 60.0, 4.0, 3
Resources = Mapping[str, float]


class RayExecutor:
    """Runs stages on as many workers as the cluster has places for, at any time."""

    def __init__(self, options: ExecutorSettings, *, num_gpus: int) -> None:
        """Choose what each worker gets: a GPU where there are any, and threads of the node that it stands on.

        Raises:
            ConfigError: No node has room for even one worker.
        """
        self._options, self._use_gpu, nodes = options, num_gpus > 0, _nodes()
        beside = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU", 0)]
        self.num_threads = options.threads_per_worker or (max(1, min(beside)) if self._use_gpu and beside else 1)
        largest, total = max((node.get("CPU", 0.0) for node in nodes), default=0.0), sum(node.get("CPU", 0.0) for node in nodes)
        if options.decode == "cluster" and not self._use_gpu and 0 < total < self.num_threads + 1:
            raise ConfigError(
                f"--decode cluster needs a CPU beside the {self.num_threads} of a worker, the cluster has {total:g}; "
                "lower --threads-per-worker or decode in the worker"
            )
        if 0 < largest < self.num_threads:
            raise ConfigError(f"--threads-per-worker {self.num_threads} exceeds the {largest:g} CPUs of the largest node")
        room = self._places(nodes)
        if options.workers and options.workers > room:
            log.info("%d workers are asked for, there is room for %d; others start when there is", options.workers, room)
        self.num_workers = options.workers or room
        self._idle: list[_Ready] = []
        self._starting: dict[Any, Any] = {}
        self._false_starts, self._size, self._looked_at = 0, 0, -_LOOK_S
        self._listener, self._last = Listener(), ""

    def under_way(self) -> UnderWay:
        """Return what is known of the shards that are being worked on, as workers said last."""
        return UnderWay(*self._listener.total(), self._last)

    def start(self, num_shards: int, module: str) -> None:
        """Start the workers that so many shards will need, and let each import a module; returns at once."""
        self._grow(num_shards, 0, module)

    def map(self, stage: Stage[Any, Out], shards: Sequence[Shard]) -> Iterator[Done[Out] | Failed]:
        """Yield one outcome per shard, in the order in which they finish.

        Raises:
            PairsanError: The stage could not be opened, or no worker can be started.
        """
        work, queue = _Work(ray.put(stage), run_marker(stage)), ShardQueue(shards)
        running: dict[Any, _Call] = {}
        ended: set[Shard] = set()
        waiting_since = time.monotonic()
        while len(ended) < len(shards):
            self._hand_out(work, queue, running)
            self._last = "" if queue else _last(running)
            self._grow(len(queue), len(running))
            self._listener.listen({call.shard: call.worker.actor for call in running.values()})
            for ref in self._ready(running, queue):
                if ref not in running:
                    self._started(ref)
                    continue
                call = running.pop(ref)
                self._listener.forget(call.shard)
                outcome = self._outcome(ref, call)
                if call.shard in ended or (not isinstance(outcome, Done) and _runs(call.shard, running)):
                    continue  # it was started twice, and the other one says what becomes of it
                if outcome is None:
                    queue.again(call.shard, call.attempt)
                    continue
                work.seconds.append(time.monotonic() - call.since)
                ended.add(call.shard)
                yield outcome
            if running or self._idle:
                waiting_since = time.monotonic()
            elif time.monotonic() - waiting_since > _WORD_S:
                log.info("%d shards wait for a worker; the cluster has %s", len(queue), _described(_nodes()))
                waiting_since = time.monotonic()
        self._last = ""
        for call in running.values():  # slow ones, whose shards others have finished
            ray.kill(call.worker.actor)

    def _hand_out(self, work: "_Work", queue: ShardQueue, running: dict[Any, "_Call"]) -> None:
        """Give each idle worker the next shard; where none waits, a shard that takes far longer than others have."""
        while self._idle and (due := queue.take()) is not None:
            self._call(work, *due, running)
        late = None if queue or not self._idle else _late(running, work.seconds)
        if late is not None:
            seconds, usual = time.monotonic() - late.since, statistics.median(work.seconds)
            told = "%s: on node %s for %.0f s, others took %.0f s; started a second time elsewhere"
            log.warning(told, late.shard.title, late.worker.node, seconds, usual)
            self._call(work, late.shard, late.attempt, running)

    def _call(self, work: "_Work", shard: Shard, attempt: int, running: dict[Any, "_Call"]) -> None:
        worker = self._idle.pop()
        ref = worker.actor.run.remote(work.stage, work.stage.hex(), work.marker, shard)
        running[ref] = _Call(shard, attempt, worker, time.monotonic())

    def _ready(self, running: Mapping[Any, object], queue: ShardQueue) -> list[Any]:
        """Return calls that have ended, of shards or of workers that start; wait a while for one."""
        calls, pause = [*running, *self._starting], queue.pause()
        timeout = _LOOK_S if pause is None or not self._idle else min(_LOOK_S, pause)
        if not calls:
            time.sleep(timeout)
            return []
        found: list[Any] = ray.wait(calls, num_returns=1, timeout=timeout)[0]
        return found

    def _grow(self, num_waiting: int, num_running: int, module: str | None = None) -> None:
        """Ask for workers where shards wait, as many as there are places for; --workers, where that is more."""
        if time.monotonic() - self._looked_at >= _LOOK_S:
            self._looked_at, self._size = time.monotonic(), self._options.workers or self._places(_nodes())
        wanted = min(max(1, self._size), num_waiting + num_running)
        for _ in range(wanted - num_running - len(self._idle) - len(self._starting)):
            options = {
                **{"num_cpus": self.num_threads, "num_gpus": int(self._use_gpu), "max_restarts": 0},
                "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(self.num_threads)}},
            }
            actor = Worker.options(**options).remote(self._options.decode == "cluster", module)  # type: ignore[attr-defined]
            self._starting[actor.ready.remote()] = actor

    def _started(self, ref: Any) -> None:
        """Take a worker that is there; one that runs other code is refused, one that died is done without.

        Raises:
            PairsanError: Another version on that node, or no worker stays alive.
        """
        actor = self._starting.pop(ref)
        try:
            code, node = ray.get(ref)
        except RayError as error:
            self._false_starts += 1
            if self._false_starts >= _FALSE_STARTS:
                raise PairsanError(f"{self._false_starts} workers in a row ended at their start: {str(error)[:500]}") from error
            return
        if code != code_sha256():
            raise PairsanError(f"node {node} runs other pairsan code than the driver; install one version on every node")
        self._false_starts = 0
        self._idle.append(_Ready(actor, node))

    def _places(self, nodes: Sequence[Resources]) -> int:
        """Return how many workers the nodes have room for, one at a time on each."""
        num = 0
        for node in nodes:
            fitting = int(node.get("CPU", 0) // self.num_threads)
            num += min(fitting, int(node.get("GPU", 0))) if self._use_gpu else fitting
        spare = sum(node.get("CPU", 0) for node in nodes) - num * self.num_threads
        # decoding tasks need a CPU of their own
        return max(1, num - 1) if self._options.decode == "cluster" and not self._use_gpu and spare < 1 else num

    def _outcome(self, ref: Any, call: "_Call") -> Done[Any] | Failed | None:
        """Return what became of a shard; None where it shall be tried again."""
        again, shard = call.attempt < self._options.max_retries, call.shard
        try:
            output = ray.get(ref)
        except RayTaskError as error:
            self._idle.append(call.worker)
            cause = error.cause
            if isinstance(cause, NotOpened):
                raise cause.args[0] from None
            # a Ray error within a worker: chunks that were decoded on a node that is gone
            if again and (isinstance(cause, RayError) or (isinstance(cause, Exception) and is_transient(cause))):
                log.warning("%s: %s: %s; retry %d", shard.title, type(cause).__name__, str(cause)[:300], call.attempt + 1)
                return None
            where = f" (on node {call.worker.node})" if isinstance(cause, (FileNotFoundError, PermissionError)) else ""
            return Failed(shard, f"{type(cause).__name__}: {cause}{where}", str(error))
        except _INFRASTRUCTURE as error:
            # others may have gone with it, so those that idle are asked first whether they are there
            self._starting |= {idle.actor.ready.remote(): idle.actor for idle in self._idle}
            self._idle.clear()
            if again:
                log.warning("%s: worker lost (%s); retry %d", shard.title, type(error).__name__, call.attempt + 1)
                return None
            what = f"{type(error).__name__} on {call.attempt + 1} workers in turn: {str(error).strip()[:500]}"
            return Failed(shard, what, what)
        self._idle.append(call.worker)
        return Done(shard, output)


@dataclass(frozen=True)
class _Ready:
    """A worker that is there."""

    actor: Any
    node: str


@dataclass(frozen=True)
class _Call:
    """A shard that a worker has, since when by the monotonic clock."""

    shard: Shard
    attempt: int
    worker: _Ready
    since: float


@dataclass(frozen=True)
class _Work:
    """A stage in the object store, the marker of its run folder, and how many seconds each shard took that has ended."""

    stage: Any
    marker: str | None
    seconds: list[float] = field(default_factory=list)


def _runs(shard: Shard, running: Mapping[Any, _Call]) -> bool:
    """Return whether some worker has a shard."""
    return any(call.shard == shard for call in running.values())


def _last(running: Mapping[Any, _Call]) -> str:
    """Return which shard has run longest, on which node and for how long."""
    if not running:
        return ""
    oldest = min(running.values(), key=lambda call: call.since)
    return f"{oldest.shard.title} on node {oldest.worker.node} for {clock(time.monotonic() - oldest.since)}"


def _late(running: Mapping[Any, _Call], seconds: Sequence[float]) -> _Call | None:
    """Return the shard that has run longest, where that is far longer than others took and only one worker has it."""
    once = [call for call in running.values() if sum(other.shard == call.shard for other in running.values()) == 1]
    if not once or len(seconds) < _LATE_AFTER:
        return None
    oldest = min(once, key=lambda call: call.since)
    limit = max(_LATE_S, _LATE_TIMES * statistics.median(seconds))
    return oldest if time.monotonic() - oldest.since > limit else None


def _nodes() -> list[Resources]:
    """Return what each node that is alive has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _described(nodes: Sequence[Resources]) -> str:
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    return f"{len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs"
