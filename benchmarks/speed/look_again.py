"""What a look costs: embedding all pairs with the current checkpoint, against the training pass that it is made for.

    python -m benchmarks.speed.look_again [--data examples/emoji/train] [--repeats 3]

Both run in this process on the same pairs, in turn: a training pass over all of them, half safe and half risky, then `pairsan
rescore` by its weights. Prints the ratio of each repeat.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.common import ROOT, header
from manifests.store import open_store
from pipeline import rounds
from pipeline.config.load import load_config
from pipeline.training import loop
from pipeline.training.one_pass import position


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(ROOT / "examples" / "emoji" / "train"))
    parser.add_argument("--model", default=str(ROOT / "benchmarks" / "evidence" / "model"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    header("look_again")
    with tempfile.TemporaryDirectory() as folder:
        flags = {"model": args.model, "executor": "local", "scorer": "locked", "warmup_passes": 1, "matching_passes": 1}
        flags |= {"rounds": args.repeats + 1, "keep_share": 0.5, "sit_out_folds": 8, "least_crop": 0.85, "scorer_folds": 1}
        config = load_config(None, flags, command="run")
        ratios = []
        for number in range(1, args.repeats + 2):
            loop.run([args.data], folder, config, until_round=number)
            if number == 1:
                continue  # the first pays for what is opened once
            trained = position(open_store(folder))["history"][-1]["seconds"]
            path = Path(folder) / "checkpoints" / f"round-{number:04d}.safetensors"
            said = {"checkpoint": str(path), "model": args.model, "executor": "local", "rule": "min-cosine", "min_cosine": -1.0}
            start = time.monotonic()
            rounds.rescore(folder, load_config(None, said, command="rescore"))
            looked = time.monotonic() - start
            ratios.append(looked / trained)
            print(f"pass {trained:.1f} s, look {looked:.1f} s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {median(ratios):.2f}")


if __name__ == "__main__":
    main()
