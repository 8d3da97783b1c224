"""The measured null, and the cut at a stated share of mismatched pairs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import EMOJI

from manifests.errors import SplitRefused
from manifests.reading import open_round
from stages.calibration import calibrate
from stages.grid import on_grid
from stages.histogram import Histogram, count, grid_bins
from stages.null import null_cosines
from stages.options import SplitOptions
from stages.reference import unit
from stages.split import decide

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
        decide(cosines, SplitOptions(rule="calibrated"), None, nulls)
    with pytest.raises(SplitRefused, match="1,000 of them at least, and there are 0"):
        decide(cosines, SplitOptions(rule="calibrated"), None, Histogram())
    options = SplitOptions(rule="calibrated", if_unseparable="quantile", fallback_share=0.2)
    decision = decide(cosines, options, None, nulls)
    assert decision.rule == "quantile"
    assert decision.p_mismatch(np.asarray([0.2], np.float32)) is None


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
