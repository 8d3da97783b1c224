"""Say how far a stage is: one changing line on a terminal and in a notebook, a plain line every 30 s elsewhere."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Final, TextIO

from pipeline.workers.executors import UnderWay

_TERMINAL_EVERY_S: Final = 0.5
_PLAIN_EVERY_S: Final = 30.0


class Progress:
    """Counts shards and rows of one stage and prints them until it is closed."""

    def __init__(
        self,
        what: str,
        num_shards: int,
        num_done_before: int = 0,
        stream: TextIO | None = None,
        under_way: Callable[[], UnderWay] = UnderWay,
        unit: str = "shards",
        num_rows: int | None = None,
    ) -> None:
        """Start the clock.

        Args:
            what: Name of the stage.
            num_shards: Shards of the round.
            num_done_before: Those that an earlier run has finished.
            stream: Where to print; standard error if unset.
            under_way: Says what is known of unfinished shards.
            unit: What is counted.
            num_rows: Rows of what is left, about; tells how long it will take before the first shard has ended.
        """
        self._what, self._unit, self._num_shards, self._num_before = what, unit, num_shards, num_done_before
        self._expected = num_rows
        self._stream, self._under_way = stream or sys.stderr, under_way
        self._terminal = self._stream.isatty() or type(self._stream).__module__.startswith("ipykernel.")
        self._width = 0
        self._num_done = self._num_rows = self._num_quarantined = self._num_failed = 0
        self._start = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Progress":
        """Begin printing."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Print a last line and stop."""
        self._closed.set()
        self._thread.join()
        if self._num_done or self._num_failed:
            self._print(last=True)

    def shard_done(self, num_rows: int, num_quarantined: int = 0) -> None:
        """Count one finished shard."""
        self._num_done += 1
        self._num_rows += num_rows
        self._num_quarantined += num_quarantined

    def shard_failed(self) -> None:
        """Count one failed shard."""
        self._num_failed += 1

    def line(self) -> str:
        """Return the line of this moment."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        done = self._num_before + self._num_done
        parts = [f"{self._what}: {done}/{self._num_shards} {self._unit}"]
        if self._num_before:
            parts.append(f"{self._num_before} done before")
        now = self._under_way()
        rows, quarantined = now.rows + self._num_rows, now.quarantined + self._num_quarantined
        if not self._num_done:
            parts.append(f"none finished after {clock(seconds)}")  # workers start, load weights, or shards are large
        if rows:
            parts.append(f"{rows:,} rows, {rows / seconds:,.0f} rows/s")
        if self._num_done and done < self._num_shards:
            parts.append(f"{clock(seconds / self._num_done * (self._num_shards - done))} left")
        elif not self._num_done and rows and self._expected:
            parts.append(f"about {clock(seconds / rows * max(0, self._expected - rows))} left")
        if quarantined:
            parts.append(f"{quarantined:,} quarantined")
        if self._num_failed:
            parts.append(f"{self._num_failed} {self._unit} FAILED")
        if now.last:
            parts.append(f"last {now.last}")
        return ", ".join(parts)

    def _tick(self) -> None:
        while not self._closed.wait(_TERMINAL_EVERY_S if self._terminal else _PLAIN_EVERY_S):
            self._print()

    def _print(self, *, last: bool = False) -> None:
        line = self.line()
        if self._terminal:  # blanks over the rest of a longer line: a notebook knows no "erase to the end"
            self._width = max(self._width, len(line))
            line = f"\r{line:<{self._width}}"
        self._stream.write(line + ("\n" if last or not self._terminal else ""))
        self._stream.flush()


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
