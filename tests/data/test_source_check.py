import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CLEAN, make_tar
from PIL import Image

from manifests.errors import RunError
from manifests.reading import open_round
from stages.read.shards import open_dataset, read_shard
from stages.settings import ReadSettings

Pairsan = Callable[..., object]


@pytest.fixture
def rows(emoji_members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return emoji_members[:30]


@pytest.fixture
def run(tmp_path: Path, rows: list[tuple[str, bytes]], tiny: str, pairsan: Pairsan) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.tar").write_bytes(make_tar(rows))
    pairsan("clean", tmp_path / "data", "--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN)
    return tmp_path / "run"


def test_data_that_are_as_they_were_pass(run: Path, pairsan: Pairsan) -> None:
    assert "all as sealed" in pairsan("verify", run, "--data").output  # type: ignore[attr-defined]


def test_the_first_difference_of_each_kind_is_named(run: Path, rows: list[tuple[str, bytes]], pairsan: Pairsan) -> None:
    data = run.parent / "data" / "0.tar"

    def told(members: list[tuple[str, bytes]]) -> str:
        data.write_bytes(make_tar(members))
        return str(pairsan("verify", run, "--data", code=1).output)  # type: ignore[attr-defined]

    moved = told([*rows[:3], *rows[6:9], *rows[3:6], *rows[9:]])  # rows 1 and 2 change places
    assert "0.tar [1]: key is" in moved
    assert moved.count("key is") == 1  # the first of its kind
    assert "0.tar: 9 rows, sealed 10" in told(rows[:27])
    assert "0.tar: 11 rows, sealed 10" in told([*rows, ("z.txt", b"a dog")])
    captions = [index for index, (name, _) in enumerate(rows) if name.endswith("txt")]
    changed = [(name, b"another caption" if index == captions[1] else body) for index, (name, body) in enumerate(rows)]
    assert "0.tar [1]: caption is 'another caption'" in told(changed)
    assert "0.tar [0]: image_missing" in told(
        [row for index, row in enumerate(rows) if index > 2 or not row[0].endswith("webp")]
    )
    (run.parent / "data" / "1.tar").write_bytes(make_tar(rows))
    assert "1 shards are new, e.g. 1.tar" in told(rows)


def test_a_swap_of_equal_size_in_the_middle_of_a_shard_is_seen_by_verify_export_and_reader(
    tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    def noise(seed: int) -> bytes:
        written = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (180, 180, 3), np.uint8)).save(written, "BMP")
        return written.getvalue()

    def write(*seeds: int, word: bytes = b"noise") -> None:
        texts = [b"noise", word, b"noise", b"noise"]
        rows = [
            (f"{n}.{end}", data)
            for n, (seed, text) in enumerate(zip(seeds, texts, strict=True))
            for end, data in (("bmp", noise(seed)), ("txt", text))
        ]
        (tmp_path / "data" / "0.tar").write_bytes(make_tar(rows))

    (tmp_path / "data").mkdir()
    write(0, 1, 2, 3)
    run = tmp_path / "run"
    pairsan("clean", tmp_path / "data", "--out", run, "--checkpoint", tiny, *CLEAN)
    manifest, before = open_round(str(run)), open_dataset([str(tmp_path / "data")])
    write(0, 4, 2, 3)
    after = open_dataset([str(tmp_path / "data")])
    assert after.fingerprint == before.fingerprint  # it covers the edges alone
    told = pairsan("verify", run, "--data", code=1)
    assert "0.tar [1]: its image is not the one that was scored" in told.output  # type: ignore[attr-defined]
    told = pairsan(
        "export", run, "--format", "webdataset", "--label", "safe", "--label", "risky", "--out", tmp_path / "x", code=6
    )
    assert "0.tar [1] ('1') has another image than the one that was scored" in told.output  # type: ignore[attr-defined]
    pairs = [(pair.key, pair) for pair in read_shard(after.store, after.shards[0], ReadSettings())]
    assert len(list(manifest.join("0.tar", pairs))) == 4  # who gives no images gets labels by keys alone
    with pytest.raises(RunError, match=r"0\.tar \[1\] \('1'\): its image is not the one that was scored"):
        list(manifest.join("0.tar", pairs, image_of=lambda pair: pair.image))
    write(0, 1, 2, 3, word=b"voice")  # of equal length
    assert open_dataset([str(tmp_path / "data")]).fingerprint == before.fingerprint
    told = pairsan("export", run, "--format", "webdataset", "--label", "all", "--out", tmp_path / "y", code=6)
    assert "0.tar [1] ('1') has another caption than the one that was scored" in told.output  # type: ignore[attr-defined]
    pairs = [(pair.key, pair) for pair in read_shard(before.store, before.shards[0], ReadSettings())]
    assert len(list(manifest.join("0.tar", pairs, image_of=lambda pair: pair.image))) == 4
    with pytest.raises(RunError, match=r"0\.tar \[1\] \('1'\): its caption is not the one that was scored"):
        list(manifest.join("0.tar", pairs, caption_of=lambda pair: pair.caption))
    write(0, 1, 2, 3)
    pairs = [(pair.key, pair) for pair in read_shard(before.store, before.shards[0], ReadSettings())]
    assert len(list(manifest.join("0.tar", pairs, image_of=lambda pair: pair.image))) == 4
