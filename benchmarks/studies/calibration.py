"""Stated against realised: how much of what a split calls safe is mismatched, and how much of the matching is kept.

    python -m benchmarks.studies.calibration [--seeds 3] [--null near] [--exchange near]

Captions of a share of the bundled rows are exchanged among each other; the bundled checkpoint scores them. It is strong on
`train` (it has learned those pairs, unexchanged) and weak on `eval` (a vendor it has not seen). Rules: ours by the mixture
(`monotone`), the paper's code (`published`), and the measured null (`calibrated`, alpha 1 and 5 %; the latter also with a null
of its own for each caption length). `--null near` takes the captions of the nearest other images for the null, in place of
random ones; `--exchange near` gives rows the caption of the nearest image of another class, in place of any. `worst stratum`:
the largest rate of mismatched pairs among the safe ones of a caption length, of 200 safe ones at least.
"""

import argparse
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from benchmarks.common import header
from benchmarks.evidence.data import BUNDLED
from benchmarks.evidence.rows import PoisonedRows
from manifests.errors import SplitRefused
from manifests.schema import NUM_NULLS
from stages.histogram import Histogram, count, on_grid
from stages.label.decide import decide
from stages.label.fit.strata import Codes, strata_of
from stages.label.settings import SplitSettings
from stages.score.hashes import caption_hashes
from stages.score.null_cosines import CHUNK_ROWS, caption_rows, null_cosines

SHARES = (0.0, 0.001, 0.01, 0.05, 0.15, 0.3)
RULES = {
    "monotone": SplitSettings(rule="monotone", min_separation=0.0),
    "published": SplitSettings(rule="published"),
    "calibrated 1 %": SplitSettings(rule="calibrated", alpha=0.01),
    "calibrated 5 %": SplitSettings(rule="calibrated", alpha=0.05),
    "calibrated 5 %, strata": SplitSettings(rule="calibrated", alpha=0.05, null_strata="caption-length"),
}
FEWEST = 200
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Set:
    """Embedded rows, hashes of their captions, the strata of these, and the classes of the images."""

    images: Vectors
    texts: Vectors
    captions: npt.NDArray[np.int64]
    strata: Codes
    classes: npt.NDArray[np.str_]


def embedded(part: str) -> Set:
    """Embed a part of the bundled rows by the bundled checkpoint."""
    rows = PoisonedRows(BUNDLED / part)
    images, texts = rows.vectors(str(BUNDLED / "tiny-clip"))
    captions = [row.caption for row in rows.rows]
    classes = np.asarray([row.label for row in rows.rows])
    return Set(images, texts, caption_hashes(captions), strata_of("caption-length", pa.array(captions)), classes)


def exchanged(rows: Set, share: float, seed: int, near: bool) -> tuple[Set, npt.NDArray[np.bool_]]:
    """Return the rows after the exchange, and which are mismatched now."""
    rng, num = np.random.default_rng(seed), len(rows.images)
    chosen = rng.permutation(num)[: round(share * num)]
    order = np.arange(num)
    order[chosen] = np.roll(chosen, 1)
    if near:
        same = rows.classes[chosen, None] == rows.classes[None]
        order[chosen] = np.where(same, -np.inf, rows.images[chosen] @ rows.images.T).argmax(axis=1)
    after = Set(rows.images, rows.texts[order], rows.captions[order], rows.strata[order], rows.classes)
    return after, after.captions != rows.captions


def nulls_of(rows: Set, near: bool) -> npt.NDArray[np.float64]:
    """Return cosines of mismatched pairs, NaN where there is none, float64 (n, 4); random ones as the pipeline takes them."""
    found = []
    for start in range(0, len(rows.images), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        v, t, captions = rows.images[part], rows.texts[part], rows.captions[part]
        found.append(_near(v, t, captions) if near else null_cosines(v, t, captions))
    return np.concatenate(found).astype(np.float64)


def _near(v: Vectors, t: Vectors, captions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    similar = np.where(captions[None] == captions[:, None], -np.inf, v @ v.T)
    others = np.argsort(-similar, axis=1, kind="stable")[:, :NUM_NULLS]
    return on_grid(np.einsum("nd,nkd->nk", v.astype(np.float64), t[others].astype(np.float64)))


def histogram(values: npt.NDArray[np.float64]) -> Histogram:
    """Return the histogram of cosines."""
    found = Histogram()
    found.add(count(on_grid(values)))
    return found


def worst_stratum(codes: Codes, safe: npt.NDArray[np.bool_], wrong: npt.NDArray[np.bool_]) -> float:
    """Return the largest share of mismatched rows among the safe ones of a stratum that has 200 of them."""
    held = [safe & (codes == code) for code in np.unique(codes)]
    return max((float(wrong[rows].mean()) for rows in held if rows.sum() >= FEWEST), default=np.nan)


def lines(name: str, rows: Set, seeds: int, near_null: bool, near_exchange: bool) -> list[dict[str, object]]:
    """Split every exchange by every rule."""
    found: list[dict[str, object]] = []
    for share in SHARES:
        for seed in range(seeds):
            after, wrong = exchanged(rows, share, seed, near_exchange)
            cosine = np.einsum("nd,nd->n", after.images.astype(np.float64), after.texts.astype(np.float64))
            null, codes = nulls_of(after, near_null), after.strata
            nulls = histogram(null[np.isfinite(null)])
            others = caption_rows(
                np.ones(len(cosine), bool)
            )  # of near ones the strata are those of random ones: no matter here
            of = np.where(np.isfinite(null), codes[others], -1)
            counted = {int(c): (histogram(cosine[codes == c]), histogram(null[of == c])) for c in np.unique(codes)}
            for rule, options in RULES.items():
                line: dict[str, object] = {"checkpoint": name, "mismatched": share, "rule": rule, "refused": 0.0}
                try:
                    decision = decide(histogram(cosine), options, nulls=nulls, strata=counted)
                except SplitRefused:
                    found.append({**line, "refused": 1.0})
                    continue
                safe = decision.is_safe(on_grid(cosine), codes)
                known = decision.calibration
                line |= {"in safe": wrong[safe].mean(), "clean kept": safe[~wrong].mean()}
                line["worst stratum"] = worst_stratum(codes, safe, wrong)
                line |= {"estimated": known.mismatched_share if known else np.nan}
                if known is not None and decision.cut is not None:
                    line["stated"] = known.tail[round((decision.cut + 1) * 2**19)]
                found.append(line)
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--null", choices=("random", "near"), default="random")
    parser.add_argument("--exchange", choices=("random", "near"), default="random")
    args = parser.parse_args()
    near = (args.null == "near", args.exchange == "near")
    header("studies.calibration")
    sets = {"strong (train, 5,217 rows)": embedded("train"), "weak (eval, 1,406 rows)": embedded("eval")}
    frame = pd.DataFrame([line for name, rows in sets.items() for line in lines(name, rows, args.seeds, *near)])
    table = frame.groupby(["checkpoint", "mismatched", "rule"], sort=False).mean().reset_index()
    for column in ("mismatched", "in safe", "clean kept", "worst stratum", "stated", "estimated", "refused"):
        table[column] = table[column].map(lambda value: "" if np.isnan(value) else f"{value:.2%}")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
