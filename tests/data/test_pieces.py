"""A big shard is worked on in pieces: each row is what it is in the whole, and so is every byte of the parts."""

import hashlib
import io
import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CLEAN, make_tar
from PIL import Image

from manifests.store import Store, open_store
from pipeline.config.load import load_config
from pipeline.steps.embed_stage import prepare_scoring
from stages.pair import PIECES, Pair
from stages.read.shards import open_dataset, read_shard
from stages.score.embed import Embed
from stages.score.pieces import PIECE_ROWS, JoinPieces, JoinTarget, Survey, SurveyTarget
from stages.settings import ReadSettings

NUM = PIECE_ROWS + 700


def members(start: int, stop: int, image: bytes = b"x") -> list[tuple[str, bytes]]:
    return [(f"{i:06d}.{end}", data) for i in range(start, stop) for end, data in (("jpg", image), ("txt", b"thing %d" % i))]


def tar_with(kind: str) -> bytes:
    """Return a tar of about 2,750 rows with something odd before, at and behind the edges of its pieces."""
    if kind == "pax":
        header = tarfile.TarInfo("pax_global_header")
        header.type, header.size = tarfile.XGLTYPE, len(b"18 comment=global\n")
        return header.tobuf() + b"18 comment=global\n".ljust(512, b"\0") + make_tar(members(0, NUM), tarfile.PAX_FORMAT)
    if kind == "concatenated":
        return make_tar(members(0, 2000)) + make_tar(members(1990, 1990 + NUM - 2000))
    rows = members(0, NUM)
    if kind == "repeated":
        rows[2 * 700 : 2 * 701] = rows[2 * 40 : 2 * 41]
        rows[2 * 2500 : 2 * 2501] = rows[2 * 700 : 2 * 701]
        rows[2 * 2600 : 2 * 2601] = rows[2 * 2550 : 2 * 2551]
        rows[2 * 2048 : 2 * 2049] = rows[2 * 2047 : 2 * 2048]  # a name twice, where a piece begins
    data = bytearray(make_tar(rows))
    if kind == "damaged":
        for row in (100, 2048, 2600):
            data[row * 2048 : row * 2048 + 600] = b"\xff" * 600
    return bytes(data[:-300_000]) if kind == "cut" else bytes(data)


def assert_pieces_are_the_whole(folder: Path, settings: ReadSettings, *, least: int = 2) -> None:
    dataset = open_dataset([str(folder)])
    (shard,) = dataset.shards
    pieces = Survey(SurveyTarget(dataset.store, settings)).run(shard)
    assert len(pieces) >= least
    whole = list(read_shard(dataset.store, shard, settings))
    found: list[Pair] = []
    for piece in pieces:
        assert piece.first == len(found)
        rows = list(read_shard(dataset.store, replace(shard, stretch=piece), settings))
        assert piece.num_rows in (None, len(rows))
        found += rows
    assert found == whole


@pytest.mark.parametrize("kind", ["pax", "concatenated", "repeated", "damaged", "cut"])
def test_a_tar(tmp_path: Path, kind: str) -> None:
    (tmp_path / "0.tar").write_bytes(tar_with(kind))
    assert_pieces_are_the_whole(tmp_path, ReadSettings())


def test_a_tar_whose_rows_have_several_captions_each(tmp_path: Path) -> None:
    rows = [(f"{i:06d}.jpg", b"x") for i in range(NUM)]
    facts = [(f"{i:06d}.json", json.dumps({"caption": ["one", "two", "three"][: 1 + i % 3]}).encode()) for i in range(NUM)]
    (tmp_path / "0.tar").write_bytes(make_tar([member for pair in zip(rows, facts, strict=True) for member in pair]))
    assert_pieces_are_the_whole(tmp_path, ReadSettings(caption="all"))


def test_a_packed_tar_stays_whole_and_so_does_one_of_two_copies(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(make_tar(members(0, NUM)), 1))
    (tmp_path / "1.tar").write_bytes(2 * make_tar([(f"{i}.txt", b"") for i in range(10_100)]))  # each key comes again
    dataset = open_dataset([str(tmp_path)])
    assert [Survey(SurveyTarget(dataset.store, ReadSettings())).run(shard) for shard in dataset.shards] == [(), ()]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("group", [1000, 100])
def test_parquet(tmp_path: Path, group: int, named: bool) -> None:
    keys = [f"k{i if i not in (2100, 2500) else 5}" for i in range(NUM)]
    columns: dict[str, Any] = {"jpg": [b"x%d" % i for i in range(NUM)], "caption": [f"thing {i}" for i in range(NUM)]}
    table = pa.table({"key": keys, **columns} if named else columns)
    pq.write_table(table, tmp_path / "0.parquet", row_group_size=group)
    assert_pieces_are_the_whole(tmp_path, ReadSettings())


