"""The trainer stage and the run that it is part of."""

import json
import math
import os
import re
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
from conftest import SMALL_MODEL
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from manifests import Label, open_round
from manifests.errors import ConfigError, RunError, TrainingFailed
from manifests.store import open_store
from pipeline.training.one_pass import position
from pipeline.training.schedule import learning_rate, passes_of
from stages.pair import Shard
from stages.read.crops import Crops
from stages.read.shards import open_dataset
from stages.score.decode import Decode
from stages.score.models.encoders import preprocess_config
from stages.settings import ReadSettings
from stages.train.batches import Batch, PassRows, pass_batches
from stages.train.learner import ClipLearner, new_model, read_progress
from stages.train.settings import TrainSettings
from stages.train.sharing import plan_steps, share_shards

Pairsan = Callable[..., Result]
SMALL = TrainSettings(train_batch_size=8, pool_size=64, learning_rate=1e-3)


@pytest.fixture(scope="module")
def architecture() -> str:
    return f"local-dir:{SMALL_MODEL}"


def learner_of(architecture: str, options: TrainSettings = SMALL) -> ClipLearner:
    return ClipLearner(new_model(architecture, 0), open_clip.get_tokenizer(architecture), options)


def batches_of(label: Label, num: int, seed: int = 0) -> list[Batch]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        views = tuple(rng.integers(0, 256, (2 if label == Label.RISKY else 1, 8, 32, 32, 3), np.uint8))
        captions = [f"word {i} of {rng.integers(99)}" for i in range(8)]
        made.append(Batch(label, views, np.zeros(8, np.int64), captions, [bytes(16)] * 8))
    return made


def test_one_warm_up_and_one_cosine_over_the_steps_that_are_taken() -> None:
    options = TrainSettings(scorer="locked", warmup_passes=2, rounds=3, learning_rate=1.0, lr_warmup_share=0.2)
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
    learner.learn(batches_of(Label.RISKY, 3), lambda _: 1e-3)
    assert list(learner.losses) == [Label.RISKY]
    assert learner.losses[Label.RISKY][0] > 0
    assert int(learner.pools["image"].filled) == int(learner.pools["text"].filled) == 24
    learner.losses = {}
    learner.learn(batches_of(Label.SAFE, 2), lambda _: 1e-3)
    assert list(learner.losses) == [Label.SAFE]
    assert learner.losses[Label.SAFE][1] == 2
    assert learner.step == 5
    assert int(learner.pools["image"].filled) == 24  # safe batches leave the pools alone


def test_a_locked_image_tower_does_not_move_at_all(architecture: str) -> None:
    learner = learner_of(architecture)
    before = {k: v.clone() for k, v in learner.model.state_dict().items()}
    learner.locked_image = True
    learner.learn(batches_of(Label.SAFE, 3), lambda _: 1e-2)
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
    work = [*batches_of(Label.RISKY, 3), *batches_of(Label.SAFE, 3, 1), *batches_of(Label.RISKY, 2, 2)]
    whole = learner_of(architecture)
    whole.learn(work, lambda _: 1e-3)
    cut = learner_of(architecture)
    cut.learn(work[:4], lambda _: 1e-3)
    cut.save(open_store(tmp_path), "state.safetensors", {"pass": 2, "batches": 4})
    progress = read_progress(str(tmp_path / "state.safetensors"))
    assert progress == {"pass": 2, "batches": 4, "step": 4}
    resumed = learner_of(architecture, SMALL)
    resumed.restore(load_file(tmp_path / "state.safetensors"), progress["step"])
    resumed.learn(work[4:], lambda _: 1e-3)
    found = resumed.tensors()
    for key, value in whole.tensors().items():
        assert torch.equal(found[key], value), key


@pytest.fixture
def sealed(tmp_path: Path, crawl: Path, tiny: str, pairsan: Pairsan) -> Path:
    run = tmp_path / "run"
    pairsan("clean", crawl, "--checkpoint", tiny, "--out", run, "--executor", "local", "--keep-share", 0.5)
    return run


