"""The trimmed text tower against `encode_text` at 77 tokens, on the bundled captions.

    python -m benchmarks.speed.text [--model ViT-B-32] [--captions 512]

ViT-B-32's text tower with random weights: speed does not depend on their values. One thread.
"""

import argparse
import tempfile
import time
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from benchmarks.common import ROOT, header
from stages.read.shards import open_dataset, read_shard
from stages.score.models.encoders import OpenClipEncoder
from stages.score.models.weights import resolve_weights
from stages.settings import ModelSettings, ReadSettings


def main() -> None:
    """Time both in turn, three times, and print the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--captions", type=int, default=512)
    args = parser.parse_args()
    header("speed.text")
    torch.set_num_threads(1)
    dataset = open_dataset([str(ROOT / "examples/emoji/train")])
    pairs = (pair for shard in dataset.shards for pair in read_shard(dataset.store, shard, ReadSettings()))
    captions = [pair.caption or "" for pair, _ in zip(pairs, range(args.captions), strict=False)]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = open_clip.create_model(args.model).eval()
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, Path(folder) / "m.safetensors")
        options = ModelSettings(model=args.model, checkpoint=f"{folder}/m.safetensors")
        encoder = OpenClipEncoder(resolve_weights(options), batch_size=64)
    tokenizer = open_clip.get_tokenizer(args.model)
    ratios = []
    for _ in range(3):
        start = time.perf_counter()
        ours = encoder.encode_captions(captions)
        middle = time.perf_counter()
        with torch.inference_mode():
            full = torch.cat([model.encode_text(t, normalize=True) for t in tokenizer(captions).split(64)])
        end = time.perf_counter()
        ratios.append((end - middle) / (middle - start))
        print(f"{len(captions) / (middle - start):.0f} captions/s trimmed, {len(captions) / (end - middle):.1f} at 77 tokens")
    print(f"trims: {encoder.trims}; largest difference {float((torch.from_numpy(ours) - full).abs().max()):.1e}")
    print(f"ratio, tokenising included on both sides: {sorted(ratios)[1]:.1f} (of {', '.join(f'{r:.1f}' for r in ratios)})")


if __name__ == "__main__":
    main()
