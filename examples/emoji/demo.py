"""`make demo`: plant mismatched captions among the bundled pairs, clean them on Ray, and see what was caught.

The checkpoint was trained on these pairs (unplanted), so the figures show that the machinery works, not how well a
model finds mismatches in data that it has never seen.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from manifests import open_round

HERE = Path(__file__).parent
PAIRSAN = Path(sys.executable).parent / "pairsan"


def run(*command: object) -> None:
    """Print a command and run it; end with its exit code where it fails."""
    print(f"\n$ {' '.join(str(part).removeprefix(str(Path.cwd()) + '/') for part in command)}", flush=True)
    done = subprocess.run([str(part) for part in command], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-run"))
    out = parser.parse_args().out
    start = time.monotonic()
    data, cleaned = out / "data", out / "run"
    if (cleaned / "run.json").is_file():  # an earlier demo, perhaps of another version, whose plan would be refused
        shutil.rmtree(cleaned)
    run(sys.executable, HERE / "plant.py", data)
    run(PAIRSAN, "clean", data / "shards", "--checkpoint", HERE / "tiny-clip", "--out", cleaned)
    run(PAIRSAN, "verify", cleaned)
    run(PAIRSAN, "inspect", cleaned, "--limit", 12, "--columns", "label,cosine,p_safe,rank,key,caption")

    manifest = open_round(cleaned)
    planted = {tuple(place) for place in json.loads((data / "planted.json").read_text())}
    rows = manifest.to_pandas(["shard", "key", "label"])
    is_planted = [place in planted for place in zip(rows["shard"], rows["key"], strict=True)]
    caught = int((rows["label"][is_planted] != "safe").sum())
    others = int((rows["label"] != "safe").sum()) - caught
    print(f"\n{caught} of {len(planted)} planted mismatches are not safe at the cut cosine >= {manifest.seal['cut']:.4f};")
    print(f"{others} of the other {len(rows) - len(planted)} pairs are not either. {time.monotonic() - start:.0f} s in all.")
    print(f"\nmanifest: {Path(manifest.path).absolute()}  (one Parquet part per shard)")
    print(f"look at it: {PAIRSAN.relative_to(Path.cwd())} inspect {cleaned} --sort -cosine")


if __name__ == "__main__":
    main()
