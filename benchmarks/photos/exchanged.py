"""Stated against realised on photographs whose captions are exchanged at random: the mismatches that the null is made for.

    python -m benchmarks.photos.exchanged OUT [--seeds 5]

OUT is that of `benchmarks.photos.checkpoint`, whose features of the 1,000 dev photographs are taken, each with one of its
captions. A share of the captions is exchanged among each other; rule `calibrated` cuts. Means over seeds.
"""

import argparse
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.common import header
from benchmarks.photos.checkpoint import projected
from manifests.errors import SplitRefused
from stages.histogram import Histogram, count, on_grid
from stages.label.decide import decide
from stages.label.settings import SplitSettings
from stages.score.models.checkpoints import load_model
from stages.score.models.weights import resolve_weights
from stages.score.null_cosines import null_cosines
from stages.settings import ModelSettings

SHARES: Final = (0.0, 0.01, 0.05, 0.15, 0.3)
ALPHAS: Final = (0.01, 0.05)
CHUNK: Final = 512


def main() -> None:
    """Print a line per share and alpha."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    header("photos.exchanged")
    model = load_model(resolve_weights(ModelSettings(checkpoint=str(args.out / "checkpoint"))))
    with torch.inference_mode():
        features = (torch.from_numpy(np.load(args.out / f"dev.{kind}.npy")) for kind in ("image", "text"))
        images, texts = (vectors.numpy() for vectors in projected(model, *features))
    texts = texts.reshape(len(images), -1, texts.shape[1])
    print("| exchanged | AUROC | alpha | stated | mismatched in safe | right pairs kept |\n|---|---|---|---|---|---|")
    for share in SHARES:
        for alpha in ALPHAS:
            found = [once(images, texts, share, alpha, seed) for seed in range(args.seeds)]
            auroc, stated, realised, kept = pd.DataFrame(found).mean()  # without what was refused
            apart = "-" if np.isnan(auroc) else f"{auroc:.3f}"
            print(f"| {share:.0%} | {apart} | {alpha:.0%} | {stated:.2%} | {realised:.2%} | {kept:.1%} |", flush=True)


def once(images: np.ndarray, texts: np.ndarray, share: float, alpha: float, seed: int) -> tuple[float, float, float, float]:
    """Return AUROC, and what is stated, realised and kept; nothing is kept where the split is refused."""
    rng, num = np.random.default_rng(seed), len(images)
    mine = texts[np.arange(num), rng.integers(0, texts.shape[1], num)]
    wrong = rng.permutation(num)[: round(share * num)]
    mine[wrong] = mine[np.roll(wrong, 1)]
    cosines = on_grid(np.einsum("nd,nd->n", images.astype(np.float64), mine.astype(np.float64)))
    pairs, nulls = Histogram(), Histogram()
    pairs.add(count(cosines))
    for start in range(0, num, CHUNK):
        part = slice(start, start + CHUNK)
        made = null_cosines(images[part], mine[part], np.arange(num)[part])
        nulls.add(count(made[np.isfinite(made)]))
    is_wrong = np.isin(np.arange(num), wrong)
    auroc = roc_auc_score(~is_wrong, cosines) if len(wrong) else np.nan
    try:
        decision = decide(pairs, SplitSettings(alpha=alpha), nulls=nulls)
    except SplitRefused:
        return auroc, np.nan, np.nan, 0.0
    safe, known = decision.is_safe(cosines), decision.reliability
    stated = known.of_safe if known is not None and known.of_safe is not None else np.nan
    return auroc, stated, is_wrong[safe].mean(), safe[~is_wrong].mean()


if __name__ == "__main__":
    main()
