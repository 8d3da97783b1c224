"""A trainer of your own: open the newest sealed round through `manifests` and train open_clip on its safe rows.

    python examples/train_openclip.py RUN DATA --model local-dir:examples/emoji/tiny-clip --out logs --epochs 2

Writes logs/checkpoints/epoch_N.pt after each epoch, which `pairsan watch` or `pairsan rescore` picks up; the next epoch opens
the round that came of it. It shows the join, not a recipe: one process, local tars, no augmentation.
"""

import argparse
import io
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path

import open_clip
import torch
from open_clip.loss import ClipLoss
from PIL import Image

from manifests import Manifest, open_round

IMAGES = ("jpg", "jpeg", "png", "webp")
NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)$")
META = re.compile(r"__[^/]*__(/|$)")


def rows_of(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the rows of a tar as (key, {extension: bytes}): runs of adjacent files with one key, as WebDataset counts them."""
    with tarfile.open(shard) as tar:
        named = ((NAME.match(m.name), m) for m in tar if m.isreg() and not META.match(m.name))
        for key, run in groupby(((match, m) for match, m in named if match), key=lambda pair: pair[0][1]):
            yield key, {match[2].lower(): tar.extractfile(m).read() for match, m in run}


def safe_pairs(manifest: Manifest, data: Path) -> Iterator[tuple[bytes, str]]:
    """Yield (image, caption) of the safe rows; `join` checks that every label goes to the row it was made for."""
    for shard in manifest.shards:
        for label, row in manifest.join(shard, rows_of(data / shard)):
            if label == "safe":
                yield next(row[e] for e in IMAGES if e in row), row["txt"].decode()


def batches(manifest: Manifest, data: Path, size: int) -> Iterator[list[tuple[bytes, str]]]:
    """Yield the safe pairs in batches; the last, smaller one is left out, since CLIP's loss needs its negatives."""
    pairs = safe_pairs(manifest, data)
    while len(batch := list(islice(pairs, size))) == size:
        yield batch


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--resume", help="checkpoint to start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first-epoch", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-4)
    args = parser.parse_args()
    model, _, transform = open_clip.create_model_and_transforms(args.model)
    if args.resume:
        open_clip.load_checkpoint(model, args.resume, weights_only=True)
    tokenizer, loss_of = open_clip.get_tokenizer(args.model), ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.1)
    (args.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    for epoch in range(args.first_epoch, args.first_epoch + args.epochs):
        manifest = open_round(args.run)  # an unsealed round is refused
        model.train()
        loss, steps = torch.tensor(float("nan")), 0
        for batch in batches(manifest, args.data, args.batch_size):
            images = torch.stack([transform(Image.open(io.BytesIO(data)).convert("RGB")) for data, _ in batch])
            image, text = model.encode_image(images, normalize=True), model.encode_text(tokenizer([c for _, c in batch]), True)
            loss = loss_of(image, text, model.logit_scale.exp())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        path = args.out / "checkpoints" / f"epoch_{epoch}.pt"
        torch.save({"epoch": epoch, "state_dict": model.state_dict()}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)  # whole or absent, like every checkpoint should be
        print(f"epoch {epoch}: round {manifest.number}, {steps} steps, loss {loss.item():.3f}, wrote {path}")


if __name__ == "__main__":
    main()
