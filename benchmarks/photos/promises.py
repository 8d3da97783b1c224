"""Replaced pictures against pictures that were honestly encoded anew: what an index check tells apart, by what the index has.

    python -m benchmarks.photos.promises OUT --checkpoint OUT/checkpoint [--pairs bundled] [--seed 0]

An index is made of known pairs (1,000 dev photographs, or the held-out bundled drawings). Of what "came", 40 % are the same
bytes; 30 % were encoded anew (JPEG at 40 to 90, WebP at 50 to 90, resized to 50 to 95 %, or cut at each border by up to 4 %);
15 % show another picture at random, 15 % that with the nearest vector of the checkpoint itself, both fitted to the promised
size, so that the aspect ratio says nothing of them. Prints, for each tail, the share caught, and the honest ones flagged.
"""

import argparse
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import header
from benchmarks.photos.data import DATA, photos
from examples.emoji.crawl_again import Pairs, encoded_anew, held_out, put_in_place, write, write_index
from manifests import open_round
from stages.vectors import unit

KINDS: Final = {"exact": 0.4, "encoded": 0.3, "random": 0.15, "near": 0.15}
TAILS: Final = (0.001, 0.01)
EVIDENCE: Final = {
    "size": (),
    "score": ("--index-score", "score"),
    "vectors": ("--index-embeddings", "image"),
    "score, no hashes": ("--index-score", "score"),
}


def main() -> None:
    """Build, clean, split by each kind of evidence, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--pairs", choices=["photos", "bundled"], default="photos")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    header("photos.promises")
    pairs = dev_pairs(args.data) if args.pairs == "photos" else held_out()
    folder = args.out / f"promises-{args.pairs}-{args.seed}"
    folder.mkdir(parents=True)
    write(folder / "then", pairs)
    run("clean", folder / "then", "--out", folder / "first", "--checkpoint", args.checkpoint, "--keep-embeddings")
    vectors = write_index(folder / "index.parquet", pairs, folder / "first")
    rng = np.random.default_rng(args.seed)
    ends = np.cumsum(list(KINDS.values()))
    places = np.searchsorted(ends[:-1], (np.arange(len(pairs)) + 0.5) / len(pairs))
    what = rng.permutation(np.asarray(list(KINDS))[places])
    write(folder / "now", what_came(pairs, unit(vectors), what, random.Random(args.seed)))
    indices = {"": folder / "index.parquet", "score, no hashes": folder / "without.parquet"}
    pq.write_table(pq.read_table(indices[""]).drop_columns(["sha256"]), folder / "without.parquet")
    index = ("--index", indices[""])
    run("clean", folder / "now", "--out", folder / "size", "--checkpoint", args.checkpoint, *index, "--keep-embeddings")
    print(f"{len(pairs):,} pairs: " + ", ".join(f"{(what == kind).sum()} {kind}" for kind in KINDS))
    print("| the index has | tail | random caught | near caught | honest flagged |\n|---|---|---|---|---|")
    caught = {kind: 1.0 for kind in KINDS if kind != "exact"}
    print(line("hashes alone", "-", caught, what))
    for name, options in EVIDENCE.items():
        if options:  # a run keeps the settings that it was begun with, so each kind of evidence gets a copy
            shutil.copytree(folder / "size", folder / name)
            run("split", folder / name, "--index", indices.get(name, indices[""]), *options)
        frame = open_round(folder / name).to_pandas(["signals"])
        p = np.asarray([signals["p_reencoded"] for signals in frame["signals"]], float)
        for tail in TAILS:
            print(line(name, f"{tail:g}", {kind: float((p[what == kind] < tail).mean()) for kind in caught}, what), flush=True)


def line(name: str, tail: str, caught: dict[str, float], what: np.ndarray) -> str:
    """Return a line of the table."""
    num = int((what == "encoded").sum())
    flagged = f"{caught['encoded']:.1%} ({round(caught['encoded'] * num)} of {num})"
    return f"| {name} | {tail} | {caught['random']:.1%} | {caught['near']:.1%} | {flagged} |"


def run(command: str, *options: object) -> None:
    """Run a command of pairsan; the cut is of no interest here."""
    pairsan = Path(sys.executable).parent / "pairsan"
    words = [pairsan, command, *options, "--executor", "local", "--keep-share", "0.9", "--if-unseparable", "accept"]
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


def dev_pairs(data: Path) -> Pairs:
    """Return the dev photographs, each with the first of its captions."""
    return [(photo.image, photo.captions[0]) for photo in photos(data, "dev")]


def what_came(pairs: Pairs, vectors: np.ndarray, what: np.ndarray, rng: random.Random) -> Pairs:
    """Return what a crawl of today gets."""
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, -2.0)
    came = []
    for row, (kind, (image, caption)) in enumerate(zip(what, pairs, strict=True)):
        if kind == "encoded":
            image = encoded_anew(image, rng)
        elif kind != "exact":
            other = int(alike[row].argmax()) if kind == "near" else (row + rng.randrange(1, len(pairs))) % len(pairs)
            image = put_in_place(image, pairs[other][0])
        came.append((image, caption))
    return came


if __name__ == "__main__":
    main()
