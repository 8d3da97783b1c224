"""Does it help to know how fast a pair was learned? Early answers of a model as a further witness beside those of `accord`.

    python -m benchmarks.signals_recall OUT --rate 0.01 --seeds 0 1      # first: data, signals and undefended model
    python -m benchmarks.learning_speed OUT --seeds 0 1

Trains the undefended model of `signals_recall` again, the same steps, and keeps its answers after some passes. A witness
`speed N` is the rank of negCLIPLoss after pass N less that at the end, high for pairs learned early; `pass N` is negCLIPLoss
after pass N itself; `two-sided N` how extreme the cosine was in either direction. Each joins the three of `accord`, by Fisher,
behind the clusters of near copies; printed is the share of each attack within 10 % of the clean rows and its own.
"""

import argparse
import json
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.common import header
from benchmarks.evidence.arms import Cell, Setting
from benchmarks.evidence.detectors import neg_clip_loss
from benchmarks.evidence.training import MODEL, train
from benchmarks.signals_recall import MOST_COPIES, recalls
from manifests import open_round

PASSES: Final = (1, 2, 4, 6, 9)
BUDGET: Final = 0.1
Values = npt.NDArray[np.float64]


def ranks(values: Values) -> Values:
    """Return the share of values below each, in (0, 1)."""
    return (pd.Series(values).rank().to_numpy(np.float64) - 0.5) / len(values)


def answers(cell: Cell) -> dict[int, tuple[Values, Values]]:
    """Return cosine and negCLIPLoss of all rows after some passes, and at the end."""
    kept = cell.folder / f"seed-{cell.seed}" / "answers.npz"
    if not kept.exists():
        found: dict[str, Values] = {}
        weights = cell.folder / f"seed-{cell.seed}" / "answers.safetensors"

        def look(place: int, path: Path) -> None:
            if place in (*PASSES, cell.setting.passes):
                v, t = cell.rows.vectors(path, MODEL)
                found[str(place)] = np.stack([np.einsum("nd,nd->n", v, t), -neg_clip_loss(v, t, cell.seed)]).astype(np.float64)

        train(cell.shards, weights, cell.options, cell.num_steps, every=look, looks=cell.setting.passes)
        np.savez(kept, **found)
    with np.load(kept) as stored:
        return {int(name): (stored[name][0], stored[name][1]) for name in stored.files}


def witnesses(cell: Cell) -> dict[str, Values]:
    """Return further witnesses by name; low values speak against a pair."""
    known = answers(cell)
    last = known[cell.setting.passes]
    found: dict[str, Values] = {}
    for place in PASSES:
        cosine, loss = known[place]
        found[f"speed {place}"] = ranks(last[1]) - ranks(loss)
        found[f"pass {place}"] = loss
        found[f"two-sided {place}"] = np.minimum(ranks(cosine), 1.0 - ranks(cosine))
    return found


def suspicions(cell: Cell) -> dict[str, Values]:
    """Return scores by method: `accord` as it is, each witness alone, and with it."""
    run = open_round(cell.folder / f"seed-{cell.seed}" / "none" / "signals")
    rows = pd.json_normalize(list(cell.rows.join(run.to_pandas(["shard", "key", "label", "signals"]))["signals"]))
    size = np.where(rows["near_copies"] > MOST_COPIES, rows["near_copies"], 0.0)
    own = [ranks(rows[name].to_numpy(np.float64)) for name in ("neg_clip_loss", "image_agreement", "reference_agreement")]

    def together(more: list[Values]) -> Values:
        doubt = -np.log([*own, *map(ranks, more)]).sum(axis=0)
        return np.where(size > 0, size, 0.0) + doubt / doubt.max()

    found = {"accord": together([])}
    for name, values in witnesses(cell).items():
        found |= {f"{name} alone": -values, f"accord and {name}": together([values])}
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of signals_recall")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    header("learning_speed")
    given = json.loads((args.out / "setting.json").read_text())
    setting = Setting(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
    lines = []
    for seed in args.seeds:
        cell = Cell(setting, args.out, seed, "none")
        attack = cell.table["attack"].to_numpy()
        for method, score in suspicions(cell).items():
            for name in sorted(set(attack) - {""}):
                lines.append({"method": method, "attack": name, "share": recalls(attack, score, name)[BUDGET]})
    wide = pd.DataFrame(lines).pivot_table(index="method", columns="attack", values="share", sort=False)
    at_95, mean = (wide >= 0.95).sum(axis="columns"), wide.mean(axis="columns")
    table = (100 * wide.assign(mean=mean)).round().astype(int).assign(at_95=at_95)
    print(table.to_string())


if __name__ == "__main__":
    main()
