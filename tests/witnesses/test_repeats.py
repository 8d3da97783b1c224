"""Repeated images by hash alone: a natural backdoor is found without a model."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from click.testing import Result
from conftest import EMOJI, make_tar, parts_of

from benchmarks.attacks.registry import parse_attack
from benchmarks.poison import poison

Pairsan = Callable[..., Result]
LOCAL = ("--executor", "local")


def test_a_natural_backdoor_is_found_without_a_model(tmp_path: Path, pairsan: Pairsan) -> None:
    data = str(EMOJI / "eval")
    poison([data], [data], [parse_attack("natural:rows=100")], tmp_path / "poisoned", seed=1)
    out = tmp_path / "out"
    found = json.loads(pairsan("repeats", tmp_path / "poisoned" / "shards", "--out", out, *LOCAL, "--json").stdout)
    truth = pq.read_table(tmp_path / "poisoned" / "truth.parquet").to_pylist()
    listed, copies = (pq.read_table(out / f"{name}.parquet").to_pandas() for name in ("look-alikes", "repeats"))
    planted = {row["key"] for row in truth}
    assert len(planted & set(listed["key"])) >= 0.7 * len(planted)  # shaken copies: some have a hash of their own
    assert listed["num_rows"].is_monotonic_decreasing
    looks = found["look_alikes"]
    assert looks["repeated_rows"] == len(listed)
    assert looks["groups"][0]["num_rows"] == listed["num_rows"].max() > 5
    assert looks["groups"][0]["num_images"] > 1
    assert found["repeated_rows"] == len(copies) < len(listed)  # the others differ in some pixel
    assert all(group["num_images"] == 1 for group in found["groups"])
    words = found["captions"]
    assert words["groups"][0]["num_rows"] >= 100  # the planted ones, and the icon itself where it is there
    assert words["groups"][0]["num_images"] > 5  # the same one, shaken
    worded = pq.read_table(out / "repeated-captions.parquet").to_pandas()
    assert planted <= set(worded.loc[worded["num_rows"] == worded["num_rows"].max(), "key"])
    assert len(worded) == words["repeated_rows"]
    assert worded["num_rows"].is_monotonic_decreasing
    shown = pairsan("repeats", tmp_path / "poisoned" / "shards", "--out", out, *LOCAL).output
    assert "images have more than 2 rows each" in shown
    assert f"{looks['looks']} groups of different images look alike in more than 2 rows each" in shown
    assert f"{words['wordings']} wordings have more than 50 rows each" in shown


def test_captions_of_one_template_are_listed_whatever_their_slot_holds(
    emoji_members: list[tuple[str, bytes]], tmp_path: Path, pairsan: Pairsan
) -> None:
    images = [data for name, data in emoji_members if name.endswith(".webp")]
    texts = [
        f"a large collection of vector illustrations of a {word}" for word in ("cat", "dog", "Cow!", "hen", "fox", "elk 7")
    ]
    texts += ["the sun", "A boat on the sea", "A boat on the sea", "", "  ", "moon"]
    rows = [(f"{i}.{end}", data) for i, (image, text) in enumerate(zip(images, texts, strict=False)) for end, data in
            (("webp", image), ("txt", text.encode()))]  # fmt: skip
    (tmp_path / "00.tar").write_bytes(make_tar(rows))
    asked = ("repeats", tmp_path / "00.tar", "--out", tmp_path / "out", *LOCAL, "--captions-more-than")
    found = json.loads(pairsan(*asked, 4, "--json").stdout)["captions"]
    assert (found["wordings"], found["repeated_rows"], found["more_than"]) == (1, 6, 4)
    assert {key: found["groups"][0][key] for key in ("num_rows", "num_captions", "num_images", "key")} == {
        **{"num_rows": 6, "num_captions": 6, "num_images": 6, "key": "0"}
    }
    lists = pq.read_table(tmp_path / "out" / "repeated-captions.parquet")
    assert lists["key"].to_pylist() == ["0", "1", "2", "3", "4", "5"]
    assert lists["caption"].to_pylist() == texts[:6]
    assert lists["wording"].null_count == 0
    assert json.loads(pairsan(*asked, 1, "--json").stdout)["captions"]["wordings"] == 2  # the boats as well
    assert json.loads(pairsan(*asked, 6, "--json").stdout)["captions"]["groups"] == []


def test_rows_without_an_image_are_counted_and_a_call_goes_on(crawl: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        found = json.loads(pairsan("repeats", crawl, "--out", out, *LOCAL, "--json").stdout)
        assert (found["rows"], found["without_image"], found["images"], found["groups"]) == (40, 2, 0, [])
    (cut / "hashes/00001.tar.parquet").unlink()
    for name in ("repeats.parquet", "look-alikes.parquet"):
        (cut / name).unlink()
    (cut / "repeated-captions.parquet").unlink()
    pairsan("repeats", crawl, "--out", cut, *LOCAL, "--more-than", 2)
    assert parts_of(whole) == parts_of(cut)
    refused = pairsan("repeats", crawl, "--out", cut, *LOCAL, "--set", "max_caption_bytes=9", code=5)
    assert "was begun under another plan" in refused.stderr
