"""Of copies one is kept: the oldest, the newest, or the best of those that would be safe but for their number."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import Result

from manifests.parts import write_part
from manifests.reading import open_round
from manifests.store import Store, open_store
from stages.label.copies.kept import OFFERS, Kept, write_kept

HUGE = 2**62 + 1  # clusters that one float64 stands for are two


@pytest.fixture
def offers(tmp_path: Path) -> Store:
    """Two shards: cluster HUGE has rows of both, HUGE + 1 one row, and another limit counts two of them, too."""
    run = open_store(tmp_path)
    columns = ("place", "cluster", "cosine", "age", "shard", "row")
    rows = {
        "a": [(1, HUGE, 0.3, 2, 0, 7), (1, HUGE, 0.5, 2, 0, 9), (3, 5, 0.5, 2, 0, 9), (1, HUGE + 1, 0.1, 2, 0, 30_000)],
        "b": [(1, HUGE, 0.5, 1, 1, 4), (3, 5, 0.2, 1, 1, 8)],
    }
    for name, some in rows.items():
        table = pa.table(dict(zip(columns, map(list, zip(*some, strict=True)), strict=True))).cast(OFFERS)
        write_part(run, f"{name}.parquet", OFFERS, [table], fingerprint="x")
    return run


@pytest.mark.parametrize(
    ("which", "first", "second"),
    [
        ("oldest", {1: [30_000]}, {1: [4], 3: [8]}),
        ("newest", {1: [9, 30_000], 3: [9]}, {}),
        ("best", {1: [30_000], 3: [9]}, {1: [4]}),  # of equal cosines the older one
    ],
)
def test_one_of_each_cluster_is_kept(
    offers: Store, which: str, first: dict[int, list[int]], second: dict[int, list[int]]
) -> None:
    write_kept(offers, "kept.parquet", ["a.parquet", "b.parquet"], which, fingerprint="x")
    for shard, rows in enumerate((first, second)):
        found = Kept.read(offers, "kept.parquet", shard)
        assert {place: some.tolist() for place, some in found.rows.items()} == rows
    assert np.flatnonzero(Kept.read(offers, "kept.parquet", 0).among(25_000, 10_000)[1]).tolist() == [5_000]


@pytest.mark.whole
def test_what_is_kept_of_data_that_have_grown(crawl: Path, tmp_path: Path, tiny: str, pairsan: Callable[..., Result]) -> None:
    """The copy of a shard comes later, though its name comes first; what is below the cut is not kept for others."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(crawl, data)
    limits = ("--executor", "local", "--keep-share", 0.6, "--signals", "repeats", "--max-image-repeats", 1)
    pairsan("clean", data, "--out", run, "--checkpoint", tiny, *limits)
    shutil.copy(data / "00001.tar", data / "0-copy.tar")
    pairsan("clean", data, "--out", run, "--checkpoint", tiny, *limits)
    for which in ("oldest", "newest", "best"):
        pairsan("split", run, *limits, "--keep-one", which)
        again = json.loads(pairsan("split", run, *limits, "--keep-one", which, "--json").stdout)
        rows = rows_of(run, again["round"])
        copies = rows[rows["copies"] > 1]
        alone = copies[(copies["reason"] == "exact_duplicate") | (copies["label"] == "safe")]
        assert {"0-copy.tar", "00001.tar"} <= set(alone["shard"])
        for _, cluster in alone.groupby("cluster"):
            fit = cluster[cluster["cosine"] >= again["cut"]]
            order = ["cosine", "age", "shard", "index"] if which == "best" else ["age", "shard", "index"]
            fit = fit.sort_values(order, ascending=[name != "cosine" and which != "newest" for name in order])
            assert cluster.index[cluster["label"] == "safe"].tolist() == fit.index[:1].tolist()
    assert again["counts"]["reasons"]["exact_duplicate"] < len(copies)


def rows_of(run: Path, number: int) -> pd.DataFrame:
    """Return the rows of a round with what is known of copies."""
    rows = open_round(run, number).to_pandas(["shard", "index", "cosine", "label", "reason", "signals"])
    rows = rows[rows["signals"].notna()].astype({"shard": str}).reset_index(drop=True)  # quarantined rows have none
    signals = pd.DataFrame(rows["signals"].tolist())
    rows["cluster"], rows["copies"] = signals["exact_copy_cluster"], signals["exact_copies"]
    rows["age"] = np.where(rows["shard"] == "0-copy.tar", 2, 1)
    return rows
