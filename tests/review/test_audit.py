"""A random sample of a round, judged unseen: how it is drawn, what it shows, and that the next seal carries it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from conftest import make_tar
from starlette.testclient import TestClient

from manifests.reading import Manifest, open_round
from manifests.reviews import append
from pipeline.pages.gallery import Gallery
from pipeline.pages.review import Reviewer, make_app
from pipeline.pages.thumbnails import Thumbnails
from pipeline.queries.sampling import draw
from pipeline.queries.summary import known_of
from pipeline.steps import audit

Pairsan = Callable[..., Result]


@pytest.fixture
def manifest(tmp_path: Path, emoji_members: list[tuple[str, bytes]], tiny: str, pairsan: Pairsan) -> Manifest:
    """40 pairs: 16 safe, 24 risky."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.tar").write_bytes(make_tar(emoji_members[:60]))
    (tmp_path / "data" / "b.tar").write_bytes(make_tar(emoji_members[60:]))
    options = ("--checkpoint", tiny, "--executor", "local", "--keep-share", 0.4)
    pairsan("clean", tmp_path / "data", "--out", tmp_path / "run", *options)
    return open_round(str(tmp_path / "run"))


def say(manifest: Manifest, pairs: list[Any], verdict: str | None, who: str = "ann") -> None:
    rows = Gallery(manifest).rows([(shard, index) for shard, index, _ in pairs])
    table = pa.Table.from_pylist([{name: row[name] for name in ("uid", "shard", "index", "key")} for row in rows])
    append(manifest.run, table, verdict=verdict, who=who, round_number=manifest.number)


def of(sample: dict[str, Any], label: str) -> list[Any]:
    return [pair for pair in sample["pairs"] if pair[2] == label]


def client(manifest: Manifest, who: str, sample: dict[str, Any]) -> TestClient:
    reviewer = Reviewer(Gallery(manifest), Thumbnails.of_round(manifest), who, sample=sample)
    made = TestClient(make_app(reviewer, "token", 80), base_url="http://127.0.0.1:80")
    made.headers["host"] = "127.0.0.1:80"
    return made


