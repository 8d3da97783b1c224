"""Rows of a table open nothing but regular files below the folders that were allowed."""

import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.labels import Reason
from stages.pair import Pair
from stages.read.shards import open_dataset, read_shard
from stages.settings import ReadSettings


def pairs_of(path: Path, **options: object) -> list[Pair]:
    dataset = open_dataset([str(path)])
    return [pair for shard in dataset.shards for pair in read_shard(dataset.store, shard, ReadSettings(**options))]


def table(folder: Path, *paths: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "a.tsv").write_text("filepath\ttitle\n" + "".join(f"{path}\ta dog\n" for path in paths))
    return folder / "a.tsv"


@pytest.fixture
def secret(tmp_path: Path, png: bytes) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret.png").write_bytes(png)
    return tmp_path / "home" / "secret.png"


def test_paths_that_lead_out_are_refused_however_they_are_written(tmp_path: Path, secret: Path, png: bytes) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "in.png").write_bytes(png)
    (data / "link.png").symlink_to(secret)
    (data / "folder").symlink_to(secret.parent)
    (data / "sub").mkdir()
    (data / "own.png").symlink_to(data / "in.png")
    wrong = [str(secret), "/etc/passwd", "../home/secret.png", "..\\home\\secret.png", "%2e%2e/home/secret.png", "link.png"]
    wrong += ["folder/secret.png", "/etc/no-such-file", "../none.png", "/proc/self/environ"]
    pairs = pairs_of(table(data, *wrong, "in.png", "./sub/../in.png", "own.png", str(data / "in.png")))
    assert [p.reason for p in pairs] == [Reason.OUTSIDE_ROOT] * len(wrong) + [None] * 4
    assert all(p.image is None and p.path is None for p in pairs[: len(wrong)])
    assert "--allow-outside" in (pairs[0].detail or "")
    assert [p.image for p in pairs[len(wrong) :]] == [png] * 4


def test_further_folders_can_be_allowed(tmp_path: Path, secret: Path, png: bytes) -> None:
    path = table(tmp_path / "data", str(secret), "/etc/passwd")
    pairs = pairs_of(path, allow_outside=f"{tmp_path}/none:{secret.parent}")
    assert [(p.reason, p.image, p.path) for p in pairs] == [(None, png, str(secret)), (Reason.OUTSIDE_ROOT, None, None)]
    assert next(p.reason for p in pairs_of(path, image_root="/")) is None


def test_a_folder_whose_name_begins_like_the_root_is_outside(tmp_path: Path, secret: Path) -> None:
    secret.parent.rename(tmp_path / "data-private")
    (pair,) = pairs_of(table(tmp_path / "data", "../data-private/secret.png"))
    assert pair.reason is Reason.OUTSIDE_ROOT


def test_fifos_devices_and_folders_neither_block_nor_grow(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.mkfifo(data / "fifo.png")
    (data / "zero.png").symlink_to("/dev/zero")
    (data / "loop.png").symlink_to("loop.png")
    found: list[Pair] = []
    names = ("fifo.png", "zero.png", "/dev/zero", ".", "loop.png", "x." * 2500, "nul\0.png")
    path = table(data, *names)
    thread = threading.Thread(target=lambda: found.extend(pairs_of(path, allow_outside="/dev")), daemon=True)
    thread.start()
    thread.join(20)
    assert [p.reason for p in found] == [Reason.IMAGE_MISSING] * len(names)


def test_a_file_that_is_swapped_while_it_is_opened_stays_out(
    tmp_path: Path, secret: Path, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "images" / "secret.png").write_bytes(b"mine")
    real_open = os.open

    def swap(path: str, *args: int) -> int:
        if str(path).endswith("secret.png"):
            (data / "images").rename(data / "gone")
            (data / "images").symlink_to(secret.parent)
        return real_open(path, *args)

    monkeypatch.setattr("stages.read.paths.os.open", swap)
    (pair,) = pairs_of(table(data, "images/secret.png"))
    assert (pair.reason, pair.image) == (Reason.OUTSIDE_ROOT, None)


def test_paths_of_hugging_face_structs_are_held_to_the_same(tmp_path: Path, secret: Path) -> None:
    pq.write_table(pa.table({"image": [{"bytes": None, "path": str(secret)}], "text": ["a dog"]}), tmp_path / "a.parquet")
    pairs = pairs_of(tmp_path / "a.parquet", image_root=str(tmp_path / "none"))
    assert [p.reason for p in pairs] == [Reason.OUTSIDE_ROOT]
