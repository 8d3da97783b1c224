import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import histogram_of, two_groups
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.speed.signals import build as build_signals
from benchmarks.speed.split import build
from manifests.errors import SplitRefused
from manifests.labels import Reason
from manifests.schema import MANIFEST, SCORES, SOURCE
from manifests.signals import SIGNALS
from manifests.store import open_store
from stages.histogram import NUM_BINS, grid_values, on_grid
from stages.label.decide import decide
from stages.label.label_table import label_table
from stages.label.limits import Limit
from stages.label.settings import SplitSettings

MIXTURE = SplitSettings(rule="monotone")


@pytest.mark.parametrize("share", [0.01, 0.05, 0.15, 0.3])
def test_contaminated_data_is_cut_between_the_groups(share: float) -> None:
    cosines, bad = two_groups(share, 50_000)
    decision = decide(histogram_of(cosines), MIXTURE)
    safe = decision.is_safe(on_grid(cosines))
    assert decision.doubts == ()
    assert safe[bad].mean() < 0.1
    assert safe[~bad].mean() > 0.95
    assert decision.num_safe == safe.sum()


@pytest.mark.parametrize("share", [0.0, 0.001])
def test_hardly_contaminated_data_is_refused_or_nearly_all_kept(share: float) -> None:
    cosines, bad = two_groups(share, 50_000)
    try:
        decision = decide(histogram_of(cosines), MIXTURE)
    except SplitRefused as error:
        assert "not believed" in str(error)
    else:
        assert decision.is_safe(on_grid(cosines))[~bad].mean() > 0.98


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_a_skewed_bulk_is_not_believed_but_a_share_can_be_declared(share: float) -> None:
    cosines, bad = two_groups(share, 50_000, skewed=True)
    with pytest.raises(SplitRefused, match=r"(?s)Ashman's D is .*--if-unseparable quantile"):
        decide(histogram_of(cosines), MIXTURE)
    options = SplitSettings(rule="monotone", if_unseparable="quantile", fallback_share=0.3)
    decision = decide(histogram_of(cosines), options)
    assert decision.rule == "quantile"
    assert decision.share_above_cut == pytest.approx(0.3, abs=1e-3)
    assert len(decision.doubts) >= 1
    assert not decision.is_safe(on_grid(cosines))[bad].any()


def test_the_published_rule_admits_what_ours_refuses_on_a_u_shape() -> None:
    rng = np.random.default_rng(1)
    poison = np.full(100, -0.5)
    cosines = np.r_[rng.normal(0.20, 0.02, 8000), rng.normal(0.26, 0.12, 4000), poison]
    published = decide(histogram_of(cosines), SplitSettings(rule="published"))
    assert published.is_safe(on_grid(poison)).all()
    assert published.num_safe == published.is_safe(on_grid(cosines)).sum()
    ours = decide(histogram_of(cosines), SplitSettings(rule="monotone", min_separation=0.0))
    assert not ours.is_safe(on_grid(poison)).any()


def test_the_published_rule_with_a_share_ranks_by_posterior() -> None:
    cosines, _ = two_groups(0.3, 10_000)
    decision = decide(histogram_of(cosines), SplitSettings(rule="published", keep_share=0.25))
    assert decision.share_above_cut == pytest.approx(0.25, abs=0.001)
    assert decision.cut is None


@pytest.mark.parametrize("rule", [{"rule": "keep-share", "keep_share": 0.4}, {"rule": "min-cosine", "min_cosine": 0.25}])
def test_chosen_cuts_need_no_mixture_to_be_believed(rule: dict[str, object]) -> None:
    constant = decide(histogram_of(np.full(1000, 0.25)), SplitSettings(max_safe_share=1.0, **rule))
    assert constant.num_safe == 1000  # all tie
    assert constant.mixture is None
    assert constant.p_safe(on_grid(np.array([0.25]))).tolist() == [1.0]


def test_three_rows_and_no_rows() -> None:
    with pytest.raises(SplitRefused, match="too few distinct cosines"):
        decide(histogram_of(np.array([0.1, 0.2, 0.3])), MIXTURE)
    with pytest.raises(SplitRefused, match="nothing to split"):
        decide(histogram_of(np.array([])), MIXTURE)
    kept = decide(histogram_of(np.array([0.1, 0.2, 0.3])), SplitSettings(rule="keep-share", keep_share=0.5))
    assert kept.num_safe == 2


def test_an_absurd_share_is_not_believed() -> None:
    cosines, _ = two_groups(0.15, 20_000)
    with pytest.raises(SplitRefused, match=r"of the scored rows would be safe, believed are .*--max-safe-share"):
        decide(histogram_of(cosines), SplitSettings(rule="monotone", max_safe_share=0.5))


