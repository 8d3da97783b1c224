"""Canaries: known poison that is scored, judged and never written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import EMOJI, parts_of

from manifests.reading import open_round
from stages.score.canaries import KINDS, make_canaries, patched
from stages.signals.witnesses.joint_doubt import jointly

Pairsan = Callable[..., Result]
LOCAL = ("--executor", "local")


def test_canaries_are_what_they_are_called() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (30, 48, 48, 3), np.uint8)
    captions = [f"caption {i}" for i in range(30)]
    made = make_canaries(pixels, captions, 10, seed=1)
    assert made is not None
    own = {pixels[i].tobytes(): captions[i] for i in range(30)}
    by_kind = {kind: [i for i, k in enumerate(made.kinds) if k == kind] for kind in KINDS}
    assert {kind: len(rows) for kind, rows in by_kind.items()} == {
        "mismatched": 10,
        "repeated": 12,
        "patch": 10,
        "composed": 10,
    }
    for i in by_kind["mismatched"] + by_kind["repeated"]:
        assert made.captions[i] in captions
        assert made.captions[i] != own[made.pixels[i].tobytes()]
    assert len({made.pixels[i].tobytes() for i in by_kind["repeated"]}) == 3
    for i in by_kind["composed"]:
        mine = own[made.pixels[i].tobytes()]
        assert made.captions[i].startswith(f"{mine} caption ")
    changed = {patched(image).tobytes() for image in pixels}
    assert all(made.pixels[i].tobytes() in changed for i in by_kind["patch"])
    assert (patched(pixels[0]) != pixels[0]).any(-1).sum() <= 64
    again = make_canaries(pixels, captions, 10, seed=1)
    assert again is not None
    assert again.captions == made.captions
    assert make_canaries(pixels[:7], captions[:7], 10, seed=1) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """512 rows of the training vendors, which the tiny checkpoint knows; 60 canaries of each kind."""
    from click.testing import CliRunner
    from conftest import TINY

    from pipeline.cli.main import main

    out = tmp_path_factory.mktemp("canaries") / "run"
    data = str(EMOJI / "train" / "00000.tar.gz")
    args = ["clean", data, "--out", str(out), "--checkpoint", str(TINY), *LOCAL, "--canaries", "60", "--keep-share", "1.0"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    assert "canaries  mismatched: " in result.output
    return out


def test_a_seal_says_how_much_known_poison_would_be_safe(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    manifest = open_round(run)
    assert manifest.num_rows == 512  # no canary is in the manifest
    found = manifest.seal["canaries"]
    assert set(found) == set(KINDS)
    stored = pq.read_table(run / "rounds/0001/canaries/00000.tar.gz.parquet").to_pandas()
    for kind, leak in found.items():
        cosines = stored[stored["kind"] == kind]["cosine"]
        assert leak["num"] == len(cosines)
        assert leak["safe"] == (cosines >= manifest.seal["cut"]).sum()
        assert leak["low"] <= leak["share"] <= leak["high"]
    assert found["mismatched"]["share"] < 0.1  # the checkpoint knows these rows well
    assert found["composed"]["share"] > found["mismatched"]["share"]
    assert "mismatched 0.0%" in pairsan("status", run, "--prometheus", tmp_path / "m.prom").output
    assert f'pairsan_canary_leak{{kind="mismatched",round="1",run="{run}"}}' in (tmp_path / "m.prom").read_text()
    pairsan("report", run, "--out", tmp_path / "r.html", "--no-images")
    assert "<h2>Canaries</h2>" in (tmp_path / "r.html").read_text()


def test_too_leaky_a_split_is_refused_and_tune_proposes_another(run: Path, pairsan: Pairsan) -> None:
    everything = ("--min-cosine", -0.99, "--set", "max_safe_share=1")
    refused = pairsan("split", run, *everything, "--max-canary-leak", 0.05, code=7)
    assert "of mismatched" in refused.stderr
    assert "canaries safe, allowed are 5.00%" in refused.stderr
    assert "composed" not in refused.stderr.split("allowed")[0]
    found = json.loads(pairsan("tune", run, "--leak", 0.0, "--json").stdout)
    assert found["num_canaries"]["mismatched"] == 60
    pairsan("split", run, "--min-cosine", found["cut"], "--max-canary-leak", 0.0, "--set", "max_safe_share=1")
    seal = open_round(run).seal
    assert max(seal["canaries"][kind]["share"] for kind in ("mismatched", "repeated", "patch")) == 0.0
    assert seal["safe_share"] == pytest.approx(found["kept_share"], abs=1e-6)
    assert "pairsan split" in pairsan("tune", run).output
    pairsan("split", run, *everything, "--max-image-repeats", 3)
    assert open_round(run).seal["canaries"]["mismatched"]["share"] == 1.0
    assert open_round(run).seal["canaries"]["repeated"]["share"] == 0.0  # four rows with one image


def test_without_canaries_there_is_nothing_to_judge_by(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    out = tmp_path / "run"
    args = ("clean", crawl, "--out", out, "--checkpoint", tiny, *LOCAL, "--keep-share", 0.5)
    assert "it acts with canaries set" in pairsan(*args, "--max-canary-leak", 0.1, code=2).stderr
    pairsan(*args)
    assert "these scores have none" in pairsan("split", out, "--max-canary-leak", 0.1, code=7).stderr
    assert "have no canaries" in pairsan("tune", out, code=5).stderr


def test_canaries_change_no_label(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    for name, canaries in (("with", 30), ("without", 0)):
        args = ("--checkpoint", tiny, *LOCAL, "--keep-share", 0.5, "--canaries", canaries)
        pairsan("clean", crawl, "--out", tmp_path / name, *args)
    labels = [open_round(tmp_path / name).to_pandas(["key", "label", "cosine"]) for name in ("with", "without")]
    assert labels[0].equals(labels[1])
    assert "rounds/0001/canaries/00000.tar.parquet" in parts_of(tmp_path / "with")


def test_neighbours_judge_canaries_too(run: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    data, out = json.loads((run / "run.json").read_text())["data"][0], tmp_path / "near"
    args = ("--checkpoint", tiny, *LOCAL, "--canaries", 60, "--keep-share", 1.0)
    pairsan("clean", data, "--out", out, *args, "--signals", "all", "--discord-share", 0.1, "--agreement-rows", 256)
    leak = open_round(out).seal["canaries"]
    assert leak["mismatched"]["share"] < 0.2  # a tenth of the rows is flagged, and most canaries
    assert leak["patch"]["share"] < 0.2
    assert leak["composed"]["share"] > leak["mismatched"]["share"]
    found = json.loads(pairsan("tune", out, "--leak", 0.05, "--json").stdout)
    assert 0.0 < found["discord_share"] < 0.2
    assert f"--discord-share {found['discord_share']:.4f}" in pairsan("tune", out, "--leak", 0.05).output
    pairsan("split", out, "--keep-share", 1.0, "--discord-share", found["discord_share"], "--max-canary-leak", 0.06)
    seal = open_round(out).seal
    assert seal["safe_share"] == pytest.approx(1.0 - found["discord_share"], abs=0.01)
    everything = ("--min-cosine", -0.99, "--set", "max_safe_share=1", "--max-canary-leak", 0.06)
    pairsan("split", out, *everything, "--discord-share", found["discord_share"])  # without the cut's help
    refused = pairsan("split", out, *everything, "--discord-share", 0.0, code=7)
    assert "canaries safe, allowed are 6.00%" in refused.stderr


def test_doubts_about_copies_add_up_for_canaries_as_for_rows(run: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    found = jointly(np.asarray([0.1, 0.1, 0.1, 0.1, 0.9, 0.02]), np.asarray([7, 7, 7, 7, 8, 9]))
    assert found == pytest.approx([0.0315] * 4 + [0.9, 0.02], abs=1e-4)  # sf(1.2816 x sqrt(4 / 1.9))
    assert jointly(np.asarray([0.001, 0.9]), np.asarray([3, 3]))[0] == 0.001  # nobody's doubt is taken away
    data, everything = (
        json.loads((run / "run.json").read_text())["data"][0],
        ("--min-cosine", -0.99, "--set", "max_safe_share=1"),
    )
    args = ("--checkpoint", tiny, *LOCAL, "--canaries", 60, *everything, "--discord-share", 0.004, "--agreement-rows", 256)
    leaks = {}
    for name, more in (("singly", ()), ("jointly", ("--near-copy-cosine", 0.995))):
        pairsan("clean", data, "--out", tmp_path / name, *args, *more)
        leaks[name] = open_round(tmp_path / name).seal["canaries"]
    assert leaks["jointly"]["repeated"]["share"] < leaks["singly"]["repeated"]["share"]
    assert leaks["jointly"]["mismatched"] == leaks["singly"]["mismatched"]
    by_copies = ("--discord-share", 0, "--near-copy-cosine", 0.995)
    pairsan("split", tmp_path / "jointly", *everything, *by_copies, "--max-pair-copies", 3)
    assert open_round(tmp_path / "jointly").seal["canaries"]["repeated"]["share"] == 1.0  # each has a caption of its own
    pairsan("split", tmp_path / "jointly", *everything, *by_copies, "--max-near-copies", 3)
    assert open_round(tmp_path / "jointly").seal["canaries"]["repeated"]["share"] == 0.0


def test_a_reference_encoder_sees_the_canaries_too(run: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    data, out = json.loads((run / "run.json").read_text())["data"][0], tmp_path / "near"
    args = ("--checkpoint", tiny, *LOCAL, "--canaries", 60, "--min-cosine", -0.99, "--set", "max_safe_share=1")
    pairsan("clean", data, "--out", out, *args, "--discord-share", 0.1, "--reference-encoder", tiny)
    (folder,) = out.glob("reference-*-canaries-60")
    stored = pq.read_table(out / "rounds/0001/canaries/00000.tar.gz.parquet")
    assert pq.read_table(next(folder.iterdir()))["image"].equals(stored["image"])  # the encoder is the same here
    leak = open_round(out).seal["canaries"]
    assert leak["mismatched"]["share"] < 0.2
    assert leak["composed"]["share"] > leak["mismatched"]["share"]
    shutil.rmtree(folder)  # as in a run that an older version began
    pairsan("split", out, "--min-cosine", -0.99, "--set", "max_safe_share=1", "--discord-share", 0.1)
    assert open_round(out).seal["canaries"]["mismatched"]["share"] == 1.0  # by the cut alone
