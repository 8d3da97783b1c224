"""What each `--profile` flags: of clean pairs by reason, and of planted ones by attack.

    python -m benchmarks.evidence.profiles OUT

The bundled 5,217 pairs as they are, then with five attacks among them at 2 % each, cleaned by the bundled checkpoint, which has
seen neither. `default` is no profile. `thorough` gets efficientnet-lite0 at 96 px as its independent tower.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from safetensors.torch import save_file

from benchmarks.common import ROOT, header
from benchmarks.evidence.frozen import load_tower
from benchmarks.poison import read_truth
from manifests import open_round

EMOJI = ROOT / "examples" / "emoji"
ATTACKS = ("natural:rows=104", "text-only:rows=104", "patch:rows=104", "mmpoison:rows=104", "flooding:rows=104")
PROFILES = ("default", "quick", "standard", "thorough")


def cleaned(data: Path, out: Path, profile: str, tower: Path) -> tuple[pd.DataFrame, float]:
    """Return the labels of all rows, and the seconds that the cleaning took."""
    command = [str(Path(sys.executable).parent / "pairsan"), "clean", str(data), "--out", str(out), "--executor", "local"]
    command += ["--checkpoint", str(EMOJI / "tiny-clip"), *(["--profile", profile] if profile != "default" else [])]
    if profile == "thorough":
        command += ["--reference-encoder", "timm:tf_efficientnet_lite0", "--reference-checkpoint", str(tower)]
        command += ["--set", "reference_image_size=96"]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return open_round(out).to_pandas(["shard", "key", "label", "reason"]), time.monotonic() - start


def main() -> None:
    """Print a line per profile and set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    header("evidence.profiles")
    args.out.mkdir(parents=True, exist_ok=True)
    tower, planted = args.out / "tower.safetensors", args.out / "planted"
    if not tower.exists():
        save_file({key: value.contiguous() for key, value in load_tower().state_dict().items()}, tower)
    if not (planted / "truth.parquet").exists():
        more = [word for attack in ATTACKS for word in ("--attack", attack)]
        command = [sys.executable, "-m", "benchmarks.poison", str(EMOJI / "train"), "--held-out", str(EMOJI / "eval")]
        subprocess.run([*command, *more, "--out", str(planted)], cwd=ROOT, check=True, capture_output=True)
    truth = read_truth(planted).to_pandas()
    for profile in PROFILES:
        rows, seconds = cleaned(EMOJI / "train", args.out / f"clean-{profile}", profile, tower)
        reasons = rows.loc[rows["label"] == "risky", "reason"].value_counts().to_dict()
        print(f"{profile}: clean pairs risky {(rows['label'] == 'risky').mean():.2%} {reasons}; {seconds:.0f} s", flush=True)
        rows, _ = cleaned(planted / "shards", args.out / f"planted-{profile}", profile, tower)
        whole = rows.merge(truth[["shard", "key", "attack"]], on=["shard", "key"], how="left")
        inside = whole.groupby(whole["attack"].fillna(""))["label"].apply(lambda labels: (labels == "safe").mean())
        print("   safe, %: " + ", ".join(f"{name or 'others'} {100 * share:.1f}" for name, share in inside.items()), flush=True)


if __name__ == "__main__":
    main()
