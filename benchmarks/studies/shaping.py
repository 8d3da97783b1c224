"""The published rule against ours on a set whose posterior is U-shaped: a crowd of rows of one low cosine bends the mixture.

    python -m benchmarks.studies.shaping OUT [--rows 60] [--crowd 10] [--seeds 0 1 2]

Poisons the held-out vendor's 1,406 pairs, which the bundled checkpoint has never seen, with the `shaping` attack; scores them
once with that checkpoint, splits the scores by both rules and by cosine at the published size, and counts planted rows in safe.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.attacks.registry import parse_attack
from benchmarks.common import header
from benchmarks.evidence.data import BUNDLED
from benchmarks.evidence.referee import with_truth
from benchmarks.poison import poison, read_truth
from manifests import open_round

TINY = BUNDLED / "tiny-clip"
PAIRSAN = Path(sys.executable).parent / "pairsan"


def split(run: Path, *options: object) -> str:
    """Split the scores of round 1 anew; return the refusal, or nothing."""
    command = [PAIRSAN, "split", run, "--executor", "local", "--min-separation", 0, *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return next(line for line in done.stderr.splitlines() if "refus" in line or "believe" in line) if done.returncode else ""


def tell(run: Path, rule: str, truth: object) -> float:
    """Print what the newest round lets in; return its safe share."""
    manifest = open_round(run)
    rows = with_truth(manifest.to_pandas(["shard", "key", "label", "cosine"]), truth.to_pandas())  # type: ignore[attr-defined]
    safe, planted = rows["label"] == "safe", rows["attack"] != ""
    inside = rows[safe & planted]["cosine"]
    low = f", their cosines {inside.min():.2f} to {inside.max():.2f}" if len(inside) else ""
    print(f"  {rule}: {safe.mean():.1%} safe, {int((safe & planted).sum())} of {int(planted.sum())} planted inside{low}")
    return float(safe.mean())


def main() -> None:
    """Run both rules for every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--crowd", type=float, default=10.0)
    parser.add_argument("--rank", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    header("studies.shaping")
    for seed in args.seeds:
        folder = args.out / f"seed-{seed}"
        attack = parse_attack(f"shaping:rows={args.rows},crowd={args.crowd},rank={args.rank},seed={seed}")
        poison([str(BUNDLED / "eval")], [], [attack], folder, seed=seed, surrogate=str(TINY))
        truth, run = read_truth(folder), folder / "run"
        command = [PAIRSAN, "embed", folder / "shards", "--checkpoint", TINY, "--out", run, "--executor", "local"]
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        print(f"seed {seed}:")
        shares: dict[str, float] = {}
        for rule, options in (("published", ["--rule", "published"]), ("monotone", ["--rule", "monotone"])):
            refused = split(run, *options)
            shares[rule] = 0.0 if refused else tell(run, rule, truth)
            if refused:
                print(f"  {rule}: {refused}")
        if shares["published"] and not split(run, "--keep-share", round(shares["published"], 4)):
            tell(run, "by cosine, at the published size", truth)


if __name__ == "__main__":
    main()
