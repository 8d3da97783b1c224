"""What runs on a node of a Ray cluster: a process that keeps its stage open from shard to shard, and decoding beside it."""

import hashlib
import importlib
from collections.abc import Iterator
from typing import Any, Final

import ray

from manifests.errors import PairsanError
from manifests.layout import RUN
from manifests.store import Store
from pipeline.config.provenance import code_sha256
from stages.pair import Shard

_DECODED_AHEAD: Final = 3  # chunks of one shard that may wait in the object store


class NotOpened(Exception):
    """A stage could not be opened: that is no shard's fault and would happen to every one of them."""


@ray.remote(concurrency_groups={"word": 1})
class Worker:
    """One process that keeps its stage open from shard to shard, and says meanwhile how far it is."""

    def __init__(self, decode_elsewhere: bool, module: str | None = None) -> None:
        """Set whether pixels come from tasks on other nodes, and import what the first stage will need."""
        if module is not None:
            importlib.import_module(module)
        self._decode_elsewhere = decode_elsewhere
        self._stage: Any = None
        self._stage_id = ""

    def ready(self) -> tuple[str, str]:
        """Return which code this process has, and on which node it runs."""
        return code_sha256(), ray.util.get_node_ip_address()

    def run(self, stage: Any, stage_id: str, marker: str | None, shard: Shard) -> Any:
        """Return what the stage makes of a shard; open the stage where it is another than the last one.

        Args:
            stage: The stage.
            stage_id: Tells it from others.
            marker: What the driver sees of the run folder that it writes into; see `run_marker`.
            shard: The shard.

        Raises:
            NotOpened: Around the error.
        """
        if stage_id != self._stage_id:
            self._stage, self._stage_id = None, ""  # let go of the last stage's weights first
            if self._decode_elsewhere and hasattr(stage, "read_from"):
                stage.read_from(_RemoteChunks(stage.target.decode))
            try:
                _check_reach(stage, marker)
                stage.open()
            except PairsanError as error:
                raise NotOpened(error) from error
            self._stage, self._stage_id = stage, stage_id
        self._stage.so_far = (0, 0)
        return self._stage.run(shard)

    @ray.method(concurrency_group="word")  # type: ignore[untyped-decorator]  # ray ships no types for it
    def so_far(self) -> tuple[int, int]:
        """Return rows, and quarantined rows, of the shard that is being worked on; while `run` runs."""
        return (0, 0) if self._stage is None else self._stage.so_far


def run_marker(stage: Any) -> str | None:
    """Return what tells the run folder of a stage from any other; None where it has none, or one that is not begun."""
    run = getattr(getattr(stage, "target", None), "run", None)
    if not isinstance(run, Store) or not run.exists(RUN):
        return None
    return hashlib.sha256(run.read_bytes(RUN)).hexdigest()


def _check_reach(stage: Any, marker: str | None) -> None:
    """Refuse to work where the run folder is another than the driver's: parts would be written to where nobody looks.

    Raises:
        PairsanError: Names the node.
    """
    if marker is not None and run_marker(stage) != marker:
        raise PairsanError(
            f"node {ray.util.get_node_ip_address()} does not see the run folder {stage.target.run.uri} that the driver sees; "
            "give --out on a path that all nodes share, or a URI"
        )


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
