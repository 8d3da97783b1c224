"""`make demo`: plant wrong captions, clean; fetch pairs again, compare with their index; then train in rounds from nothing.

The checkpoint of the first part was trained on these pairs (unplanted), so its figures show that the machinery works, not how
well a model finds mismatches in data that it has never seen. The last part starts from random weights and sees the planted
pairs from the beginning: its table of rounds is the real thing, in small.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import crawl_again

from manifests import Manifest, open_round

HERE = Path(__file__).parent
PAIRSAN = Path(sys.executable).parent / "pairsan"


def run(*command: object) -> None:
    """Print a command and run it; end with its exit code where it fails."""
    print(f"\n$ {' '.join(str(part).removeprefix(str(Path.cwd()) + '/') for part in command)}", flush=True)
    done = subprocess.run([str(part) for part in command], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def planted_in(run_folder: Path, number: int, planted: set[tuple[str, str]]) -> tuple[Manifest, int, int, int]:
    """Return a round, how many of its rows are safe, how many were planted, and how many are both."""
    manifest = open_round(run_folder, number)
    rows = manifest.to_pandas(["shard", "key", "label"])
    rows["planted"] = [place in planted for place in zip(rows["shard"], rows["key"], strict=True)]
    safe = rows[rows["label"] == "safe"]
    return manifest, len(safe), int(rows["planted"].sum()), int(safe["planted"].sum())


def clean(out: Path, data: Path, planted: set[tuple[str, str]]) -> None:
    """Clean with the bundled checkpoint and say what was caught."""
    run(PAIRSAN, "clean", data / "shards", "--checkpoint", HERE / "tiny-clip", "--out", out, "--canaries", 300)
    run(PAIRSAN, "verify", out)
    run(PAIRSAN, "inspect", out, "--limit", 8, "--columns", "label,cosine,p_safe,rank,key,caption")
    manifest, num_safe, _, missed = planted_in(out, 1, planted)
    others = manifest.num_rows - num_safe - (len(planted) - missed)
    caught, cut = len(planted) - missed, manifest.seal["cut"]
    print(f"\n{missed} of {num_safe} safe pairs are planted mismatches ({missed / num_safe:.2%}; asked for: at most 1 %);")
    print(f"{caught} of {len(planted)} planted mismatches are not safe at the cut cosine >= {cut:.4f};")
    print(f"{others} of the other {manifest.num_rows - len(planted)} pairs are not either.")
    run(PAIRSAN, "report", out, "--out", out.parent / "report.html")


def train(out: Path, data: Path, planted: set[tuple[str, str]]) -> None:
    """Train from random weights in rounds that look again, and print how much of what was planted got into the safe set."""
    here = ("--executor", "local", "--threads-per-worker", 2)  # Ray would start workers anew for each look, half of its time
    shards = data / "shards" / "0000[0-7].tar"  # 8 of 11, so that all ends within 5 minutes
    run(PAIRSAN, "run", shards, "--out", out, "--config", HERE / "demo.toml", *here)
    run(PAIRSAN, "status", out)
    print("\nround  weights   safe pairs  share  planted inside  by chance  taken back  put out  CLIP loss")
    for entry in json.loads((out / "checkpoints" / "history.json").read_text()):
        if entry["kind"] == "round":
            manifest, num_safe, num_planted, inside = planted_in(out, entry["manifest"], planted)
            seal, chance = manifest.seal, num_planted * num_safe / manifest.num_rows
            weights = seal["plan"]["scores"]["model"]["state_sha256"][:8]
            voices = [seal["voices"].get(voice, 0) if seal.get("before") else 0 for voice in ("taken_back", "put_out")]
            facts = f"{num_safe:>10,} {seal['safe_share']:>6.1%} {inside:>15} {chance:>10.0f} {voices[0]:>11,} {voices[1]:>8,}"
            print(f"{entry['round_number']:>5}  {weights}  {facts} {entry['clip_loss']:>10.3f}")
    run(PAIRSAN, "report", out, "--out", out.parent / "rounds.html")
    print(f"\nmodel: {(out / 'checkpoints').absolute()}/round-0005.safetensors")
    print(f"newest manifest: {Path(open_round(out).path).absolute()}  (one Parquet part per shard)")
    print(f"look at it: {os.path.relpath(PAIRSAN)} inspect {out} --sort -since --columns since,voice,label,cosine,caption")


def compare(out: Path) -> None:
    """Fetch the held-out pairs again, years later, and compare what comes with what their index promised."""
    web = out / "web"
    shutil.rmtree(web, ignore_errors=True)
    run(sys.executable, HERE / "crawl_again.py", web)
    weights = ("--checkpoint", HERE / "tiny-clip", "--executor", "local")
    run(PAIRSAN, "clean", web / "then", "--out", web / "then-run", *weights, "--keep-embeddings")
    crawl_again.write_index(web / "index.parquet", crawl_again.held_out(), web / "then-run")
    index = ("--index", web / "index.parquet", "--index-embeddings", "image")
    run(PAIRSAN, "clean", web / "now", "--out", web / "now-run", *weights, *index)
    truth = json.loads((web / "truth.json").read_text())
    print(f"\nWhat a row is, by what was found of it:\n{crawl_again.told_apart(web / 'now-run', truth)}")


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-run"))
    out = parser.parse_args().out
    start = time.monotonic()
    data = out / "data"
    for old in (out / "run", out / "rounds-run"):
        if (old / "run.json").is_file():  # an earlier demo, perhaps of another version, whose plan would be refused
            shutil.rmtree(old)
    run(sys.executable, HERE / "plant.py", data)
    planted = {(shard, key) for shard, key in json.loads((data / "planted.json").read_text())}
    clean(out / "run", data, planted)
    compare(out)
    train(out / "rounds-run", data, planted)
    print(f"report of the first part: {(out / 'report.html').absolute()}")
    print(f"look through it and overrule it: {os.path.relpath(PAIRSAN)} review {out / 'run'}")
    print(f"{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    main()
