import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from prometheus_client.parser import text_string_to_metric_families

from manifests.errors import RunError
from manifests.reading import Manifest, open_round
from manifests.store import open_store
from pipeline.queries import oneliners, prometheus, status

Pairsan = Callable[..., Any]


@pytest.fixture
def run(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> Path:
    """A run whose name needs quoting everywhere; 38 of 40 rows are scored, half of them safe."""
    out = tmp_path / "a 'run\" 1"
    pairsan("clean", crawl, "--checkpoint", tiny, "--out", out, "--executor", "local", "--keep-share", 0.5)
    return out


def test_metrics_say_what_the_seal_says(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    pairsan("split", run, "--keep-share", 0.25)
    (run / "rounds/0002/manifest.json").rename(run / "rounds/0002/gone")  # as if it had ended before the seal
    path = tmp_path / "a.prom"
    prometheus.write(status.of_run(open_store(str(run))), str(path))
    found = {
        (sample.name, *(sample.labels.get(name) for name in ("round", "label"))): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
        if sample.labels["run"] == str(run)
    }
    seal = open_round(run, 1).seal
    assert found["pairsan_sealed_rounds", None, None] == 1
    assert found["pairsan_failed_shards", None, None] == 0
    assert found["pairsan_rows", "1", "safe"] == 19
    assert found["pairsan_rows", "1", "risky"] == 19
    assert found["pairsan_rows", "1", "quarantined"] == 2
    assert found["pairsan_cut_cosine", "1", None] == seal["cut"]
    assert found["pairsan_safe_share", "1", None] == seal["safe_share"] == 0.5
    assert not [key for key in found if key[1] == "2" or key[0].startswith("pairsan_training")]


def test_one_liners_run_as_they_stand(run: Path) -> None:
    lines = oneliners.of_round(open_round(run))
    program, flag, query = shlex.split(lines["DuckDB"])
    assert (program, flag) == ("duckdb", "-c")
    assert {(label, reason): num for label, reason, num, _ in duckdb.sql(query).fetchall()}["safe", None] == 19
    assert shlex.split(lines["the page of pairsan"]) == ["pairsan", "review", str(run), "--round", "1"]
    names: dict[str, Any] = {}
    exec(lines["pandas"], names)  # a line of ours
    assert len(names["df"]) == 40
    assert (names["df"]["label"] == "safe").sum() == 19


def test_there_are_none_for_a_bucket() -> None:
    manifest = Manifest(open_store("memory://bucket/run"), 1, {})
    with pytest.raises(RunError, match=r"memory://bucket/run is no local path; in Python: open_round"):
        oneliners.of_round(manifest)
