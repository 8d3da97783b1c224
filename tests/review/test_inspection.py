import io
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import make_tar

Pairsan = Callable[..., Result]


@pytest.fixture
def run(crawl: Path, emoji_members: list[tuple[str, bytes]], tmp_path: Path, tiny: str, pairsan: Pairsan) -> Path:
    """The sealed crawl, with one more shard from somebody who hides things in names and captions."""
    image = emoji_members[0][1]
    members = [("evil\x1b[2J.webp", image), ("evil\x1b[2J.txt", b"<script>alert(1)</script> '; DROP TABLE pairs; --")]
    (crawl / "00003.tar").write_bytes(make_tar(members))
    pairsan("clean", crawl, "--checkpoint", tiny, "--out", tmp_path / "run", "--executor", "local", "--keep-share", 0.5)
    return tmp_path / "run"


def rows(pairsan: Pairsan, run: Path, *options: object) -> list[dict[str, object]]:
    output = pairsan("inspect", run, "--format", "json", "--limit", 0, *options).output
    return [json.loads(line) for line in output.splitlines()]


def test_the_worst_pairs_come_first_and_safe_ones_not_at_all(run: Path, pairsan: Pairsan) -> None:
    found = rows(pairsan, run)
    assert {row["label"] for row in found} == {"risky", "quarantined"}
    cosines = [row["cosine"] for row in found if row["cosine"] is not None]
    assert cosines == sorted(cosines)
    assert found[-1]["cosine"] is None  # rows without a score come last


def test_filters(run: Path, pairsan: Pairsan) -> None:
    assert {row["reason"] for row in rows(pairsan, run, "--label", "quarantined")} == {"image_undecodable", "caption_empty"}
    assert len(rows(pairsan, run, "--reason", "caption_empty")) == 1
    inside = rows(pairsan, run, "--cosine", "0.3", "0.6")
    assert inside
    assert all(0.3 <= row["cosine"] <= 0.6 for row in inside)
    assert {row["shard"] for row in rows(pairsan, run, "--shard", "00002*", "--label", "safe")} == {"00002.tar"}
    everything = rows(pairsan, run, "--label", "safe", "--label", "risky", "--label", "quarantined")
    assert len(everything) == 41
    word = str(everything[0]["caption"]).split()[0]
    assert all(word.lower() in str(row["caption"]).lower() for row in rows(pairsan, run, "--caption", word.upper()))
    assert len(rows(pairsan, run, "--caption", "'; DROP TABLE")) == 1
    downwards = [row["rank"] for row in rows(pairsan, run, "--label", "safe", "--sort", "-rank")]
    assert downwards == sorted(downwards, reverse=True)


def test_words_that_do_not_exist_are_named(run: Path, pairsan: Pairsan) -> None:
    assert "no label 'bad'" in pairsan("inspect", run, "--label", "bad", code=2).stderr
    assert "no column 'size'" in pairsan("inspect", run, "--sort", "size", code=2).stderr
    assert "no reason 'x'" in pairsan("inspect", run, "--reason", "x", code=2).stderr
    assert "name it with --output" in pairsan("inspect", run, "--format", "parquet", code=2).stderr


def test_a_table_cannot_move_the_terminal(run: Path, pairsan: Pairsan) -> None:
    output = pairsan("inspect", run, "--caption", "<script>").output
    assert "\x1b" not in output
    assert "evil\ufffd[2J" in output
    assert "(1 pairs)" in output


def test_csv_and_parquet_hold_all_columns(run: Path, pairsan: Pairsan, tmp_path: Path) -> None:
    text = pairsan("inspect", run, "--format", "csv", "--limit", 0).output
    frame = pd.read_csv(io.StringIO(text))
    assert len(frame) == len(rows(pairsan, run))
    assert frame.uid.str.fullmatch("[0-9a-f]{32}").all()
    pairsan("inspect", run, "--format", "parquet", "--limit", 0, "--output", tmp_path / "flagged.parquet")
    table = pq.read_table(tmp_path / "flagged.parquet")
    assert table.num_rows == len(frame)
    assert table["label"].to_pylist() == frame.label.to_list()


def test_columns_can_be_chosen(run: Path, pairsan: Pairsan) -> None:
    assert set(rows(pairsan, run, "--columns", "key, cosine")[0]) == {"key", "cosine"}


def test_an_empty_answer_is_still_a_table(run: Path, pairsan: Pairsan) -> None:
    assert pairsan("inspect", run, "--cosine", "0.99999", "1").output.endswith("(0 pairs)\n")


def test_the_one_liners_of_the_readme_read_a_round(run: Path) -> None:
    import duckdb

    query = f"SELECT label, count(*) FROM '{run}/rounds/0001/manifest/**/*.parquet' GROUP BY label"
    assert dict(duckdb.sql(query).fetchall())["quarantined"] == 2
    frame = pd.read_parquet(f"{run}/rounds/0001/manifest")
    assert len(frame) == 41
    assert isinstance(pa.Table.from_pandas(frame[["key"]]), pa.Table)
