"""How far the workers of a pool are within their shards: asked now and then, for the progress line alone."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import ray
from ray.exceptions import RayError

from stages.pair import Shard

_ASK_S: Final = 2.0


class Listener:
    """Asks busy workers, never waits for them, and remembers what each has said last."""

    def __init__(self) -> None:
        """Know of nobody."""
        self._asked: dict[Any, Shard] = {}
        self._said: dict[Shard, tuple[int, int]] = {}
        self._asked_at = -_ASK_S

    def total(self) -> tuple[int, int]:
        """Return rows, and quarantined rows, of the shards that are being worked on, as far as was said."""
        said = list(self._said.values())
        return sum(rows for rows, _ in said), sum(quarantined for _, quarantined in said)

    def forget(self, shard: Shard) -> None:
        """Drop what was said of a shard: it is finished, or begun anew."""
        self._said.pop(shard, None)

    def listen(self, busy: Mapping[Shard, Any]) -> None:
        """Take the answers that are there; ask anew, once all have answered or are gone.

        Args:
            busy: The worker that has each shard.
        """
        answers = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)[0] if self._asked else []
        for ref in answers:
            shard = self._asked.pop(ref)
            with suppress(RayError):  # of a worker that is gone
                so_far = ray.get(ref)
                if shard in busy:
                    self._said[shard] = so_far
        if not self._asked and time.monotonic() - self._asked_at >= _ASK_S:
            self._asked_at = time.monotonic()
            self._asked = {worker.so_far.remote(): shard for shard, worker in busy.items()}
