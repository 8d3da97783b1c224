"""Exports, each read back by its real consumer where one installs."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from click.testing import Result
from conftest import ROOT, make_tar
from PIL import Image

from manifests.reading import open_round
from stages.export.source_rows import extension_of

# webdataset 0.2.86, the newest that open_clip_train works with, leaves its files to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
Members = list[tuple[str, bytes]]
Pairsan = Callable[..., Result]
LOCAL = ("--executor", "local")


@pytest.fixture
def run(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> Path:
    """19 of the crawl's 40 rows are safe, 2 quarantined."""
    out = tmp_path / "run"
    pairsan("clean", crawl, "--out", out, "--checkpoint", tiny, *LOCAL, "--keep-share", 0.5)
    return out


def members_of(tars: list[Path]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in tars:
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def safe_rows(run: Path) -> pd.DataFrame:
    rows = open_round(run).to_pandas()
    return rows[rows["label"] == "safe"]


def test_tars_hold_the_original_bytes_resharded(run: Path, crawl: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    out = tmp_path / "wds"
    told = json.loads(
        pairsan("export", run, "--format", "webdataset", "--out", out, "--rows-per-file", 8, *LOCAL, "--json").stdout
    )
    tars = sorted(out.glob("*.tar"))
    assert [tar.name for tar in tars] == ["00000.tar", "00001.tar", "00002.tar"]
    original, exported = members_of(sorted(crawl.glob("*.tar"))), members_of(tars)
    keys = list(safe_rows(run)["key"])
    assert {name.rpartition(".")[0] for name in exported} == set(keys)
    assert all(original[name] == data for name, data in exported.items())
    assert len(exported) == 3 * 19
    assert json.loads((out / "sizes.json").read_text()) == {"00000.tar": 8, "00001.tar": 8, "00002.tar": 3}
    assert json.loads((out / "00002_stats.json").read_text())["successes"] == 3
    assert told["rows"] == 19
    assert told["fingerprint"] == open_round(run).seal["fingerprint"]
    read = [row["__key__"] for row in wds.WebDataset([str(tar) for tar in tars], shardshuffle=False)]
    assert read == keys


def test_scores_say_where_images_lie_and_single_ones_are_read(run: Path, crawl: Path) -> None:
    from pipeline.pages.thumbnails import places_of
    from pipeline.steps.plan import read_run
    from stages.export.single_images import Originals
    from stages.read.shards import open_dataset

    manifest = open_round(run)
    dataset = open_dataset(read_run(manifest.run).data)
    options = read_run(manifest.run).config.data
    direct = Originals(dataset.store, dataset.shards, options, places_of(manifest))
    from_front = Originals(dataset.store, dataset.shards, options)
    original = members_of(sorted(crawl.glob("*.tar")))
    keys = manifest.to_pandas(["shard", "index", "key"])
    for shard in manifest.shards:
        assert places_of(manifest)(shard) is not None
        for _, row in keys[keys["shard"] == shard].iloc[::5].iterrows():
            found = direct.images(shard, [row["index"]])
            assert found == {row["index"]: original[f"{row['key']}.webp"]} == from_front.images(shard, [row["index"]])
    assert direct.images("00000.tar", [99]) == {}


def test_json_is_injected_and_duplicate_keys_stay_apart(
    tmp_path: Path, tiny: str, pairsan: Pairsan, emoji_members: Members
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for shard in range(2):  # the same keys in both shards
        mine = [(f"{i}.{name.rpartition('.')[2]}", d) for i in range(4) for name, d in emoji_members[12 * shard + 3 * i :][:3]]
        (data / f"{shard}.tar").write_bytes(make_tar(mine))
    run, out = tmp_path / "run", tmp_path / "out"
    pairsan("clean", data, "--out", run, "--checkpoint", tiny, *LOCAL, "--keep-share", 1.0)
    pairsan("export", run, "--format", "webdataset", "--out", out, "--inject", "--weights", "p_safe", *LOCAL)
    rows = list(wds.WebDataset([str(out / "00000.tar")], shardshuffle=False))
    assert len({row["__key__"] for row in rows}) == 8
    facts = [json.loads(row["json"]) for row in rows]
    manifest = open_round(run).to_pandas()
    assert [f["uid"] for f in facts] == [uid.hex() for uid in manifest["uid"]]
    assert [f["cosine"] for f in facts] == pytest.approx(list(manifest["cosine"]))
    assert [f["weight"] for f in facts] == pytest.approx(list(manifest["p_safe"]))
    assert facts[0]["label"] == json.loads(emoji_members[2][1])["label"]  # what was there stays


def test_an_export_is_resumed_and_not_mixed_with_another(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        pairsan("export", run, "--format", "webdataset", "--out", out, "--rows-per-file", 8, *LOCAL)
    (cut / "export.json").unlink()
    (cut / "00001.tar").unlink()
    pairsan("export", run, "--format", "webdataset", "--out", cut, "--rows-per-file", 8, *LOCAL)
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {p.name: p.read_bytes() for p in cut.iterdir()}
    refused = pairsan("export", run, "--format", "webdataset", "--out", cut, "--rows-per-file", 9, *LOCAL, code=5)
    assert "rows_per_file: 8 -> 9" in refused.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    refused = pairsan("export", run, "--format", "keys", "--out", tmp_path / "full", *LOCAL, code=2)
    assert "holds something else" in refused.stderr
    assert (tmp_path / "full" / "mine.txt").exists()


def test_nothing_is_exported_of_an_unsealed_round_or_changed_data(
    run: Path, crawl: Path, tmp_path: Path, pairsan: Pairsan
) -> None:
    out = tmp_path / "out"
    tar = crawl / "00001.tar"
    tar.write_bytes(tar.read_bytes() + bytes(512))
    refused = pairsan("export", run, "--format", "webdataset", "--out", out, *LOCAL, code=5)
    assert "the data of" in refused.stderr
    assert "have changed" in refused.stderr
    (run / "rounds/0001/manifest.json").unlink()
    assert "no sealed round" in pairsan("export", run, "--format", "keys", "--out", tmp_path / "o", *LOCAL, code=5).stderr
    assert not (tmp_path / "o").exists()


def test_other_subsets_are_exported_too(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    subsets = (
        (("--label", "risky"), 19),
        (("--label", "quarantined"), 2),
        (("--label", "all"), 40),
        (("--label", "all", "--reason", "caption_empty"), 1),
    )
    for number, (words, expected) in enumerate(subsets):
        out = tmp_path / str(number)
        pairsan("export", run, "--format", "keys", "--out", out, *words, *LOCAL)
        assert len((out / "pairs.txt").read_text().splitlines()) == expected
    out = tmp_path / "broken"
    pairsan("export", run, "--format", "webdataset", "--label", "quarantined", "--out", out, *LOCAL)
    assert len([name for name in members_of([out / "00000.tar"]) if name.endswith(".webp")]) == 2
    refused = pairsan("export", run, "--format", "keys", "--reason", "crowded", "--out", tmp_path / "none", *LOCAL, code=5)
    assert "has no pair" in refused.stderr
    refused = pairsan("export", run, "--format", "keys", "--weights", "p_safe", "--out", tmp_path / "w", code=2)
    assert "no place for weights" in refused.stderr


def test_datacomp_uids_are_sorted_and_found_by_its_own_rule(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    pairsan("export", run, "--format", "datacomp-npy", "--out", tmp_path / "d", *LOCAL)
    subset = np.load(tmp_path / "d" / "subset.npy")
    assert subset.dtype == np.dtype("u8,u8")
    assert (subset[:-1] < subset[1:]).all() if subset.dtype.names is None else sorted(subset.tolist()) == subset.tolist()
    rows = open_round(run).to_pandas()
    for uid, label in zip(rows["uid"], rows["label"], strict=True):
        wanted = np.array([(int(uid.hex()[:16], 16), int(uid.hex()[16:32], 16))], np.dtype("u8,u8"))[0]
        inside = np.searchsorted(subset, wanted, "right") - np.searchsorted(subset, wanted, "left")
        assert inside == (label == "safe")


def test_parquet_is_loaded_by_hugging_face_datasets(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    for form in ("parquet", "hf"):
        pairsan("export", run, "--format", form, "--out", tmp_path / form, "--weights", "p_safe", *LOCAL)
    rows = safe_rows(run)
    plain = pd.concat([pq.read_table(path).to_pandas() for path in sorted((tmp_path / "parquet").glob("*.parquet"))])
    assert list(plain["key"]) == list(rows["key"])
    assert plain["weight"].to_numpy() == pytest.approx(rows["p_safe"].to_numpy())
    import datasets

    files = sorted(str(path) for path in (tmp_path / "hf").glob("*.parquet"))
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["key"][:] == list(rows["key"])
    assert isinstance(loaded[0]["image"], Image.Image)
    assert loaded.features["cosine"].dtype == "float32"


def test_a_list_of_files_is_exported_as_one(tmp_path: Path, tiny: str, pairsan: Pairsan, emoji_members: Members) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    (data / "images").mkdir(parents=True)
    lines = ["filepath\ttitle"]
    for i in range(12):
        name, image = emoji_members[3 * i]
        (data / "images" / name).write_bytes(image)
        lines.append(f'images/{name}\t"a ""quoted"" {emoji_members[3 * i + 1][1].decode()}"')
    (data / "pairs.tsv").write_text("\n".join(lines) + "\n")
    pairsan("clean", data / "pairs.tsv", "--out", run, "--checkpoint", tiny, *LOCAL, "--keep-share", 0.5)
    pairsan("export", run, "--format", "openclip-tsv", "--out", tmp_path / "o", "--weights", "p_safe", *LOCAL)
    rows = safe_rows(run)
    found = pd.read_csv(tmp_path / "o" / "pairs.tsv", sep="\t")  # as open_clip_train does
    assert list(found.columns) == ["filepath", "title", "weight"]
    assert list(found["title"]) == list(rows["caption"])
    assert all(Path(path).is_file() for path in found["filepath"])
    Path(found["filepath"][0]).unlink()
    told = pairsan("export", run, "--format", "openclip-tsv", "--out", tmp_path / "o2", *LOCAL).output
    assert "5 pairs" in told
    assert "1 left out since their image cannot be read" in told


def test_archives_are_not_extracted_for_a_list_of_files(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    refused = pairsan("export", run, "--format", "openclip-tsv", "--out", tmp_path / "o", *LOCAL, code=6)
    assert "its image is no file of its own" in refused.stderr
    assert "--format webdataset" in refused.stderr


def test_an_image_is_named_by_its_bytes() -> None:
    for form, extension in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif")):
        out = io.BytesIO()
        Image.new("RGB", (8, 8)).save(out, form)
        assert extension_of(out.getvalue()) == extension
    assert extension_of(b"") == "img"


@pytest.mark.slow
def test_open_clip_trains_an_epoch_on_an_export(tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run, out = tmp_path / "run", tmp_path / "wds"
    pairsan("clean", ROOT / "examples/emoji/eval", "--out", run, "--checkpoint", tiny, *LOCAL, "--keep-share", 0.5)
    pairsan("export", run, "--format", "webdataset", "--out", out, "--rows-per-file", 256, *LOCAL)
    num = sum(json.loads((out / "sizes.json").read_text()).values())
    command = [sys.executable, "-m", "open_clip_train.main", "--train-data", str(out / "{00000..00002}.tar")]
    command += [
        "--dataset-type",
        "webdataset",
        "--model",
        f"local-dir:{tiny}",
        "--epochs",
        "1",
        "--batch-size",
        "64",
        "--workers",
        "1",
    ]
    command += ["--logs", str(tmp_path / "logs"), "--device", "cpu", "--precision", "fp32", "--name", "x"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert num == 703
    assert "Train Epoch: 0" in done.stdout + done.stderr
    assert list((tmp_path / "logs/x/checkpoints").glob("epoch_1.pt"))