def open_decode(crawl: Path, architecture: str) -> tuple[tuple, Decode]:
    dataset = open_dataset([str(crawl)])
    decode = Decode(dataset.store, ReadSettings(), preprocess_config(new_model(architecture, 0)), num_threads=1)
    decode.open()
    return dataset.shards, decode


def rows_of(run: Path | None, shards: tuple, labels: tuple, seed: int = 1, shuffle_rows: int = 4096) -> PassRows:
    return PassRows(open_round(run) if run else None, shards, labels, 4, seed, shuffle_rows, Crops(0, 0.5, 32))


def test_rows_are_joined_by_position_and_quarantined_ones_never_train(sealed: Path, crawl: Path, architecture: str) -> None:
    shards, decode = open_decode(crawl, architecture)
    truth = open_round(sealed).to_pandas(["uid", "label", "caption"]).set_index("uid")
    labels = plan_steps([{Label.SAFE: 19, Label.RISKY: 19}], 4, "interleaved", 1)
    assert sorted(labels) == [Label.RISKY] * 4 + [Label.SAFE] * 4
    batches = list(pass_batches(rows_of(sealed, shards, labels), decode))
    assert tuple(batch.label for batch in batches) == labels
    for batch in batches:
        assert all(truth.label[uid] == batch.label for uid in batch.uids)
        assert [truth.caption[uid] for uid in batch.uids] == batch.captions
        assert len(batch.views) == (2 if batch.label == Label.RISKY else 1)
    used = [uid for batch in batches for uid in batch.uids]
    assert len(set(used)) == len(used) == 32
    again = list(pass_batches(rows_of(sealed, shards, labels), decode))
    other = list(pass_batches(rows_of(sealed, shards, labels, seed=2), decode))
    assert [b.uids for b in again] == [b.uids for b in batches]
    assert [b.uids for b in other] != [b.uids for b in batches]
    rest = list(pass_batches(rows_of(sealed, shards, labels), decode, skip=5, drawn=batches[4].drawn))
    assert [b.uids for b in rest] == [b.uids for b in batches[5:]]


def test_images_that_do_not_decode_are_passed_over_and_the_pass_keeps_its_length(crawl: Path, architecture: str) -> None:
    shards, decode = open_decode(crawl, architecture)
    rows = rows_of(None, shards, (Label.RISKY,) * 12, shuffle_rows=5)  # 39 readable rows, 38 of them decodable
    batches = list(pass_batches(rows, decode))
    assert [len(batch.uids) for batch in batches] == [4] * 12
    assert len({uid for batch in batches[:9] for uid in batch.uids}) == 36  # no row twice before all were drawn
    assert batches[-1].drawn["risky"] > 48
    rest = list(pass_batches(rows, decode, skip=10, drawn=batches[9].drawn))
    assert [b.uids for b in rest] == [b.uids for b in batches[10:]]


def test_steps_are_planned_by_the_worker_with_the_fewest_rows() -> None:
    counts = [{Label.SAFE: 40, Label.RISKY: 100}, {Label.SAFE: 33, Label.RISKY: 120}]
    sequential = plan_steps(counts, 8, "sequential", 3)
    assert sequential == (Label.RISKY,) * 12 + (Label.SAFE,) * 4
    mixed = plan_steps(counts, 8, "interleaved", 3)
    assert sorted(mixed) == sorted(sequential)
    assert mixed != sequential
    with pytest.raises(ConfigError, match="73 safe rows do not fill one batch of 64 rows on each of 2 workers"):
        plan_steps(counts, 64, "sequential", 3)
    assert plan_steps([{Label.SAFE: 64, Label.RISKY: 3}], 64, "sequential", 3) == (Label.SAFE,)


