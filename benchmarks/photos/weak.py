"""A weak checkpoint of photographs beside the strong one: a small CLIP model from random weights at 64 px, no tower borrowed.

    python -m benchmarks.photos.weak OUT [--data FOLDER] [--passes 12]

The 6,000 train photographs, once with each of their five captions, are learned plainly: a scout of `pairsan run`, which the
same command resumes. OUT/checkpoint is an open_clip folder for `--checkpoint`. Prints recall at 1, 5 and 10 on the 1,000 dev
photographs. About 25 minutes on one core.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.attacks.world import Row
from benchmarks.common import ROOT, header
from benchmarks.evidence.__main__ import TRAIN
from benchmarks.evidence.data import PHOTO_EDGE, smaller, write_rows
from benchmarks.evidence.rows import PoisonedRows
from benchmarks.photos.checkpoint import recall
from benchmarks.photos.data import DATA, photos

MODEL: Final = ROOT / "benchmarks" / "evidence" / "model" / "open_clip_config.json"


def main() -> None:
    """Write shards, train, write the folder, print recall."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--passes", type=int, default=12)
    args = parser.parse_args()
    header("photos.weak")
    shards = {split: shards_of(args.data, split, args.out / split) for split in ("train", "dev")}
    folder = untrained(args.out / "checkpoint")
    flags = {"executor": "local", "scorer": "scout", "scout_passes": args.passes, "model": folder, **TRAIN}
    command: list[object] = [Path(sys.executable).parent / "pairsan", "run", shards["train"], "--out", args.out / "run"]
    command += ["--until-round", 0, *(f"--set={key}={value}" for key, value in flags.items())]
    if subprocess.run([str(word) for word in command], check=False).returncode:
        raise SystemExit("training ended; its message stands above, and the same command goes on")
    weights = args.out / "run" / "checkpoints" / "scout-0000.safetensors"
    (folder / "open_clip_model.safetensors").write_bytes(weights.read_bytes())
    image, text = PoisonedRows(shards["dev"]).vectors(folder)
    for way, found in recall(image[::5], text).items():
        print(f"dev, {way}: recall at 1 / 5 / 10 {' / '.join(f'{share:.3f}' for share in found)}")
    print(f"wrote {folder}")


def shards_of(data: Path, split: str, place: Path) -> Path:
    """Write a split's photographs at 64 px, one after the other with each of its captions, unless they are there."""
    if not (place / "done").exists():
        found = [(photo, smaller(photo.image)) for photo in photos(data, split)]
        write_rows(
            place,
            [Row(f"{p.key}-{n}", image, caption, p.key) for p, image in found for n, caption in enumerate(p.captions)],
        )
        (place / "done").touch()
    return place


def untrained(folder: Path) -> Path:
    """Write an open_clip folder of the evidence's model for pictures of 64 px, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(MODEL.read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = PHOTO_EDGE
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    return folder


if __name__ == "__main__":
    main()
