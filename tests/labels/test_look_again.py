"""Rounds that look again: what a model that has trained on a round takes back, puts out and leaves alone in the next."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import Result
from conftest import EMOJI, SMALL_MODEL, histogram_of
from safetensors.torch import load_file

from manifests import open_round
from manifests.errors import SplitRefused
from manifests.labels import Label, Reason, Voice
from stages.histogram import Histogram
from stages.label.history import OPEN, SAT_OUT, TRAINED, VETOED, Before, sits_out
from stages.label.look_again import look_again, separation
from stages.label.settings import SplitSettings
from stages.score.models.weights import file_sha256

Pairsan = Callable[..., Result]
RULE = SplitSettings(rule="look-again", growth=0.05)
BAD, GOOD = 0.0, 0.5


def drawn(mean: float, num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 0.08, num).clip(-1, 1)


@pytest.fixture
def groups() -> dict[int, tuple[Histogram, Histogram]]:
    """2,000 rows: of the risky ones a ninth fits; of those that sat out a tenth does not; the others score as they like."""
    risky = np.r_[drawn(GOOD, 100, 1), drawn(BAD, 800, 2)]
    out = np.r_[drawn(GOOD, 270, 3), drawn(BAD, 30, 4)]
    rows = {TRAINED: drawn(0.2, 700, 5), OPEN: risky, SAT_OUT: out, VETOED: drawn(0.9, 100, 6)}
    return {place: (histogram_of(some), histogram_of(drawn(BAD, 4 * len(some), 10 + place))) for place, some in rows.items()}


def whole(groups: dict[int, tuple[Histogram, Histogram]]) -> Histogram:
    histogram = Histogram()
    for pairs, _ in groups.values():
        histogram.counts += pairs.counts
    return histogram


def test_each_kind_of_row_has_a_cut_of_its_own(groups: dict[int, tuple[Histogram, Histogram]]) -> None:
    decision = look_again(whole(groups), RULE, groups)
    assert decision.strata is not None
    safe = {place: int(decision.strata.is_safe(pairs.rows(), np.full(pairs.num_rows, place, np.int8)).sum())
            for place, (pairs, _) in groups.items()}  # fmt: skip
    assert safe[TRAINED] == 700  # what was matched fits because of that, so nobody asks
    assert safe[VETOED] == 0  # what was vetoed stays out, however well it fits
    assert 80 <= safe[OPEN] <= 100  # growth allows 5 % of 2,000
    assert 266 <= safe[SAT_OUT] <= 274
    assert decision.num_safe == sum(safe.values())
    assert decision.separation == pytest.approx(0.95, abs=0.02)  # half of the tenth that does not fit scores below


def test_no_more_than_growth_is_taken_back_and_the_best_first(groups: dict[int, tuple[Histogram, Histogram]]) -> None:
    for growth, most in ((0.01, 20), (0.0, 0), (None, 0)):
        decision = look_again(whole(groups), RULE.model_copy(update={"growth": growth}), groups)
        taken = 0 if decision.cut is None else groups[OPEN][0].num_at_least(decision.cut)
        assert taken == most
    few = look_again(whole(groups), RULE.model_copy(update={"growth": 0.01}), groups)
    assert few.cut == pytest.approx(float(np.sort(groups[OPEN][0].rows())[-20]), abs=1e-5)


def test_nobody_is_put_out_where_nobody_sat_out(groups: dict[int, tuple[Histogram, Histogram]]) -> None:
    del groups[SAT_OUT]
    decision = look_again(whole(groups), RULE, groups)
    assert decision.num_safe == 700 + groups[OPEN][0].num_at_least(decision.cut or 2.0)


def test_weights_that_tell_nothing_apart_are_refused(groups: dict[int, tuple[Histogram, Histogram]]) -> None:
    blind = {place: (pairs, groups[SAT_OUT][0]) for place, (pairs, _) in groups.items()}
    with pytest.raises(SplitRefused, match=r"AUROC of 0\.500; asked for is 0\.550"):
        look_again(whole(groups), RULE, blind)
    assert look_again(whole(groups), RULE, groups, before=0.95).separation is not None
    worse = {**groups, SAT_OUT: (histogram_of(drawn(0.04, 300, 7)), groups[SAT_OUT][1])}
    assert look_again(whole(groups), RULE, worse).separation == pytest.approx(0.63, abs=0.04)
    with pytest.raises(SplitRefused, match=r"0\.950 in the round before; asked for is 0\.725"):
        look_again(whole(groups), RULE, worse, before=0.95)


def test_separation_is_the_area_under_the_curve() -> None:
    assert separation(histogram_of(np.array([0.5, 0.1])), histogram_of(np.array([0.1, 0.3]))) == (2 + 0.5) / 4


def test_every_row_sits_out_once_and_like_images_together() -> None:
    rng = np.random.default_rng(0)
    hashes = pa.chunked_array([pa.array([None, *rng.integers(-(2**63), 2**63 - 1, 4000).tolist(), 5, 5], pa.int64())])
    turns = np.stack([sits_out(hashes, number, 4) for number in range(3, 7)])
    assert turns[:, 0].sum() == 0  # no image, no turn
    assert (turns[:, 1:].sum(axis=0) == 1).all()
    assert (turns[:, -1] == turns[:, -2]).all()
    assert (abs(turns.sum(axis=1) - 1000) < 120).all()
    assert not sits_out(hashes, 3, 0).any()
    assert not sits_out(hashes, 3, 1).any()


def test_places_follow_from_labels_reasons_and_turns() -> None:
    reasons = pa.array([None, None, "below_cut", "crowded", "review", "discordant", "duplicate_uid", "image_missing"])
    labels = np.array([0, 0, 1, 1, 1, 1, 1, 2], np.int32)
    turns = np.array([False, True, *[False] * 6])
    before = Before(3, labels, reasons, pa.nulls(8, pa.string()), np.full(8, 2, np.int32), (labels != 0) | turns)
    assert before.places.tolist() == [TRAINED, SAT_OUT, OPEN, VETOED, OPEN, OPEN, VETOED, OPEN]
    assert before.slice(2, 2).places.tolist() == [OPEN, VETOED]


def test_weights_of_an_older_round_are_asked_only_about_what_they_have_not_matched() -> None:
    reasons = pa.array([None, None, "put_out", "below_cut", "crowded"])
    labels = np.array([0, 0, 1, 1, 1], np.int32)
    unmatched = np.array([False, True, False, True, True])  # the second was taken back, the third put out since they trained
    before = Before(4, labels, reasons, pa.nulls(5, pa.string()), np.full(5, 2, np.int32), unmatched)
    assert before.places.tolist() == [TRAINED, SAT_OUT, VETOED, OPEN, VETOED]


def test_history_goes_on_where_nothing_changed() -> None:
    before = Before(
        3,
        np.array([0, 1, 1, 0], np.int32),
        pa.array([None, "below_cut", "below_cut", None]),
        pa.array(["split", "split", "split", None]),
        np.array([1, 2, 1, 3], np.int32),
        np.zeros(4, bool),
    )
    now = (np.array([0, 1, 0, 0], np.int32), pa.array([None, "crowded", None, None]))
    voices, since = before.history(4, *now, pa.array(["split", "veto", "taken_back", "split"]))
    assert since.tolist() == [1, 4, 4, 3]
    assert voices.to_pylist() == ["split", "veto", "taken_back", "split"]


def later_weights(tiny: str, path: Path, more: float) -> Path:
    """Write weights that differ a little from the tiny ones, a minute old."""
    state = load_file(Path(tiny) / "open_clip_model.safetensors")
    state["ln_final.bias"] = state["ln_final.bias"] + more
    torch.save({"state_dict": state}, path)
    os.utime(path, (time.time() - 60, time.time() - 60))
    return path


@pytest.fixture(scope="module")
def first_round(tmp_path_factory: pytest.TempPathFactory, tiny: str, pairsan: Pairsan) -> Path:
    """A run whose first round keeps a fifth, a fold of which sits out, and weights that came later; for copies of it."""
    folder = tmp_path_factory.mktemp("first")
    options = ("--keep-share", 0.2, "--near-copy-cosine", 0.98, "--max-near-copies", 2, "--sit-out-folds", 3)
    pairsan("clean", EMOJI / "eval", "--checkpoint", tiny, "--out", folder / "run", "--executor", "local", *options)
    later_weights(tiny, folder / "epoch_1.pt", 0.02)
    return folder


@pytest.fixture(scope="module")
def second_round(tmp_path_factory: pytest.TempPathFactory, first_round: Path, pairsan: Pairsan) -> tuple[Path, str]:
    """The same with a look by those weights, and what it said; nobody changes it."""
    run, weights = copied(first_round, tmp_path_factory.mktemp("second"))
    return run, pairsan("rescore", run, "--checkpoint", weights, "--rule", "look-again", "--growth", 0.1).output


def copied(folder: Path, place: Path) -> tuple[Path, Path]:
    """Return run and weights of a copy."""
    shutil.copytree(folder, place, dirs_exist_ok=True)
    return place / "run", place / "epoch_1.pt"


@pytest.fixture
def trained(first_round: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run of one round, and weights that came later."""
    return copied(first_round, tmp_path)


