"""What bf16 on a CPU does to cosines and labels: `pairsan clean` in fp32 and in bf16, row by row.

    python -m benchmarks.robustness.bf16 CHECKPOINT DATA [DATA ...]

Needs a CPU with AMX or AVX512-BF16. A row counts as near the cut where its fp32 cosine is within .01 of it.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

import manifests
from benchmarks.common import header

NEAR: Final = 0.01


def main() -> None:
    """Print differences of cosines, of the null, and of labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data", nargs="+")
    args = parser.parse_args()
    header("studies.bf16")
    with tempfile.TemporaryDirectory() as folder:
        full, half = (rows(args.checkpoint, args.data, Path(folder) / kind, kind) for kind in ("fp32", "bf16"))
    both = full.join(half.add_suffix("_half"), how="inner").dropna(subset=["cosine", "cosine_half"])
    moved = (both["cosine_half"] - both["cosine"]).abs()
    flips = both["label"] != both["label_half"]
    cut = both.loc[both["label"] == "safe", "cosine"].min()
    near = (both["cosine"] - cut).abs() < NEAR
    order = both["cosine"].corr(both["cosine_half"], method="spearman")
    print(f"{len(both)} rows; cosines moved by {moved.mean():.5f} on average, {moved.max():.5f} at most;")
    print(f"they spread by {both['cosine'].std():.3f}; rank correlation {order:.6f}")
    print(f"safe {np.mean(both['label'] == 'safe'):.2%} in fp32, {np.mean(both['label_half'] == 'safe'):.2%} in bf16")
    beside = (flips & near).sum()
    print(f"labels that differ: {flips.sum()} ({flips.mean():.2%}), {beside} of them among the {near.sum()} rows near the cut")


def rows(checkpoint: str, data: list[str], run: Path, precision: str) -> pd.DataFrame:
    """Return uid, cosine and label of every row of a fresh run."""
    program = [Path(sys.executable).parent / "pairsan", "clean", *data, "--checkpoint", checkpoint, "--out", run]
    subprocess.run([*program, "--executor", "local", "--precision", precision], check=True, stdout=subprocess.DEVNULL)
    return manifests.open_round(str(run)).to_pandas(["uid", "cosine", "label"]).set_index("uid")


if __name__ == "__main__":
    main()
