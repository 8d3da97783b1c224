import io
import re
import threading
import time
from pathlib import Path

import pytest

from manifests.store import open_store
from pipeline.config.catalogue import ExecutorSettings
from pipeline.config.load import load_config
from pipeline.steps.score import prepare
from pipeline.workers import progress as progress_
from pipeline.workers.executors import LocalExecutor, UnderWay
from pipeline.workers.progress import Progress
from pipeline.workers.ray_pool import RayExecutor
from stages.pair import Shard
from stages.read.shards import open_dataset
from stages.score.embed import Embedded
from stages.stage import Stage

LAST = "00041.tar on node 10.0.0.3 for 0:04:10"


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


def test_rows_of_unfinished_shards_count_before_any_is_finished() -> None:
    progress = Progress("embed", 2, 0, io.StringIO(), under_way=lambda: UnderWay(5120, 7, LAST))
    assert re.fullmatch(
        r"embed: 0/2 shards, none finished after 0:00:00, 5,120 rows, [\d,]+ rows/s, 7 quarantined, last " + re.escape(LAST),
        progress.line(),
    )
    progress.shard_done(1000, 1)
    assert "1/2 shards, 6,120 rows" in progress.line()
    assert progress.line().endswith(f"left, 8 quarantined, last {LAST}")


def test_what_is_left_is_told_by_rows_before_any_shard_is_finished() -> None:
    progress = Progress("embed", 2, 0, io.StringIO(), under_way=lambda: UnderWay(100, 0, ""), num_rows=301)
    progress._start -= 10.0
    found = re.search(r"about (\d):(\d\d):(\d\d) left", progress.line())
    assert found is not None
    assert found.groups() == ("0", "00", "20")  # 201 rows at 10 a second
    progress.shard_done(160)
    assert "about" not in progress.line()


def test_a_worker_in_this_process_says_how_far_it_is(crawl: Path, tmp_path: Path, tiny: str) -> None:
    dataset, config = open_dataset([str(crawl)]), load_config(None, {"checkpoint": tiny, "executor": "local"})
    stage = prepare(config, dataset, "cpu").stage(open_store(tmp_path / "run"), 1, num_shards=3, num_threads=1)
    executor, plain = LocalExecutor(0, 1), stage.run
    seen: list[tuple[int, int]] = []

    def run(shard: Shard) -> Embedded:
        done = plain(shard)
        seen.append(executor.under_way()[:2])
        return done

    stage.run = run  # type: ignore[method-assign]
    outcomes = [outcome.output for outcome in executor.map(stage, dataset.shards)]
    assert seen == [(output.num_rows, output.num_quarantined) for output in outcomes]
    assert sum(rows for rows, _ in seen) == 40
    assert executor.under_way() == UnderWay()  # counted as done now


@pytest.mark.whole
def test_a_worker_on_ray_says_how_far_it_is_while_it_works(ray_cluster: None) -> None:
    class Slow(Stage[None, int]):
        def run(self, shard: Shard, /) -> int:
            for rows in range(60):
                self.so_far = (rows + 1, 1)
                time.sleep(0.1)
            return 60

    executor = RayExecutor(ExecutorSettings(workers=1), num_gpus=0)
    seen: set[UnderWay] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            seen.add(executor.under_way())

    watcher = threading.Thread(target=watch)
    watcher.start()
    outcomes = list(executor.map(Slow(None), [Shard("a.tar", "a.tar", "tar", 0)]))
    stop.set()
    watcher.join()
    assert [outcome.output for outcome in outcomes] == [60]
    assert any(0 < rows < 60 for rows, *_ in seen)
    assert any(re.fullmatch(r"a\.tar on node [\d.]+ for 0:00:0\d", last) for *_, last in seen)
    assert executor.under_way() == UnderWay()


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
