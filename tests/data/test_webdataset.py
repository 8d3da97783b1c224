"""The documented loaders, with the real libraries, on a sealed round."""

import ast
import gc
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from click.testing import Result
from conftest import CLEAN, ROOT, make_tar
from torch.utils.data import ConcatDataset, Subset

from manifests import Manifest, NotSealed, open_round
from manifests.errors import RunError
from manifests.webdataset import labelled

Pairsan = Callable[..., Result]
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def data(tmp_path: Path, emoji_members: list[tuple[str, bytes]]) -> Path:
    """Two tars, in folders, the second with a broken picture."""
    for shard in range(2):
        folder = tmp_path / "data" / f"part-{shard}"
        folder.mkdir(parents=True)
        members = list(emoji_members[shard * 60 : shard * 60 + 60])
        if shard:
            members[:3] = [(name, b"<html>" if name.endswith(".webp") else body) for name, body in members[:3]]
        (folder / "0.tar").write_bytes(make_tar(members))
    return tmp_path / "data"


@pytest.fixture
def manifest(data: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> Manifest:
    pairsan("clean", data, "--checkpoint", tiny, "--out", tmp_path / "run", "--executor", "local", "--keep-share", 0.6)
    return open_round(tmp_path / "run")


def read(data: Path, *stages: object, times: int = 1) -> list[dict[str, object]]:
    urls = [str(path) for path in sorted(data.rglob("*.tar")) for _ in range(times)]
    try:
        return list(wds.DataPipeline(wds.SimpleShardList(urls), wds.split_by_worker, wds.tarfile_to_samples(), *stages))
    finally:
        gc.collect()  # the library leaves tars open, and other tests must not hear of it


def test_the_webdataset_library_reads_the_safe_rows_and_what_goes_along(data: Path, manifest: Manifest) -> None:
    rows = manifest.to_pandas()
    safe = rows[rows["label"] == "safe"]
    found = read(data, labelled(manifest, columns=["p_safe", "cosine"]), wds.decode("pil"))
    assert [sample["__key__"] for sample in found] == list(safe["key"])
    assert [sample["__p_safe__"] for sample in found] == list(safe["p_safe"])
    assert {sample["__label__"] for sample in found} == {"safe"}
    assert found[0]["webp"].mode == "RGB"  # type: ignore[attr-defined]
    every = read(data, labelled(manifest, keep=list(rows["label"].unique())))
    assert [sample["__label__"] for sample in every] == list(rows["label"])


def test_a_tar_that_is_read_twice_is_joined_twice(data: Path, manifest: Manifest) -> None:
    once, twice = read(data, labelled(manifest)), read(data, labelled(manifest), times=2)
    assert len(twice) == 2 * len(once)


def test_other_data_than_those_labelled_end_the_stream(data: Path, manifest: Manifest, tmp_path: Path) -> None:
    tar = data / "part-0" / "0.tar"
    with tarfile.open(tar) as old:
        members = [(member.name, old.extractfile(member).read()) for member in old]  # type: ignore[union-attr]
    tar.write_bytes(make_tar(members[3:]))  # one row less
    with pytest.raises(RunError, match=r"part-0/0.tar \[0\] is .* were the data changed"):
        read(data, labelled(manifest))
    tar.write_bytes(make_tar(members))
    (data / "part-2").mkdir()
    (data / "part-2" / "0.tar").write_bytes(make_tar(members))
    with pytest.raises(RunError, match=r"part-2/0.tar is no shard of round 1"):
        read(data, labelled(manifest))


def test_an_image_of_equal_size_put_in_anothers_place_ends_the_stream(data: Path, manifest: Manifest) -> None:
    tar = data / "part-0" / "0.tar"
    assert read(data, labelled(manifest, image="jpg;webp"))
    shown = read(data, labelled(manifest, keep=["safe", "risky"]))[0]["webp"]
    assert isinstance(shown, bytes)
    tar.write_bytes(tar.read_bytes().replace(shown, shown[:-1] + bytes([shown[-1] ^ 1])))
    assert read(data, labelled(manifest))  # keys alone do not tell
    with pytest.raises(RunError, match=r"part-0/0.tar \[0\] .* its image is not the one that was scored"):
        read(data, labelled(manifest, image="jpg;webp"))


def test_a_map_style_dataset_takes_the_mask(manifest: Manifest) -> None:
    rows = manifest.to_pandas(["shard", "key", "label"])
    keys = {shard: list(of["key"]) for shard, of in rows.groupby("shard", observed=True)}
    parts = [Subset(keys[name], mask.nonzero()[0]) for name, mask in manifest.masks("safe")]
    assert list(ConcatDataset(parts)) == list(rows[rows["label"] == "safe"]["key"])


def test_an_unsealed_round_is_refused(data: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    pairsan("embed", data, "--checkpoint", tiny, "--out", tmp_path / "only", "--executor", "local")
    with pytest.raises(NotSealed):
        open_round(tmp_path / "only")


def test_hugging_face_datasets_select_by_the_mask(
    emoji_members: list[tuple[str, bytes]], tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    datasets = pytest.importorskip("datasets")
    images = [body for name, body in emoji_members if name.endswith(".webp")]
    captions = [body.decode() for name, body in emoji_members if name.endswith(".txt")]
    pq.write_table(pa.table({"image": images, "text": captions}), tmp_path / "train.parquet")
    pairsan("clean", tmp_path / "train.parquet", "--checkpoint", tiny, "--out", tmp_path / "run", *CLEAN)
    [(_, safe)] = open_round(tmp_path / "run").masks("safe")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "train.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    clean = loaded.select(safe.nonzero()[0])
    assert list(clean["text"]) == [caption for caption, good in zip(captions, safe, strict=True) if good]
    assert io.BytesIO(clean[0]["image"]).getbuffer()[:4] == b"RIFF"


@pytest.mark.slow
def test_litdata_streams_the_safe_rows(data: Path, manifest: Manifest, tmp_path: Path) -> None:
    """The example of the docs, as it stands there."""
    page = (ROOT / "docs/trainers.md").read_text()
    code = page.split("## LitData")[1].split("```python\n")[1].split("```")[0]
    urls = [str(path) for path in sorted(data.rglob("*.tar"))]
    (tmp_path / "example.py").write_text(
        f"urls = {urls}\n{code.replace('RUN', str(tmp_path / 'run'))}"
        "    print(sorted(caption for batch in loader for caption in batch['caption']))\n"
    )
    caches = {
        name: str(tmp_path / name) for name in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER", "HOME")
    }
    env = {**os.environ, **caches}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=120
    )
    rows = manifest.to_pandas(["label", "caption"])
    assert ast.literal_eval(done.stdout.splitlines()[-1]) == sorted(rows[rows["label"] == "safe"]["caption"])
