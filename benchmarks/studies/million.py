"""How small a crowd shows among a million rows, by the size of the sample that neighbours are sought in.

    python -m benchmarks.studies.million OUT [--attacks blended] [--samples 8192 32768 131072] [--neighbours 64 16]

OUT is a folder of `python -m benchmarks.evidence` with the arm `none`. Simulated in part: ordinary rows and the crowd are
vectors of that model's clean and planted pictures, drawn anew as often as wanted, each moved by noise as far as its nearest
other picture lies. Prints the share of the crowd, and in brackets of 20,000 ordinary rows, that is crowded by a scout's tail,
in %, where the crowd is a given share of the million.
"""

import argparse
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.common import header
from benchmarks.evidence.detectors import cut_of
from benchmarks.evidence.rows import Trained
from stages.signals.nearest import Nearest
from stages.signals.neighbourhood import Neighbourhood
from stages.signals.sample import Reference
from stages.train.settings import TrainSettings
from stages.vectors import unit

Vectors = npt.NDArray[np.float32]
ORDINARY, CROWD = 20_000, 2_000
MILLION: Final = 1_000_000


class Cloud:
    """Vectors to draw from, as many as wanted."""

    def __init__(self, vectors: Vectors) -> None:
        """Find how far from each its nearest other one lies."""
        self._vectors = np.unique(vectors, axis=0)  # the same picture under several captions is one
        cosine = Nearest(self._vectors, exact=True)(self._vectors, 2)[0][:, 1]
        self._apart = np.sqrt(np.maximum(2.0 - 2.0 * cosine, 0.0))

    def draw(self, num: int, rng: np.random.Generator) -> Vectors:
        """Return unit vectors, float32 (num, d)."""
        which = rng.integers(len(self._vectors), size=num)
        noise = unit(rng.standard_normal((num, self._vectors.shape[1]), np.float32))
        return unit(self._vectors[which] + self._apart[which, None] * noise)


def crowded(ordinary: Cloud, crowd: Cloud, share: float, num: int, k: int) -> tuple[float, float]:
    """Return which share of a crowd and of ordinary rows is crowded, by k neighbours in a sample of a million rows."""
    rng = np.random.default_rng(0)
    planted = int(rng.binomial(num, share))
    sample = np.concatenate([ordinary.draw(num - planted, rng), crowd.draw(planted, rng)])
    asked = np.concatenate([ordinary.draw(ORDINARY, rng), crowd.draw(CROWD, rng)])
    near = Neighbourhood(Reference(np.arange(num), sample, sample), k)(asked, asked, np.arange(num, num + len(asked)))
    cut = cut_of(near.outlier[: ORDINARY + round(share * ORDINARY)], TrainSettings().scout_crowded_tail)
    found = (near.outlier < cut) | (near.neighbour_outlier < cut)
    return float(found[ORDINARY:].mean()), float(found[:ORDINARY].mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attacks", nargs="+", default=["blended", "colour"])
    parser.add_argument("--samples", type=int, nargs="+", default=[8_192, 32_768, 131_072])
    parser.add_argument("--neighbours", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0001, 0.0003, 0.001, 0.003, 0.01])
    args = parser.parse_args()
    header("studies.million")
    trained = Trained(args.out, args.seed)
    ordinary, found = Cloud(trained.v[trained.attack == ""]), []
    for name in args.attacks:
        crowd = Cloud(trained.v[trained.attack == name])
        for num in args.samples:
            for k in args.neighbours:
                line: dict[str, object] = {"crowd": name, "sample": num, "k": k}
                for share in args.rates:
                    inside, clean = crowded(ordinary, crowd, share, num, k)
                    line[f"{share:.2%}, {round(share * MILLION):,} rows"] = f"{100 * inside:.0f} ({100 * clean:.1f})"
                found.append(line)
    with pd.option_context("display.width", 200):
        print(pd.DataFrame(found).to_string(index=False))


if __name__ == "__main__":
    main()
