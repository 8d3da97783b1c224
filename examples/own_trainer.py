"""A trainer of your own beside `pairsan watch`: plain PyTorch, and of pairsan only `manifests`.

    python examples/own_trainer.py RUN DATA --model local-dir:examples/emoji/tiny-clip --out logs --rounds 3
    pairsan watch RUN --checkpoints 'logs/epoch_*.pt' --rule look-again --growth 0.01

Trains a pass on the newest sealed round, with the CLIP loss on safe pairs and each modality by itself on risky ones, writes
logs/epoch_N.pt, and waits for the manifest that the watcher makes of it. Both may be killed at any time and started again. It
shows the loop, not a recipe: one process, local tars, a few augmentations.
"""

import argparse
import io
import re
import tarfile
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import open_clip
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, normalize
from torchvision.transforms import v2

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


def batches(manifest: Manifest, data: Path, size: int) -> Iterator[tuple[str, list[tuple[Image.Image, str]]]]:
    """Yield (label, [(image, caption), ...]); `join` checks that every label goes to the row that it was made for."""
    held: dict[str, list[tuple[Image.Image, str]]] = {"safe": [], "risky": []}
    for shard in manifest.shards:
        # sit_out: whose turn it is trains as if it were risky, so that the next look scores it out of sample
        for label, row in manifest.join(shard, rows_of(data / shard), sit_out=True):
            if label in held:  # quarantined rows never train
                image = next(row[ending] for ending in IMAGES if ending in row)
                held[label].append((Image.open(io.BytesIO(image)).convert("RGB"), row["txt"].decode()))
                if len(held[label]) == size:
                    yield label, held[label]
                    held[label] = []


def contrast(one: torch.Tensor, other: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the symmetric contrastive loss of two batches of features whose rows belong together."""
    logits, rows = scale * normalize(one) @ normalize(other).T, torch.arange(len(one))
    return (cross_entropy(logits, rows) + cross_entropy(logits.T, rows)) / 2


def one_pass(model: torch.nn.Module, tokenizer: object, optimizer: torch.optim.Optimizer, args: argparse.Namespace) -> Manifest:
    """Train on the newest sealed round, and return it; an unsealed one is refused."""
    manifest, visual = open_round(args.run), model.visual
    look = v2.Compose(
        [
            v2.RandomResizedCrop(visual.image_size, scale=(0.8, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(visual.image_mean, visual.image_std),
        ]
    )
    model.train()
    for label, rows in batches(manifest, args.data, args.batch_size):
        images, captions = torch.stack([look(image) for image, _ in rows]), [caption for _, caption in rows]
        scale = model.logit_scale.exp()
        if label == "safe":
            loss = contrast(model.encode_image(images), model.encode_text(tokenizer(captions)), scale)
        else:
            again = torch.stack([look(image) for image, _ in rows])
            shorter = [" ".join(caption.split()[1:]) or caption for caption in captions]
            loss = contrast(model.encode_image(images), model.encode_image(again), scale)
            loss = (loss + contrast(model.encode_text(tokenizer(captions)), model.encode_text(tokenizer(shorter)), scale)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return manifest


def wait_for_a_newer_round(run: str, number: int, patience_s: float) -> None:
    """Wait for the manifest of the checkpoint just written; a look that was refused leaves the old one in force."""
    until = time.monotonic() + patience_s
    while open_round(run).number <= number and time.monotonic() < until:
        time.sleep(0.5)


def main() -> None:
    """Train, from the newest checkpoint that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for a newer round")
    args = parser.parse_args()
    model, tokenizer = open_clip.create_model(args.model), open_clip.get_tokenizer(args.model)
    optimizer, done = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.1), 0
    args.out.mkdir(parents=True, exist_ok=True)
    if found := sorted(args.out.glob("epoch_*.pt"), key=lambda path: int(path.stem[6:])):
        state = torch.load(found[-1], weights_only=True)
        model.load_state_dict(state["state_dict"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["epoch"]
        wait_for_a_newer_round(args.run, state["round"], args.patience)
    for epoch in range(done + 1, args.rounds + 1):
        manifest = one_pass(model, tokenizer, optimizer, args)
        path = args.out / f"epoch_{epoch}.pt"
        state = {
            "epoch": epoch,
            "round": manifest.number,
            "state_dict": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)  # whole or absent, like every checkpoint should be
        print(f"epoch {epoch}: trained on round {manifest.number}, wrote {path}", flush=True)
        if epoch < args.rounds:
            wait_for_a_newer_round(args.run, manifest.number, args.patience)


if __name__ == "__main__":
    main()