def test_damaged_parquet(tmp_path: Path) -> None:
    rng = random.Random(3)
    table = pa.table({"jpg": [rng.randbytes(50) for _ in range(NUM)], "caption": [f"thing {i}" for i in range(NUM)]})
    pq.write_table(table, tmp_path / "0.parquet", row_group_size=500, compression="zstd")
    data = bytearray((tmp_path / "0.parquet").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    (tmp_path / "0.parquet").write_bytes(data)
    assert_pieces_are_the_whole(tmp_path, ReadSettings())


def test_text_that_names_images(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png)
    lines = [f"k{i if i % 900 else 0}\ta.png\tthing {i}" for i in range(NUM)]
    lines[70], lines[2048], lines[2600] = "short", 'k2048\ta.png\t"one\nof two lines"', "k\tnone.png\tgone"
    (tmp_path / "0.tsv").write_text("key\tpath\tcaption\n" + "\n".join(lines))
    assert_pieces_are_the_whole(tmp_path, ReadSettings())


def test_a_folder_of_images(tmp_path: Path) -> None:
    for i in range(NUM):
        (tmp_path / f"{i}.png").write_bytes(b"x%d" % i)
        if i % 7:
            (tmp_path / f"{i}.txt").write_text(f"thing {i}")
    (tmp_path / "100.jpg").write_bytes(b"another 100")
    assert_pieces_are_the_whole(tmp_path, ReadSettings())


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of 17 MiB: noise at 48 px, 2,500 rows, of which the first piece has none that can be decoded, and then some."""
    folder, rng = tmp_path_factory.mktemp("big"), np.random.default_rng(0)
    rows = []
    for i in range(PIECE_ROWS + 500):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)).save(out, "PNG")
        image = out.getvalue()[: 60 if i < PIECE_ROWS + 50 else None]
        rows += [(f"{i:06d}.png", image), (f"{i:06d}.txt", b"a thing of kind %d" % (i % 97)), (f"{i:06d}.bin", bytes(6 << 10))]
    (folder / "0.tar").write_bytes(make_tar(rows))
    return folder


def digests(run: Store) -> dict[str, str]:
    names = sorted(run.names("rounds/0001"))
    return {name: hashlib.sha256(run.read_bytes(f"rounds/0001/{name}")).hexdigest() for name in names}


def test_the_parts_of_pieces_are_those_of_the_whole(tmp_path: Path, big: Path, tiny: str) -> None:
    dataset, parts = open_dataset([str(big)]), []
    config = load_config(None, {"checkpoint": tiny, "keep_embeddings": True, "canaries": 16})
    scoring = prepare_scoring(config, dataset, device="cpu")
    (shard,) = dataset.shards
    pieces = [replace(shard, stretch=piece) for piece in Survey(SurveyTarget(dataset.store, config.data)).run(shard)]
    assert len(pieces) == 2
    for units in ([shard], pieces[::-1]):
        run = open_store(tmp_path / f"run-{len(units)}")
        stage = scoring.stage(run, 1, num_shards=1, num_threads=1)
        stage = Embed(replace(stage.target, num_reencoded=10))
        stage.open()
        assert sum(stage.run(unit).num_rows for unit in units) == PIECE_ROWS + 500
        if len(units) > 1:
            folders = ("rounds/0001/embeddings", "rounds/0001/scores")
            assert JoinPieces(JoinTarget(run, folders)).run(shard) == PIECE_ROWS + 500
            for folder in folders:
                run.delete_folder(f"{folder}{PIECES}")
        parts.append(digests(run))
    assert parts[0] == parts[1]
    kinds = {name.split("/")[0] for name in parts[0]}
    assert kinds == {"scores", "embeddings", "canaries", "reencoded"}


def test_a_run_that_was_cut_within_a_shard_goes_on_there(tmp_path: Path, big: Path, tiny: str, pairsan: Any) -> None:
    options = ("--checkpoint", tiny, "--max-quarantined-share", 0.9, *CLEAN)
    uncut = pairsan("clean", big, "--out", tmp_path / "uncut", *options)
    assert "divide: 1/1 shards" in uncut.stderr
    assert "embed: 2/2 pieces, 2,548 rows" in uncut.stderr
    config = load_config(None, {"checkpoint": tiny, "max_quarantined_share": 0.9, "executor": "local", "keep_share": 1.0})
    dataset, run = open_dataset([str(big)]), open_store(tmp_path / "cut")
    scoring, (shard,) = prepare_scoring(config, dataset, device="cpu"), dataset.shards
    stage, last = (
        scoring.stage(run, 1, num_shards=1, num_threads=1),
        Survey(SurveyTarget(dataset.store, config.data)).run(shard)[1],
    )
    stage.open()
    stage.run(replace(shard, stretch=last))
    (tmp_path / "cut/rounds/0001/scores-pieces/0.tar/.000000000000.parquet.0.draft").write_bytes(b"of a killed worker")
    cut = pairsan("clean", big, "--out", tmp_path / "cut", *options)
    assert "embed: 2/2 pieces, 1 done before, 2,048 rows" in cut.stderr
    found = digests(run)
    assert found == digests(open_store(tmp_path / "uncut"))
    assert not any(PIECES in name for name in found)
    (tmp_path / "uncut/rounds/0001/manifest.json").unlink()
    piece = tmp_path / "uncut/rounds/0001/scores-pieces/0.tar/000000000000.parquet"
    piece.parent.mkdir(parents=True)
    (tmp_path / "uncut/rounds/0001/scores/0.tar.parquet").rename(piece)
    assert "0/1 shards and 1 pieces of others scored, 1 labelled" in pairsan("status", tmp_path / "uncut").stdout
