"""Copy the bundled shards and plant mismatched captions: known wrong pairs, to see what a run makes of them.

    python examples/emoji/plant.py OUT --share 0.05

Writes OUT/shards/*.tar and OUT/planted.json ([shard, key] of every planted pair). Captions are exchanged in a cycle
among the chosen pairs, so every caption stays a real one and only the match is wrong. pairsan never reads planted.json.
"""

import argparse
import io
import json
import random
import tarfile
from pathlib import Path

HERE = Path(__file__).parent


def captions_of(shards: list[Path]) -> dict[tuple[str, str], bytes]:
    """Return the caption of every (shard name, key)."""
    found = {}
    for path in shards:
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if extension == "txt":
                    found[path.name, key] = tar.extractfile(member).read()
    return found


def copy(source: Path, target: Path, new: dict[tuple[str, str], bytes]) -> None:
    """Copy one shard as a plain tar with some captions replaced."""
    with tarfile.open(source) as old, tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as out:
        for member in old:
            key, _, extension = member.name.partition(".")
            data = new.get((source.name, key)) if extension == "txt" else None
            data = data if data is not None else old.extractfile(member).read()
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))


def main() -> None:
    """Plant and say how much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=HERE / "train")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shards = sorted(args.data.glob("*.tar*"))
    captions = captions_of(shards)
    rng = random.Random(args.seed)
    chosen = rng.sample(sorted(captions), round(args.share * len(captions)))
    new = {chosen[i]: captions[chosen[i - 1]] for i in range(len(chosen))}
    planted = sorted(place for place in chosen if new[place] != captions[place])
    (args.out / "shards").mkdir(parents=True, exist_ok=True)
    for path in shards:
        copy(path, args.out / "shards" / path.name.removesuffix(".gz"), new)
    (args.out / "planted.json").write_text(json.dumps([[name.removesuffix(".gz"), key] for name, key in planted]))
    print(f"{args.out}: {len(captions)} pairs, {len(planted)} of them with another pair's caption")


if __name__ == "__main__":
    main()
