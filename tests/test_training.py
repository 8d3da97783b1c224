"""The trainer stage and the run that it is part of."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from click.testing import Result
from conftest import EMOJI
from safetensors.torch import load_file

from manifests import Label, open_round
from manifests.errors import RunError, TrainingFailed
from pipeline.training import learning_rate, passes_of
from stages.decode import Decode
from stages.encoders import preprocess_config
from stages.options import ReadOptions, TrainOptions
from stages.round_rows import Batch, round_batches
from stages.shards import open_dataset
from stages.train import Learner, new_model, read_progress

Pairsan = Callable[..., Result]
SMALL = TrainOptions(train_batch_size=8, pool_size=64, learning_rate=1e-3)


@pytest.fixture(scope="module")
def architecture(tiny: str) -> str:
    return f"local-dir:{tiny}"


def learner_of(architecture: str, options: TrainOptions = SMALL) -> Learner:
    return Learner(new_model(architecture, 0), open_clip.get_tokenizer(architecture), options)


def batches_of(label: Label, num: int, seed: int = 0) -> list[Batch]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        pixels = rng.integers(0, 256, (8, 64, 64, 3), np.uint8)
        made.append(Batch(label, pixels, [f"word {i} of {rng.integers(99)}" for i in range(8)], [bytes(16)] * 8))
    return made


def test_one_warm_up_and_one_cosine_over_the_steps_that_are_taken() -> None:
    options = TrainOptions(
        warmup_passes=2, matching_passes=1, rounds=3, learning_rate=1.0, lr_warmup_share=0.2, first_matching="locked"
    )
    rates, step = [], 0
    for this in passes_of(options):
        num_steps = 10 + this.index  # passes differ in length
        rate = learning_rate(options, this, num_steps, step)
        found = [rate(step + i) for i in range(num_steps)]
        if this.kind == "matching":
            assert set(found) == {options.locked_learning_rate}
        else:
            rates += found
        step += num_steps
    top = int(np.argmax(rates))
    assert rates[0] == 0.0
    assert max(rates) == pytest.approx(1.0, abs=0.02)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()  # it never climbs again
    assert 0 < rates[-1] < 0.01


def test_weight_decay_spares_norms_biases_and_the_logit_scale(architecture: str) -> None:
    learner = learner_of(architecture)
    decayed, plain = learner._optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert any(p is learner.model.logit_scale for p in plain["params"])


def test_each_label_trains_by_its_own_loss(architecture: str) -> None:
    learner = learner_of(architecture)
    result = learner.learn(batches_of(Label.RISKY, 3), lambda _: 1e-3)
    assert math.isnan(result.clip_loss)
    assert result.unimodal_loss > 0
    assert int(learner.pools["image"].filled) == int(learner.pools["text"].filled) == 24
    result = learner.learn(batches_of(Label.SAFE, 2), lambda _: 1e-3)
    assert result.clip_loss > 0
    assert math.isnan(result.unimodal_loss)
    assert result.num_steps == learner.step == 5
    assert int(learner.pools["image"].filled) == 24  # safe batches leave the pools alone


def test_a_locked_image_tower_does_not_move_at_all(architecture: str) -> None:
    learner = learner_of(architecture)
    before = {k: v.clone() for k, v in learner.model.state_dict().items()}
    learner.learn(batches_of(Label.SAFE, 3), lambda _: 1e-2, locked_image=True)
    after = learner.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if k.startswith("visual."))  # batch norms included
    assert not torch.equal(after["text_projection"], before["text_projection"])


def test_the_logit_scale_is_clamped(architecture: str) -> None:
    learner = learner_of(architecture)
    with torch.no_grad():
        learner.model.logit_scale.fill_(9.0)
    learner.learn(batches_of(Label.SAFE, 1), lambda _: 0.0)
    assert float(learner.model.logit_scale.detach()) == pytest.approx(math.log(100))


def test_a_loss_that_is_not_finite_stops_with_step_rate_and_uids(architecture: str) -> None:
    learner = learner_of(architecture)
    with torch.no_grad():
        learner.model.text_projection.fill_(float("nan"))
    with pytest.raises(TrainingFailed, match=r"loss of step 0 is nan at learning rate 1.00e-03, on 8 safe rows \(uids 0000"):
        learner.learn(batches_of(Label.SAFE, 1), lambda _: 1e-3)


def test_a_saved_learner_goes_on_exactly(architecture: str, tmp_path: Path) -> None:
    from manifests.store import open_store

    work = [*batches_of(Label.RISKY, 3), *batches_of(Label.SAFE, 3, 1), *batches_of(Label.RISKY, 2, 2)]
    whole = learner_of(architecture)
    whole.learn(work, lambda _: 1e-3)
    cut = learner_of(architecture)
    cut.learn(work[:4], lambda _: 1e-3)
    cut.save(open_store(tmp_path), "state.safetensors", {"pass": 2, "batches": 4})
    progress, tensors = read_progress(str(tmp_path / "state.safetensors"))
    assert progress == {"pass": 2, "batches": 4, "step": 4}
    resumed = learner_of(architecture, SMALL)
    resumed.restore(tensors, progress["step"])
    resumed.learn(work[4:], lambda _: 1e-3)
    for key, value in whole.tensors().items():
        assert torch.equal(resumed.tensors()[key], value), key


@pytest.fixture
def sealed(tmp_path: Path, crawl: Path, tiny: str, pairsan: Pairsan) -> Path:
    run = tmp_path / "run"
    pairsan("clean", crawl, "--checkpoint", tiny, "--out", run, "--executor", "local", "--keep-share", 0.5)
    return run


def open_decode(crawl: Path, architecture: str) -> tuple[tuple, Decode]:
    dataset = open_dataset([str(crawl)])
    decode = Decode(dataset.store, ReadOptions(), preprocess_config(new_model(architecture, 0)), num_threads=1)
    decode.open()
    return dataset.shards, decode


def test_rows_are_joined_by_position_and_quarantined_ones_never_train(sealed: Path, crawl: Path, architecture: str) -> None:
    shards, decode = open_decode(crawl, architecture)
    manifest = open_round(sealed)
    truth = manifest.to_pandas(["uid", "label", "caption"]).set_index("uid")
    batches = list(round_batches(manifest, shards, decode, batch_size=4, seed=1))
    assert [len(batch.uids) for batch in batches] == [4] * 8  # 19 safe and 19 risky rows: 4 batches each
    for batch in batches:
        assert all(truth.label[uid] == batch.label for uid in batch.uids)
        assert [truth.caption[uid] for uid in batch.uids] == batch.captions
    used = [uid for batch in batches for uid in batch.uids]
    assert len(set(used)) == len(used)
    again = list(round_batches(manifest, shards, decode, batch_size=4, seed=1))
    other = list(round_batches(manifest, shards, decode, batch_size=4, seed=2))
    assert [b.uids for b in again] == [b.uids for b in batches]
    assert [b.uids for b in other] != [b.uids for b in batches]


def test_parts_that_are_not_the_sealed_ones_are_refused(sealed: Path, crawl: Path, architecture: str) -> None:
    shards, decode = open_decode(crawl, architecture)
    part = sealed / "rounds/0001/manifest/00001.tar.parquet"
    part.write_bytes((sealed / "rounds/0001/manifest/00000.tar.parquet").read_bytes())
    with pytest.raises(RunError, match="not the part that was sealed"):
        list(round_batches(open_round(sealed), shards, decode, batch_size=4, seed=1))


def test_a_shard_that_has_changed_since_is_refused(sealed: Path, crawl: Path, architecture: str) -> None:
    shards, decode = open_decode(crawl, architecture)
    (crawl / "00000.tar").write_bytes((crawl / "00002.tar").read_bytes())
    with pytest.raises(RunError, match="has 8 rows, its manifest 16"):
        list(round_batches(open_round(sealed), shards, decode, batch_size=4, seed=1))


OPTIONS = ("--warmup-passes", 1, "--rounds", 2, "--train-batch-size", 100, "--if-unseparable", "quantile")
OPTIONS += ("--fallback-share", 0.2, "--growth", 0.1, "--executor", "local", "--save-every-steps", 2)


def test_a_run_goes_through_its_rounds_and_can_be_extended(tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    args = ("run", EMOJI / "eval", "--out", run, "--model", tiny, *OPTIONS)
    pairsan(*args, "--until-round", 0)
    assert (run / "checkpoints/round-0000.safetensors").exists()
    assert not (run / "rounds").exists()
    output = pairsan(*args).output
    assert "round 2  sealed" in output
    assert [round(open_round(run, n).seal["safe_share"], 2) for n in (1, 2)] == [0.2, 0.3]
    models = [load_file(run / f"checkpoints/round-000{n}.safetensors") for n in (0, 1, 2)]
    assert not torch.equal(models[1]["text_projection"], models[2]["text_projection"])
    open_clip.load_checkpoint(new_model(f"local-dir:{tiny}", 1), str(run / "checkpoints/round-0002.safetensors"))
    pairsan(*args, "--rounds", 3)
    assert open_round(run).number == 3
    result = pairsan(*args, "--learning-rate", 0.1, code=5)
    assert "train.learning_rate: 0.0005 -> 0.1" in result.stderr


def test_training_that_is_killed_in_the_middle_of_a_round_reaches_the_same_weights(
    tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    args = [str(a) for a in ("run", EMOJI / "eval", "--model", tiny, *OPTIONS)]
    pairsan(*args, "--out", tmp_path / "whole")
    command = [str(Path(sys.executable).parent / "pairsan"), *args, "--out", str(tmp_path / "cut")]
    state = tmp_path / "cut/checkpoints/state.safetensors"
    killed = 0
    for wanted in ({"pass": 0, "batches": 4}, {"pass": 2, "batches": 4}):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while process.poll() is None and not reached(state, wanted):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed == 2
    subprocess.run(command, check=True, capture_output=True, env={**os.environ})
    for name in ("round-0000", "round-0001", "round-0002"):
        whole, cut = ((tmp_path / w / "checkpoints" / f"{name}.safetensors").read_bytes() for w in ("whole", "cut"))
        assert whole == cut, name


def reached(state: Path, wanted: dict[str, int]) -> bool:
    if not state.exists():
        return False
    progress, _ = read_progress(str(state))
    return (progress["pass"], progress["batches"]) >= (wanted["pass"], wanted["batches"])
