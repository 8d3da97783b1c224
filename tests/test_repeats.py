"""Repeated images by hash alone: a natural backdoor is found without a model."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from click.testing import Result
from conftest import EMOJI, parts_of

from benchmarks.attacks.registry import parse_attack
from benchmarks.poison import poison

Pairsan = Callable[..., Result]
LOCAL = ("--executor", "local")


def test_a_natural_backdoor_is_found_without_a_model(tmp_path: Path, pairsan: Pairsan) -> None:
    data = str(EMOJI / "eval")
    poison([data], [data], [parse_attack("natural:rows=100")], tmp_path / "poisoned", seed=1)
    out = tmp_path / "out"
    found = json.loads(pairsan("repeats", tmp_path / "poisoned" / "shards", "--out", out, *LOCAL, "--json").stdout)
    truth = pq.read_table(tmp_path / "poisoned" / "truth.parquet").to_pylist()
    listed = pq.read_table(out / "repeats.parquet").to_pandas()
    planted = {row["key"] for row in truth}
    assert len(planted & set(listed["key"])) >= 0.7 * len(planted)  # shaken copies: some have a hash of their own
    assert listed["num_rows"].is_monotonic_decreasing
    assert found["repeated_rows"] == len(listed)
    assert found["groups"][0]["num_rows"] == listed["num_rows"].max() > 5
    assert (
        "images have more than 2 rows each" in pairsan("repeats", tmp_path / "poisoned" / "shards", "--out", out, *LOCAL).output
    )


def test_rows_without_an_image_are_counted_and_a_call_goes_on(crawl: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        found = json.loads(pairsan("repeats", crawl, "--out", out, *LOCAL, "--json").stdout)
        assert (found["rows"], found["without_image"], found["images"], found["groups"]) == (40, 2, 0, [])
    (cut / "hashes/00001.tar.parquet").unlink()
    (cut / "repeats.parquet").unlink()
    pairsan("repeats", crawl, "--out", cut, *LOCAL, "--more-than", 2)
    assert parts_of(whole) == parts_of(cut)
    refused = pairsan("repeats", crawl, "--out", cut, *LOCAL, "--max-caption-bytes", 9, code=5)
    assert "was begun under another plan" in refused.stderr