def test_shards_are_shared_out_evenly_by_rows() -> None:
    shards = [Shard(f"{i}.tar", f"/{i}.tar", "tar", 1) for i in range(5)]
    rows = {"0.tar": 10, "1.tar": 90, "2.tar": 50, "3.tar": 40, "4.tar": 10}
    hands = share_shards(shards, rows, 2)
    assert sorted(shard.name for hand in hands for shard in hand) == sorted(rows)
    assert [sum(rows[shard.name] for shard in hand) for hand in hands] == [100, 100]
    with pytest.raises(ConfigError, match="6 workers need as many shards, the dataset has 5"):
        share_shards(shards, rows, 6)


def test_parts_that_are_not_the_sealed_ones_are_refused(sealed: Path, crawl: Path, architecture: str) -> None:
    shards, decode = open_decode(crawl, architecture)
    part = sealed / "rounds/0001/manifest/00001.tar.parquet"
    part.write_bytes((sealed / "rounds/0001/manifest/00000.tar.parquet").read_bytes())
    with pytest.raises(RunError, match="not the part that was sealed"):
        list(pass_batches(rows_of(sealed, shards, (Label.SAFE,) * 4), decode))


def test_a_shard_that_has_changed_since_is_refused(sealed: Path, crawl: Path, architecture: str) -> None:
    shards, decode = open_decode(crawl, architecture)
    (crawl / "00000.tar").write_bytes((crawl / "00002.tar").read_bytes())
    with pytest.raises(RunError, match=r"00000.tar \[0\] is 'emojione_\S+', its manifest has 'emojione_\S+'"):
        list(pass_batches(rows_of(sealed, shards, (Label.SAFE,) * 4), decode))


ANY_SCORER = ("--model", SMALL_MODEL, "--warmup-passes", 1, "--rounds", 2, "--train-batch-size", 20, "--executor", "local")
ANY_SCORER += ("--set", "save_every_steps=6")
# models of a few steps tell no pairs apart, so a share of their scores must be asked for by name
SHARE = ("--rule", "keep-share", "--keep-share", 0.2, "--growth", 0.1, "--if-unseparable", "accept")
OPTIONS = (*ANY_SCORER, "--matching-passes", 1, *SHARE, "--scorer")


