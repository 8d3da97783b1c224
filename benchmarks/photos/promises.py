"""Replaced pictures against pictures that were honestly encoded anew: what an index check tells apart, by what the index has.

    python -m benchmarks.photos.promises OUT --checkpoint OUT/checkpoint [--pairs bundled] [--seed 0]

An index is made of known pairs (1,000 dev photographs, or the held-out bundled drawings). Of what "came", 40 % are the same
bytes; 30 % were encoded anew (JPEG at 40 to 90, WebP at 50 to 90, resized to 50 to 95 %, or cut at each border by up to 4 %);
15 % show another picture at random, 15 % that with the nearest vector of the checkpoint itself, both fitted to the promised
size, so that the aspect ratio says nothing of them. Prints, for each tail, the share caught, and the honest ones flagged.
"""

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from benchmarks.common import ROOT, header
from benchmarks.photos.data import DATA, photos
from manifests import open_round
from stages.vectors import unit, vectors_of

KINDS: Final = {"exact": 0.4, "encoded": 0.3, "random": 0.15, "near": 0.15}
TAILS: Final = (0.001, 0.01)
SHARD_ROWS: Final = 500
EVIDENCE: Final = {
    "size": (),
    "score": ("--index-score", "score"),
    "vectors": ("--index-embeddings", "image"),
    "together": ("--index-score", "score", "--index-embeddings", "image"),
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
    images, captions = dev_pairs(args.data) if args.pairs == "photos" else bundled_pairs()
    folder = args.out / f"promises-{args.pairs}-{args.seed}"
    folder.mkdir(parents=True)
    write(folder / "then", images, captions)
    run("clean", folder / "then", "--out", folder / "first", "--checkpoint", args.checkpoint, "--keep-embeddings")
    first = open_round(folder / "first")
    parts = sorted(folder.glob("first/rounds/*/embeddings/*"))
    vectors = np.concatenate([vectors_of(pq.read_table(part)["image"]) for part in parts])
    cosines = [cosine for shard in first.shards for cosine in first.table(shard)["cosine"].to_pylist()]
    write_index(folder / "index.parquet", images, cosines, vectors)
    rng = np.random.default_rng(args.seed)
    ends = np.cumsum(list(KINDS.values()))
    places = np.searchsorted(ends[:-1], (np.arange(len(images)) + 0.5) / len(images))
    what = rng.permutation(np.asarray(list(KINDS))[places])
    write(folder / "now", what_came(images, unit(vectors), what, rng), captions)
    index = ("--index", folder / "index.parquet")
    run("clean", folder / "now", "--out", folder / "size", "--checkpoint", args.checkpoint, *index, "--keep-embeddings")
    print(f"{len(images):,} pairs: " + ", ".join(f"{(what == kind).sum()} {kind}" for kind in KINDS))
    print("| the index has | tail | random caught | near caught | honest flagged |\n|---|---|---|---|---|")
    caught = {kind: 1.0 for kind in KINDS if kind != "exact"}
    print(line("hashes alone", "-", caught, what))
    for name, options in EVIDENCE.items():
        if options:  # a run keeps the settings that it was begun with, so each kind of evidence gets a copy
            shutil.copytree(folder / "size", folder / name)
            run("split", folder / name, *index, *options)
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


def dev_pairs(data: Path) -> tuple[list[bytes], list[str]]:
    """Return the dev photographs, each with the first of its captions."""
    found = photos(data, "dev")
    return [photo.image for photo in found], [photo.captions[0] for photo in found]


def bundled_pairs() -> tuple[list[bytes], list[str]]:
    """Return the held-out drawings with their captions."""
    members: list[tuple[str, bytes]] = []
    for path in sorted((ROOT / "examples" / "emoji" / "eval").glob("*.tar.gz")):
        with tarfile.open(path) as tar:
            members += [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    return [b for name, b in members if name.endswith(".webp")], [b.decode() for name, b in members if name.endswith(".txt")]


def what_came(images: list[bytes], vectors: np.ndarray, what: np.ndarray, rng: np.random.Generator) -> list[bytes]:
    """Return what a crawl of today gets."""
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, -2.0)
    came = []
    for row, kind in enumerate(what):
        if kind == "exact":
            came.append(images[row])
        elif kind == "encoded":
            came.append(encoded_anew(images[row], rng))
        else:
            other = int(alike[row].argmax()) if kind == "near" else int((row + rng.integers(1, len(images))) % len(images))
            fitted = ImageOps.fit(opened(images[other]), opened(images[row]).size)
            came.append(packed(fitted, "JPEG", quality=85))
    return came


def encoded_anew(image: bytes, rng: np.random.Generator) -> bytes:
    """Return a picture as an honest server may serve it years later."""
    picture = opened(image)
    width, height = picture.size
    share, (left, top, right, bottom) = rng.uniform(0.5, 0.95), rng.uniform(0.0, 0.04, 4)
    box = tuple(round(edge) for edge in (left * width, top * height, width * (1 - right), height * (1 - bottom)))
    ways: list[Callable[[], bytes]] = [
        lambda: packed(picture, "JPEG", quality=int(rng.integers(40, 91))),
        lambda: packed(picture, "WEBP", quality=int(rng.integers(50, 91))),
        lambda: packed(picture.resize((round(width * share), round(height * share))), "JPEG", quality=85),
        lambda: packed(picture.crop(box), "JPEG", quality=85),  # type: ignore[arg-type]  # four numbers
    ]
    return ways[int(rng.integers(len(ways)))]()


def opened(image: bytes) -> Image.Image:
    """Return a picture as RGB; what is transparent becomes white, as when it is scored."""
    picture = Image.open(io.BytesIO(image))
    if picture.mode != "RGB":
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return picture.convert("RGB")


def packed(picture: Image.Image, kind: str, quality: int) -> bytes:
    """Return an encoded picture."""
    out = io.BytesIO()
    picture.save(out, kind, quality=quality)
    return out.getvalue()


def write(folder: Path, images: list[bytes], captions: list[str]) -> None:
    """Write tars as img2dataset does, with what it says of each download."""
    folder.mkdir()
    for first in range(0, len(images), SHARD_ROWS):
        with tarfile.open(folder / f"{first // SHARD_ROWS:05d}.tar", "w") as tar:
            for row in range(first, min(first + SHARD_ROWS, len(images))):
                width, height = Image.open(io.BytesIO(images[row])).size
                facts = {"url": url(row), "sha256": hashlib.sha256(images[row]).hexdigest()}
                facts |= {"original_width": width, "original_height": height}
                for ending, body in (
                    ("jpg", images[row]),
                    ("txt", captions[row].encode()),
                    ("json", json.dumps(facts).encode()),
                ):
                    info = tarfile.TarInfo(f"{row:06d}.{ending}")
                    info.size = len(body)
                    tar.addfile(info, io.BytesIO(body))


def write_index(path: Path, images: list[bytes], cosines: list[float], vectors: np.ndarray) -> None:
    """Write what an index says of the pairs."""
    sizes = [Image.open(io.BytesIO(image)).size for image in images]
    frame = pd.DataFrame(
        {
            "url": [url(row) for row in range(len(images))],
            "sha256": [hashlib.sha256(image).hexdigest() for image in images],
            "original_width": [size[0] for size in sizes],
            "original_height": [size[1] for size in sizes],
            "score": cosines,
        }
    )
    flat = pa.array(vectors.astype(np.float32).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False).append_column("image", column), path)


def url(row: int) -> str:
    """Return the address of a pair."""
    return f"http://domain-{row % 37}.example/{row}.jpg"


if __name__ == "__main__":
    main()
