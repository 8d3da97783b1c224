"""Training on several workers: the same loss and the same weights as one worker at the same global batch."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from click.testing import Result
from conftest import EMOJI, make_tar
from safetensors.torch import load_file, save_file

from manifests import Label
from manifests.errors import TrainingFailed
from pipeline.workers.train_on_ray import take_on_ray
from stages.train.batches import Batch
from stages.train.group import Group
from stages.train.learner import ClipLearner, new_model
from stages.train.settings import TrainSettings

VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def vit() -> str:
    """Register a small ViT, which has no batch norm, in this process."""
    open_clip.factory._MODEL_CONFIGS["pairsan-test-vit"] = VIT
    return "pairsan-test-vit"


def global_batches(num_rows: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    labels = [Label.RISKY, Label.RISKY, Label.SAFE, Label.RISKY, Label.SAFE, Label.SAFE]
    return [
        Batch(
            label,
            tuple(rng.integers(0, 256, (2, num_rows, 32, 32, 3), np.uint8)),
            np.zeros(num_rows, np.int64),
            [f"the {i}th word of {rng.integers(99)} others" for i in range(num_rows)],
            [bytes(16)] * num_rows,
        )
        for label in labels
    ]


def learn(out: str, device: torch.device) -> None:
    """Take six steps on this worker's rows of fixed batches, by both kinds of loss, and leave all that changed in files."""
    for local_loss in (False, True):
        group = Group.of_process()
        options = TrainSettings(train_batch_size=16, pool_size=40, learning_rate=1e-3, local_loss=local_loss)
        learner = ClipLearner(new_model(vit(), 0), open_clip.get_tokenizer("ViT-B-32"), options, device=device, group=group)
        rows = slice(group.rank * 16 // group.size, (group.rank + 1) * 16 // group.size)
        losses = []
        for batch in global_batches(16):
            learner.losses = {}
            views = tuple(view[rows] for view in batch.views)
            mine = Batch(batch.label, views, batch.folds[rows], batch.captions[rows], batch.uids[rows])
            learner.learn([mine], lambda _: 1e-3)
            losses.append(learner.losses[batch.label][0])
        name = f"{out}-{local_loss}-{group.rank}-of-{group.size}.safetensors"
        save_file({**learner.tensors(), "losses": torch.tensor(losses)}, name)


def test_two_workers_reach_the_losses_and_weights_of_one(tmp_path: Path, ray_cluster: None) -> None:
    out = str(tmp_path / "found")
    learn(out, torch.device("cpu"))
    take_on_ray(learn, out, 2, use_gpu=False)
    for local_loss in (False, True):
        names = ("0-of-1", "0-of-2", "1-of-2")
        one, first, second = (load_file(f"{out}-{local_loss}-{name}.safetensors") for name in names)
        assert one["losses"].shape == (6,)
        for name, value in one.items():
            assert torch.equal(first[name], second[name]), name  # pools and weights are the same on every worker
            if not name.endswith("in_proj_bias"):  # the keys' part has no gradient but rounding, which Adam makes full steps of
                assert torch.allclose(first[name].float(), value.float(), rtol=1e-3, atol=2e-4), name
        assert torch.allclose(first["losses"], one["losses"], rtol=1e-5)
        assert int(one["pool/image/filled"]) == 40


def fail(job: Any, device: torch.device) -> None:
    raise TrainingFailed("the loss of step 7 is nan") if job == "ours" else ValueError("something else")


@pytest.mark.slow
def test_what_a_worker_raises_comes_through(ray_cluster: None) -> None:
    with pytest.raises(TrainingFailed, match=r"^the loss of step 7 is nan$"):
        take_on_ray(fail, "ours", 1, use_gpu=False)


@pytest.mark.slow
def test_a_worker_that_fails_otherwise_is_named(ray_cluster: None) -> None:
    with pytest.raises(TrainingFailed, match="ValueError: something else(.|\n)*same command goes on"):
        take_on_ray(fail, "theirs", 1, use_gpu=False)


@pytest.mark.slow
def test_a_run_on_two_workers(tmp_path: Path, ray_cluster: None, pairsan: Any, emoji_members: list) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for shard in range(2):
        (data / f"{shard}.tar").write_bytes(make_tar(emoji_members[shard * 60 : (shard + 1) * 60]))
    options = ("--model", EMOJI / "demo-model", "--warmup-passes", 1, "--rounds", 1, "--train-workers", 2)
    options += (
        "--rule",
        "keep-share",
        "--keep-share",
        0.5,
        "--if-unseparable",
        "accept",
        "--scorer",
        "locked",
        "--set",
        "scorer_folds=2",
    )
    result: Result = pairsan("run", data, "--out", run, *options, "--train-batch-size", 7, code=2)
    assert "train_batch_size = 7 cannot be shared evenly by 2 workers" in result.stderr
    run = tmp_path / "other"
    result = pairsan("run", data, "--out", run, *options, "--train-batch-size", 8)
    assert "round 1  sealed" in result.output
    assert (run / "checkpoints/round-0001.safetensors").exists()
    result = pairsan("run", data, "--out", tmp_path / "third", *options, "--executor", "local", code=2)
    assert "--train-workers 2 needs --executor ray" in result.stderr
