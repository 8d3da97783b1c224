"""One random ViT-B-32 in the three forms that the tools load: open_clip folder, safetensors file, Hugging Face folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

NAME: Final = "ViT-B-32"
_VISION: Final = {
    "conv1.weight": "embeddings.patch_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
}
_TEXT: Final = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final": "final_layer_norm",
}
_BLOCK: Final = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def write_weights(folder: Path) -> None:
    """Write `folder/open_clip` (with the safetensors file) and `folder/hf`; seed 0."""
    torch.manual_seed(0)
    model = open_clip.create_model(NAME, load_weights=False)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    ours = folder / "open_clip"
    ours.mkdir(parents=True)
    save_file(state, ours / "open_clip_model.safetensors")
    config = open_clip.get_model_config(NAME)
    preprocess = dataclasses.asdict(open_clip.transform.PreprocessCfg())
    (ours / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    write_hugging_face(state, folder / "hf")


def write_hugging_face(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the same weights as a `CLIPModel` with its processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    config = CLIPConfig(text_config={"eos_token_id": 49407, "hidden_act": "gelu"}, vision_config={"hidden_act": "gelu"})
    model = CLIPModel(config)
    missing, unknown = model.load_state_dict(renamed(state), strict=False)
    if unknown or any("position_ids" not in name for name in missing):
        raise SystemExit(f"weights do not fit CLIPModel: missing {missing}, unknown {unknown}")
    model.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    simple = SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    (folder / "vocab.json").write_text(json.dumps({special.get(word, word): n for word, n in simple.encoder.items()}))
    pairs = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in pairs))
    start, end = special.values()
    tokens = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"} | tokens))


def renamed(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return open_clip's classic CLIP weights under Hugging Face's names."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        tower, names = ("vision_model", _VISION) if key.startswith("visual.") else ("text_model", _TEXT)
        name = key.removeprefix("visual.")
        if name.startswith("transformer.resblocks."):
            _, _, number, rest = name.split(".", 3)
            found |= _block(f"{tower}.encoder.layers.{number}", rest, value)
        elif name == "proj":
            found["visual_projection.weight"] = value.T.contiguous()
        elif name == "text_projection":
            found["text_projection.weight"] = value.T.contiguous()
        elif name == "logit_scale":
            found[name] = value
        elif name != "attn_mask":
            old = name if name in names else name.rpartition(".")[0]
            found[f"{tower}.{name.replace(old, names[old])}"] = value
    return found


def _block(prefix: str, name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{prefix}.self_attn.{letter}_proj.{kind}": part.contiguous() for letter, part in parts}
    if name.startswith("attn.out_proj."):
        return {f"{prefix}.self_{name}": value}
    part, _, kind = name.rpartition(".")
    return {f"{prefix}.{_BLOCK[part]}.{kind}": value}
