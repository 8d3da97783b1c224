import copy
import io
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import EMOJI, make_tar
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from stages.read.images import decode_image
from stages.read.shards import open_dataset, read_shard
from stages.score.decode import Decode
from stages.score.models.checkpoints import load_model
from stages.score.models.encoders import OpenClipEncoder, distinct_images, image_size, preprocess_config, runs_in_bf16
from stages.score.models.short_text import shortened
from stages.score.models.weights import resolve_weights
from stages.settings import ModelSettings, ReadSettings

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
MODELS = {
    "small-rn": {"embed_dim": 24, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}, "text_cfg": TEXT},
    "small-vit": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": TEXT,
        "quick_gelu": True,
    },
    "timm-tower": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "resnet10t", "timm_model_pretrained": False, "timm_pool": "avg", "image_size": 64},
        "text_cfg": {**TEXT, "pool_type": "argmax"},
        "custom_text": True,
    },
    "siglip-style": {
        "embed_dim": 192,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {**TEXT, "width": 64, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    },
}
TRIMS = {"small-rn": True, "small-vit": True, "timm-tower": True, "siglip-style": False}


@pytest.fixture(scope="module")
def captions() -> list[str]:
    dataset = open_dataset([str(EMOJI / "eval")])
    real = [p.caption or "" for p in list(read_shard(dataset.store, dataset.shards[0], ReadSettings()))[:60]]
    return [*real, "!", "long " * 90, real[0]]


@pytest.fixture(scope="module", params=list(MODELS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, torch.nn.Module]:
    """A model of one kind with seeded random weights, and as a checkpoint on disk."""
    folder = tmp_path_factory.mktemp(request.param)
    config = MODELS[request.param]
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    for parameter in model.parameters():  # open_clip starts text projections near zero
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return request.param, folder, model


@pytest.fixture(scope="module")
def encoder(checkpoint: tuple) -> tuple[str, OpenClipEncoder, torch.nn.Module]:
    name, folder, model = checkpoint
    return name, OpenClipEncoder(resolve_weights(ModelSettings(checkpoint=str(folder)))), model


def pixels_of(encoder: OpenClipEncoder, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, size, size, 3), np.uint8)


def test_captions_agree_with_encode_text_at_full_length(encoder: tuple, captions: list[str]) -> None:
    name, ours, model = encoder
    assert ours.trims is TRIMS[name]
    tokens = open_clip.tokenize(captions)
    with torch.inference_mode():
        full = model.encode_text(tokens, normalize=True).numpy()
    assert np.abs(ours.encode_captions(captions) - full).max() < 1e-5
    assert np.ptp(full, axis=0).max() > 0.05  # the vectors do differ


