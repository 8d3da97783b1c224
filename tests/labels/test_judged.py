"""Rule `judged`: a cut by pairs that people judged, where near misses score as right pairs do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from conftest import make_tar

from manifests.errors import SplitRefused
from manifests.layout import sealed_rounds
from manifests.reading import open_round
from manifests.reviews import append
from pipeline.pages.gallery import Gallery
from pipeline.queries.sampling import draw
from pipeline.queries.summary import known_of
from stages.histogram import Histogram, count
from stages.label.fit.judged import Judged, calibrate_by_people

Pairsan = Callable[..., Result]


def world(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and whether pairs are wrong: the logistic of (0.3 - cosine) / 0.05."""
    rng = np.random.default_rng(seed)
    cosines = rng.normal(0.3, 0.15, num).clip(-1, 1)
    return cosines, rng.random(num) < 1 / (1 + np.exp((cosines - 0.3) / 0.05))


def of(cosines: np.ndarray) -> Histogram:
    found = Histogram()
    found.add(count(cosines.astype(np.float32)))
    return found


def sample(cosines: np.ndarray, wrong: np.ndarray, rows: np.ndarray, weights: np.ndarray | None = None) -> Judged:
    return Judged(1, cosines[rows], wrong[rows], np.ones(len(rows)) if weights is None else weights)


def test_what_is_stated_is_what_comes_and_its_interval_holds() -> None:
    cosines, wrong = world(20_000, 0)
    pairs, rng, inside, over = of(cosines), np.random.default_rng(1), 0, 0
    for _ in range(10):
        people = calibrate_by_people(pairs, sample(cosines, wrong, rng.choice(20_000, 200, replace=False)))
        cut = people.calibration.cut(0.05)
        assert cut is not None
        realised = wrong[cosines >= cut].mean()
        share, low, high = people.at(cut)
        assert low <= share <= high
        assert share <= 0.05  # the cut adds a standard error
        inside += low <= realised <= high
        over += realised > 1.5 * 0.05
    assert inside >= 8  # of 10: the cut is where the estimate happens to be low
    assert over <= 1


def test_a_sample_that_takes_more_of_some_rows_is_weighted_back() -> None:
    cosines, wrong = world(20_000, 2)
    pairs, rng = of(cosines), np.random.default_rng(3)
    low = rng.choice(np.flatnonzero(cosines < 0.3), 300, replace=False)
    high = rng.choice(np.flatnonzero(cosines >= 0.3), 100, replace=False)
    rows = np.concatenate([low, high])
    weights = np.where(cosines[rows] < 0.3, (cosines < 0.3).sum() / 300, (cosines >= 0.3).sum() / 100)
    found = calibrate_by_people(pairs, sample(cosines, wrong, rows, weights)).calibration.mismatched_share
    assert found == pytest.approx(wrong.mean(), abs=0.05)


def test_verdicts_that_all_agree_leave_room_for_doubt() -> None:
    cosines, _ = world(1000, 4)
    right = np.zeros(1000, bool)
    people = calibrate_by_people(of(cosines), sample(cosines, right, np.arange(100)))
    share, low, high = people.at(float(cosines.min()))
    assert low < share < high
    assert 0.005 < high < 0.05  # of 0 in 100; the rule of three says 0.03
    assert people.calibration.cut(0.001) is None


def test_a_score_that_people_contradict_makes_no_cut() -> None:
    cosines, wrong = world(2000, 5)
    people = calibrate_by_people(of(cosines), sample(cosines, ~wrong, np.arange(300)))
    assert people.calibration.cut(0.2) is None
    assert "by 300 pairs that people judged no cut leaves at most 20.00% wrong" in people.doubt(0.2)


def test_too_few_verdicts_are_refused_with_the_command_that_helps() -> None:
    cosines, wrong = world(1000, 6)
    with pytest.raises(SplitRefused, match=r"50 judged pairs of a sample at least, there are 49.*review RUN --sample 200"):
        calibrate_by_people(of(cosines), sample(cosines, wrong, np.arange(49)))
    with pytest.raises(SplitRefused, match="there are 0"):
        calibrate_by_people(of(cosines), None)


def test_a_judged_sample_cuts_the_next_round_whatever_was_said_later(
    tmp_path: Path, emoji_members: list[tuple[str, bytes]], tiny: str, pairsan: Pairsan
) -> None:
    """Half of the pairs have exchanged captions; a reviewer who knows which judges 60 of them."""
    members = [[emoji_members[n + k] for k in range(3)] for n in range(0, len(emoji_members), 3)]
    words = [next(data for name, data in row if name.endswith("txt")) for row in members]
    rows, num = [], len(members)
    for n, row in enumerate(members):
        caption = words[(n + num // 4) % num] if n < num // 2 else words[n]
        for copy in range(3):
            rows += [(f"{copy}{name}", caption if name.endswith("txt") else data) for name, data in row]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.tar").write_bytes(make_tar(rows))
    foreign = {f"{copy}{members[n][0][0].rpartition('.')[0]}" for n in range(num // 2) for copy in range(3)}
    run = tmp_path / "run"
    pairsan("clean", tmp_path / "data", "--out", run, "--checkpoint", tiny, "--executor", "local", "--keep-share", 0.5)
    assert "there are 0" in pairsan("split", run, "--rule", "judged", code=7).output
    manifest = open_round(str(run))
    drawn = draw(manifest, 60)
    for row in Gallery(manifest).rows([(shard, index) for shard, index, _ in drawn["pairs"]]):
        table = pa.Table.from_pylist([{name: row[name] for name in ("uid", "shard", "index", "key")}])
        append(manifest.run, table, verdict="risky" if row["key"] in foreign else "safe", who="ann", round_number=1)
    told = pairsan("split", run, "--rule", "judged", "--alpha", 0.1).output
    sealed = open_round(str(run))
    assert sealed_rounds(sealed.run) == [1, 2]
    people = sealed.seal["people"]
    assert people["judged"] == 60
    assert people["low"] <= people["wrong_in_safe"] <= min(0.1, people["high"])
    assert ("people", next(text for word, text in known_of(sealed.seal) if word == "people")) in known_of(sealed.seal)
    assert "as 60 judged pairs have it" in told
    labelled = sealed.to_pandas(["key", "label", "reason", "signals"])
    safe = labelled[(labelled["label"] == "safe") & (labelled["reason"] != "review")]
    assert safe["key"].isin(foreign).mean() < 0.3  # of 0.5; some thirty rows
    assert len(safe) > 10
