import contextlib
import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_tar
from PIL import Image

from manifests.errors import DataError
from manifests.labels import Reason
from stages.read.heads import read_head, refuse_hopeless
from stages.read.shards import open_dataset
from stages.settings import ReadSettings


def refusal(folder: Path, **options: object) -> str:
    with pytest.raises(DataError) as found:
        refuse_hopeless(open_dataset([str(folder)]), ReadSettings(**options))
    return str(found.value)


def test_data_of_which_no_row_can_be_read_as_asked_are_refused_with_what_there_is(tmp_path: Path, png: bytes) -> None:
    def write(ending: str, caption: str) -> None:
        (tmp_path / "a.tar").write_bytes(
            make_tar([(f"{i}.{end}", body) for i in range(10) for end, body in ((ending, png), (caption, b"a dog"))])
        )

    write("pic", "txt")
    told = refusal(tmp_path)
    assert "none of the first 10 rows can be scored, 10 of them for image_missing" in told
    assert "a.tar has pic, txt" in told
    assert "--image-column" in told
    found = refuse_hopeless(open_dataset([str(tmp_path)]), ReadSettings(image_column="pic"))
    assert found == (tmp_path / "a.tar").stat().st_size / 10
    write("png", "label")
    assert "--caption-column" in refusal(tmp_path)


def test_paths_that_all_lead_nowhere_are_refused_and_a_few_rows_are_not(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    lines = [f"images/{i}.png\ta dog" for i in range(20)]
    (tmp_path / "a.tsv").write_text("\n".join(["filepath\ttitle", *lines]))
    assert "--image-root" in refusal(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "7.png").write_bytes(buffer.getvalue())
    refuse_hopeless(open_dataset([str(tmp_path)]), ReadSettings())
    (tmp_path / "a.tsv").write_text("\n".join(["filepath\ttitle", *lines[8:12]]))
    refuse_hopeless(open_dataset([str(tmp_path)]), ReadSettings())  # four rows say little


def test_a_shard_without_the_columns_ends_nothing_before_the_others_are_scored(tmp_path: Path, png: bytes) -> None:
    pq.write_table(pa.table({"wrong": [1]}), tmp_path / "b.parquet")
    assert "b.parquet has none of the usual image columns" in refusal(tmp_path)
    pq.write_table(pa.table({"jpg": [png], "caption": ["a dog"]}), tmp_path / "a.parquet")
    refuse_hopeless(open_dataset([str(tmp_path)]), ReadSettings())


@pytest.mark.parametrize("place", [12, 40, -4])
def test_damage_in_a_packed_table_is_no_traceback_here(tmp_path: Path, place: int) -> None:
    whole = bytearray(gzip.compress(b"filepath\ttitle\n" + b"".join(f"{i}.png\ta dog {i}\n".encode() for i in range(50))))
    whole[place] ^= 0xEE
    (tmp_path / "a.tsv.gz").write_bytes(bytes(whole))
    dataset = open_dataset([str(tmp_path)])
    pairs, _, _ = read_head(dataset, dataset.shards[0], ReadSettings(), 128)
    assert pairs[-1].reason is Reason.SHARD_UNREADABLE
    with contextlib.suppress(DataError):
        refuse_hopeless(dataset, ReadSettings())


def test_keys_that_are_cut_at_their_first_dot_are_shown(tmp_path: Path, png: bytes) -> None:
    rows = [(f"Track 2.{i} (Clean).{end}", body) for i in range(20) for end, body in (("jpg", png), ("txt", b"a dog"))]
    (tmp_path / "a.tar").write_bytes(make_tar(rows))
    told = refusal(tmp_path)
    assert "none of the first 1 rows can be scored" in told
    assert "'Track 2'" in told
    assert "0 (clean).jpg" in told
    assert "up to the first dot" in told
