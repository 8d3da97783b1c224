"""The measured null, and the cut at a stated share of mismatched pairs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import EMOJI

from manifests.errors import SplitRefused
from manifests.reading import open_round
from stages.histogram import Histogram, count, grid_bins, on_grid
from stages.label.decide import decide
from stages.label.fit.calibration import calibrate
from stages.label.fit.strata import STRATA, StrataKind, strata_of
from stages.label.settings import SplitSettings
from stages.score.null_cosines import caption_rows, null_cosines
from stages.vectors import unit

Pairsan = Callable[..., Result]


def histogram_of(values: np.ndarray) -> Histogram:
    found = Histogram()
    found.add(count(on_grid(values)))
    return found


def test_nulls_are_cosines_with_captions_of_others() -> None:
    rng = np.random.default_rng(0)
    v, t = (unit(rng.normal(size=(50, 6)).astype(np.float32)) for _ in range(2))
    captions = np.arange(50)
    captions[1::2] = captions[::2]  # every caption twice
    found = null_cosines(v, t, captions)
    products = on_grid(v.astype(np.float64) @ t.astype(np.float64).T)
    for row in range(50):
        others = set(np.flatnonzero(captions != captions[row]).tolist())
        held = found[row][np.isfinite(found[row])]
        assert all(any(abs(value - products[row, other]) < 1e-6 for other in others) for value in held)
    assert np.isfinite(found).mean() > 0.9
    assert np.array_equal(found, null_cosines(v, t, captions), equal_nan=True)
    assert np.isnan(null_cosines(v[:7], t[:7], captions[:7])).all()
    assert null_cosines(v[:0], t[:0], captions[:0]).shape == (0, 4)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("apart", [2.5, 4.0])
def test_what_is_stated_is_what_comes(share: float, apart: float) -> None:
    rng = np.random.default_rng(int(share * 100))
    num = 40_000
    wrong = rng.random(num) < share
    skewed = 0.25 + 0.05 * apart - rng.gamma(4.0, 0.0125, num) + 0.05  # matching pairs need have no Gaussian's shape
    cosines = np.where(wrong, rng.normal(0.2, 0.05, num), skewed).clip(-1, 1)
    nulls = histogram_of(rng.normal(0.2, 0.05, 4 * num))
    found = calibrate(histogram_of(cosines), nulls)
    assert share <= found.mismatched_share + 0.01
    assert found.mismatched_share <= share + 0.06
    for alpha in (0.005, 0.02):
        cut = found.cut(alpha)
        assert cut is not None
        assert wrong[cosines >= cut].mean() <= 1.5 * alpha
        strict = found.cut(alpha, 0.5)
        assert strict is not None
        assert strict >= cut
        if share:
            at = found.local[grid_bins(on_grid(np.asarray([cut, strict])))]
            assert at[1] <= 0.5
    assert (np.diff(found.local) <= 1e-7).all()
    held = found.local[grid_bins(on_grid(cosines))]
    assert held.sum() / num == pytest.approx(share, abs=0.06)


def test_a_checkpoint_that_tells_nothing_is_refused() -> None:
    rng = np.random.default_rng(3)
    cosines, nulls = histogram_of(rng.normal(0.2, 0.05, 5000)), histogram_of(rng.normal(0.2, 0.05, 20_000))
    with pytest.raises(SplitRefused, match=r"no cut leaves at most 1.00% mismatched|only 0\.\d+% of the scored rows"):
        decide(cosines, SplitSettings(rule="calibrated"), nulls=nulls)
    with pytest.raises(SplitRefused, match="200 of them at least.*these scores hold none"):
        decide(cosines, SplitSettings(rule="calibrated"), nulls=Histogram())
    options = SplitSettings(rule="calibrated", if_unseparable="quantile", fallback_share=0.2)
    decision = decide(cosines, options, nulls=nulls)
    assert decision.rule == "quantile"
    assert decision.p_mismatch(np.asarray([0.2], np.float32)) is None


@pytest.mark.slow
def test_clean_data_lose_next_to_nothing_by_it(tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    args = ("--checkpoint", tiny, "--executor", "local", "--rule", "calibrated")
    told = pairsan("clean", EMOJI / "train" / "0000[0-3].tar.gz", "--out", run, *args).output
    assert "mismatch  estimated" in told
    manifest = open_round(run)
    rows = manifest.to_pandas()
    assert (rows["label"] == "safe").mean() > 0.95
    signals = pd.json_normalize(list(rows["signals"]))
    assert signals["p_mismatch"].between(0, 1).all()
    assert np.allclose(rows["p_safe"], 1 - signals["p_mismatch"], atol=1e-6)
    ordered = signals["p_mismatch"].to_numpy()[np.argsort(rows["cosine"].to_numpy(), kind="stable")]
    assert (np.diff(ordered) <= 1e-6).all()
    null = manifest.seal["null"]
    assert sum(null["counts"]) == null["num"] > 4 * 0.9 * len(rows)
    assert null["stated_mismatched_in_safe"] <= 0.01
    assert null["mismatched_share"] < 0.02
    assert "all as sealed" in pairsan("verify", run).output
    stored = pq.read_table(next((run / "rounds/0001/scores").iterdir()), columns=["null_cosines"])["null_cosines"]
    assert stored.type.list_size == 4


def test_the_captions_of_nulls_are_found_again() -> None:
    rng = np.random.default_rng(1)
    v, t = (unit(rng.normal(size=(700, 6)).astype(np.float32)) for _ in range(2))
    decoded = rng.random(700) > 0.1
    decoded[512:690] = False  # in the last chunk, too few rows are left for a null
    captions = np.arange(700)
    found = np.full((700, 4), np.nan, np.float32)
    for start in (0, 512):
        rows = start + np.flatnonzero(decoded[start : start + 512])
        found[rows] = null_cosines(v[rows], t[rows], captions[rows])
    others = caption_rows(decoded)
    held = others >= 0
    assert held[:512][decoded[:512]].all()
    assert (held == np.isfinite(found)).all()
    cosines = on_grid(np.einsum("nd,nkd->nk", v.astype(np.float64), t[others].astype(np.float64)))
    assert np.allclose(cosines[held], found[held], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "values", "names"),
    [
        (
            "caption-length",
            ["a cat", "a cat on a mat", None, "one two three four five six", "w " * 11, "w " * 30],
            ["1 or 2", "3 to 5", "1 or 2", "6 to 10", "11 to 20", "more than 20"],
        ),
        (
            "script",
            ["Katze", "кот в сапогах", "猫の写真", "고양이", "قطة", "mostly Latin и", "12 + 3", None],
            ["Latin", "Cyrillic", "Han and kana", "Hangul", "Arabic", "Latin", "no known", "no known"],
        ),
        ("image-size", [64, 128, 500, 512, None], ["below 128", "128 to", "256 to", "512 px and", "below 128"]),
    ],
)
def test_rows_are_grouped(kind: StrataKind, values: list[str | int | None], names: list[str]) -> None:
    found = [STRATA[kind][code] for code in strata_of(kind, pa.chunked_array([values]))]
    assert all(name.startswith(start) for name, start in zip(found, names, strict=True)), found


def test_strata_state_their_own_rates(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    num, share = 20_000, 0.1
    wrong = rng.random((2, num)) < share
    level = np.asarray([[0.1], [0.3]])  # mismatched pairs of the second stratum score as high as most pairs of the first
    cosines = np.where(wrong, rng.normal(level, 0.04, (2, num)), rng.normal(level + 0.2, 0.04, (2, num)))
    nulls = [histogram_of(rng.normal(at, 0.04, 4 * num)) for at in level.ravel()]
    pairs = [histogram_of(row) for row in cosines]
    both, null = histogram_of(cosines.ravel()), Histogram()
    for part in nulls:
        null.counts += part.counts
    options = SplitSettings(rule="calibrated", null_strata="image-size")
    counted = {0: (pairs[0], nulls[0]), 1: (pairs[1], nulls[1])}
    decision = decide(both, options, nulls=null, strata=counted)
    pooled = decide(both, options.model_copy(update={"null_strata": None}), nulls=null)
    assert decision.strata is not None
    for code in (0, 1):
        on = on_grid(cosines[code])
        codes = np.full(num, code, np.int8)
        safe = decision.is_safe(on, codes)
        assert wrong[code][safe].mean() <= 0.015
        assert safe[~wrong[code]].mean() > 0.95
        assert np.allclose(decision.p_safe(on, codes), 1 - decision.strata.p_mismatch(on, codes), atol=1e-6)
        assert decision.strata.facts[code]["mismatched_share"] == pytest.approx(share, abs=0.03)
    assert pooled.is_safe(on_grid(cosines[0]))[~wrong[0]].mean() < 0.6  # what one null for all costs here
    few = {0: counted[0], 1: (pairs[1], histogram_of(np.asarray([0.3])))}
    shared = decide(both, options, nulls=null, strata=few).strata
    assert shared is not None
    assert [fact["own_null"] for fact in shared.facts] == [True, False]
    assert shared.cuts[1] == pooled.cut


@pytest.mark.slow
def test_strata_on_real_pairs(tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    args = ("--checkpoint", tiny, "--executor", "local", "--canaries", 200)
    told = pairsan("clean", EMOJI / "train" / "0000[0-3].tar.gz", "--out", run, *args, "--null-strata", "caption-length").output
    assert "cosine is at or above the cut of its caption-length stratum" in told
    assert "stratum   3 to 5 words: safe where cosine >= " in told
    manifest = open_round(run)
    found = {fact["stratum"]: fact for fact in manifest.seal["strata"]["of"]}
    rows = manifest.to_pandas(["caption", "cosine", "label", "p_safe"])
    words = rows["caption"].str.split().str.len()
    of = pd.cut(words, [0, 2, 5, 10, 20, 1000], labels=list(STRATA["caption-length"])).astype(str)
    for name, fact in found.items():
        mine = rows[of == name]
        assert len(mine) == fact["rows"]
        assert ((mine["label"] == "safe") == (mine["cosine"] >= fact["cut"])).all()
    assert sum(fact["safe"] for fact in found.values()) == manifest.seal["counts"]["labels"]["safe"]
    assert "all as sealed" in pairsan("verify", run).output
    pairsan("report", run, "--out", tmp_path / "report.html", "--no-images")
    page = (tmp_path / "report.html").read_text()
    assert "cuts of their own, by caption-length" in page
    assert f"<td>{found['3 to 5 words']['rows']:,}</td>" in page
    pairsan("split", run, "--null-strata", "image-size")
    assert [fact["stratum"] for fact in open_round(run).seal["strata"]["of"]] == ["below 128 px"]
    assert "gives rule 'calibrated' more nulls" in pairsan(
        "split", run, "--null-strata", "script", "--keep-share", 0.5, code=2
    ).stderr  # fmt: skip
    bare = tmp_path / "bare"
    captionless = ("--out", bare, *args, "--no-keep-captions")
    assert "leaves none" in pairsan("clean", EMOJI / "eval", *captionless, "--null-strata", "script", code=2).stderr
    pairsan("embed", EMOJI / "eval", *captionless)
    (tmp_path / "other.toml").write_text("[embed]\nkeep_captions = true\n[split.calibrated]\nnull_strata = 'script'\n")
    refused = pairsan("split", bare, "--config", tmp_path / "other.toml", code=5)
    assert "these scores kept none; use --keep-captions" in refused.stderr
