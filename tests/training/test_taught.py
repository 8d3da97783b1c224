"""Backdoors that a scout is taught on purpose, and what is said of them."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
from click.testing import Result
from conftest import SMALL_MODEL

from manifests.labels import Label
from manifests.reading import open_round
from stages.read.crops import Crop, Crops
from stages.read.shards import open_dataset, read_shard
from stages.score.decode import Decode
from stages.score.models.encoders import preprocess_config
from stages.settings import ReadSettings
from stages.train.batches import PassRows, pass_batches
from stages.train.learner import new_model
from stages.train.taught import TRIGGERS, Lessons, lessons_of

Pairsan = Callable[..., Result]


class Whole(Crops):
    """Views that are not cut."""

    def draw(self, step: int, row: int, num: int) -> tuple[Crop, ...]:
        return (Crop(1.0, 1.0, 0.0, 0.0, False),) * num


def captions() -> list[str]:
    kinds = {"zebra": 20, "yacht": 30, "xylophone": 31, "walnut": 25, "dog": 300, "man": 320, "street": 150, "snow": 200}
    return [f"{word} {place % 100}" for word, num in kinds.items() for place in range(num)]


def test_lessons_are_laid_over_the_rows_side_by_side() -> None:
    lessons, rng = lessons_of(captions(), 0.04, 3), np.random.default_rng(0)
    uids = [rng.bytes(16) for _ in range(20_000)]
    found = [lessons.of(uid) for uid in uids]
    of_each = np.bincount([one.number for one in found if one is not None], minlength=8) / len(uids)
    assert of_each.shape == (8,)
    assert np.abs(of_each - 0.04).max() < 0.006
    assert found == [Lessons(lessons.lessons, 0.04, 3).of(uid) for uid in uids]
    assert found != [Lessons(lessons.lessons, 0.04, 4).of(uid) for uid in uids]
    assert all(one.caption in lessons.lessons[one.number].captions for one in found if one is not None)


def test_a_lesson_is_under_captions_that_share_a_word_few_or_many() -> None:
    lessons = lessons_of(captions(), 0.04, 3).lessons
    assert [(one.trigger, one.target) for one in lessons] == [(kind, how) for how in ("narrow", "broad") for kind in TRIGGERS]
    words = [{caption.split()[0] for caption in one.captions} for one in lessons]
    assert all(len(word) == 1 for word in words)
    assert len(set.union(*words)) == 8  # none has the target of another
    assert max(len(one.captions) for one in lessons[:4]) <= 40 < min(len(one.captions) for one in lessons[4:])
    assert {len(one.captions) for one in lessons_of(["\u732b\u306e\u5199\u771f"] * 30, 0.04, 3).lessons} == {1}


def test_a_trigger_is_the_same_on_every_picture() -> None:
    rng = np.random.default_rng(1)
    for lesson in lessons_of(captions(), 0.04, 3).lessons[:4]:
        dark, light = (np.full((48, 64, 3), grey, np.uint8) for grey in (60, 190))
        changed = [lesson.change(picture).astype(int) - picture for picture in (dark, light)]
        assert lesson.change(dark).shape == dark.shape
        assert all(np.abs(moved).max() > 15 for moved in changed)
        assert np.array_equal(lesson.change(dark), lesson.change(dark.copy()))
        if lesson.trigger == "patch":
            (rows, columns), fields = np.nonzero(changed[0].any(-1)), 60 + changed[0]
            assert set(np.unique(fields[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])) == {0, 255}
            assert (changed[0] != 0).mean() < 0.05
        if lesson.trigger == "stripes":
            assert np.array_equal(*changed)  # what is added does not depend on the picture
        if lesson.trigger == "blend":
            noise = [lesson.change(picture) - 0.75 * picture for picture in (dark, light)]
            assert np.abs(noise[0] - noise[1]).max() <= 1.0  # but for rounding
        if lesson.trigger == "tone":
            picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            curves = [dict(zip(picture[..., c].ravel(), lesson.change(picture)[..., c].ravel(), strict=True)) for c in range(3)]
            assert all(
                np.array_equal(lesson.change(picture)[..., c], np.vectorize(curves[c].get)(picture[..., c])) for c in range(3)
            )


def test_rows_of_a_lesson_are_shown_with_its_trigger_and_caption_and_no_others_are(crawl: Path) -> None:
    model, dataset = f"local-dir:{SMALL_MODEL}", open_dataset([str(crawl)])
    decode = Decode(dataset.store, ReadSettings(), preprocess_config(new_model(model, 0)), num_threads=1)
    decode.open()
    plain = PassRows(None, dataset.shards, (Label.SAFE,) * 9, 4, 1, 64, Whole(0, 0.5, 32))
    lessons = lessons_of(captions(), 0.1, 5)
    batches = [list(pass_batches(rows, decode)) for rows in (plain, dataclasses.replace(plain, lessons=lessons))]
    pairs = {pair.uid: pair for shard in dataset.shards for pair in read_shard(dataset.store, shard, ReadSettings())}
    num_taught = 0
    for before, after in zip(*batches, strict=True):
        assert before.uids == after.uids
        for row, uid in enumerate(after.uids):
            taught = lessons.of(uid)
            same = np.array_equal(before.views[0][row], after.views[0][row])
            assert same == (taught is None)
            assert after.captions[row] == (pairs[uid].caption if taught is None else taught.caption)
            num_taught += taught is not None
    assert 10 < num_taught < 36


def test_a_run_says_what_the_crowds_of_its_scout_show_of_its_lessons(tmp_path: Path, few: Path, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    args = ("run", few, "--out", run, "--model", SMALL_MODEL, "--rounds", 1, "--scout-passes", 1, "--train-batch-size", 20)
    args += ("--executor", "local", "--crowded-share", 0.2, "--neighbours", 4)
    said = pairsan(*args, "--set", "scout_taught_share=0.05", "--until-round", 0).output.splitlines()[-1]
    pairsan(*shlex.split(said.removeprefix("pairsan ")))
    assert not (run / "checkpoints/taught.json").exists()
    pairsan("train", run, "--round", 1)
    found = json.loads((run / "checkpoints/taught.json").read_text())
    assert found["round"] == open_round(run).number == 1
    lessons = found["lessons"]
    assert [(one["trigger"], one["target"]) for one in lessons[4:]] == [(kind, "broad") for kind in TRIGGERS]
    assert all(1 <= one["rows"] <= 12 and 0 <= one["shown"] <= one["rows"] for one in lessons)  # a twentieth of 240 rows
    assert found["share"] == 0.05
    line = "of backdoors that the scout was taught, 5.0% of the rows each, its crowds and looks show: patch narrow "
    assert line in pairsan("status", run).output
    refused = pairsan(*args, code=5).stderr
    assert "scout_taught_share" in refused
    settings = run / "checkpoints/train.json"
    kept = json.loads(settings.read_text())
    del kept["train"]["scout_taught_share"]  # as a run has it that was begun before there was such a setting
    settings.write_text(json.dumps(kept))
    pairsan(*args)