def test_a_look_moves_rows_by_three_voices_and_says_so(second_round: tuple[Path, str], pairsan: Pairsan) -> None:
    run, said = second_round
    old, new = (open_round(run, number).to_pandas() for number in (1, 2))
    seal = open_round(run, 2).seal
    assert (old.key == new.key).all()
    sat_out = old.sits_out & (old.label == "safe")
    assert seal["voices"]["taken_back"] == (new.voice == Voice.TAKEN_BACK).sum() == 132  # a tenth of 1,406, but for ties
    assert set(old[new.voice == Voice.TAKEN_BACK].reason) == {Reason.BELOW_CUT}
    assert (new[new.voice == Voice.TAKEN_BACK].label == "safe").all()
    assert set(old[new.reason == Reason.PUT_OUT].label) <= {"safe"}
    assert sat_out[new.reason == Reason.PUT_OUT].all()
    assert (new[(old.label == "safe") & ~sat_out].label == "safe").all()
    vetoed = old.reason == Reason.NEAR_DUPLICATE
    assert vetoed.sum() > 0
    assert (new[vetoed].reason == Reason.NEAR_DUPLICATE).all()
    repeated = (old.reason == Reason.BELOW_CUT) & (new.reason == Reason.NEAR_DUPLICATE)  # else a later look might take it back
    assert seal["voices"]["veto"] == repeated.sum() > 0
    moved = new.voice.isin([Voice.TAKEN_BACK, Voice.PUT_OUT]) | repeated
    assert (new[moved].since == 2).all()
    assert (new[~moved].since == 1).all()
    assert seal["before"] == 1
    assert seal["sitting_out"] == new.sits_out.sum() > 60
    assert not (old.sits_out & new.sits_out).any()  # another fold's turn
    for text in (said, pairsan("status", run).output):
        assert f"look-again at round 1: 132 taken back, {seal['voices'].get('put_out', 0)} put out" in text
    assert "all as sealed" in pairsan("verify", run).output


