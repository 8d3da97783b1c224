"""An honest CLIP-like checkpoint of photographs: DINOv2-S and MiniLM, frozen, and two projections trained on 6,000 photographs.

    python -m benchmarks.photos.checkpoint OUT [--data FOLDER] [--passes 40]

OUT/checkpoint is an open_clip folder that `pairsan clean --checkpoint` loads as it is. Features of the frozen towers are
computed once and kept in OUT, so that a second run trains the projections alone. Prints recall at 1, 5 and 10 on the 1,000
dev photographs. Call it what it is, not CLIP.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from safetensors.torch import load_file, save_file

from benchmarks.common import header
from benchmarks.photos.data import DATA, MINILM_FILES, Photo, dino, minilm, photos
from stages.read.images import decode_image
from stages.score.models.encoders import pixel_preprocess

Array = npt.NDArray[np.float32]
DIM: Final = 256
CONTEXT: Final = 40
BATCH: Final = 64
_NAME: Final = "sentence-transformers/all-MiniLM-L6-v2"
MODEL: Final = {
    "embed_dim": DIM,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "vit_small_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
    },
    "text_cfg": {
        "hf_model_name": _NAME,
        "hf_tokenizer_name": _NAME,
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear",
        "context_length": CONTEXT,
    },
}
PREPROCESS: Final = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": 224, "interpolation": "bicubic", "resize_mode": "squash"}


def main() -> None:
    """Compute features, train projections, write the folder, print recall."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--passes", type=int, default=40)
    args = parser.parse_args()
    header("photos.checkpoint")
    folder = args.out / "checkpoint"
    model, tokenizer = untrained(args.data, folder)
    features = {split: features_of(model, tokenizer, photos(args.data, split), args.out / split) for split in ("train", "dev")}
    train(model, *features["train"], args.passes)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    with torch.inference_mode():
        image, text = projected(model, *(torch.from_numpy(array) for array in features["dev"]))
    for way, found in recall(image.numpy(), text.numpy()).items():
        print(f"dev, {way}: recall at 1 / 5 / 10 {' / '.join(f'{share:.3f}' for share in found)}")
    print(f"wrote {folder}")


def untrained(data: Path, folder: Path) -> tuple[Any, Any]:
    """Write an open_clip folder with both towers' files, and return the model, its projections random, and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}, indent=1))
    texts = minilm()
    for name in MINILM_FILES[:-1]:
        shutil.copy(texts / name, folder / name)
    torch.manual_seed(0)
    local = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_model_pretrained": False}
    words: dict[str, Any] = dict(MODEL["text_cfg"])  # type: ignore[call-overload]
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, text_cfg=words | local).eval()
    model.visual.trunk.load_state_dict(load_file(dino(data)), strict=False)
    found = {key.removeprefix("bert."): value for key, value in load_file(texts / "model.safetensors").items()}
    missing, _ = model.text.transformer.load_state_dict(found, strict=False)
    if [name for name in missing if "position_ids" not in name and "pooler" not in name]:
        raise SystemExit(f"MiniLM lacks {missing}")
    return model, open_clip.tokenizer.HFTokenizer(str(folder), context_length=CONTEXT)


def features_of(model: Any, tokenizer: Any, found: Sequence[Photo], place: Path) -> tuple[Array, Array]:
    """Return what the frozen towers make of n photographs and of five captions each: (n, 384), (5 n, 384); kept at a place."""
    image, text = place.with_suffix(".image.npy"), place.with_suffix(".text.npy")
    if not image.exists():
        crop = pixel_preprocess({**PREPROCESS, "mode": "RGB", "fill_color": 0})

        def trunk(part: Sequence[Photo]) -> torch.Tensor:
            pixels = [decode_image(photo.image, crop, size_px=224, max_pixels=10**8)[0] for photo in part]
            batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
            return model.visual.trunk((batch - 127.5) / 127.5)  # type: ignore[no-any-return]

        np.save(image, in_batches(trunk, found))
    if not text.exists():

        def words(part: Sequence[str]) -> torch.Tensor:
            tokens = tokenizer(list(part))
            mask = (tokens != 0).long()
            tokens, mask = (rows[:, : int(mask.sum(dim=1).max())] for rows in (tokens, mask))
            found: torch.Tensor = model.text.pooler(model.text.transformer(input_ids=tokens, attention_mask=mask), mask)
            return found

        np.save(text, in_batches(words, [caption for photo in found for caption in photo.captions]))
    return np.load(image), np.load(text)


def in_batches(encode: Callable[[Any], torch.Tensor], rows: Sequence[Any]) -> Array:
    """Return features, float32 (n, d), batch by batch."""
    with torch.inference_mode():
        parts = [encode(rows[start : start + BATCH]).numpy() for start in range(0, len(rows), BATCH)]
    return np.concatenate(parts).astype(np.float32)


def projected(model: Any, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit vectors of features."""
    unit = torch.nn.functional.normalize
    return unit(model.visual.head(image), dim=-1), unit(model.text.proj(text), dim=-1)


def train(model: Any, image: Array, text: Array, passes: int) -> None:
    """Train both projections by the contrastive loss; each pass takes every photograph once, with one of its captions."""
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.from_numpy(image), torch.from_numpy(text).reshape(len(image), -1, text.shape[1])
    heads = [*model.visual.head.parameters(), *model.text.proj.parameters(), model.logit_scale]
    optimizer = torch.optim.AdamW(heads, lr=3e-3, weight_decay=1.0)
    size, loss = 1000, open_clip.ClipLoss()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=passes * (len(images) // size))
    for _ in range(passes):
        order = torch.randperm(len(images), generator=generator)
        which = torch.randint(texts.shape[1], (len(images),), generator=generator)
        for start in range(0, len(images) - size + 1, size):
            rows = order[start : start + size]
            vectors = projected(model, images[rows], texts[rows, which[rows]])
            optimizer.zero_grad()
            loss(*vectors, model.logit_scale.exp()).backward()
            optimizer.step()
            schedule.step()
            model.logit_scale.data.clamp_(max=float(np.log(100)))


def recall(image: Array, text: Array) -> dict[str, list[float]]:
    """Return the shares of captions whose photograph, and of photographs of which a caption, is among the nearest 1, 5, 10."""
    num = len(image)
    similar, of = text @ image.T, np.repeat(np.arange(num), len(text) // num)
    of_texts = (similar > similar[np.arange(len(text)), of][:, None]).sum(axis=1)
    own = similar.reshape(num, -1, num)[np.arange(num), :, np.arange(num)].max(axis=1)
    of_images = (own[:, None] < similar.T).sum(axis=1)
    ranks = {"captions to photographs": of_texts, "photographs to captions": of_images}
    return {way: [float(np.mean(rank < k)) for k in (1, 5, 10)] for way, rank in ranks.items()}


if __name__ == "__main__":
    main()
