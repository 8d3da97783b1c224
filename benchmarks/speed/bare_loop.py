"""What `pairsan clean` is measured against: read tars, decode, preprocess, encode, take cosines; no output, no Ray.

    python -m benchmarks.speed.bare_loop DATA CHECKPOINT [--limit SHARDS]

open_clip's own transform, tokenizer and encode functions, one thread, batches of 64.
"""

import argparse
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import open_clip
import torch
from PIL import Image


def pairs(shard: Path) -> Iterator[tuple[bytes, str]]:
    """Yield (image, caption) of a clean tar."""
    image = b""
    with tarfile.open(shard) as tar:
        for member in tar:
            extension = member.name.rpartition(".")[2]
            if extension in ("png", "webp"):
                image = tar.extractfile(member).read()  # type: ignore[union-attr]
            elif extension == "txt":
                yield image, tar.extractfile(member).read().decode()  # type: ignore[union-attr]


def main() -> None:
    """Score all pairs and print how many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--limit", type=int)
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
                text = model.encode_text(tokenizer([caption for _, caption in batch]), normalize=True)
            summed += float((image * text).sum())
            total += len(batch)
    print(f"{total} pairs, mean cosine {summed / total:.4f}")


if __name__ == "__main__":
    main()
