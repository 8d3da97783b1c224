"""What every seal says of its score, and what becomes of a share of a score that says nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import histogram_of, two_groups

from manifests.errors import ConfigError, SplitRefused
from manifests.store import open_store
from pipeline.queries.summary import known_of
from pipeline.steps.numbering import grown
from stages.histogram import on_grid
from stages.label.decide import decide
from stages.label.fit.calibration import calibrate
from stages.label.fit.reliability import reliability
from stages.label.settings import SplitSettings

SHARE = {"rule": "keep-share", "keep_share": 0.7}


def exchanged(num: int, seed: int = 9) -> Any:
    return histogram_of(np.random.default_rng(seed).normal(0.06, 0.04, num))


def test_a_share_of_a_score_that_says_nothing_is_sealed_only_by_name() -> None:
    rng = np.random.default_rng(0)
    pairs, nulls = histogram_of(rng.normal(0.2, 0.05, 900)), histogram_of(rng.normal(0.2, 0.05, 3600))
    with pytest.raises(
        SplitRefused, match=r"(?s)AUROC 0\.[45]\d\d .*remedy is a checkpoint.*--if-unseparable accept"
    ) as refused:
        decide(pairs, SplitSettings(**SHARE), nulls=nulls)
    assert str(refused.value).index("rescore RUN --checkpoint") < str(refused.value).index("--keep-share")
    sealed = decide(pairs, SplitSettings(**SHARE, if_unseparable="accept"), nulls=nulls)
    assert sealed.rule == "keep-share"
    assert sealed.share_above_cut == pytest.approx(0.7, abs=0.01)
    assert "does not tell pairs from exchanged ones" in sealed.doubts[0]
    published = decide(pairs, SplitSettings(rule="published"), nulls=nulls)  # as the paper has it, with the doubt
    assert published.doubts[0] == sealed.doubts[0]


def test_looks_are_not_asked_by_the_doubts_of_a_score_that_says_nothing() -> None:
    rng, settings = np.random.default_rng(0), SplitSettings(rule="keep-share", keep_share=1.0, look_tail=0.05)
    pairs, nulls = histogram_of(rng.normal(0.2, 0.05, 900)), histogram_of(rng.normal(0.2, 0.05, 3600))
    assert decide(pairs, settings, nulls=nulls).limits == ()
    known = decide(pairs, settings, nulls=exchanged(3600))
    assert [(limit.reason, limit.least) for limit in known.limits] == [("suspect_look", 0.05)]
    assert decide(pairs, settings).limits == known.limits  # nothing is known of the score: as asked


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("rule", [SHARE, {"rule": "min-cosine", "min_cosine": 0.1}, {"rule": "calibrated"}])
def test_whatever_the_rule_the_interval_holds_what_is_really_mismatched(share: float, rule: dict[str, Any]) -> None:
    cosines, wrong = two_groups(share, 20_000)
    decision = decide(histogram_of(cosines), SplitSettings(**rule), nulls=exchanged(80_000))
    known = decision.reliability
    assert known is not None
    assert known.of_safe is not None
    assert known.low is not None
    assert known.high is not None
    really = wrong[decision.is_safe(on_grid(cosines))].mean()
    assert known.low - 1e-4 <= really <= known.high + 1e-4
    assert known.low <= known.of_safe <= known.high
    assert known.separates
    assert decision.doubts == ()


def test_a_few_good_pairs_among_many_bad_ones_may_be_kept() -> None:
    cosines, wrong = two_groups(0.95, 20_000)  # AUROC .52, as nearly all pairs are exchanged ones
    decision = decide(histogram_of(cosines), SplitSettings(rule="keep-share", keep_share=0.04), nulls=exchanged(80_000))
    assert decision.reliability is not None
    assert decision.reliability.separation < 0.55
    assert decision.doubts == ()
    assert not wrong[decision.is_safe(on_grid(cosines))].any()


def test_two_hundred_rows_are_cut_by_the_upper_end_and_forty_are_told_what_to_do() -> None:
    cosines, wrong = two_groups(0.1, 200, seed=4)
    pairs, nulls = histogram_of(cosines), exchanged(800)
    decision = decide(pairs, SplitSettings(), nulls=nulls)
    assert not wrong[decision.is_safe(on_grid(cosines))].any()
    assert decision.num_safe > 150
    few, many = calibrate(pairs, nulls), calibrate(pairs, exchanged(80_000))
    assert few.tail_at(0.15) > 2 * many.tail_at(0.15)
    with pytest.raises(SplitRefused, match=r"50 rows are enough, and below 250 .* 40 scored rows gave 160.*--keep-share"):
        decide(histogram_of(cosines[:40]), SplitSettings(), nulls=exchanged(160))
    assert reliability(pairs, exchanged(160), None, 0) is None


def test_what_is_not_known_is_said() -> None:
    counts = {"labels": {"safe": 90}, "reasons": {"exact_duplicate": 7}}
    seal: dict[str, Any] = {"null": {"num": 160}, "rule": "keep-share", "counts": counts}
    assert known_of(seal) == [("score", "not known how well it tells pairs apart: only 160 mismatched pairs to measure by")]
    null = {"num": 3600, "separation": 0.503, "separates": False, "mismatched_share": 0.99}
    told = {"stated_mismatched_in_safe": 0.98, "stated_low": 0.9, "stated_high": 1.0}
    lines = dict(known_of({"null": {**null, **told}, "rule": "keep-share", "plan": {"split": SHARE}, "counts": counts}))
    assert lines["score"].startswith("AUROC 0.503 against 3,600 exchanged pairs (0.5: none told apart)")
    assert lines["score"].endswith("it says NOTHING about which pairs match")
    assert lines["mismatch"] == "estimated 98.00% of the safe rows (95 % interval 90.00% to 100.00%), 99.00% of all rows"


def test_growth_never_shrinks(tmp_path: Path) -> None:
    folder = tmp_path / "rounds/0001"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    seal: dict[str, Any] = {"share_above_cut": 0.95, "plan": {"round": 1, "split": {"keep_share": None}}}
    (folder / "manifest.json").write_text(json.dumps(seal))
    run, options = open_store(str(tmp_path)), SplitSettings(growth=0.02)
    with pytest.raises(ConfigError, match=r"round 1 keeps 95\.00% .* above cap = 0\.85, and growth never shrinks"):
        grown(run, options, before=2)
    assert grown(run, options.model_copy(update={"cap": 0.96}), before=2).keep_share == 0.96
    seal = {"share_above_cut": 0.8503, "plan": {"round": 1, "split": {"keep_share": 0.85}}}  # rows that tie at the cut
    (folder / "manifest.json").write_text(json.dumps(seal))
    assert grown(run, options, before=2).keep_share == 0.85
