"""The evidence on photographs: what can be tested without any."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_tar
from PIL import Image

from benchmarks.attacks.world import load_rows
from benchmarks.photos.checkpoint import recall
from benchmarks.photos.data import judgments, photos
from benchmarks.photos.judgments import spread, write_pairs
from benchmarks.photos.weak import shards_of, untrained


def jpeg(color: str) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(written, "JPEG")
    return written.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two judged photographs and four judged captions, as ../shared/data has them."""
    folder = tmp_path / "data" / "flickr8k"
    folder.mkdir(parents=True)
    members = []
    for key, color in (("a_1", "red"), ("b_2", "blue")):
        about = json.dumps({"captions": [f"{color} {n}" for n in range(5)]}).encode()
        members += [(f"{key}.jpg", jpeg(color)), (f"{key}.txt", b"x"), (f"{key}.json", about)]
    (folder / "judged-a-00000.tar").write_bytes(make_tar(members))
    (folder / "judgments-a.tsv").write_text(
        "key\tcaption\texperts\tcrowd_yes_share\tcrowd_yes\tcrowd_no\n"
        "a_1\tsomething red , and \"so\"\t4/3/4\t1.0\t3\t0\n"
        "a_1\tsomething blue\t1/1/2\t0.333\t1\t2\n"
        "b_2\tsomething blue\t\t0.667\t2\t1\n"
        "b_2\tsomething red\t2/1/4\t\t\t\n"
    )  # fmt: skip
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  flickr8k/{path.name}\n" for path in folder.iterdir()]
    (tmp_path / "data" / "SHA256SUMS").write_text("".join(sums))
    return tmp_path / "data"


def test_photographs_and_judgments_are_read_and_written_as_pairs(data: Path, tmp_path: Path) -> None:
    assert [(photo.key, photo.captions[4]) for photo in photos(data, "judged")] == [("a_1", "red 4"), ("b_2", "blue 4")]
    judged = judgments(data)
    assert judged["marks"].tolist() == [[4, 3, 4], [1, 1, 2], [], [2, 1, 4]]
    np.testing.assert_array_equal(judged["expert"], [4, 1, np.nan, 2])
    np.testing.assert_allclose(judged["crowd"], [1, 0.333, 0.667, np.nan])
    table = write_pairs(data, judged, tmp_path / "out")
    assert table.read_text().splitlines()[1] == 'a_1.jpg,"something red , and ""so"""'
    assert (tmp_path / "out" / "b_2.jpg").read_bytes() == jpeg("blue")


def test_missing_photographs_get_one_line(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"^no photographs: .* has no train-\*\.tar; name its folder: --data, or PAIRSAN_PHOTOS$"
    ):
        photos(data, "train")
    with pytest.raises(SystemExit, match="^no judgments: "):
        judgments(tmp_path)


def test_other_bytes_than_the_figures_are_of_get_one_line(data: Path) -> None:
    shard = data / "flickr8k" / "judged-a-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-600])
    with pytest.raises(SystemExit, match=r"^flickr8k/judged-a-00000.tar has sha256 \w{64}, .* knows \w{64}; get it"):
        photos(data, "judged")
    (data / "SHA256SUMS").unlink()  # the bundled sums know the real ones
    with pytest.raises(SystemExit, match=r"^flickr8k/judgments-a.tsv has sha256 \w{64}, .*/benchmarks/photos/SHA256SUMS"):
        judgments(data)


def test_recall_is_counted_both_ways() -> None:
    image = np.eye(3, dtype=np.float32)
    text = np.asarray([[1, 0, 0], [0, 1, 0.5], [0, 1, 0], [0.9, 0.1, 0.5], [0, 0, 1], [0.6, 0.5, 0.4]], np.float32)
    found = recall(image, text)  # captions 0 and 1 are of the first photograph, 2 and 3 of the second, 4 and 5 of the third
    assert found["captions to photographs"] == [3 / 6, 1, 1]
    assert found["photographs to captions"] == [1, 1, 1]
    found = recall(image, text[[1, 2, 0, 4, 3, 5]])
    assert found["photographs to captions"] == [0, 1, 1]


def test_intervals_resample_photographs_not_pairs(data: Path) -> None:
    judged = judgments(data)
    share, low, high = spread(judged, lambda place: float((judged["key"].to_numpy()[place] == "a_1").mean()), 200)
    assert (share, low, high) == (0.5, 0.0, 1.0)  # both photographs the first, or neither


def test_a_weak_checkpoint_learns_each_photograph_once_with_each_caption(data: Path, tmp_path: Path) -> None:
    shards = shards_of(data, "judged", tmp_path / "shards")
    rows = load_rows([str(shards)])
    assert [(row.key, row.caption) for row in rows[4:6]] == [("a_1-4", "red 4"), ("b_2-0", "blue 0")]
    assert {row.pixels().shape for row in rows} == {(64, 64, 3)}
    before = (shards / "00000.tar").stat().st_mtime_ns
    assert (shards_of(data, "judged", shards) / "00000.tar").stat().st_mtime_ns == before  # they are there
    config = json.loads((untrained(tmp_path / "model") / "open_clip_config.json").read_text())
    assert config["model_cfg"]["vision_cfg"]["image_size"] == 64
