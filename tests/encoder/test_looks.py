"""What pictures are like without a model, and which pairs that betrays: by formula, on planted triggers, in the pipeline."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import CLEAN, EMOJI, table

from manifests.reading import open_round
from pipeline.config.load import load_config
from pipeline.config.scout import scouted
from stages.score.looks import KINDS, WIDTH, looks
from stages.signals.sample import Reference
from stages.signals.witnesses.suspects import Suspects, _Fit
from stages.vectors import bytes_of

Pairsan = Callable[..., Result]


def test_looks_are_means_deviations_and_quantiles() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 48, 48, 3), dtype=np.uint8)
    pixels[0] = (10, 20, 30)
    pixels[1, :3, :3] = np.asarray([[0, 200, 0]] * 3)[:, :, None]  # the first cell: a third of it at 200
    found = looks(pixels)
    assert (found.shape, found.dtype) == ((40, WIDTH), np.uint8)
    colours, roughness, tones = (found[:, kind] for kind in KINDS.values())
    assert colours[0].reshape(3, 256).tolist() == [[10] * 256, [20] * 256, [30] * 256]
    assert not roughness[0].any()
    assert tones[0].reshape(3, 9).tolist() == [[10] * 9, [20] * 9, [30] * 9]
    assert colours[1].reshape(3, 16, 16)[:, 0, 0].tolist() == [67] * 3
    assert roughness[1, 0] == round(2 * float(np.std([0, 200, 0] * 3)))
    cells = pixels[5].reshape(16, 3, 16, 3, 3)
    assert np.abs(colours[5].reshape(3, 16, 16).transpose(1, 2, 0) - cells.mean((1, 3))).max() <= 0.501
    grey = np.floor(cells.astype(float) @ [0.25, 0.5, 0.25])
    assert np.abs(roughness[5].reshape(16, 16) - 2 * grey.std((1, 3))).max() <= 0.501
    wanted = np.quantile(pixels[5].reshape(-1, 3), 0.25, axis=0, method="higher")
    assert np.abs(tones[5].reshape(3, 9)[:, 3].astype(int) - wanted).max() <= 1
    assert (looks(pixels[7:9]) == found[7:9]).all()  # whatever else is in the batch
    assert looks(pixels[:0]).shape == (0, WIDTH)


def test_what_a_row_says_of_itself_is_left_out() -> None:
    rng = np.random.default_rng(1)
    seen, doubts = rng.integers(0, 256, (90, 30), dtype=np.uint8), rng.random((90, 2))
    fit, others = _Fit(seen, doubts), np.delete(np.arange(90), 17)
    predicted = fit._predicted(seen[17:18], np.asarray([17]))
    wide = (seen - seen.mean(0)) / seen.std(0)
    gram = wide[others].T @ wide[others] + 0.35 * 90 * np.eye(30)
    alone = wide[17] @ np.linalg.solve(gram, wide[others].T @ (doubts[others] - doubts.mean(0)))
    assert predicted[0] == pytest.approx(alone, abs=4e-6)


def ordinary(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth pictures as crawls have them, 48 px, and accords that have nothing to do with them."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(128, 45, (num, 6, 6, 3)).repeat(8, 1).repeat(8, 2) + rng.normal(0, 12, (num, 48, 48, 3))
    return coarse.clip(0, 255).astype(np.uint8), rng.random(num).astype(np.float32)


def test_honest_pairs_are_suspect_about_as_often_as_stated() -> None:
    pixels, accord = ordinary(3000, 2)
    numbers = np.arange(3000)
    seen = looks(pixels)
    suspects = Suspects(numbers[:2000], seen[:2000], accord[:2000])
    for rows in (slice(0, 2000), slice(2000, 3000)):  # of the sample, and others
        share = (suspects(numbers[rows], seen[rows], accord[rows]) < 0.05).mean()
        assert 0.015 < share < 0.075


@pytest.mark.parametrize(("doubted", "found"), [("all, a little", 0.9), ("half, much", 0.5)])
def test_a_trigger_under_any_captions_is_seen_where_its_pairs_are_doubted_more(doubted: str, found: float) -> None:
    pixels, accord = ordinary(3000, 3)
    bad = np.arange(0, 3000, 40)  # 2.5 %
    pixels[bad, 38:44, 38:44] = np.random.default_rng(4).integers(0, 2, (6, 6, 1), dtype=np.uint8) * 255
    rng = np.random.default_rng(5)
    if doubted == "all, a little":
        accord[bad] = rng.beta(1, 3, len(bad))  # AUROC .75 by itself
    else:
        accord[bad] = np.where(bad % 80 == 0, rng.uniform(0.05, 0.2, len(bad)), rng.uniform(0.6, 1.0, len(bad)))
    seen, numbers = looks(pixels), np.arange(3000)
    suspect = Suspects(numbers[:2000], seen[:2000], accord[:2000])(numbers, seen, accord) < 0.05
    alone = accord < np.quantile(np.delete(accord, bad), 0.05)
    assert suspect[bad].mean() > found > 3 * alone[bad].mean()
    assert np.delete(suspect, bad).mean() < 0.08


def test_the_pipeline_says_what_the_sample_says(tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run, few = tmp_path / "run", tmp_path / "few.tar"
    with tarfile.open(EMOJI / "eval" / "00000.tar.gz") as tar, tarfile.open(few, "w") as out:
        for member in tar.getmembers()[:360]:
            out.addfile(member, tar.extractfile(member))
    args = ("--checkpoint", tiny, *CLEAN, "--canaries", 8)
    pairsan("clean", few, "--out", run, *args, "--look-tail", 0.05)
    rows = table(run)
    flagged = rows["reason"] == "suspect_look"
    assert ((rows["look_accord"] < 0.05) == flagged).all()
    assert 0 < flagged.sum() < 0.15 * len(rows)
    folder = next((run / "rounds/0001").glob("signals-*"))
    sample = pq.read_table(folder / "agreement.parquet")
    kept, scores = (pq.read_table(next((run / "rounds/0001" / kind).iterdir())) for kind in ("embeddings", "scores"))
    seen = bytes_of(kept["look"])
    place = {number: row for row, number in enumerate(scores["image_hash"].to_pylist())}
    mine = [place[number] for number in sample["image_hash"].to_pylist()]
    assert (bytes_of(sample["look"])[:20] == seen[mine[:20]]).all() or len(place) < len(rows)
    store = open_round(run).run
    assert Reference.read(store, f"rounds/0001/{folder.name}/agreement.parquet").looks is not None
    # of scores that were made before, it cannot be said
    path = run / "rounds/0001/plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 9}))
    refused = pairsan("split", run, "--look-tail", 0.05, code=5)
    assert "scored before what images are like was kept; score again" in refused.stderr
    pairsan("split", run, "--look-tail", 0, "--keep-share", 1.0)
    assert table(run)["look_accord"].isna().all()


def test_a_scout_looks_unless_told_not_to() -> None:
    assert scouted(load_config(None, {}, command="run")).split.look_tail == 0.1
    assert scouted(load_config(None, {"look_tail": 0.01}, command="run")).split.look_tail == 0.01
    without = scouted(load_config(None, {"scout_look_tail": 0.0}, command="run"))
    assert without.split.look_tail == 0.0
