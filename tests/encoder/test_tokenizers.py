import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from conftest import EMOJI
from safetensors.torch import save_file

from manifests.errors import CheckpointError, UnsafeCheckpoint
from manifests.reading import open_round
from stages.score.models.checkpoints import load_model
from stages.score.models.encoders import OpenClipEncoder
from stages.score.models.tokenizers import tokenizer_sha256
from stages.score.models.weights import resolve_weights
from stages.settings import ModelSettings

Pairsan = Callable[..., Any]
transformers = pytest.importorskip("transformers")
VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1, "head_width": 32}
TEXT = {"context_length": 16, "width": 32, "heads": 2, "layers": 1}
SIGLIP = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": VISION,
    "text_cfg": {
        **TEXT,
        "vocab_size": 64,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
    },
}
ROBERTA = {
    "embed_dim": 32,
    "vision_cfg": VISION,
    "text_cfg": {
        "context_length": 16,
        "hf_model_name": "roberta-base",
        "hf_tokenizer_name": "roberta-base",
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "mlp",
    },
}
COCA = {
    "embed_dim": 32,
    "custom_text": True,
    "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": {**TEXT, "vocab_size": 49408, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "vocab_size": 49408, "attn_pooler_heads": 2},
}
CAPTIONS = ["a dog", "a red cat", "A DOG!", "the dog and the cat sit on a red house and sit and sit and sit and sit"]


def write_tokenizer(folder: Path, *, text_model: bool = False) -> Path:
    """A tokenizer of few words, as `save_pretrained` writes one, and the config of a small text model."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<unk>", *["a", "the", "dog", "cat", "red", "house", "sit", "and", "on"]]
    bare = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", unk_token="<unk>")
    whole.save_pretrained(folder)
    if text_model:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        transformers.RobertaConfig(vocab_size=64, pad_token_id=0, max_position_embeddings=40, **sizes).save_pretrained(folder)
    return folder


def write_model(folder: Path, config: dict[str, Any], **override: Any) -> Path:
    """A checkpoint folder with random weights of an architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(1)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False, **override)
    save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, folder / "weights.safetensors")
    return folder


def encoder(**options: Any) -> OpenClipEncoder:
    return OpenClipEncoder(resolve_weights(ModelSettings(**options)))


def by_open_clip(folder: Path, **override: Any) -> np.ndarray:
    """Unit vectors of the captions as open_clip itself makes them, its tokenizer in the model's own folder."""
    model = load_model(resolve_weights(ModelSettings(checkpoint=str(folder), **override)))
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    with torch.inference_mode():
        return torch.nn.functional.normalize(model.encode_text(tokens), dim=-1).numpy()


def test_siglip_reads_captions_by_the_tokenizer_in_its_own_folder(tmp_path: Path) -> None:
    folder = write_model(write_tokenizer(tmp_path / "siglip"), SIGLIP)
    mine = encoder(checkpoint=str(folder))
    assert not mine.trims  # its text tower reads the padding, too
    features = mine.encode_captions(CAPTIONS)
    np.testing.assert_allclose(features, by_open_clip(folder), atol=1e-6)
    np.testing.assert_array_equal(features[0], features[2])  # canonical: no case, no punctuation
    assert np.abs(features[0] - features[1]).max() > 1e-3
    images = mine.encode_images(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)


def test_a_tokenizer_folder_can_lie_elsewhere(tmp_path: Path) -> None:
    elsewhere, folder = write_tokenizer(tmp_path / "tokens"), write_model(tmp_path / "siglip", SIGLIP)
    features = encoder(checkpoint=str(folder), tokenizer=str(elsewhere)).encode_captions(CAPTIONS)
    write_tokenizer(folder)
    np.testing.assert_array_equal(features, encoder(checkpoint=str(folder)).encode_captions(CAPTIONS))
    shutil.copy(folder / "open_clip_config.json", tmp_path / "my-siglip.json")
    (tmp_path / "my-siglip.json").write_text(json.dumps(SIGLIP))
    named = {"model": str(tmp_path / "my-siglip.json"), "checkpoint": str(folder / "weights.safetensors")}
    np.testing.assert_array_equal(features, encoder(**named, tokenizer=str(elsewhere)).encode_captions(CAPTIONS))


def test_a_text_model_of_hugging_face_is_built_from_the_same_folder(tmp_path: Path) -> None:
    tokens = write_tokenizer(tmp_path / "roberta", text_model=True)
    override = {"text_cfg": {**ROBERTA["text_cfg"], "hf_model_name": str(tokens), "hf_model_pretrained": False}}
    folder = write_model(tokens, ROBERTA, **override)
    mine = encoder(checkpoint=str(folder))
    features = mine.encode_captions(CAPTIONS)
    assert features.shape == (4, 32)
    np.testing.assert_allclose(features, by_open_clip(folder), atol=1e-6)
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_coca_needs_no_more_than_open_clip(tmp_path: Path) -> None:
    mine = encoder(checkpoint=str(write_model(tmp_path / "coca", COCA)))
    assert mine.encode_captions(CAPTIONS).shape == (4, 32)
    assert mine.encode_images(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 32)


def test_what_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "siglip", SIGLIP)
    with pytest.raises(UnsafeCheckpoint, match="hf_tokenizer_name.*would fetch"):  # no tokenizer beside it
        resolve_weights(ModelSettings(checkpoint=str(folder)))
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        resolve_weights(ModelSettings(checkpoint=str(folder), tokenizer=str(tmp_path)))
    tokens = write_tokenizer(tmp_path / "tokens")
    with pytest.raises(CheckpointError, match="open_clip's own tokenizer; leave out --tokenizer"):
        resolve_weights(ModelSettings(checkpoint=str(EMOJI / "tiny-clip"), tokenizer=str(tokens)))
    (tokens / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no tokenizer for.*--tokenizer DIR"):
        encoder(checkpoint=str(folder), tokenizer=str(tokens))
    facts = json.loads((tokens / "tokenizer_config.json").read_text())
    (tokens / "tokenizer_config.json").write_text(json.dumps(facts | {"auto_map": {"AutoTokenizer": "evil.Tokenizer"}}))
    with pytest.raises(UnsafeCheckpoint, match="auto_map"):
        resolve_weights(ModelSettings(checkpoint=str(folder), tokenizer=str(tokens)))


@pytest.mark.whole
def test_a_run_names_its_tokenizer(crawl: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    folder = write_model(write_tokenizer(tmp_path / "siglip"), SIGLIP)
    out = tmp_path / "run"
    pairsan("clean", crawl, "--checkpoint", folder, "--out", out, "--executor", "local", "--keep-share", 0.5)
    model = open_round(out).seal["plan"]["scores"]["model"]
    assert model["tokenizer_sha256"] == tokenizer_sha256(str(folder))
    assert open_round(out).mask("00000.tar").sum() > 0
