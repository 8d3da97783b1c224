"""Stated against realised: how much of what a split calls safe is mismatched, and how much of the matching is kept.

    python -m benchmarks.calibration [--seeds 3]

Captions of a share of the bundled rows are exchanged among each other; the bundled checkpoint scores them. It is strong on
`train` (it has learned those pairs, unexchanged) and weak on `eval` (a vendor it has not seen). Rules: ours by the mixture
(`monotone`), the paper's code (`published`), and the measured null (`calibrated`, alpha 1 and 5 %).
"""

import argparse
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.common import header
from benchmarks.evidence.data import BUNDLED
from benchmarks.evidence.rows import PoisonedRows
from manifests.errors import SplitRefused
from stages.grid import on_grid
from stages.hashes import caption_hashes
from stages.histogram import Histogram, count
from stages.null import null_cosines
from stages.options import SplitOptions
from stages.split import decide

SHARES = (0.0, 0.001, 0.01, 0.05, 0.15, 0.3)
RULES = {
    "monotone": SplitOptions(rule="monotone", min_separation=0.0),
    "published": SplitOptions(rule="published"),
    "calibrated 1 %": SplitOptions(rule="calibrated", alpha=0.01),
    "calibrated 5 %": SplitOptions(rule="calibrated", alpha=0.05),
}
CHUNK = 512
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Set:
    """Embedded rows, and hashes of their captions."""

    images: Vectors
    texts: Vectors
    captions: npt.NDArray[np.int64]


def embedded(part: str) -> Set:
    """Embed a part of the bundled rows by the bundled checkpoint."""
    rows = PoisonedRows(BUNDLED / part)
    images, texts = rows.vectors(str(BUNDLED / "tiny-clip"))
    return Set(images, texts, caption_hashes([row.caption for row in rows.rows]))


def exchanged(rows: Set, share: float, seed: int) -> tuple[Vectors, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return caption vectors and hashes after the exchange, and which rows are mismatched now."""
    rng, num = np.random.default_rng(seed), len(rows.images)
    chosen = rng.permutation(num)[: round(share * num)]
    order = np.arange(num)
    order[chosen] = np.roll(chosen, 1)
    return rows.texts[order], rows.captions[order], rows.captions[order] != rows.captions


def histogram(values: npt.NDArray[np.float64]) -> Histogram:
    """Return the histogram of cosines."""
    found = Histogram()
    found.add(count(on_grid(values)))
    return found


def lines(name: str, rows: Set, seeds: int) -> list[dict[str, object]]:
    """Split every exchange by every rule."""
    found: list[dict[str, object]] = []
    for share in SHARES:
        for seed in range(seeds):
            texts, captions, wrong = exchanged(rows, share, seed)
            cosine = np.einsum("nd,nd->n", rows.images.astype(np.float64), texts.astype(np.float64))
            starts = range(0, len(cosine), CHUNK)
            null = np.concatenate(
                [null_cosines(rows.images[i : i + CHUNK], texts[i : i + CHUNK], captions[i : i + CHUNK]) for i in starts]
            )
            nulls = histogram(null[np.isfinite(null)].astype(np.float64))
            for rule, options in RULES.items():
                line: dict[str, object] = {"checkpoint": name, "mismatched": share, "rule": rule, "refused": 0.0}
                try:
                    decision = decide(histogram(cosine), options, None, nulls)
                except SplitRefused:
                    found.append({**line, "refused": 1.0})
                    continue
                safe = decision.is_safe(on_grid(cosine))
                known = decision.calibration
                line |= {"in safe": wrong[safe].mean(), "clean kept": safe[~wrong].mean()}
                line |= {"estimated": known.mismatched_share if known else np.nan}
                if known is not None and decision.cut is not None:
                    line["stated"] = known.tail[round((decision.cut + 1) * 2**19)]
                found.append(line)
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    header("calibration")
    sets = {"strong (train, 5,217 rows)": embedded("train"), "weak (eval, 1,406 rows)": embedded("eval")}
    frame = pd.DataFrame([line for name, rows in sets.items() for line in lines(name, rows, seeds)])
    table = frame.groupby(["checkpoint", "mismatched", "rule"], sort=False).mean().reset_index()
    for column in ("mismatched", "in safe", "clean kept", "stated", "estimated", "refused"):
        table[column] = table[column].map(lambda value: "" if np.isnan(value) else f"{value:.2%}")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
