import io
import re
import threading

import pytest

from pipeline.workers import progress as progress_
from pipeline.workers.progress import Progress


class Log(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.printed = threading.Event()

    def flush(self) -> None:
        self.printed.set()


class Terminal(Log):
    def isatty(self) -> bool:
        return True


def test_a_line_says_shards_rows_rate_and_what_is_left() -> None:
    progress = Progress("embed", 10, 2, io.StringIO())
    progress.shard_done(500, 3)
    progress.shard_failed()
    line = progress.line()
    assert re.fullmatch(
        r"embed: 3/10 shards, 2 done before, 500 rows, [\d,]+ rows/s, \d+:\d\d:\d\d left, 3 quarantined, 1 shards FAILED", line
    )


def test_a_terminal_gets_one_changing_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_, "_TERMINAL_EVERY_S", 0.01)
    out = Terminal()
    with Progress("count", 1, 0, out) as progress:
        out.printed.wait(10)
        progress.shard_done(7)
    text = out.getvalue()
    assert text.count("\n") == 1
    assert text.count("\r") >= 2
    assert text.splitlines()[-1].rstrip().endswith("rows/s")


def test_a_log_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_, "_PLAIN_EVERY_S", 0.01)
    out = Log()
    with Progress("count", 1, 0, out) as progress:
        out.printed.wait(10)
        progress.shard_done(7)
    assert "\r" not in out.getvalue()
    assert "count: 1/1 shards, 7 rows" in out.getvalue().splitlines()[-1]


def test_nothing_done_says_nothing_at_the_end() -> None:
    out = io.StringIO()
    with Progress("embed", 0, 0, out):
        pass
    assert out.getvalue() == ""


def test_before_the_first_shard_a_line_says_how_long_it_has_been() -> None:
    assert Progress("embed", 4, 0, io.StringIO()).line() == "embed: 0/4 shards, none finished after 0:00:00"
