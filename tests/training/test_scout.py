"""The scout: trained on everything, asked once, given up."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from conftest import SMALL_MODEL
from safetensors.torch import load_file

from manifests.reading import open_round
from manifests.store import open_store
from pipeline.training.one_pass import position
from stages.score.models.weights import file_sha256

Pairsan = Callable[..., Result]


@pytest.mark.slow
def test_a_scout_is_given_up_after_it_has_scored(tmp_path: Path, few: Path, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    args = ("run", few, "--out", run, "--model", SMALL_MODEL, "--rounds", 2, "--train-batch-size", 20, "--executor", "local")
    args += ("--crowded-share", 0.2, "--risky", "skip", "--neighbours", 4)
    told = pairsan(*args, "--until-round", 0).output.splitlines()[-1]
    command = shlex.split(told.removeprefix("pairsan "))
    assert command[:2] == ["rescore", str(run)]
    pairsan(*command)  # the round that `run` itself would make, from the settings file that the command names
    by_hand = open_round(run).seal["plan"]
    pairsan(*args)
    assert open_round(run).seal["plan"] == by_hand
    assert by_hand["split"]["crowded_share"] == 0.2
    assert (by_hand["split"]["max_near_copies"], by_hand["split"]["discord_share"]) == (4, 0.02)
    history = position(open_store(run))["history"]
    assert [(entry["kind"], entry["subject"], entry["manifest"]) for entry in history] == [
        ("scout", "scout", None),
        ("scout", "scout", None),
        ("round", "model", 1),
        ("round", "model", 1),
    ]
    assert history[-1]["unimodal_loss"] is None
    seal = open_round(run).seal
    assert open_round(run).number == 1
    reasons = seal["counts"]["reasons"]
    assert 30 <= reasons["crowded"] <= 50  # a fifth of 240, but for those that are near copies too
    assert reasons["discordant"] > 0
    assert 48 <= sum(reasons.values()) <= 80
    assert seal["plan"]["signals"]["near_copy_cosine"] == 0.98
    assert seal["counts"]["labels"]["safe"] == 240 - sum(seal["counts"]["reasons"].values())
    scout = load_file(run / "checkpoints/scout-0000.safetensors")
    assert seal["plan"]["scores"]["model"]["file_sha256"] == file_sha256(run / "checkpoints/scout-0000.safetensors")
    model = load_file(run / "checkpoints/round-0002.safetensors")
    assert not torch.equal(scout["text_projection"], model["text_projection"])
    assert history[2]["learning_rate"][1] > history[3]["learning_rate"][1] == pytest.approx(0.0, abs=1e-9)
    assert history[1]["learning_rate"][1] == pytest.approx(0.0, abs=1e-9)  # a schedule of its own
    pairsan(*args, "--rounds", 3)
    history = position(open_store(run))["history"]
    assert [(entry["kind"], entry["manifest"]) for entry in history[-2:]] == [("round", 1), ("round", 1)]
    assert len(history) == 5


def test_a_scout_may_be_a_smaller_model_and_the_printed_commands_work_from_anywhere(
    tmp_path: Path, few: Path, pairsan: Pairsan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    shutil.copytree(SMALL_MODEL, home / "model")
    config = json.loads((home / "model" / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] |= {"width": 8}
    config["model_cfg"]["text_cfg"] |= {"layers": 1, "width": 32, "heads": 2}
    (home / "small").mkdir()
    (home / "small" / "open_clip_config.json").write_text(json.dumps(config))
    monkeypatch.chdir(home)
    options = ("--model", "model", "--rounds", 1, "--scout-model", "small", "--scout-passes", 1, "--train-batch-size", 20)
    options += ("--executor", "local")
    said = pairsan("run", few, "--out", run, *options, "--crowded-share", 0.2, "--neighbours", 4, "--until-round", 0).output
    monkeypatch.chdir(tmp_path)
    pairsan(*shlex.split(said.split("next:\npairsan ")[1].splitlines()[0]))
    pairsan("train", run, "--round", 1)
    scout, model = (load_file(run / "checkpoints" / f"{name}.safetensors") for name in ("scout-0000", "round-0001"))
    sizes = [sum(values.numel() for values in weights.values()) for weights in (scout, model)]
    assert sizes[0] < 0.7 * sizes[1]