def test_another_number_of_folds_asks_who_was_marked_and_marks_anew(trained: tuple[Path, Path], pairsan: Pairsan) -> None:
    run, weights = trained
    options = ("--rule", "look-again", "--growth", 0.1, "--sit-out-folds", 5)
    pairsan("rescore", run, "--checkpoint", weights, *options)
    old, new = (open_round(run, number).to_pandas() for number in (1, 2))
    assert {entry["stratum"]: entry["rows"] for entry in open_round(run, 2).seal["strata"]["of"]}["safe, sat out"] == (
        old.sits_out & (old.label == "safe")
    ).sum()
    hashes = pa.chunked_array([pa.array(new.signals.map(lambda signals: signals["image_cluster"]).astype("Int64"), pa.int64())])
    assert (new.sits_out == (sits_out(hashes, 2, 5) & (new.label == "safe").to_numpy())).all()


@pytest.mark.slow
def test_a_look_with_weights_that_trained_on_an_older_round_says_so_and_asks_by_that_one(
    trained: tuple[Path, Path], tiny: str, pairsan: Pairsan
) -> None:
    run, weights = trained
    options = ("--rule", "look-again", "--growth", 0.1)
    pairsan("rescore", run, "--checkpoint", weights, *options)
    late = later_weights(tiny, weights.with_name("epoch_2.pt"), 0.03)
    said = pairsan("rescore", run, "--checkpoint", late, *options, "--trained-on", 1).output
    first, second, third = (open_round(run, number).to_pandas() for number in (1, 2, 3))
    seal = open_round(run, 3).seal
    assert (seal["before"], seal["trained_on"]) == (2, 1)
    matched = (first.label == "safe") & ~first.sits_out
    moved = third.voice.isin([Voice.TAKEN_BACK, Voice.PUT_OUT]) & (third.since == 3)
    assert moved.sum() >= 140
    assert not (moved & matched).any()
    asked = {entry["stratum"]: entry["rows"] for entry in seal["strata"]["of"]}
    assert asked["safe, sat out"] == ((second.label == "safe") & ~matched).sum()
    assert asked["safe, trained on"] == ((second.label == "safe") & matched).sum()
    assert "look-again at round 2 (by weights that trained on round 1)" in said
    again = pairsan("split", run, "--rule", "look-again", "--scores-round", 3).output
    assert open_round(run, 4).seal["trained_on"] == 1, again


