"""Captions that share most of their wording: MinHash bands, counted over shards."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from conftest import make_tar, parts_of

from manifests.reading import open_round
from stages.signals.shingles import caption_bands

Pairsan = Callable[..., Result]
TEMPLATE = "vector illustration of a small {} standing on a wooden table"
THINGS = ("cat", "dog", "cow", "red fox", "cup", "lamp", "key")
LOCAL = ("--executor", "local", "--keep-share", 1.0)


def shared(a: str, b: str) -> int:
    one, other = caption_bands([a, b])
    return int((one == other).sum())


def test_bands_are_shared_by_what_has_the_same_wording() -> None:
    assert shared("A Cat, on a mat!", "a cat on a  mat 17") == 6  # what caption hashes overlook, these do too
    assert shared(TEMPLATE.format("cat"), TEMPLATE.format("dog")) >= 1
    assert shared("a cat on a mat", "stock market closes lower for a third day") == 0
    assert caption_bands([]).shape == (0, 6)
    assert caption_bands(["x"]).shape == caption_bands(["\ud800"]).shape == (1, 6)
    assert len(np.unique(caption_bands(["the same"]))) == 6  # bands of other places never meet


def test_the_chance_of_a_common_band_is_what_is_said() -> None:
    rng = np.random.default_rng(0)
    letters = np.asarray(list("abcdefghijklmnopqrstuvwxyz"))

    def jaccard(a: str, b: str) -> float:
        sets = [{text[i : i + 5] for i in range(len(text) - 4)} for text in (a, b)]
        return len(sets[0] & sets[1]) / len(sets[0] | sets[1])

    expected, met = [], []
    for _ in range(300):
        text = rng.choice(letters, 80)
        changed = text.copy()
        changed[: rng.integers(4, 40)] = "-"
        a, b = "".join(text), "".join(changed).replace("-", "z")
        share = jaccard(a, b)
        expected.append(1 - (1 - share**4) ** 6)
        met.append(shared(a, b) > 0)
    assert np.mean(met) == pytest.approx(np.mean(expected), abs=0.07)


@pytest.fixture
def templated(tmp_path: Path, emoji_members: list[tuple[str, bytes]]) -> Path:
    """40 pairs in two shards; seven captions of one template, over both, and a pair without a caption."""
    folder = tmp_path / "templated"
    folder.mkdir()
    members = [*emoji_members]
    captions = [place for place, (name, _) in enumerate(members) if name.endswith(".txt")]
    for thing, place in zip(THINGS, captions[::6], strict=False):
        members[place] = (members[place][0], TEMPLATE.format(thing).encode())
    del members[captions[1]]
    half = next(i for i in range(len(members) // 2, len(members)) if Path(members[i][0]).stem != Path(members[i - 1][0]).stem)
    for number, part in enumerate((members[:half], members[half:])):
        (folder / f"{number:05d}.tar").write_bytes(make_tar(part))
    with tarfile.open(folder / "00000.tar") as tar:
        assert len(tar.getnames()) > 10
    return folder


def table(run: Path, number: int | None = None) -> pd.DataFrame:
    rows = open_round(run, number).to_pandas(["caption", "label", "reason", "signals", "cosine"])
    return pd.concat([rows.drop(columns="signals"), pd.json_normalize(list(rows["signals"].map(lambda s: s or {})))], axis=1)


def test_templates_are_counted_over_shards_and_label(templated: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    pairsan("clean", templated, "--out", run, "--checkpoint", tiny, *LOCAL, "--max-caption-copies", 5)
    rows = table(run)
    scored = rows["cosine"].notna()
    planted = rows["caption"].fillna("").str.startswith("vector illustration")
    assert planted.sum() == 7
    assert (rows.loc[planted, "caption_copies"] >= 5).all()
    assert (rows.loc[~planted & scored, "caption_copies"] == 1).all()
    assert rows.loc[~scored, "caption_copies"].isna().all()
    assert (rows.loc[planted, "caption_copies"] > 5).sum() == (rows["reason"] == "repeated_caption").sum() >= 5
    assert not list(run.glob("rounds/0001/signals-*/bands"))
    assert "all as sealed" in pairsan("verify", run).output
    pairsan("split", run, "--max-caption-copies", 30)
    assert table(run, 2)["reason"].isna().sum() == scored.sum()


def test_an_interrupted_count_goes_on(templated: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        pairsan("clean", templated, "--out", run, "--checkpoint", tiny, *LOCAL, "--caption-shingles")
    signals = next(cut.glob("rounds/0001/signals-*"))
    (signals / "00001.tar.parquet").unlink()
    (cut / "rounds/0001/manifest.json").unlink()
    pairsan("clean", templated, "--out", cut, "--checkpoint", tiny, *LOCAL, "--caption-shingles")
    assert parts_of(whole) == parts_of(cut)


def test_it_needs_captions(templated: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    args = ("--out", tmp_path / "run", "--checkpoint", tiny, *LOCAL, "--no-keep-captions")
    assert "leaves none" in pairsan("clean", templated, *args, "--max-caption-copies", 5, code=2).stderr
    assert "leaves them all out" in pairsan(
        "clean", templated, *args[:-1], "--signals", "none", "--caption-shingles", code=2
    ).stderr  # fmt: skip
    pairsan("clean", templated, *args)
    (tmp_path / "other.toml").write_text("[embed]\nkeep_captions = true\n[signals]\ncaption_shingles = true\n")
    refused = pairsan("split", tmp_path / "run", "--config", tmp_path / "other.toml", code=5)
    assert "kept no captions, which caption_shingles reads" in refused.stderr
    plan = json.loads((tmp_path / "run/rounds/0001/plan.json").read_text())
    assert plan["signals"] == {"signals": "repeats", "exact_copies": True}