@settings(max_examples=25, deadline=None)
@given(
    share=st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.15, 0.3]),
    skewed=st.booleans(),
    seed=st.integers(0, 5),
    threshold=st.sampled_from([0.5, 0.9, 0.99]),
)
def test_labels_p_safe_and_rank_are_monotone_in_cosine(share: float, skewed: bool, seed: int, threshold: float) -> None:
    cosines, _ = two_groups(share, 4000, seed, skewed)
    options = SplitSettings(rule="monotone", threshold=threshold, if_unseparable="quantile", fallback_share=0.2)
    decision = decide(histogram_of(cosines), options)
    grid = grid_values(np.arange(NUM_BINS))[:: 2**8].astype(np.float32)
    assert (np.diff(decision.p_safe(grid)) >= 0).all()
    assert (np.diff(decision.rank(grid)) <= 0).all()
    assert (np.diff(decision.is_safe(grid).astype(int)) >= 0).all()
    if decision.rule == "monotone" and decision.mixture is not None and decision.cut is not None:
        assert decision.cut >= decision.mixture.means[0]


def test_a_row_without_a_cosine_is_never_safe() -> None:
    scores = pa.table(
        {
            "uid": pa.array([bytes(16)] * 3, pa.binary(16)),
            "key": ["a", "b", "c"],
            "index": pa.array([0, 1, 2], pa.int32()),
            "caption": ["x", None, "z"],
            "cosine": pa.array([0.9, None, 0.1], pa.float32()),
            "reason": pa.array([None, "image_missing", None]).dictionary_encode(),
            "detail": pa.array([None, "gone", None]),
            "signals": pa.nulls(3, SIGNALS),
            "image_hash": pa.array([1, None, 2], pa.int64()),
            "caption_hash": pa.array([1, None, 2], pa.int64()),
            "image_offset": pa.nulls(3, pa.int64()),
            "image_bytes": pa.nulls(3, pa.int64()),
            "null_cosines": pa.nulls(3, pa.list_(pa.float32(), 4)),
            "image_edge": pa.nulls(3, pa.int32()),
            "pixels_hash": pa.nulls(3, pa.int64()),
            "image_sha256": pa.nulls(3, pa.binary(32)),
            "source": pa.nulls(3, SOURCE),
        },
        schema=SCORES,
    )
    decision = decide(histogram_of(np.array([0.9, 0.1])), SplitSettings(rule="min-cosine", min_cosine=0.5))
    table = label_table(scores, "s.tar", decision).cast(MANIFEST)
    assert table["label"].to_pylist() == ["safe", "quarantined", "risky"]
    assert table["reason"].to_pylist() == [None, Reason.IMAGE_MISSING, Reason.BELOW_CUT]
    assert table["rank"].to_pylist() == [0.0, None, 0.5]
    assert table["p_safe"].to_pylist()[1] == 0.0
    assert table["detail"].to_pylist() == [None, "gone", None]
    # two limits may give one reason; its word stands in the dictionary once, and parts come out the same each time
    copies = tuple(Limit(Reason.NEAR_DUPLICATE, signal, most=2.0) for signal in ("near_copies", "pair_copies"))
    limited = label_table(scores, "s.tar", replace(decision, limits=copies))["reason"].combine_chunks()
    assert limited.to_pylist() == [Reason.NEAR_DUPLICATE, Reason.IMAGE_MISSING, Reason.BELOW_CUT]
    assert len(limited.dictionary) == 3


def test_a_split_imports_no_torch() -> None:
    """It would cost seconds and a gigabyte of memory; found when a benchmark was run again after weeks."""
    code = "import sys, pipeline.cli.main, pipeline.rounds; sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_benchmark_of_splits_builds_what_can_be_split(tmp_path: Path, pairsan: Callable[..., Result]) -> None:
    build(open_store(str(tmp_path)), 1, 100_000)
    assert "90.00% of 100,000 scored" in pairsan("split", tmp_path, "--executor", "local", "--keep-share", 0.9).output
    assert "all as sealed" in pairsan("verify", tmp_path).output


def test_the_benchmark_of_signals_builds_scores_of_todays_schema(tmp_path: Path) -> None:
    [shard] = build_signals(open_store(str(tmp_path)), 1, 8)
    part = pq.read_table(tmp_path / "rounds/0001/scores" / f"{shard.name}.parquet")
    assert part.schema.names == SCORES.names
    assert part["pixels_hash"].null_count == 0
