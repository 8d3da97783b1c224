"""Data that grow: what is new is scored, the rest taken over, and what comes of it is what a fresh run makes of all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import parts_of

from manifests.reading import open_round
from manifests.reviews import append
from manifests.schema import LOOKS_SINCE
from manifests.store import open_store

Pairsan = Callable[..., Result]
Clean = Callable[..., Result]
OPTIONS = ("--executor", "local", "--keep-share", 0.5, "--set", "signals=all", "--canaries", 12)


@pytest.fixture
def data(crawl: Path, tmp_path: Path) -> Path:
    """Two of three shards."""
    folder = tmp_path / "data"
    shutil.copytree(crawl, folder)
    (folder / "00001.tar").unlink()
    return folder


@pytest.fixture
def clean(data: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> Clean:
    """The command, into `run` if no other folder is named."""

    def call(*more: object, out: str = "run", code: int = 0) -> Result:
        weights = ("--checkpoint", tiny, "--reference-encoder", tiny)
        return pairsan("clean", data, "--out", tmp_path / out, *weights, *OPTIONS, *more, code=code)

    return call


def tables(folder: Path) -> dict[str, pa.Table]:
    return {str(p.relative_to(folder)): pq.read_table(p) for p in sorted(folder.rglob("*.parquet"))}


def test_a_run_of_data_that_have_grown_is_a_fresh_run_of_all(data: Path, crawl: Path, tmp_path: Path, clean: Clean) -> None:
    clean()
    run, before = tmp_path / "run", parts_of(tmp_path / "run")
    row = open_round(run).to_pandas(["uid", "shard", "index", "key", "label"]).query("label == 'risky'").head(1)
    judged = row[["uid", "shard", "index", "key"]].astype({"shard": str})
    append(open_store(run), pa.Table.from_pandas(judged, preserve_index=False), verdict="safe", who="ann", round_number=1)
    shutil.copy(crawl / "00001.tar", data)
    said = clean().stderr
    assert "take over from round 1: 2/2 shards, 24 rows" in said
    assert "embed: 3/3 shards, 2 done before, 16 rows" in said
    assert "take over vectors for reference: 2/2 shards, 24 rows" in said
    grown = open_round(run)
    assert (grown.number, grown.num_rows) == (2, 40)
    assert grown.seal["overruled"] == {"risky>safe": 1}
    assert grown.seal["plan"]["taken_over"]["round"] == 1
    assert {name: data for name, data in parts_of(run).items() if name in before} == before
    fresh_run = tmp_path / "fresh"
    clean(out="fresh")
    found, fresh = tables(run / "rounds/0002"), tables(fresh_run / "rounds/0001")
    assert found.keys() == fresh.keys()
    assert {name.split("/")[0].partition("-")[0] for name in found} >= {
        "scores",
        "embeddings",
        "canaries",
        "signals",
        "manifest",
    }
    for name in found:
        assert name.startswith("manifest/") or found[name].equals(fresh[name]), name
    vectors, others = (tables(folder) for folder in (run, fresh_run))
    references = [name for name in others if name.startswith("reference-")]
    assert len(references) == 6  # of rows, and of canaries
    assert all(vectors[name].equals(others[name]) for name in references)
    labels, others = (
        manifest.to_pandas(["uid", "label"]).set_index("uid")["label"] for manifest in (grown, open_round(fresh_run))
    )
    assert labels[labels.astype(str) != others.astype(str)].index.tolist() == row["uid"].tolist()
    assert clean().stdout == clean().stdout  # nothing is left to do
    assert open_round(run).number == 2


def test_scores_of_the_schema_before_are_taken_over_as_they_are_the_same(
    data: Path, crawl: Path, tmp_path: Path, clean: Clean
) -> None:
    clean()
    plan = tmp_path / "run/rounds/0001/plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "schema_version": LOOKS_SINCE}))
    shutil.copy(crawl / "00001.tar", data)
    assert "take over from round 1: 2/2 shards" in clean().stderr
    plan = tmp_path / "run/rounds/0002/plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "schema_version": LOOKS_SINCE - 1}))
    shutil.copy(crawl / "00001.tar", data / "00003.tar")
    assert "take over" not in clean().stderr


def test_what_was_taken_over_in_part_is_gone_on_with(data: Path, crawl: Path, tmp_path: Path, clean: Clean) -> None:
    clean()
    shutil.copy(crawl / "00001.tar", data)
    clean()
    uncut = parts_of(tmp_path / "run")
    for name in ("manifest.json", "scores/00000.tar.parquet", "scores/00001.tar.parquet", "canaries/00000.tar.parquet"):
        (tmp_path / "run/rounds/0002" / name).unlink()
    assert "take over from round 1: 1/1 shards, 16 rows" in clean().stderr
    assert parts_of(tmp_path / "run") == uncut


def test_a_shard_that_changed_or_is_gone_is_named(
    data: Path, crawl: Path, tmp_path: Path, clean: Clean, pairsan: Pairsan
) -> None:
    clean()
    run = tmp_path / "run"
    same = (data / "00002.tar").read_bytes()
    (data / "00002.tar").write_bytes(same[:1500] + b"\x55" + same[1501:])
    assert "1 of 2 shards (00002.tar) is no longer what" in clean(code=5).stderr
    (data / "00002.tar").unlink()
    shutil.copy(crawl / "00001.tar", data)
    refused = clean(code=5).stderr
    assert "1 of 2 shards (00002.tar) is gone since" in refused
    assert "--drop-missing" in refused
    assert "caption: 'first' -> 'join'" in clean("--drop-missing", "--set", "caption=join", code=5).stderr
    assert json.loads((run / "run.json").read_text())["dataset"]["num_shards"] == 2
    clean("--drop-missing")
    assert open_round(run).shards == ["00000.tar", "00001.tar"]
    assert "from before they grew" in pairsan("split", run, "--scores-round", 1, code=5).stderr
    told = pairsan("diff", run, "--from", 1, "--to", 2).output
    assert "1 shards of 8 rows are in round 1 alone: 00002.tar" in told
    assert "1 shards of 16 rows are in round 2 alone: 00001.tar" in told
    assert "all as sealed" in pairsan("verify", run, "--round", 1).output
    assert "all as sealed" in pairsan("verify", run, "--data").output
    pairsan("split", run, "--keep-share", 0.3)
    assert open_round(run).seal["plan"]["scores_round"] == 2


def test_data_of_a_run_that_is_not_sealed_do_not_grow(data: Path, crawl: Path, tmp_path: Path, clean: Clean) -> None:
    clean()
    (tmp_path / "run/rounds/0001/manifest.json").unlink()
    shutil.copy(crawl / "00001.tar", data)
    assert "--restart" in clean(code=5).stderr


def test_a_further_source_is_added_under_its_own_name(
    data: Path, crawl: Path, tmp_path: Path, clean: Clean, pairsan: Pairsan
) -> None:
    clean()
    run, before, more = tmp_path / "run", parts_of(tmp_path / "run"), tmp_path / "crawl.2025"
    more.mkdir()
    shutil.copy(crawl / "00001.tar", more / "00000.tar")  # a name that the run has already
    said = pairsan("add", run, more).stderr
    assert "take over from round 1: 2/2 shards, 24 rows" in said
    assert pairsan("add", run, more).stdout == pairsan("add", run, more).stdout  # nothing is left to do
    grown = open_round(run)
    assert grown.number == 2
    assert sorted(grown.shards) == ["00000.tar", "00002.tar", "crawl/00000.tar"]
    assert grown.seal["plan"]["split"] == open_round(run, 1).seal["plan"]["split"]
    assert {name: data for name, data in parts_of(run).items() if name in before} == before
    pairsan("verify", run, "--data")
    assert "1 of 3 shards (crawl/00000.tar) is gone" in clean(code=5).stderr  # its first data alone are less


def test_what_is_no_further_source(data: Path, tmp_path: Path, tiny: str, clean: Clean, pairsan: Pairsan) -> None:
    clean()
    run, before = tmp_path / "run", parts_of(tmp_path / "run")
    assert "two sources have 2 shards of one path" in pairsan("add", run, data, "--name", "again", code=3).stderr
    assert "nowhere does not exist" in pairsan("add", run, tmp_path / "nowhere", code=3).stderr
    assert "--name 'a/b': a source is called by letters" in pairsan("add", run, data, "--name", "a/b", code=2).stderr
    assert parts_of(run) == before
    (run / "rounds/0001/manifest.json").unlink()
    assert "has no sealed round yet" in pairsan("add", run, data, code=5).stderr