def test_a_run_goes_through_its_rounds_and_can_be_extended(tmp_path: Path, few: Path, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    args = ("run", few, "--out", run, *OPTIONS, "model")
    pairsan(*args, "--until-round", 0, "--log-to", "tensorboard")
    assert (run / "checkpoints/round-0000.safetensors").exists()
    assert not (run / "rounds").exists()
    output = pairsan(*args, "--log-to", "tensorboard").output
    assert "round 2  sealed" in output
    history = json.loads((run / "checkpoints/history.json").read_text())
    told = EventAccumulator(str(run / "logs")).Reload()
    for name, key in (("loss/clip", "clip_loss"), ("loss/unimodal", "unimodal_loss")):
        found = {event.step: event.value for event in told.Scalars(name)}
        assert found == {entry["index"] + 1: pytest.approx(entry[key]) for entry in history if entry[key] is not None}
    shares = [open_round(run, n).seal["safe_share"] for n in (1, 2)]
    assert [event.value for event in told.Scalars("round/safe_share")] == pytest.approx(shares)
    assert [open_round(run, n).seal["safe_share"] for n in (1, 2)] == pytest.approx([0.2, 0.3], abs=0.01)
    models = [load_file(run / f"checkpoints/round-000{n}.safetensors") for n in (0, 1, 2)]
    assert not torch.equal(models[1]["text_projection"], models[2]["text_projection"])
    open_clip.load_checkpoint(new_model(f"local-dir:{SMALL_MODEL}", 1), str(run / "checkpoints/round-0002.safetensors"))
    pairsan(*args, "--rounds", 3)
    assert open_round(run).number == 3
    result = pairsan(*args, "--learning-rate", 0.1, code=5)
    assert "train.learning_rate: 0.0005 -> 0.1" in result.stderr


@pytest.mark.slow
def test_the_warm_up_has_views_of_its_own(tmp_path: Path, few: Path, pairsan: Pairsan) -> None:
    losses = {}
    for views in ("wide", "published"):
        run, more = tmp_path / views, ("--warmup-views", views, "--set", "colour_strength=0")
        pairsan("run", few, "--out", run, "--until-round", 0, *OPTIONS, "model", *more)
        passes = json.loads((run / "checkpoints" / "history.json").read_text())
        losses[views] = [entry["unimodal_loss"] for entry in passes if entry["kind"] == "unimodal"]
        assert len(losses[views]) == len(passes) - 1
    assert np.mean(losses["wide"]) > np.mean(losses["published"]) + 0.1  # two wide views of one image are less alike


@pytest.mark.slow
def test_a_locked_scorer_is_fitted_once_and_its_scores_are_split_anew(tmp_path: Path, few: Path, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    args = ("run", few, "--out", run, *OPTIONS, "locked")
    pairsan(*args)
    plans = [open_round(run, n).seal["plan"] for n in (1, 2)]
    assert [plan["scores_round"] for plan in plans] == [1, 1]
    assert plans[0]["scores"]["model"]["folds"] == 4
    shares = [open_round(run, n).seal["safe_share"] for n in (1, 2)]
    assert shares[1] == pytest.approx(shares[0] + 0.1, abs=0.01)
    changes = open_round(run, 2).seal["changes"]
    labels = [open_round(run, n).to_pandas(["label"]).label for n in (1, 2)]
    assert open_round(run, 1).seal["changes"] is None
    assert changes == {"from_round": 1, "labels": {"risky>safe": int((labels[0] != labels[1]).sum())}}
    told = pairsan("status", run, "--prometheus", tmp_path / "run.prom").output
    assert re.search(r"warm-up  2 passes, 24 steps, unimodal loss \d", told)
    assert re.search(r"trained: 1 passes, 1\d steps, CLIP loss \d.*, unimodal loss \d.* h", told)
    assert "24 labels changed since round 1" in told
    report = json.loads(pairsan("status", run, "--json").output)
    assert report["rounds"][1]["training"]["clip_loss"] > 0
    metrics = (tmp_path / "run.prom").read_text()
    assert f'pairsan_rows{{label="safe",round="2",run="{run}"}} 72.0' in metrics
    assert f'pairsan_labels_changed{{round="2",run="{run}"}} 24.0' in metrics
    with safe_open(run / "checkpoints/scorer-0000.safetensors", "pt") as file:
        names = set(file.keys())
    assert any(name.startswith("visual.") for name in names)
    assert {name.split(".")[2] for name in names if name.startswith("pairsan.fold.")} == {"0", "1", "2", "3"}
    visual = load_file(run / "checkpoints/scorer-0000.safetensors")["visual.conv1.weight"]
    assert not torch.equal(visual, load_file(run / "checkpoints/round-0001.safetensors")["visual.conv1.weight"])
    refused = pairsan("run", few, "--out", tmp_path / "other", *OPTIONS, "locked", "--matching-passes", 0, code=2)
    assert "scorer = 'locked' learns to match in its matching passes" in refused.stderr
    assert not (tmp_path / "other").exists()
    again = pairsan("rescore", run, "--checkpoint", run / "checkpoints/scorer-0000.safetensors", "--growth", 0.1)
    assert "round 2:" in again.output  # the same weights: the newest round of theirs


@pytest.mark.slow
def test_a_locked_scorer_may_be_refitted_every_round_and_single_phases_are_commands(
    tmp_path: Path, few: Path, pairsan: Pairsan
) -> None:
    options = (*OPTIONS, "locked", "--set", "refit_passes=1", "--set", "scorer_folds=2", "--set", "order=sequential")
    whole, phases = tmp_path / "whole", tmp_path / "phases"
    pairsan("run", few, "--out", whole, *options)
    output = pairsan("run", few, "--out", phases, "--until-round", 0, *options).output
    for number in (1, 2):
        checkpoint = output.split("--checkpoint ")[1].strip()
        assert checkpoint.endswith(f"scorer-000{number - 1}.safetensors")
        assert "not sealed" in pairsan("train", phases, "--round", number, code=5).stderr
        pairsan("rescore", phases, "--checkpoint", checkpoint)
        output = pairsan("train", phases, "--round", number).output
    assert "all rounds of" in pairsan("train", phases, "--round", 2, code=5).stderr
    for name in ("round-0000", "round-0002", "scorer-0000", "scorer-0002"):
        files = [(run / "checkpoints" / f"{name}.safetensors").read_bytes() for run in (whole, phases)]
        assert files[0] == files[1], name


MORE = {
    "model": (*OPTIONS, "model"),
    "locked": (*OPTIONS, "locked", "--set", "refit_passes=1"),
    "scout": (*ANY_SCORER, "--scorer", "scout", "--crowded-share", 0.2, "--neighbours", 4),
}
KILLED = {  # by scorer: where, as (pass, batches), and the weights that are compared
    "model": (((1, 6), (2, 6)), ["round-0000", "round-0001", "round-0002"]),
    "locked": (((0, 6), (1, 6)), ["round-0000", "round-0001", "round-0002", "scorer-0000", "scorer-0002"]),
    "scout": (((0, 6), (2, 6)), ["scout-0000", "round-0001", "round-0002"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["model", "locked", "scout"])
def test_training_that_is_killed_in_the_middle_of_a_round_reaches_the_same_weights(
    tmp_path: Path, few: Path, scorer: str
) -> None:
    args, (places, names) = [str(a) for a in ("run", few, *MORE[scorer])], KILLED[scorer]
    program = str(Path(sys.executable).parent / "pairsan")
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums of several threads differ in the last bits from run to run
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": one_thread}
    uncut = subprocess.Popen([program, *args, "--out", str(tmp_path / "whole")], **quiet)  # beside the others: a thread each
    command, killed = [program, *args, "--out", str(tmp_path / "cut")], 0
    for wanted in places:
        process = subprocess.Popen(command, **quiet)
        deadline = time.monotonic() + 240
        while process.poll() is None and not reached(tmp_path / "cut", wanted):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed == 2
    subprocess.run(command, check=True, capture_output=True, env=one_thread)
    assert uncut.wait(timeout=240) == 0
    for name in names:
        whole, cut = ((tmp_path / w / "checkpoints" / f"{name}.safetensors").read_bytes() for w in ("whole", "cut"))
        assert whole == cut, name


@pytest.mark.slow
def test_a_pass_goes_on_with_the_round_that_it_began_on(tmp_path: Path, few: Path, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    args = ("run", few, "--out", run, *OPTIONS, "locked", "--set", "scorer_folds=2")
    pairsan(*args, "--until-round", 0)
    pairsan("rescore", run, "--checkpoint", run / "checkpoints/scorer-0000.safetensors")
    state = run / "checkpoints/state.safetensors"
    with safe_open(state, "pt") as file:
        progress = json.loads((file.metadata() or {})["pairsan.progress"])
    begun = {**position(open_store(run)), "step": progress["step"], "batches": 1, "manifest": 1, "drawn": [{}]}
    save_file(load_file(state), state, {"pairsan.progress": json.dumps(begun)})
    pairsan("split", run, "--keep-share", 0.4)
    result = pairsan("train", run, "--round", 2, code=5)
    assert "this pass was begun on round 1; go on with that one, not with 2" in result.stderr
    pairsan(*args, "--until-round", 1)
    assert position(open_store(run))["history"][-1]["manifest"] == 1


def reached(run: Path, wanted: tuple[int, int]) -> bool:
    return tuple(position(open_store(run))[key] for key in ("pass", "batches")) >= wanted