def test_images_agree_with_open_clips_own_preprocessing(
    encoder: tuple, emoji_members: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    _, ours, model = encoder
    pictures = [data for name, data in emoji_members if name.endswith(".webp")][:8]
    big = io.BytesIO()
    Image.open(io.BytesIO(pictures[0])).convert("RGB").resize((300, 170)).save(big, "PNG")
    pictures.append(big.getvalue())
    (tmp_path / "a.tar").write_bytes(
        make_tar([(f"{i}.{e}", b) for i, p in enumerate(pictures) for e, b in (("png", p), ("txt", b"x"))])
    )
    dataset = open_dataset([str(tmp_path)])
    decode = Decode(dataset.store, ReadSettings(), preprocess_config(model), num_threads=2)
    decode.open()
    (chunk,) = decode.run(dataset.shards[0])
    transform = image_transform_v2(PreprocessCfg(**preprocess_config(model)), is_train=False)
    batch = torch.stack([transform(Image.open(io.BytesIO(p)).convert("RGB")) for p in pictures])
    with torch.inference_mode():
        full = model.encode_image(batch, normalize=True).numpy()
    assert np.abs(ours.encode_images(chunk.pixels) - full).max() < 1e-5


def test_bf16_has_its_weights_in_bf16_and_gives_nearly_the_same_vectors(checkpoint: tuple, captions: list[str]) -> None:
    name, folder, model = checkpoint
    weights = resolve_weights(ModelSettings(checkpoint=str(folder)))
    full, half = OpenClipEncoder(weights), OpenClipEncoder(weights, precision="bf16")
    assert {parameter.dtype for parameter in half._model.parameters()} == {torch.bfloat16}
    assert half.trims is TRIMS[name]
    pixels = pixels_of(full, image_size(preprocess_config(model)))
    for ours, theirs in zip(half.encode_pairs(pixels, captions), full.encode_pairs(pixels, captions), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
        assert (ours * theirs).sum(axis=1).min() > 0.99


def test_a_tower_that_mixes_types_takes_bf16_by_autocast(checkpoint: tuple) -> None:
    _, folder, model = checkpoint
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    edge = image_size(preprocess_config(model))
    assert runs_in_bf16(model, tokenizer, edge)
    stubborn = copy.deepcopy(model)
    stubborn.visual.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
    assert not runs_in_bf16(stubborn, tokenizer, edge)
    assert {parameter.dtype for parameter in stubborn.parameters()} == {torch.float32}


def test_features_do_not_depend_on_the_batch_size(encoder: tuple, captions: list[str]) -> None:
    _, ours, model = encoder
    size = model.visual.image_size
    pixels = pixels_of(ours, size if isinstance(size, int) else size[0])
    found = []
    for batch_size in (1, 4, 64):
        ours.batch_size = batch_size
        found.append((ours.encode_images(pixels), ours.encode_captions(captions)))
    for images, texts in found[1:]:
        assert np.abs(images - found[0][0]).max() < 1e-5
        assert np.abs(texts - found[0][1]).max() < 1e-5
    assert np.linalg.norm(found[0][0], axis=1) == pytest.approx(1.0, abs=1e-5)


def test_equal_images_are_encoded_once(encoder: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours, model = encoder
    size = model.visual.image_size
    pixels = pixels_of(ours, size if isinstance(size, int) else size[0])[:4]
    almost = pixels[1].copy()
    almost[5, 7, 1] ^= 1
    rows = np.stack([pixels[0], pixels[1], pixels[0], almost, pixels[1], pixels[2]])
    first, inverse = distinct_images(rows)
    assert (first.tolist(), inverse.tolist()) == ([0, 1, 3, 5], [0, 1, 0, 2, 1, 3])
    assert [found.tolist() for found in distinct_images(rows[:0])] == [[], []]
    encoded, batch = [], ours._image_batch
    monkeypatch.setattr(ours, "_image_batch", lambda images: encoded.append(len(images)) or batch(images))
    features = ours.encode_images(rows)
    assert sum(encoded) == 4
    alone = np.concatenate([ours.encode_images(row[None]) for row in rows])
    assert np.abs(features - alone).max() < 1e-5


def test_an_image_that_a_row_nearby_has_had_is_decoded_once(tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset([str(EMOJI / "eval")])
    images = [p.image or b"" for p in list(read_shard(dataset.store, dataset.shards[0], ReadSettings()))[:3]]
    shown = [images[0], images[0], b"no image", images[1], b"no image", images[0], images[2]]
    rows = [(f"{number}.{end}", data) for number, image in enumerate(shown) for end, data in (("png", image), ("txt", b"a"))]
    (tmp_path / "0.tar").write_bytes(make_tar(rows))
    calls: list[bytes] = []
    monkeypatch.setattr(
        "stages.score.decode.decode_image", lambda image, *a, **k: calls.append(image) or decode_image(image, *a, **k)
    )
    config = preprocess_config(load_model(resolve_weights(ModelSettings(checkpoint=tiny))))
    data = open_dataset([str(tmp_path)])
    decode = Decode(data.store, ReadSettings(), config, num_threads=1)
    decode.open()
    [chunk] = decode.run(data.shards[0])
    assert sorted(calls) == sorted({*images, b"no image"})
    assert [pair.reason for pair in chunk.pairs] == [None, None, *("image_undecodable", None) * 2, None]
    assert chunk.rows.tolist() == [0, 1, 3, 5, 6]
    assert np.array_equal(chunk.pixels[0], chunk.pixels[1])
    assert np.array_equal(chunk.pixels[0], chunk.pixels[3])
    assert not np.array_equal(chunk.pixels[0], chunk.pixels[2])


@pytest.mark.parametrize("order", [1, -1])
def test_an_image_of_no_bytes_and_rows_without_an_image_keep_their_own_reasons(tmp_path: Path, tiny: str, order: int) -> None:
    wrong = [{"txt": b"a"}, {"png": b"", "txt": b"a"}, {"png": b"x", "txt": b""}, {"png": b"x"}, {"png": b"", "txt": b"b"}]
    rows = [(f"{number}.{end}", data) for number, row in enumerate(wrong[::order]) for end, data in row.items()]
    (tmp_path / "0.tar").write_bytes(make_tar(rows))
    data = open_dataset([str(tmp_path)])
    config = preprocess_config(load_model(resolve_weights(ModelSettings(checkpoint=tiny))))
    decode = Decode(data.store, ReadSettings(), config, num_threads=2)
    decode.open()
    [chunk] = decode.run(data.shards[0])
    named = ["image_missing", "image_undecodable", "caption_empty", "caption_missing", "image_undecodable"]
    assert [pair.reason for pair in chunk.pairs][::order] == named


def test_equal_captions_are_encoded_once(encoder: tuple) -> None:
    _, ours, _ = encoder
    features = ours.encode_captions(["b", "a", "b", "b"])
    assert np.array_equal(features[0], features[2])
    assert np.array_equal(features[0], features[3])
    assert not np.array_equal(features[0], features[1])


def test_a_batch_that_does_not_fit_the_gpu_is_halved(tiny: str) -> None:
    ours = OpenClipEncoder(resolve_weights(ModelSettings(checkpoint=tiny)), batch_size=16, num_threads=1)
    pixels = pixels_of(ours, 64)
    expected = ours.encode_images(pixels)
    whole = ours._model.encode_image
    sizes = []

    def small_gpu(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return whole(images)

    ours._model.encode_image = small_gpu
    assert np.abs(ours.encode_images(pixels) - expected).max() < 1e-5
    assert sizes == [9, 8, 4, 2, 2, 2, 2, 1]
    assert ours.batch_size == 2


def test_vectors_do_not_depend_on_how_many_threads_there_are(tiny: str) -> None:
    weights = resolve_weights(ModelSettings(checkpoint=tiny))
    size = image_size(preprocess_config(load_model(weights)))
    num = 2 * 64 + 7  # the last batch is so small that torch would divide its sums among threads
    pixels = np.random.default_rng(0).integers(0, 256, (num, size, size, 3), np.uint8)
    captions = [f"{number} {'very ' * (number % 20)}small things" for number in range(num)]
    threads = torch.get_num_threads()
    (images, texts), *others = (OpenClipEncoder(weights, num_threads=n).encode_pairs(pixels, captions) for n in (1, 2, 3))
    for found in others:
        assert np.array_equal(found[0], images)
        assert np.array_equal(found[1], texts)
    assert torch.get_num_threads() == threads


def test_a_word_without_end_is_cut_before_it_is_tokenised_and_gets_the_same_tokens(tiny: str) -> None:
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny}")
    rng = np.random.default_rng(0)
    letters = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 3000))
    (short,) = shortened([letters], tokenizer)
    assert len(short) == 20 * tokenizer.context_length < len(letters)
    assert torch.equal(tokenizer([short]), tokenizer([letters]))
