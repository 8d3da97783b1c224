"""Can clean rows be promised a flag rate by conformal calibration? By unseen rows, and by some of the data's own.

    python -m benchmarks.studies.conformal OUT [--data photos-5] [--seed 0]

OUT is a folder of `python -m benchmarks.evidence` with the arm `none`. For several scores a cut is placed so that a share
alpha of a calibration set lies beyond it (conformal quantile), and printed is which share of the clean rows does: by the
held-out rows, all clean, on which the model has not trained; and by 200 samples of 400 clean rows of the data, as people
would judge them, with the 2.5 and 97.5 percentile over these samples.
"""

import argparse
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.common import header
from benchmarks.evidence.data import datasets
from benchmarks.evidence.rows import PoisonedRows, Trained
from benchmarks.evidence.training import MODEL
from stages.signals.neighbourhood import Neighbourhood
from stages.signals.sample import Reference
from stages.signals.witnesses.accord import Accord, Rows

ALPHAS: Final = (0.01, 0.05, 0.1)
JUDGED, DRAWS = 400, 200
Scores = npt.NDArray[np.float64]


def cut_of(scores: Scores, alpha: float) -> float:
    """Return the cut at or below which an exchangeable row lies with a probability of at most alpha."""
    place = int(alpha * (len(scores) + 1))
    return float(np.sort(scores)[place - 1]) if place else -np.inf


def scores_of(trained: Trained, held_out: Path, seed: int) -> dict[str, tuple[Scores, Scores]]:
    """Return several scores, low is suspicious, of the rows that a model has trained on and of held-out ones."""
    v, t, images = trained.v, trained.t, np.unique(trained.v, axis=0, return_inverse=True)[1].astype(np.int64)
    others = PoisonedRows(held_out).vectors(trained.weights, MODEL)
    unseen = len(v) + np.arange(len(others[0]))
    rng = np.random.default_rng(seed)
    chosen = np.sort(np.unique(images[rng.permutation(len(v))[:16_384]], return_index=True)[1])
    accord = Accord(Reference(images[chosen], v[chosen], t[chosen]), 8, None)
    drawn = np.sort(rng.choice(len(v), min(8_192, len(v)), replace=False))
    around = Neighbourhood(Reference(images[drawn], v[drawn], t[drawn]), 64)
    found = {}
    for name, score in {
        "cosine": lambda v, t, _: np.einsum("nd,nd->n", v, t),
        "accord": lambda v, t, hashes: accord(Rows(v, t, hashes)).accord,
        "distance of the 64th neighbour": lambda v, t, hashes: around(v, t, hashes).outlier,
    }.items():
        found[name] = (score(v, t, images).astype(np.float64), score(*others, unseen).astype(np.float64))
    return found


def main() -> None:
    """Print a line per score and alpha."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="photos-5")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    header("studies.conformal")
    trained, rng = Trained(args.out, args.seed), np.random.default_rng(1)
    clean = np.flatnonzero(trained.attack == "")
    print("| score | alpha | by unseen rows | by 400 of its own |\n|---|---|---|---|")
    for name, (own, unseen) in scores_of(trained, datasets(args.data)[1], args.seed).items():
        for alpha in ALPHAS:
            far = (own[clean] <= cut_of(unseen, alpha)).mean()
            near = [(own[clean] <= cut_of(own[rng.choice(clean, JUDGED, replace=False)], alpha)).mean() for _ in range(DRAWS)]
            low, high = np.quantile(near, [0.025, 0.975])
            print(f"| {name} | {alpha:.0%} | {far:.2%} | {np.mean(near):.2%} ({low:.1%} to {high:.1%}) |", flush=True)


if __name__ == "__main__":
    main()
