"""The locked, cross-fitted scorer, from its folds to the scores it gives."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import EMOJI
from safetensors.torch import load_file

from manifests import Label
from manifests.store import open_store
from stages.pair import Pair
from stages.read.shards import open_dataset
from stages.score.decode import Decode
from stages.score.models.checkpoints import load_model, state_sha256, weights_sha256
from stages.score.models.cross_fit import CrossFitEncoder, folds_of, make_encoder
from stages.score.models.encoders import OpenClipEncoder, preprocess_config
from stages.score.models.weights import resolve_weights
from stages.settings import ModelSettings, ReadSettings
from stages.train.batches import Batch, _folds
from stages.train.learner import new_model
from stages.train.locked_scorer import Scorer
from stages.train.settings import TrainSettings

MODEL = EMOJI / "demo-model"
OPTIONS = TrainSettings(train_batch_size=24, scorer_folds=2)


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, list[str]]:
    """Pixels and captions of the first 512 held-out pairs."""
    dataset = open_dataset([str(EMOJI / "eval")])
    decode = Decode(dataset.store, ReadSettings(), preprocess_config(new_model(f"local-dir:{MODEL}", 0)), num_threads=2)
    decode.open()
    chunk = next(decode.run(dataset.shards[0]))
    return chunk.pixels, [chunk.pairs[row].caption or "" for row in chunk.rows]


def scorer_of() -> Scorer:
    name = f"local-dir:{MODEL}"
    return Scorer(new_model(name, 0), open_clip.get_tokenizer(name), OPTIONS)


def batch_of(rows: tuple[np.ndarray, list[str]], places: list[int] | np.ndarray) -> Batch:
    captions = [rows[1][place] for place in places]
    pixels = rows[0][np.asarray(places)]
    return Batch(Label.SAFE, (pixels,), folds_of(pixels, 2), captions, [bytes(16)] * len(captions))


def test_copies_share_a_fold_and_folds_are_of_like_size(rows: tuple[np.ndarray, list[str]]) -> None:
    pixels = rows[0]
    folds = folds_of(pixels, 4)
    assert np.array_equal(folds, folds_of(pixels.copy(), 4))
    assert np.bincount(folds, minlength=4).min() > len(pixels) / 16
    noise = np.random.default_rng(0).normal(0, 4, pixels.shape)
    noisy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    assert (folds_of(noisy, 4) == folds).mean() > 0.85
    assert folds_of(pixels, 1).tolist() == [0] * len(pixels)
    assert folds_of(np.zeros((0, 32, 32, 3), np.uint8), 4).shape == (0,)
    assert folds_of(np.zeros((2, 33, 33, 3), np.uint8), 4).shape == (2,)  # a size that 4 does not divide


def test_a_text_tower_never_learns_from_its_own_fold(rows: tuple[np.ndarray, list[str]]) -> None:
    folds = folds_of(rows[0], 2)
    scorer = scorer_of()
    before = {key: value.clone() for key, value in scorer.model.state_dict().items()}
    scorer.learn([batch_of(rows, np.flatnonzero(folds == 1)[:24])], lambda _: 1e-2)
    after = scorer.model.state_dict()
    moved = {key.split(".")[0] for key in after if not torch.equal(after[key], before[key])}
    assert moved == {"0"}
    assert not any("visual" in key and not torch.equal(after[key], before[key]) for key in after)


@pytest.mark.whole
def test_a_saved_scorer_goes_on_exactly_and_scores_each_pair_by_the_tower_of_its_fold(
    rows: tuple[np.ndarray, list[str]], tmp_path: Path
) -> None:
    batches = [batch_of(rows, range(start, start + 24)) for start in range(0, 96, 24)]
    whole, cut, resumed = scorer_of(), scorer_of(), scorer_of()
    whole.learn(batches, lambda _: 1e-3)
    cut.learn(batches[:2], lambda _: 1e-3)
    store = open_store(tmp_path)
    cut.save(store, "state.safetensors", {"pass": 0, "batches": 2})
    resumed.restore(load_file(tmp_path / "state.safetensors"), 2)
    resumed.learn(batches[2:], lambda _: 1e-3)
    found = resumed.tensors()
    assert all(torch.equal(value, found[key]) for key, value in whole.tensors().items())

    whole.save_model(store, "scorer.safetensors")
    weights = resolve_weights(ModelSettings(model=str(MODEL), checkpoint=str(tmp_path / "scorer.safetensors")))
    assert weights.folds == 2
    states = {state_sha256(load_model(weights, fold)) for fold in range(2)}
    assert len(states) == 2
    assert weights_sha256(weights, load_model(weights)) not in states
    encoder = make_encoder(weights, device="cpu", precision="fp32", batch_size=64)
    assert isinstance(encoder, CrossFitEncoder)
    pixels, captions = rows[0][:60], rows[1][:60]
    images, texts = encoder.encode_pairs(pixels, captions)
    folds = folds_of(pixels, 2)
    for fold in range(2):
        alone = OpenClipEncoder(weights, fold=fold)
        mine = folds == fold
        assert np.allclose(alone.encode_captions([c for c, m in zip(captions, mine, strict=True) if m]), texts[mine], atol=1e-5)
        assert np.allclose(alone.encode_images(pixels), images, atol=1e-5)


def test_one_fold_is_one_text_tower_that_saw_all(rows: tuple[np.ndarray, list[str]], tmp_path: Path) -> None:
    name = f"local-dir:{MODEL}"
    options = TrainSettings(train_batch_size=24, scorer_folds=1)
    scorer = Scorer(new_model(name, 0), open_clip.get_tokenizer(name), options)
    scorer.learn([batch_of(rows, range(24))], lambda _: 1e-3)
    scorer.save_model(open_store(tmp_path), "scorer.safetensors")
    weights = resolve_weights(ModelSettings(model=str(MODEL), checkpoint=str(tmp_path / "scorer.safetensors")))
    assert weights.folds == 1
    assert torch.equal(load_model(weights, 0).text_projection, scorer.model[0].text_projection)


def test_a_batch_without_a_whole_image_is_in_the_first_fold(tmp_path: Path) -> None:
    size = {"size": 32, "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3}
    preprocess = {**size, "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}
    decode = Decode(open_store(tmp_path), ReadSettings(), preprocess, num_threads=1)
    decode.open()
    pairs = [Pair(i, str(i), bytes(16), b"no image", "a caption") for i in range(3)]
    with ThreadPoolExecutor(1) as pool:
        assert _folds(pairs, 4, decode, pool).tolist() == [0, 0, 0]
