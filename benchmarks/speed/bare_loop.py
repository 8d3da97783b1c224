"""What `pairsan clean` is measured against: read tars, decode, preprocess, encode, take cosines; no output, no Ray.

    python -m benchmarks.speed.bare_loop DATA CHECKPOINT [--limit SHARDS] [--trimmed]

open_clip's own transform, tokenizer and encode functions, one thread, batches of 64. --trimmed runs the text tower on as many
tokens as the longest caption of a batch has, as pairsan does.
"""

import argparse
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image

from stages.score.models.short_text import encode_short_text


def pairs(shard: Path) -> Iterator[tuple[bytes, str]]:
    """Yield (image, caption) of a clean tar."""
    image = b""
    with tarfile.open(shard) as tar:
        for member in tar:
            extension = member.name.rpartition(".")[2]
            if extension in ("jpg", "png", "webp"):
                image = tar.extractfile(member).read()  # type: ignore[union-attr]
            elif extension == "txt":
                yield image, tar.extractfile(member).read().decode()  # type: ignore[union-attr]


def texts(model: Any, tokens: torch.Tensor, trimmed: bool) -> torch.Tensor:
    """Return unit vectors of captions."""
    if trimmed:
        longest = int((tokens != 0).sum(dim=1).max())
        return torch.nn.functional.normalize(encode_short_text(model, tokens[:, :longest]), dim=-1)
    return model.encode_text(tokens, normalize=True)  # type: ignore[no-any-return]


def main() -> None:
    """Score all pairs and print how many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--trimmed", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{args.checkpoint}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{args.checkpoint}")
    total, summed = 0, 0.0
    for shard in sorted(args.data.glob("*.tar"))[: args.limit]:
        rows = list(pairs(shard))
        for start in range(0, len(rows), 64):
            batch = rows[start : start + 64]
            images = torch.stack([transform(Image.open(io.BytesIO(data)).convert("RGB")) for data, _ in batch])
            with torch.inference_mode():
                image = model.encode_image(images, normalize=True)
                text = texts(model, tokenizer([caption for _, caption in batch]), args.trimmed)
            summed += float((image * text).sum())
            total += len(batch)
    print(f"{total} pairs, mean cosine {summed / total:.4f}")


if __name__ == "__main__":
    main()
