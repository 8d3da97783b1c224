"""How small a group of triggered pictures may be until their looks no longer show it, by the size of the sample.

    python -m benchmarks.studies.reach [--data photos] [--samples 16384 65536 131072] [--auroc 0.75 0.85]

Simulated in part: pictures are random crops of real ones, a share of the sample has a trigger, and the accord of its pairs is
drawn so that it orders them with the given AUROC by itself, that of all others uniformly. Says how many of 2,000 further
pictures with the trigger are below a scout's `look_tail`, and how many of 20,000 without. Groups are of one trigger each.
"""

import argparse
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from benchmarks.attacks import triggers
from benchmarks.attacks.world import load_rows
from benchmarks.common import header
from benchmarks.evidence.data import datasets
from stages.score.looks import Looks, looks
from stages.signals.witnesses.suspects import Suspects
from stages.train.settings import TrainSettings

EDGE: Final = 48
CLEAN, TRIGGERED = 20_000, 2_000
Pixels = npt.NDArray[np.uint8]
TRIGGERS: Final[dict[str, Callable[[Pixels], Pixels]]] = {
    "patch": lambda pixels: triggers.patch(pixels, seed=0, side=0.125, place=(0.85, 0.85)),
    "Blended": lambda pixels: triggers.blend(pixels, seed=0, share=0.25),
    "SIG": lambda pixels: triggers.sinusoid(pixels, amplitude=35, frequency=6),
    "tone": lambda pixels: triggers.tone(pixels, strength=1.0),
}


def crops(pictures: list[Image.Image], num: int, rng: np.random.Generator) -> list[Pixels]:
    """Return random crops of random pictures, of 80 to 100 % of an edge, half of them mirrored."""
    found = []
    for place in rng.integers(len(pictures), size=num):
        picture = pictures[place]
        edge = rng.uniform(0.8, 1.0) * min(picture.size)
        left, top = rng.uniform(0, picture.width - edge), rng.uniform(0, picture.height - edge)
        cut = picture.resize((EDGE, EDGE), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge))
        pixels = np.asarray(cut)
        found.append(pixels[:, ::-1] if rng.random() < 0.5 else pixels)
    return found


def accord(num: int, auroc: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return accords that lie below those of ordinary pairs, which are uniform, with a probability of `auroc`, float32 (n,)."""
    return rng.beta(1.0, auroc / (1.0 - auroc), num).astype(np.float32)  # the mean of Beta(1, b) is 1 / (1 + b)


def line(ordinary: Looks, triggered: dict[str, Looks], size: int, rate: float, auroc: float) -> dict[str, object]:
    """Return the share of triggered and of other pictures that are suspect, in %, by a sample of some size."""
    rng, tail, planted = np.random.default_rng(1), TrainSettings().scout_look_tail, round(rate * size)
    found: dict[str, object] = {"sample": size, "rate %": 100 * rate, "rows of it": planted, "AUROC": auroc}
    for name, seen in triggered.items():
        sample = np.concatenate([seen[TRIGGERED : TRIGGERED + planted], ordinary[CLEAN : CLEAN + size - planted]])
        doubts = np.concatenate([accord(planted, auroc, rng), rng.random(size - planted).astype(np.float32)])
        suspects = Suspects(np.arange(size), sample, doubts)
        asked = (seen[:TRIGGERED], accord(TRIGGERED, auroc, rng)), (ordinary[:CLEAN], rng.random(CLEAN).astype(np.float32))
        shares = [float((suspects(np.full(len(look), -1), look, own) < tail).mean()) for look, own in asked]
        found[name] = f"{100 * shares[0]:.0f} ({100 * shares[1]:.1f})"
    return found


def main() -> None:
    """Print the table: suspect pictures with the trigger, and without in brackets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="photos", choices=("bundled", "emoji", "full", "photos"))
    parser.add_argument("--samples", type=int, nargs="+", default=[16_384, 131_072])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.0003, 0.001, 0.003, 0.01])
    parser.add_argument("--auroc", type=float, nargs="+", default=[0.75, 0.85])
    args = parser.parse_args()
    header("studies.reach")
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(row.pixels()) for row in load_rows([str(datasets(args.data)[0])])]
    wanted = TRIGGERED + round(max(args.rates) * max(args.samples))
    ordinary = looks(np.stack(crops(pictures, CLEAN + max(args.samples), rng)))
    triggered = {
        name: looks(np.stack([change(pixels) for pixels in crops(pictures, wanted, rng)])) for name, change in TRIGGERS.items()
    }
    found = [
        line(ordinary, triggered, size, rate, auroc) for size in args.samples for rate in args.rates for auroc in args.auroc
    ]
    with pd.option_context("display.width", 200):
        print(pd.DataFrame(found).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
