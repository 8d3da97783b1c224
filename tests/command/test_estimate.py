"""What `pairsan plan` says of data that it has read a few rows of."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import EMOJI

from manifests.errors import DataError
from pipeline.config.load import load_config
from pipeline.estimate import as_text, of_data
from pipeline.queries.terminal import printable


def test_rows_of_parquet_are_counted_by_footers_and_its_broken_rows_are_told(tmp_path: Path) -> None:
    for shard in range(5):
        captions = ["a cat", None, "", "a dog"] * 50
        table = pa.table({"jpg": pa.array([b"x"] * 200), "txt": pa.array(captions)})
        pq.write_table(table, tmp_path / f"{shard}.parquet")
    found = of_data([str(tmp_path)], load_config(None, {}))
    assert (found["shards"], found["rows"], found["rows_are_exact"]) == (5, 1000, True)
    assert found["rows_read"] == 3 * 128
    assert found["broken_share"] == 0.5
    assert found["columns"]["0.parquet"] == ["jpg", "txt"]
    assert found["model"] is None
    assert "1,000 pairs in 5 shards (5 parquet)" in as_text(found)
    assert len(list(tmp_path.iterdir())) == 5


def test_rows_of_tars_are_guessed_by_their_bytes() -> None:
    found = of_data([str(EMOJI / "eval")], load_config(None, {}))
    assert not found["rows_are_exact"]
    assert abs(found["rows"] - 1406) < 0.15 * 1406
    assert as_text(found).startswith("about ")


def test_weights_make_it_an_estimate_of_time_and_disk(tiny: str) -> None:
    config = load_config(None, {"checkpoint": tiny, "workers": 4})
    found = of_data([str(EMOJI / "eval")], config)
    assert found["model"]["image_px"] == 64
    assert found["hours"]["4"] * 4 == pytest.approx(found["hours"]["1"])
    assert found["disk_bytes"] > 0
    assert found["profiles"]["quick"]["disk_bytes"] < found["profiles"]["standard"]["disk_bytes"]
    assert [name for name, added in found["profiles"].items() if added["more_image_passes"]] == ["thorough"]


def test_data_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        of_data([str(tmp_path / "none")], load_config(None, {}))


def test_text_of_a_crawl_does_nothing_to_a_terminal() -> None:
    assert (
        printable("a\x1b[31m\u202eb\n") == "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    )
    assert printable("caf\u00e9 \u732b") == "caf\u00e9 \u732b"
    assert printable("abcdef", 4) == "abc\N{HORIZONTAL ELLIPSIS}"
