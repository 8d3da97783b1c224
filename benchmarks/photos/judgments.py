"""Do the scores agree with people? 24,947 captions that people judged against photographs, cleaned by `pairsan clean`.

    python -m benchmarks.photos.judgments OUT --checkpoint FOLDER [--judges experts | crowd] [--data FOLDER]

The judged pairs are the dataset: near misses chosen by retrieval, most of them wrong, which no crawl is. Prints, with 95 %
intervals over photographs: Kendall's tau (c against the experts' marks, b against the crowd's share of yes), as CLIPScore
(Hessel et al. 2021) does, AUROC of "describes it" (experts' median at least 3; more than half of the crowd), and for each
alpha the stated beside the realised share of wrong pairs among the safe ones.
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from scipy.stats import kendalltau
from sklearn.metrics import roc_auc_score

from benchmarks.common import header
from benchmarks.photos.data import DATA, judgments, photos
from manifests.reading import open_round

ALPHAS: Final = (0.01, 0.05, 0.1)
RESAMPLES: Final = 200
SCORES: Final = ("cosine", "p_safe", "accord", "image_agreement", "reference_agreement", "neg_clip_loss")
BINS: Final = (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--judges", choices=("experts", "crowd"), default="experts")
    parser.add_argument("--reference", type=Path, help="a frozen image tower, as --reference-encoder of clean takes it")
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    header("photos.judgments")
    judged = judgments(args.data)
    judged = judged[judged["expert"].notna() if args.judges == "experts" else judged["crowd"].notna()].reset_index(drop=True)
    table = write_pairs(args.data, judged, args.out)
    run = args.out / f"run-{args.judges}"
    rounds = clean(table, args.checkpoint, args.reference, run)
    rows = judged.join(scores(run, rounds[0]))
    right = rows["expert"] >= 3 if args.judges == "experts" else rows["crowd"] > 0.5
    print(f"{len(rows)} pairs of {rows['key'].nunique()} photographs; {right.mean():.1%} describe them, by people\n")
    agreement(rows, right.to_numpy(), args.judges)
    stated(run, rounds, rows, right)
    reliability(rows, right)


def write_pairs(data: Path, judged: pd.DataFrame, out: Path) -> Path:
    """Write the photographs as files, and a table of judged pairs that open_clip and pairsan read; return the table."""
    out.mkdir(parents=True, exist_ok=True)
    for photo in photos(data, "judged"):
        (out / f"{photo.key}.jpg").write_bytes(photo.image)
    table = out / f"pairs-{len(judged)}.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title"])
        writer.writerows((f"{key}.jpg", caption) for key, caption in zip(judged["key"], judged["caption"], strict=True))
    return table


def clean(table: Path, checkpoint: Path, reference: Path | None, run: Path) -> list[int]:
    """Score the pairs once, and split them once for each alpha; return the rounds."""
    pairsan = [Path(sys.executable).parent / "pairsan"]
    look = ["--signals", "all", *([] if reference is None else ["--reference-encoder", reference])]
    for number, alpha in enumerate(ALPHAS, 1):
        if (run / "rounds" / f"{number:04d}" / "manifest.json").exists():
            continue
        what = ["clean", table, "--checkpoint", checkpoint, "--out", run, *look] if number == 1 else ["split", run]
        command = [*pairsan, *what, "--alpha", alpha, "--executor", "local"]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return list(range(1, len(ALPHAS) + 1))


def scores(run: Path, number: int) -> pd.DataFrame:
    """Return what a round says of each pair, in the order of the table."""
    rows = open_round(str(run), number).to_pandas(["index", "label", "cosine", "p_safe", "signals"]).sort_values("index")
    signals = pd.json_normalize(list(rows["signals"]))
    return pd.concat([rows.drop(columns="signals").reset_index(drop=True), signals], axis=1)


def agreement(rows: pd.DataFrame, right: np.ndarray, judges: str) -> None:
    """Print tau and AUROC of each score."""
    print("| score | Kendall's tau | AUROC of 'describes it' |\n|---|---|---|")
    for name in SCORES:
        if name not in rows or rows[name].isna().all():
            continue
        score = rows[name].fillna(rows[name].min()).to_numpy()

        def tau(place: np.ndarray, score: np.ndarray = score) -> float:
            if judges == "crowd":
                return float(kendalltau(score[place], rows["crowd"].to_numpy()[place], variant="b").statistic)
            marks = np.concatenate(rows["marks"].to_numpy()[place])
            return float(kendalltau(np.repeat(score[place], 3), marks, variant="c").statistic)

        def auroc(place: np.ndarray, score: np.ndarray = score) -> float:
            return float(roc_auc_score(right[place], score[place]))

        found = [spread(rows, value, RESAMPLES) for value in (tau, auroc)]
        print(f"| {name} | {100 * found[0][0]:.1f} ({100 * found[0][1]:.1f} to {100 * found[0][2]:.1f}) | ", end="")
        print(f"{found[1][0]:.3f} ({found[1][1]:.3f} to {found[1][2]:.3f}) |", flush=True)


def stated(run: Path, rounds: list[int], rows: pd.DataFrame, right: pd.Series) -> None:  # type: ignore[type-arg]
    """Print for each alpha what the seal states of the safe rows, and what people say of them."""
    print("\n| alpha | safe | stated wrong | wrong by people | of them 'not at all' |\n|---|---|---|---|---|")
    for number, alpha in zip(rounds, ALPHAS, strict=True):
        manifest = open_round(str(run), number)
        null = manifest.seal["null"]
        labels = manifest.to_pandas(["index", "label"]).sort_values("index")["label"].to_numpy()
        safe = np.flatnonzero(labels == "safe")

        def wrong(place: np.ndarray, safe: np.ndarray = labels == "safe") -> float:
            kept = place[safe[place]]
            return float(1 - right.to_numpy()[kept].mean()) if len(kept) else float("nan")

        share, low, high = spread(rows, wrong, RESAMPLES)
        none = (rows["expert"] == 1) | (rows["crowd"] == 0)
        print(f"| {alpha:.0%} | {len(safe)} | {null['stated_mismatched_in_safe']:.2%} ({null['stated_low']:.2%} to", end=" ")
        print(f"{null['stated_high']:.2%}) | {share:.1%} ({low:.1%} to {high:.1%}) | {none.to_numpy()[safe].mean():.1%} |")


def reliability(rows: pd.DataFrame, right: pd.Series) -> None:  # type: ignore[type-arg]
    """Print p_mismatch by bins, and what people say there."""
    if "p_mismatch" not in rows or rows["p_mismatch"].isna().all():
        return
    print("\n| p_mismatch | pairs | its mean | wrong by people |\n|---|---|---|---|")
    for low, high in pairwise(BINS):
        chosen = (rows["p_mismatch"] >= low) & ((rows["p_mismatch"] < high) | (high == 1))
        if chosen.any():
            mean, wrong = rows.loc[chosen, "p_mismatch"].mean(), 1 - right[chosen].mean()
            print(f"| {low} to {high} | {chosen.sum()} | {mean:.2f} | {wrong:.1%} |")


def spread(rows: pd.DataFrame, value: Callable[[np.ndarray], float], num: int) -> tuple[float, float, float]:
    """Return a statistic of all pairs, and its 95 % interval over resampled photographs."""
    groups = list(rows.groupby("key").indices.values())
    rng = np.random.default_rng(0)
    found = [value(np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])) for _ in range(num)]
    return value(np.arange(len(rows))), *np.nanpercentile(found, [2.5, 97.5])


if __name__ == "__main__":
    main()
