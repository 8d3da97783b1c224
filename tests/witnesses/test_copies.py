"""Near copies: cells, links and clusters find what brute force finds, whatever is interrupted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import CLEAN, parts_of, table
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from stages.signals import nearest
from stages.signals.components import components
from stages.signals.near_copies import links
from stages.signals.nearest import Nearest
from stages.signals.repeats import Repeats
from stages.vectors import unit, vectors_of

Pairsan = Callable[..., Result]


def groups_of(names: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(names == name).tolist()) for name in np.unique(names)}


def clustered(rng: np.random.Generator, num: int, dim: int, spread: float) -> np.ndarray:
    centres = rng.normal(size=(num // 5, dim))
    return unit((centres[rng.integers(0, len(centres), num)] + spread * rng.normal(size=(num, dim))).astype(np.float32))


@pytest.mark.parametrize("num", [300, 4500, pytest.param(17000, marks=pytest.mark.slow)])
def test_links_join_what_lies_together(num: int) -> None:
    v = clustered(np.random.default_rng(num), num, 24, 0.05)
    hashes = np.random.default_rng(1).permutation(num).astype(np.int64) + 10**9
    found = links(hashes, v, 0.97)
    place = {int(value): row for row, value in enumerate(hashes)}
    ends = np.vectorize(place.__getitem__, otypes=[np.int64])(found)
    ours = components(ends[0], ends[1], num)
    theirs = connected_components(csr_array(v @ v.T >= 0.97), directed=False)[1]
    assert found.shape[1] < num  # at most one link for each picture
    true, mine = groups_of(theirs), groups_of(ours)
    if num <= 16384:
        assert mine == true
    else:  # what lies in two groups of 2,048, neither the first, is not compared
        assert len(mine & true) > 0.2 * len(true)
        assert all(any(group <= whole for whole in true) for group in mine)


def test_equal_cosines_come_by_place() -> None:
    v = unit(np.random.default_rng(5).normal(size=(50, 64)).astype(np.float32))[np.repeat(np.arange(50), 40)]
    similar, places = Nearest(v)(v[::40], 40)
    assert (places == np.arange(2000).reshape(50, 40)).all()
    assert (similar == similar[:, :1]).all()


def test_what_lies_on_the_limit_is_a_copy_whatever_a_product_of_matrices_makes_of_it() -> None:
    rng = np.random.default_rng(6)
    for _ in range(50):
        v = unit(rng.normal(size=(2, 512)).astype(np.float32))
        cosine = float(np.einsum("d,d->", *v.astype(np.float64)))
        assert links(np.arange(2), v, cosine).shape[1] == 1
        assert links(np.arange(2), v, float(np.nextafter(cosine, 9.0))).shape[1] == 0


def test_the_nearest_are_found_through_lists_too() -> None:
    v = clustered(np.random.default_rng(2), 6000, 16, 0.2)
    few, many = Nearest(v[:4000]), Nearest(v)
    similar, found = few(v[:50], 5)
    assert (found[:, 0] == np.arange(50)).all()
    assert np.allclose(similar, np.sort(v[:50] @ v[:4000].T, axis=1)[:, ::-1][:, :5], atol=1e-5)
    true = np.argsort(-(v[:400] @ v.T), axis=1)[:, :5]
    found = many(v[:400], 5)[1]
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(true, found, strict=True)]) > 0.9
    assert Nearest(v[:3])(v[:2], 9)[1].shape == (2, 3)
    assert few(v[:0], 4)[1].shape == (0, 4)


def test_counts_are_joined_in_chains() -> None:
    counts = Repeats(np.asarray([10, 30]), np.asarray([4, 2]), np.asarray([10, 30]))
    joined = counts.joined(np.asarray([[10, 20, 50], [20, 40, 60]]))
    hashes = np.asarray([10, 20, 30, 40, 50, 60, 70])
    assert joined.of(hashes).tolist() == [6, 6, 2, 6, 2, 2, 1]
    assert joined.clusters_of(hashes).tolist() == [10, 10, 30, 10, 50, 50, 70]
    assert counts.joined(np.zeros((2, 0), np.int64)).of(hashes).tolist() == [4, 1, 2, 1, 1, 1, 1]
    nothing = Repeats(*(np.zeros(0, np.int64) for _ in range(3)))
    assert nothing.of(hashes).tolist() == [1] * 7


def test_near_copies_of_a_round_are_those_of_brute_force(copies: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    args = ("--checkpoint", tiny, *CLEAN, "--near-copy-cosine", 0.85, "--max-near-copies", 4, "--set", "copy_cell_rows=16")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        pairsan("clean", copies, "--out", run, *args)
    rows = table(whole)
    parts = [pq.read_table(whole / f"rounds/0001/embeddings/{shard}.tar.parquet")["image"] for shard in (0, 1)]
    v = unit(np.concatenate([vectors_of(part) for part in parts]))
    facts = json.loads(next(whole.glob("rounds/0001/signals-*/near-copies.json")).read_text())
    assert list(facts) == ["image"]
    facts = facts["image"]
    assert (facts["asked"], facts["cells"]) == (0.85, 4)
    assert 0.85 <= facts["cosine"] < 0.95  # a little higher, as these vectors lie close together
    same = (v @ v.T >= facts["cosine"]) | (rows["image_cluster"].to_numpy()[:, None] == rows["image_cluster"].to_numpy())
    names = connected_components(csr_array(same), directed=False)[1]
    assert groups_of(rows["near_copy_cluster"].to_numpy()) == groups_of(names)
    sizes = np.bincount(names)[names]
    assert rows["near_copies"].tolist() == sizes.tolist()
    assert sizes.max() >= 10  # the noisy versions of one picture, which have other hashes
    assert (rows["image_cluster_size"] < sizes).sum() >= 10
    assert (rows["reason"] == "near_duplicate").tolist() == (sizes > 4).tolist()

    folder = next((cut / "rounds/0001").glob("signals-*"))
    assert not list(folder.glob("copies-*"))
    (cut / "rounds/0001/manifest.json").unlink()
    (folder / "0.tar.parquet").unlink()
    (folder / "clusters-image.parquet").unlink()
    (folder / "centres.parquet").unlink()
    shutil.rmtree(cut / "rounds/0001/manifest")
    pairsan("clean", copies, "--out", cut, *args)
    assert parts_of(whole) == parts_of(cut)
    refused = pairsan("split", whole, "--max-near-copies", 3, "--signals", "none", code=2)
    assert "needs them; use signals = 'all'" in refused.stderr


def test_a_limit_on_copies_needs_to_know_what_a_copy_is(copies: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    refused = pairsan("clean", copies, "--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN, "--max-near-copies", 4, code=2)
    assert "max_near_copies = 4 needs near_copy_cosine" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_images_that_are_all_the_same_are_one_cluster(tmp_path: Path, png: bytes, tiny: str, pairsan: Pairsan) -> None:
    from conftest import make_tar

    rows = [(f"{i:03d}.{end}", data) for i in range(40) for end, data in (("png", png), ("txt", f"thing {i}".encode()))]
    (tmp_path / "same.tar").write_bytes(make_tar(rows))
    args = ("--near-copy-cosine", 0.9, "--max-near-copies", 2, "--discord-share", 0.1, "--crowded-share", 0.1)
    pairsan("clean", tmp_path / "same.tar", "--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN, *args)
    found = table(tmp_path / "run")
    assert set(found["near_copies"]) == {40}
    assert set(found["reason"]) == {"near_duplicate"}
    assert found["accord"].between(0, 1).all()


def test_a_shard_without_any_image_spoils_nothing(copies: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    from conftest import make_tar

    (copies / "2.tar").write_bytes(make_tar([("a.png", b"no image"), ("a.txt", b"words")]))
    args = (
        "--near-copy-cosine",
        0.9,
        "--max-near-copies",
        2,
        "--discord-share",
        0.1,
        "--reference-encoder",
        tiny,
        "--canaries",
        30,
    )
    pairsan("clean", copies, "--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN, *args)
    found = table(tmp_path / "run")
    dead = found["shard"] == "2.tar"
    assert dead.sum() == 1
    assert found.loc[dead, "near_copies"].isna().all()
    assert found.loc[~dead, ["near_copies", "accord"]].notna().all(axis=None)


def test_the_index_goes_to_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS's GPU calls are the outer edge: they are recorded, and answered by the index itself."""
    moved: list[tuple[int, int]] = []

    class Resources:
        def setTempMemory(self, size: int) -> None:  # noqa: N802  # FAISS's name
            moved.append((-1, size))

    def move(_: Resources, device: int, index: faiss.Index) -> faiss.Index:
        moved.append((device, index.ntotal))
        return index

    rng = np.random.default_rng(0)
    v = unit(rng.normal(size=(5000, 8)).astype(np.float32))
    on_cpu = Nearest(v)(v[:50], 3)
    exact = np.sort(v[:50] @ v.T, axis=1)[:, :-4:-1]
    assert np.allclose(Nearest(v, exact=True)(v[:50], 3)[0], exact, atol=1e-6)
    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", move, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    nearest._gpu_resources.cache_clear()
    try:
        for _ in range(2):
            on_gpu = Nearest(v)(v[:50], 3)
    finally:
        nearest._gpu_resources.cache_clear()
    assert moved == [(-1, 256 << 20), (0, 5000), (0, 5000)]
    assert all(np.array_equal(a, b) for a, b in zip(on_cpu, on_gpu, strict=True))
