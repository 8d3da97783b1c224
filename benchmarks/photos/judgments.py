"""Do the scores agree with people? 24,947 captions that people judged against photographs, cleaned by `pairsan clean`.

    python -m benchmarks.photos.judgments OUT --checkpoint FOLDER [--judges experts | crowd] [--data FOLDER]

The judged pairs are the dataset: near misses chosen by retrieval, most of them wrong, which no crawl is. Prints, with 95 %
intervals over photographs: Kendall's tau (c against the experts' marks, b against the crowd's share of yes), as CLIPScore
(Hessel et al. 2021) does, AUROC of "describes it" (experts' median at least 3; more than half of the crowd), and for each
alpha the stated beside the realised share of wrong pairs among the safe ones; and what `--rule judged` makes of samples of the
verdicts.
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
from manifests.errors import SplitRefused
from manifests.layout import sealed_rounds
from manifests.reading import open_round
from manifests.store import open_store
from stages.histogram import Histogram, count
from stages.label.fit.judged import Judged, calibrate_by_people
from stages.label.settings import SplitSettings

ALPHAS: Final = (0.01, 0.05, 0.1)
RESAMPLES: Final = 200
SCORES: Final = ("cosine", "p_safe", "accord", "image_agreement", "reference_agreement", "neg_clip_loss")
JUDGED: Final = (100, 200, 400)
DRAWS: Final = 50
LEAST_SAFE: Final = SplitSettings().min_safe_share
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
    rows = judged.join(scores(run, max((number for number in rounds.values() if number), default=1)))
    right = rows["expert"] >= 3 if args.judges == "experts" else rows["crowd"] > 0.5
    print(f"{len(rows)} pairs of {rows['key'].nunique()} photographs; {right.mean():.1%} describe them, by people\n")
    agreement(rows, right.to_numpy(), args.judges)
    stated(run, rounds, rows, right)
    reliability(rows, right)
    by_people(rows, right.to_numpy())


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


def clean(table: Path, checkpoint: Path, reference: Path | None, run: Path) -> dict[float, int | None]:
    """Score the pairs once, and split them once for each alpha; return the rounds, None where the split was refused."""
    store, pairsan = open_store(str(run)), [Path(sys.executable).parent / "pairsan"]
    if not sealed_rounds(store):
        look = ["--signals", "all", *([] if reference is None else ["--reference-encoder", reference])]
        keep = ["--keep-share", 0.5, "--if-unseparable", "accept"]
        call([*pairsan, "clean", table, "--checkpoint", checkpoint, "--out", run, *look, *keep, "--executor", "local"])
    rounds: dict[float, int | None] = {}
    for alpha in ALPHAS:
        done = call([*pairsan, "split", run, "--rule", "calibrated", "--alpha", alpha, "--executor", "local"], refused=True)
        rounds[alpha] = max(sealed_rounds(store)) if done else None
    return rounds


def call(command: list[object], *, refused: bool = False) -> bool:
    """Run a command; return whether it ended well. With `refused` a split that is not believed is no error."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode and not (refused and done.returncode == SplitRefused.exit_code):
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.returncode == 0


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


def stated(run: Path, rounds: dict[float, int | None], rows: pd.DataFrame, right: pd.Series) -> None:  # type: ignore[type-arg]
    """Print for each alpha what the seal states of the safe rows, and what people say of them."""
    print("\n| alpha | safe | stated wrong | wrong by people | of them 'not at all' |\n|---|---|---|---|---|")
    none = ((rows["expert"] == 1) | (rows["crowd"] == 0)).to_numpy()
    for alpha, number in rounds.items():
        if number is None:
            print(f"| {alpha:.0%} | refused: no cut leaves so few mismatched | | | |")
            continue
        manifest = open_round(str(run), number)
        null = manifest.seal["null"]
        safe = (manifest.to_pandas(["index", "label"]).sort_values("index")["label"] == "safe").to_numpy()

        def wrong(place: np.ndarray, safe: np.ndarray = safe) -> float:
            kept = place[safe[place]]
            return float(1 - right.to_numpy()[kept].mean()) if len(kept) else float("nan")

        share, low, high = spread(rows, wrong, RESAMPLES)
        print(f"| {alpha:.0%} | {safe.sum()} | {null['stated_mismatched_in_safe']:.2%} ({null['stated_low']:.2%} to", end=" ")
        print(f"{null['stated_high']:.2%}) | {share:.1%} ({low:.1%} to {high:.1%}) | {none[safe].mean():.1%} |")


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


def by_people(rows: pd.DataFrame, right: np.ndarray) -> None:
    """Print what `--rule judged` would have cut by samples of these verdicts, and what people say of the other rows above."""
    print("\n| judged | alpha | refused | stated | wrong by people, others | over 1.5 alpha | kept |\n" + "|---" * 7 + "|")
    cosines, rng = rows["cosine"].to_numpy(np.float64), np.random.default_rng(0)
    pairs = Histogram()
    pairs.add(count(rows["cosine"].to_numpy(np.float32)))
    for num in JUDGED:
        drawn = [rng.choice(len(rows), num, replace=False) for _ in range(DRAWS)]
        said = [calibrate_by_people(pairs, Judged(1, cosines[one], ~right[one], np.ones(num))) for one in drawn]
        for alpha in (*ALPHAS[1:], 0.2, 0.3):
            found = []
            for one, people in zip(drawn, said, strict=True):
                cut = people.calibration.cut(alpha)
                above = np.setdiff1d(np.flatnonzero(cosines >= cut), one) if cut is not None else np.zeros(0, int)
                if len(above) >= LEAST_SAFE * (len(rows) - num):
                    found.append((people.at(cut)[0], 1 - right[above].mean(), len(above) / (len(rows) - num)))
            line = f"| {num} | {alpha:.0%} | {DRAWS - len(found)} of {DRAWS} |"
            if found:
                stated_, wrong, kept = np.asarray(found).T
                over = np.mean(wrong > 1.5 * alpha)
                line += f" {stated_.mean():.1%} | {wrong.mean():.1%} | {over:.0%} | {kept.mean():.1%} |"
            print(line if found else f"{line} | | | |", flush=True)


def spread(rows: pd.DataFrame, value: Callable[[np.ndarray], float], num: int) -> tuple[float, float, float]:
    """Return a statistic of all pairs, and its 95 % interval over resampled photographs."""
    groups = list(rows.groupby("key").indices.values())
    rng = np.random.default_rng(0)
    found = [value(np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])) for _ in range(num)]
    return value(np.arange(len(rows))), *np.nanpercentile(found, [2.5, 97.5])


if __name__ == "__main__":
    main()