def test_a_sample_takes_equally_from_labels_and_quarters_and_only_grows(manifest: Manifest) -> None:
    few = draw(manifest, 16)
    assert Counter(label for _, _, label in few["pairs"]) == {"safe": 8, "risky": 8}
    rows = manifest.to_pandas(["shard", "index", "label", "cosine"]).sort_values(["cosine", "shard", "index"])
    for label in ("safe", "risky"):
        ranked = [tuple(place) for place in rows.loc[rows["label"] == label, ["shard", "index"]].to_numpy()]
        quarters = Counter(ranked.index((shard, index)) * 4 // len(ranked) for shard, index, _ in of(few, label))
        assert quarters == {0: 2, 1: 2, 2: 2, 3: 2}
    assert draw(manifest, 40)["pairs"][:16] == few["pairs"]  # a longer one begins with the shorter
    assert draw(manifest, 5) == draw(manifest, 1000)  # and is never cut, nor longer than the round
    assert len({(shard, index) for shard, index, _ in draw(manifest, 1000)["pairs"]}) == 40


def test_shares_intervals_and_agreement_are_right(manifest: Manifest) -> None:
    sample = draw(manifest, 16)
    flags, safe = of(sample, "risky"), of(sample, "safe")
    assert audit.estimate(manifest.run, sample)["flags"]["share"] is None
    say(manifest, flags[:5], "risky")
    say(manifest, flags[5:6], "drop")
    say(manifest, flags[6:8], "safe")
    say(manifest, safe[:7], "safe")
    found = audit.estimate(manifest.run, sample)
    assert (found["judged"], found["flags"]["judged"], found["safe"]["judged"]) == (15, 8, 7)
    assert found["flags"]["share"] == 0.75  # and Wilson's interval of 6 in 8
    assert (found["flags"]["low"], found["flags"]["high"]) == pytest.approx((0.4093, 0.9285), abs=1e-4)
    assert (found["safe"]["share"], found["safe"]["low"]) == (0, pytest.approx(0, abs=1e-12))
    assert found["safe"]["high"] == pytest.approx(0.3543, abs=1e-4)  # of 0 in 7
    assert (found["together"], found["kappa"], found["reviewers"]) == (0, None, {"ann": 15})
    say(manifest, flags[:4], "risky", "bob")
    say(manifest, safe[:3], "safe", "bob")
    say(manifest, safe[3:4], "risky", "bob")
    found = audit.estimate(manifest.run, sample)
    assert (found["together"], found["agree"]) == (8, 7 / 8)
    assert found["kappa"] == pytest.approx(0.75)  # 7/8 agree where chance gives 1/2
    assert found["safe"]["share"] == 1 / 7  # the newest verdict of a pair counts
    say(manifest, flags[:1], None)
    assert audit.estimate(manifest.run, sample)["judged"] == 14


def test_the_share_of_right_pairs_that_are_flagged_is_inside_its_interval_as_often_as_stated() -> None:
    sizes, rng, inside = {"risky": 1_000, "safe": 9_000}, np.random.default_rng(0), 0
    truth = 1_000 * 0.6 / (1_000 * 0.6 + 9_000 * 0.98)
    for flags, safe in zip(rng.binomial(50, 0.4, 300).tolist(), rng.binomial(50, 0.02, 300).tolist(), strict=True):
        found = audit.right_flagged({"judged": 50, "wrong": flags}, {"judged": 50, "wrong": safe}, sizes)
        assert found is not None
        inside += found["low"] <= truth <= found["high"]
    assert inside >= 0.95 * 300
    by_hand = audit.right_flagged({"judged": 10, "wrong": 10}, {"judged": 10, "wrong": 0}, sizes)
    # Clopper and Pearson: of 10 in 10 the lower end is 0.0125 ** 0.1
    assert by_hand == {
        "share": 0.0,
        "low": 0.0,
        "high": pytest.approx(1_000 * 0.3548 / (1_000 * 0.3548 + 9_000 * 0.6452), rel=1e-3),
    }
    assert audit.right_flagged({"judged": 0, "wrong": 0}, {"judged": 9, "wrong": 0}, sizes) is None


def test_the_next_seal_carries_what_the_sample_showed(manifest: Manifest, pairsan: Pairsan) -> None:
    sample = draw(manifest, 8)
    run = manifest.run.uri
    assert manifest.seal["audit"] is None
    say(manifest, of(sample, "risky"), "risky")
    say(manifest, of(sample, "safe")[:3], "safe")
    printed = pairsan("split", run).output
    expected = audit.estimate(manifest.run, sample)
    say(manifest, of(sample, "safe")[3:], "risky")  # too late for this round
    sealed = open_round(run).seal
    assert sealed["audit"] == expected
    assert sealed["audit"]["judged"] == 7
    words = audit.as_text(sealed["audit"])
    assert words.startswith(
        "7 of 8 sampled pairs of round 1 judged: 100.0% of the flags are right (95 % interval 51.0% to 100.0%)"
    )
    assert ", so 0.0% of all right pairs are flagged (0.0% to " in words
    assert ("audit", words) in known_of(sealed)
    assert words in printed
    report = manifest.run.path() + "/report.html"
    pairsan("report", run, "--out", report, "--no-images")
    assert "7 of 8 sampled pairs" in Path(report).read_text()


def test_labels_stay_hidden_from_each_reviewer_until_they_have_judged(manifest: Manifest) -> None:
    sample = draw(manifest, 10)
    ann, bob = (client(manifest, who, sample) for who in ("ann", "bob"))
    found = ann.post("/token/pairs", json={"filter": {"label": "risky"}}).json()
    assert [[pair["shard"], pair["index"]] for pair in found["pairs"]] == [list(pair[:2]) for pair in sample["pairs"]]
    assert {frozenset(pair) for pair in found["pairs"]} == {frozenset(["shard", "index", "key", "caption", "review", "unseen"])}
    assert found["audit"] == "0 of 10 sampled pairs judged by you"
    place = list(sample["pairs"][0][:2])
    ann.post("/token/verdict", json={"places": [place], "verdict": "risky"})
    seen = [one.post("/token/pair", json={"shard": place[0], "index": place[1]}).json() for one in (ann, bob)]
    assert seen[0]["pair"]["label"] == sample["pairs"][0][2]
    assert "label" not in seen[1]["pair"]
    assert seen[1]["history"] == []
    bob.post("/token/verdict", json={"places": [place], "verdict": "safe"})
    both = [one.post("/token/pair", json={"shard": place[0], "index": place[1]}).json()["pair"] for one in (ann, bob)]
    assert [pair["label"] for pair in both] == [sample["pairs"][0][2]] * 2  # hers stays in sight when he has judged it too
    assert ann.post("/token/verdict-all", json={"filter": {}, "verdict": "safe", "count": 10}).status_code == 400
    ann.post("/token/verdict", json={"places": [list(pair[:2]) for pair in sample["pairs"][1:]], "verdict": "safe"})
    assert ann.post("/token/pairs", json={}).json()["audit"].startswith("10 of 10 sampled pairs of round 1 judged: ")
    assert bob.post("/token/pairs", json={}).json()["audit"] == "1 of 10 sampled pairs judged by you"
