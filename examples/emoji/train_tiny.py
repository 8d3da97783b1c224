"""Train the tiny CLIP checkpoint that lies in examples/emoji/tiny-clip on the bundled pairs, from scratch.

    python examples/emoji/train_tiny.py --passes 30 --out examples/emoji/tiny-clip

Plain CLIP training on clean pairs: shifts and flips, AdamW, one-cycle learning rate. Weights are stored as fp16. The
script ends with how well true pairs can be told from shuffled ones, on the training part and on the held-out vendor.
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from stages.read.shards import open_dataset
from stages.score.decode import Decode
from stages.score.models.encoders import preprocess_config
from stages.settings import ReadSettings

HERE = Path(__file__).parent


def load(part: str, model: torch.nn.Module) -> tuple[torch.Tensor, list[str]]:
    """Return all images, uint8 (n, 3, 64, 64), and captions of one part, through the pipeline's own reader."""
    dataset = open_dataset([str(HERE / part)])
    decode = Decode(dataset.store, ReadSettings(), preprocess_config(model), num_threads=2)
    decode.open()
    chunks = [chunk for shard in dataset.shards for chunk in decode.run(shard)]
    pixels = np.concatenate([chunk.pixels for chunk in chunks])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), [pair.caption or "" for c in chunks for pair in c.pairs]


def augment(images: torch.Tensor) -> torch.Tensor:
    """Shift a batch by up to 6 px, flip half of it, jitter its brightness."""
    dx, dy = random.randint(-6, 6), random.randint(-6, 6)
    images = torch.roll(images, (dy, dx), (2, 3))
    flip = torch.rand(len(images)) < 0.5
    images[flip] = images[flip].flip(3)
    return images * (1.0 + 0.2 * (torch.rand(len(images), 1, 1, 1) - 0.5))


def features(
    model: torch.nn.Module, normalise: torch.nn.Module, images: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit vectors of all images and captions."""
    with torch.inference_mode():
        batches = [model.encode_image(normalise(i / 255.0), normalize=True) for i in images.float().split(256)]
        return torch.cat(batches), torch.cat([model.encode_text(t, normalize=True) for t in tokens.split(256)])


def main() -> None:
    """Train, report, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--out", type=Path, default=HERE / "tiny-clip")
    args = parser.parse_args()
    torch.manual_seed(0)
    random.seed(0)

    model = open_clip.create_model(f"local-dir:{HERE / 'tiny-clip'}", load_weights=False)
    model = model.to(memory_format=torch.channels_last)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{HERE / 'tiny-clip'}")
    config = preprocess_config(model)
    mean, std = (torch.tensor(config[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))

    class Normalise(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return ((images - mean) / std).contiguous(memory_format=torch.channels_last)

    normalise = Normalise()
    parts = {name: load(name, model) for name in ("train", "eval")}
    images, captions = parts["train"]
    tokens = tokenizer(captions)
    length = int((tokens != 0).sum(1).max())
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}], lr=args.lr)
    steps = len(images) // args.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps * args.passes, pct_start=0.1)
    loss_of = ClipLoss()
    start = time.time()
    from stages.score.models.short_text import encode_short_text

    for number in range(args.passes):
        model.train()
        order, losses = torch.randperm(len(images)), []
        for step in range(steps):
            rows = order[step * args.batch_size : (step + 1) * args.batch_size]
            batch = normalise(augment(images[rows].float()) / 255.0)
            image = torch.nn.functional.normalize(model.encode_image(batch), dim=-1)
            text = torch.nn.functional.normalize(encode_short_text(model, tokens[rows, :length]), dim=-1)
            loss = loss_of(image, text, model.logit_scale.exp())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, np.log(100))
            losses.append(loss.item())
        print(f"pass {number + 1}: loss {np.mean(losses):.3f}, {time.time() - start:.0f} s", flush=True)

    model.eval()
    for name, (pixels, words) in parts.items():
        image, text = features(model, normalise, pixels, tokenizer(words))
        true, shuffled = (image * text).sum(1).numpy(), (image * text.roll(1, 0)).sum(1).numpy()
        auroc = roc_auc_score(np.r_[np.ones(len(true)), np.zeros(len(true))], np.r_[true, shuffled])
        print(f"{name}: cosine {true.mean():.3f} true, {shuffled.mean():.3f} shuffled, AUROC {auroc:.4f}")
    state = {
        key: value.half().contiguous() if value.is_floating_point() else value for key, value in model.state_dict().items()
    }
    save_file(state, args.out / "open_clip_model.safetensors")


if __name__ == "__main__":
    main()