def test_a_round_to_have_trained_on_must_be_there_and_be_asked_for(trained: tuple[Path, Path], pairsan: Pairsan) -> None:
    run, weights = trained
    given = ("rescore", run, "--checkpoint", weights, "--trained-on")
    failed = pairsan(*given, 7, "--rule", "look-again", code=2)
    assert "--trained-on 7 is none of the sealed rounds before round 2: [1]" in failed.output
    failed = pairsan(*given, 1, "--keep-share", 0.5, code=2)
    assert "--trained-on 1 has no effect under rule 'keep-share', only under look-again" in failed.output
    assert open_round(run).number == 1


def test_a_report_shows_how_the_rounds_went(second_round: tuple[Path, str], pairsan: Pairsan, tmp_path: Path) -> None:
    run, _ = second_round
    pairsan("report", run, "--out", tmp_path / "r.html", "--pairs", 2)
    page, figures = (tmp_path / "r.html").read_text(), json.loads((tmp_path / "r.json").read_text())
    new, seal = open_round(run, 2).to_pandas(), open_round(run, 2).seal
    assert figures["rounds"][0]["voices"] is None
    assert figures["rounds"][1]["voices"] == seal["voices"]
    assert figures["rounds"][1]["moved"] == seal["changes"]["labels"]
    assert f"{seal['changes']['labels']['risky>safe']:,} risky → safe" in page
    spreads = {(entry["round"], entry["who"]): entry["quantiles"] for entry in figures["spreads"]}
    assert set(spreads) == {(1, "safe"), (1, "risky"), (2, "safe"), (2, "risky"), (2, "taken back")}
    taken = new[new.voice == Voice.TAKEN_BACK].cosine
    assert spreads[2, "taken back"] == pytest.approx(np.quantile(taken, [0.1, 0.5, 0.9], method="inverted_cdf"), abs=0.0051)
    for words in ("safe, sat out", "taken back", "cosines (10, 50, 90 %)", "rows that moved"):
        assert words in page


