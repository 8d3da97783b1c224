"""How a scout's crowds are cut: neighbours, sample, tail, whether a crowd takes its edge with it, and who must doubt it.

    python -m benchmarks.studies.crowds OUT [OUT ...] [--seeds 0 1 2] [--arm scout] [--doubts]

Each OUT is a folder of `python -m benchmarks.evidence` whose arm has scored a round with embeddings, or of
`benchmarks.evidence.signals_recall` or `benchmarks.studies.zero_poison` (--arm none). For every choice: the share of clean
rows that crowds
flag, and all limits of the round together; and the rows of each attack that all together leave. `edge q`: also rows whose
neighbours' own distance, at quantile q, lies under the cut; the pipeline takes the median. `--doubts`: by the round's own cut,
which rows all its limits flag where a crowded row must be doubted by looks up to a level, or be nearer than a part of the cut.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import header
from benchmarks.evidence.detectors import cut_of
from manifests import open_round
from stages.label.limits import DOUBTS_UP_TO
from stages.signals.neighbourhood import Neighbourhood
from stages.signals.sample import Reference
from stages.vectors import unit, vectors_of

CHOICES: Final = ((16, 2048), (32, 4096), (64, 8192), (16, 4096), (32, 8192))
TAILS: Final = (0.01, 0.02, 0.05)
EDGES: Final = (0.25, 0.5, 0.75)
DISCORD_SHARE, MOST_REPEATS, MOST_COPIES = 0.02, 2, 4
DOUBTS: Final = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)
DENSE: Final = (0.0, 0.6, 0.75, 0.9)
LOOK_TAILS: Final = (0.05, 0.1, 0.2)


class Scored:
    """The vectors of a scored round, what was planted, and what the other limits of a scout flag."""

    def __init__(self, run: Path, truth: Path) -> None:
        """Read round 1 of a run."""
        tables = []
        for part in sorted((run / "rounds/0001/embeddings").iterdir()):
            columns = ["shard", "key", "cosine", "signals"]
            scored = pq.read_table(run / "rounds/0001/manifest" / part.name, columns=columns)
            hashes = pq.read_table(run / "rounds/0001/scores" / part.name, columns=["image_hash"])["image_hash"]
            whole = scored.append_column("image_hash", hashes).append_column("image", pq.read_table(part)["image"])
            tables.append(whole.filter(pa.compute.is_valid(whole["cosine"])))
        rows = pa.concat_tables(tables).combine_chunks()
        self.vectors, self.hashes = unit(vectors_of(rows["image"])), rows["image_hash"].to_numpy()
        planted = pq.read_table(truth, columns=["shard", "key", "attack"]).to_pandas().set_index(["shard", "key"])["attack"]
        places = pd.MultiIndex.from_arrays([rows["shard"].cast(pa.string()).to_pylist(), rows["key"].to_pylist()])
        self.attack = planted.reindex(places).fillna("").to_numpy()
        self.signals = signals = pd.json_normalize(rows["signals"].to_pylist())
        limits = open_round(run, 1).seal["limits"]
        self.cut = max(limit["least"] for limit in limits if limit["signal"] == "neighbour_outlier")
        repeated = (signals["exact_copies"] > MOST_REPEATS) | (signals["near_copies"] > MOST_COPIES)
        repeated |= (signals["image_cluster_size"] > MOST_REPEATS) & (signals["accord"] <= DOUBTS_UP_TO)
        self.flagged = (repeated | (signals["accord"] <= signals["accord"].quantile(DISCORD_SHARE))).to_numpy()

    def distances(self, k: int, num: int, seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return how far each row's k-th neighbour in a sample is, (n,), and the same of its neighbours, sorted, (n, k)."""
        chosen = np.sort(np.random.default_rng(seed).choice(len(self.vectors), min(num, len(self.vectors)), replace=False))
        sample = Reference(self.hashes[chosen], self.vectors[chosen], self.vectors[chosen])
        around = Neighbourhood(sample, k)
        found = around.neighbours(self.vectors, self.hashes)
        return around.distance(self.vectors, found).astype(np.float64), np.sort(around.own[0][found], axis=1).astype(np.float64)


def lines(name: str, scored: Scored, seed: int) -> Iterator[dict[str, Any]]:
    """Yield one line per choice."""
    clean = scored.attack == ""
    for k, num in CHOICES:
        own, theirs = scored.distances(k, num, seed)
        for tail in TAILS:
            cut = cut_of(own, tail)
            for edge in (None, *EDGES):
                crowded = own < cut
                if edge is not None:
                    crowded |= theirs[:, int(edge * (k - 1))] < cut
                left = ~(crowded | scored.flagged)
                line = {"set": name, "k": k, "sample": num, "tail": tail, "edge": edge or "-"}
                line |= {"crowded, clean %": 100 * crowded[clean].mean(), "all, clean %": 100 * (~left[clean]).mean()}
                yield line | {name: int(left[scored.attack == name].sum()) for name in sorted(set(scored.attack) - {""})}


def doubts(name: str, scored: Scored) -> Iterator[dict[str, Any]]:
    """Yield one line per tail of looks, level of doubt and density."""
    clean, said = scored.attack == "", scored.signals["look_accord"].to_numpy(np.float64)
    own, theirs = (scored.signals[column].to_numpy(np.float64) for column in ("outlier", "neighbour_outlier"))
    crowded = (own < scored.cut) | (theirs < scored.cut)
    for tail, level, part in product(LOOK_TAILS, DOUBTS, DENSE):
        left = ~(scored.flagged | (said < tail) | (crowded & (said <= level)) | (own < part * scored.cut))
        line = {"set": name, "look tail": tail, "doubted up to": level, "or nearer than": part}
        line |= {"clean flagged %": 100 * (~left[clean]).mean()}
        yield line | {name: int(left[scored.attack == name].sum()) for name in sorted(set(scored.attack) - {""})}


def main() -> None:
    """Print one table for each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the data and models")
    parser.add_argument("--sample-seeds", type=int, nargs="+", default=[0], help="of the sample that neighbours are sought in")
    parser.add_argument("--arm", default="scout")
    parser.add_argument("--doubts", action="store_true", help="whose doubt a crowd needs, in place of how it is cut")
    args = parser.parse_args()
    header("studies.crowds")
    for out in args.out:
        found = []
        for seed in args.seeds:
            run = out / f"seed-{seed}" / args.arm / ("signals" if args.arm == "none" else "run")
            scored = Scored(run, out / f"seed-{seed}" / "data" / "truth.parquet")
            found += doubts(f"{out.name}/{seed}", scored) if args.doubts else ()
            for sample_seed in () if args.doubts else args.sample_seeds:
                found += list(lines(f"{out.name}/{seed}/{sample_seed}", scored, sample_seed))
        with pd.option_context("display.width", 250, "display.max_columns", 40):
            print(pd.DataFrame(found).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
