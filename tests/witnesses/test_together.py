"""Near copies are judged together: doubts are summed over clusters, captions of one cluster are counted."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import CLEAN, parts_of, table
from scipy.stats import norm

from manifests.parts import write_part
from manifests.signals import SIGNALS
from manifests.store import open_store
from stages.pair import Shard
from stages.signals.sample import Reference
from stages.signals.signal_parts import WITNESS, SignalParts
from stages.signals.witnesses.joint_doubt import CORRELATION, WITNESSED, JoinCopies, witnessed, write_groups
from stages.vectors import unit

Pairsan = Callable[..., Result]


def signals_of(accord: list[float | None], clusters: np.ndarray, copies: np.ndarray) -> pa.StructArray:
    known = {"accord": pa.array(accord, pa.float32()), "near_copy_cluster": pa.array(clusters), "near_copies": pa.array(copies)}
    columns = [known.get(field.name, pa.nulls(len(accord))).cast(field.type) for field in SIGNALS]
    return pa.StructArray.from_arrays(columns, fields=list(SIGNALS), mask=pa.array([value is None for value in accord]))


def joined(folder: Path, shards: dict[str, pa.Table]) -> dict[str, pa.StructArray]:
    run = open_store(folder)
    parts = SignalParts(run, 1, tuple(shards), "s", "x")
    for name, rows in shards.items():
        write_part(run, parts.part(name, WITNESS), WITNESSED, [rows], fingerprint="x")
    write_groups(parts)
    stage = JoinCopies(parts)
    stage.open()
    for name in shards:
        stage.run(Shard(name, "", "tar", 0))
    return {name: pq.read_table(folder / f"s/{name}.parquet")["signals"].combine_chunks() for name in shards}


def test_a_dozen_mild_doubts_are_a_strong_one(tmp_path: Path) -> None:
    mild, clusters = norm.sf(1.2), np.asarray([7] * 6 + [1, 2, 3, 0], np.int64)
    copies = np.asarray([12] * 6 + [1, 1, 1, 1])
    captions = np.asarray([5, 5, 5, 6, 6, 8, 5, 5, 9, 0], np.int64)
    accord = [mild] * 6 + [0.4, 0.001, 0.9, None]
    rows = witnessed(signals_of(accord, clusters, copies), clusters, captions)
    found = joined(tmp_path / "a", {"0.tar": rows, "1.tar": rows})
    z = 1.2 * np.sqrt(12 / (1 + 11 * CORRELATION))
    for part in found.values():
        values = part.field("accord").to_pylist()
        assert values[:6] == pytest.approx([norm.sf(z)] * 6, abs=1e-5)
        assert values[6:9] == pytest.approx(accord[6:9], abs=1e-6)  # no copies: as they were
        assert values[9] is None
        assert part.is_null().to_pylist() == [False] * 9 + [True]
        assert part.field("pair_copies").to_pylist()[:9] == [6, 6, 6, 4, 4, 2, 2, 2, 2]
    turned = joined(tmp_path / "b", {"1.tar": rows.slice(5), "0.tar": pa.concat_tables([rows.slice(0, 5), rows])})
    assert turned["1.tar"].field("accord")[0].as_py() == found["0.tar"].field("accord")[5].as_py()


def test_what_is_worse_than_its_copies_stays_so_and_trust_is_not_shared(tmp_path: Path) -> None:
    clusters, copies, captions = np.full(4, 3, np.int64), np.full(4, 4), np.arange(4)
    accord: list[float | None] = [0.0, 0.9, 0.95, 0.99]
    found = joined(tmp_path, {"0.tar": witnessed(signals_of(accord, clusters, copies), clusters, captions)})["0.tar"]
    values = found.field("accord").to_pylist()
    assert values[0] == 0.0
    assert values[1:] == sorted(values[1:])
    assert max(values) < 0.9  # the mean of all four is no better than that
    assert all(new <= old for new, old in zip(values, accord, strict=True))


def test_a_sample_holds_each_picture_once() -> None:
    rng = np.random.default_rng(0)
    v = unit(rng.normal(size=(5, 3)).astype(np.float32))
    sample = Reference(np.arange(5), v, v, v, tuple("abcde"))
    once = sample.once_each(np.asarray([4, 4, 1, 4, 1]))
    assert once.hashes.tolist() == [4, 1]
    assert once.captions == ("a", "c")
    assert np.array_equal(once.images, v[[0, 2]])
    assert once.others is not None
    bare = Reference(np.arange(5), v, v).once_each(np.arange(5))
    assert bare.others is None
    assert len(bare.hashes) == 5


def test_copies_are_joined_over_shards_and_an_interrupted_run_ends_the_same(
    copies: Path, tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    args = ("--checkpoint", tiny, *CLEAN, "--neighbours", 3, "--set", "agreement_neighbours=2", "--near-copy-cosine", 0.9)
    for run in (whole, cut):
        pairsan("clean", copies, "--out", run, *args, "--max-pair-copies", 2, "--discord-share", 0.2)
    rows = table(whole)
    assert (rows["pair_copies"] <= rows["near_copies"]).all()
    expected = rows.groupby(["near_copy_cluster", rows["caption"].str.casefold().str.replace(r"[\W\d_]+", " ", regex=True)])
    assert (rows["pair_copies"] == expected["caption"].transform("size")).all()
    noisy = rows["key"].str.startswith("noisy")
    assert rows.loc[noisy, "near_copies"].min() > 4
    assert rows.loc[noisy, "accord"].max() < rows.loc[~noisy, "accord"].max()
    shared = rows[noisy].groupby("near_copy_cluster")["accord"].max()
    assert (rows[noisy]["accord"] <= rows[noisy]["near_copy_cluster"].map(shared)).all()
    signals = next(whole.glob("rounds/0001/signals-*"))
    assert not (signals / WITNESS).exists()
    assert "all as sealed" in pairsan("verify", whole).output
    mine = cut / signals.relative_to(whole)
    for gone in ("1.tar.parquet", "groups.parquet"):
        (mine / gone).unlink()
    (cut / "rounds/0001/manifest.json").unlink()
    shutil.rmtree(cut / "rounds/0001/manifest")
    pairsan("clean", copies, "--out", cut, *args, "--max-pair-copies", 2, "--discord-share", 0.2)
    assert parts_of(whole) == parts_of(cut)


def test_pair_copies_need_what_says_what_a_copy_is(copies: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    args = ("clean", copies, "--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN, "--max-pair-copies", 2)
    assert "max_pair_copies = 2 needs near_copy_cosine" in pairsan(*args, code=2).stderr
    refused = pairsan(*args, "--near-copy-cosine", 0.9, "--agreement-rows", 0, code=2).stderr
    assert "max_pair_copies = 2 needs the sample of captions" in refused