def test_what_a_human_says_stays_said(trained: tuple[Path, Path], pairsan: Pairsan) -> None:
    run, weights = trained
    rows = open_round(run, 1).to_pandas()
    best = rows[rows.reason == Reason.BELOW_CUT].sort_values("cosine").iloc[-1]
    (run.parent / "said.csv").write_text(f"uid,verdict\n{best.uid.hex()},risky\n")
    pairsan("reviews", "import", run, run.parent / "said.csv")
    pairsan("rescore", run, "--checkpoint", weights, "--rule", "look-again", "--growth", 0.5)
    row = open_round(run, 2).to_pandas().set_index("uid").loc[best.uid]
    assert (row.label, row.reason, row.voice) == (Label.RISKY, Reason.REVIEW, Voice.REVIEW)


def test_a_look_that_would_empty_the_safe_rows_is_refused(
    trained: tuple[Path, Path], pairsan: Pairsan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, weights = trained
    monkeypatch.setattr("pipeline.steps.seal._MOST_LOST", 0.2)  # the vectors of these weights are not that bad
    everywhere = ("--near-copy-cosine", 0.3, "--max-near-copies", 1)
    failed = pairsan("rescore", run, "--checkpoint", weights, "--rule", "look-again", *everywhere, code=7)
    assert re.search(r"this look would make \d+ of \d+ safe rows risky, believed is at most 20%", failed.stderr)
    assert open_round(run).number == 1


def test_a_look_needs_a_sealed_round_before(tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    options = ("--checkpoint", tiny, "--out", tmp_path / "run", "--executor", "local", "--rule", "look-again")
    failed = pairsan("clean", EMOJI / "eval", *options, code=2)
    assert "rule 'look-again' goes on from a sealed round, and there is none before" in failed.output


def test_a_trainer_gets_what_sits_out_as_risky(trained: tuple[Path, Path]) -> None:
    manifest = open_round(trained[0])
    shard = manifest.shards[0]
    table = manifest.table(shard, ["key", "label", "sits_out"])
    rows = [(key, None) for key in table["key"].to_pylist()]
    plain, ours = ([label for label, _ in manifest.join(shard, rows, sit_out=turn)] for turn in (False, True))
    assert plain == table["label"].to_pylist()
    assert ours == ["risky" if turn else label for label, turn in zip(plain, table["sits_out"].to_pylist(), strict=True)]
    assert ours != plain


@pytest.mark.whole
def test_a_run_looks_again_every_round_with_the_weights_of_the_round_before(tmp_path: Path, pairsan: Pairsan) -> None:
    out = tmp_path / "run"
    # the first matching trains the model itself, on all pairs, so that there is something to look with after seconds
    settings = {"model": SMALL_MODEL, "executor": "local", "scorer": "model", "warmup_passes": 1, "matching_passes": 1}
    settings |= {"rounds": 2, "keep_share": 0.4, "growth": 0.05, "sit_out_folds": 4, "train_batch_size": 32, "look_again": 1}
    settings |= {"learning_rate": 1e-3, "slow_learning_rate": 2e-3, "least_crop": 0.85, "alpha": 0.5, "max_p_mismatch": 0.9}
    data = EMOJI / "eval" / "00000.tar.gz"
    pairsan("run", data, "--out", out, *(f"--set={name}={value}" for name, value in settings.items()))
    history = [e for e in json.loads((out / "checkpoints" / "history.json").read_text()) if e["kind"] == "round"]
    assert [entry["manifest"] for entry in history] == [1, 2]
    seals = [open_round(out, number).seal for number in (1, 2)]
    scored_with = [seal["plan"]["scores"]["model"]["file_sha256"] for seal in seals]
    assert scored_with == [file_sha256(out / "checkpoints" / f"round-000{number}.safetensors") for number in range(2)]
    assert [seal["before"] for seal in seals] == [None, 1]
    assert seals[1]["voices"]["taken_back"] == 25  # a twentieth of 512, the best first
    assert seals[0]["sitting_out"] > 0
