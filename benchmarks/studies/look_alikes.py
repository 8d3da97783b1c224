"""Look-alikes with and without a second witness, on drawings and on photographs.

    python -m benchmarks.studies.look_alikes OUT [--photographs ../shared/data/flickr8k]

First how many clean rows share their pixels, or their perceptual hash, with more than two others. Then, among the held-out
drawings, 20 pictures six times each, resized and re-encoded, under captions about something else, and 20 under their own:
which of them, and of the clean rows, each way to limit look-alikes makes risky. The bundled checkpoint has seen none of them.
"""

import argparse
import io
import random
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.common import ROOT, header
from manifests import open_round
from stages.label.limits import DOUBTS_UP_TO
from stages.read.shards import open_dataset
from stages.score.decode import Decode
from stages.score.hashes import image_hashes, pixel_hashes
from stages.settings import ReadSettings
from stages.signals.hash_rows import PREPROCESS

EMOJI: Final = ROOT / "examples" / "emoji"
GROUPS, COPIES, MOST = 20, 6, 2
Row = tuple[str, bytes, str]


def count_clean(name: str, files: list[str]) -> None:
    """Print how many rows exceed two, by pixels and by look."""
    dataset = open_dataset(files)
    decode = Decode(dataset.store, ReadSettings(), PREPROCESS, num_threads=2)
    decode.open()
    pixels = np.concatenate([chunk.pixels for shard in dataset.shards for chunk in decode.run(shard)])
    over = [_over(hashes) for hashes in (pixel_hashes(pixels), image_hashes(pixels))]
    print(f"{name}: {len(pixels):,} clean rows; more than {MOST} share their pixels {over[0]:,}, their look {over[1]:,}")


def _over(hashes: np.ndarray) -> int:
    counts = np.unique(hashes, return_counts=True)[1]
    return int(counts[counts > MOST].sum())


def rows_of(folder: Path) -> list[Row]:
    """Return key, image and caption of all pairs of some tars."""
    found = []
    for path in sorted(folder.glob("*.tar.gz")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
        found += [(n[:-5], data, members[f"{n[:-5]}.txt"].decode()) for n, data in members.items() if n.endswith(".webp")]
    return found


def plant(rows: list[Row], path: Path, rng: random.Random) -> None:
    """Write look-alikes of some rows as one tar: `foreign-*` under captions that share a word, `own-*` under their own."""
    with tarfile.open(path, "w") as tar:
        for kind in ("foreign", "own"):
            for group in range(GROUPS):
                (_, data, own), (_, _, other) = rng.choice(rows), rng.choice(rows)
                word = max(other.split(), key=len)
                captions = [row[2] for row in rows if word in row[2]] if kind == "foreign" else [own]
                for copy in range(COPIES):
                    members = {"jpg": _again(data, rng), "txt": rng.choice(captions).encode()}
                    for end, content in members.items():
                        info = tarfile.TarInfo(f"{kind}-{group}-{copy}.{end}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))


def _again(data: bytes, rng: random.Random) -> bytes:
    """Return an image resized by a few pixels and saved as JPEG anew."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    edge, file = image.width + rng.randint(-3, 6), io.BytesIO()
    image.resize((edge, edge), Image.Resampling.BICUBIC).save(file, "JPEG", quality=rng.randint(88, 97))
    return file.getvalue()


def judged(data: Path, run: Path, *flags: str) -> pd.DataFrame:
    """Return the signals of all rows, and of which kind each is."""
    pairsan = str(Path(sys.executable).parent / "pairsan")
    command = [pairsan, "clean", str(data), "--out", str(run), "--checkpoint", str(EMOJI / "tiny-clip"), "--executor", "local"]
    subprocess.run([*command, "--keep-share", "1.0", "--signals", "all", *flags], check=True, capture_output=True)
    rows = open_round(run).to_pandas(["key", "signals"])
    signals = pd.json_normalize(rows["signals"])
    return signals.assign(kind=rows["key"].str.extract(r"^(foreign|own)-\d+-\d$")[0].fillna("clean"))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photographs", type=Path, default=ROOT.parent / "shared" / "data" / "flickr8k")
    args = parser.parse_args()
    header("studies.look_alikes")
    count_clean("drawings", [str(EMOJI / "train")])
    if args.photographs.is_dir():
        count_clean("photographs", [str(args.photographs / "train-*.tar")])
    else:
        print(f"no photographs in {args.photographs}")
    data = args.out / "data"
    data.mkdir(parents=True, exist_ok=True)
    for path in (EMOJI / "eval").glob("*.tar.gz"):
        (data / path.name).write_bytes(path.read_bytes())
    plant(rows_of(EMOJI / "eval"), data / "planted.tar", random.Random(0))
    for name, flags in {"each by itself": (), "doubts shared by near copies": ("--near-copy-cosine", "0.98")}.items():
        signals = judged(data, args.out / name.replace(" ", "-"), *flags)
        alike = signals["image_cluster_size"] > MOST
        ways = {"hash alone": alike} | {
            f"and accord <= {p}": alike & (signals["accord"] <= p) for p in (0.05, DOUBTS_UP_TO, 0.2)
        }
        print(f"risky, accord {name}:")
        for way, flagged in ways.items():
            print(
                f"   {way}: "
                + ", ".join(f"{kind} {rows.sum()} of {len(rows)}" for kind, rows in flagged.groupby(signals["kind"]))
            )


if __name__ == "__main__":
    main()
