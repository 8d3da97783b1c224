"""What a look costs beside the training that it comes before, in CPU-seconds of one process.

    python -m benchmarks.speed.look [--rows 2048] [--model FOLDER] [--safe 0.5] [--scout FOLDER]

The bundled drawings as 256 px JPEGs in four tars. A run is warmed up and trained for a round; then the look before round 2 and
the training of round 2 are taken by themselves, several times each from the same files. A look scores every row, once; a pass
trains one view of each safe row and two of each risky one. With --scout also a pass over all rows of the scout: of the model's
own architecture, and of that one.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, header
from benchmarks.speed.train import write_shards
from pipeline import rounds
from pipeline.config.catalogue import RunConfig
from pipeline.config.load import load_config
from pipeline.training import loop

TURNS = 3


def settings(model: str, safe: float) -> RunConfig:
    """Return the settings of a run that looks again each round."""
    given = {
        **{"model": model, "executor": "local", "scorer": "model", "warmup_passes": 1, "matching_passes": 1, "rounds": 2},
        **{
            "keep_share": safe,
            "if_unseparable": "accept",
            "growth": 0.01,
            "sit_out_folds": 8,
            "look_again": 1,
            "train_batch_size": 64,
        },
        **{"slow_learning_rate": 5e-4, "least_crop": 0.9},
    }
    return load_config(None, given, command="run")


def cpu_s(work: Any) -> float:
    """Return the CPU-seconds that a call takes, of all threads of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def scout_s(shards: Path, out: Path, model: str, scout: str | None) -> float:
    """Return the CPU-seconds of one pass of a scout over all rows: the second, which has nothing to begin with."""
    given = {"model": model, "executor": "local", "scorer": "scout", "scout_model": scout, "rounds": 1}

    def passes(num: int) -> float:
        chosen = {**given, "scout_passes": num, "train_batch_size": 64, "least_crop": 0.9}
        config = load_config(None, chosen, command="run")
        return cpu_s(lambda: loop.run([str(shards)], f"{out}-{num}", config, until_round=0))

    return passes(2) - passes(1)


def main() -> None:
    """Print the two costs and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--model", default=str(ROOT / "benchmarks" / "evidence" / "model"))
    parser.add_argument("--safe", type=float, default=0.5)
    parser.add_argument("--scout", help="architecture of a smaller scout")
    args = parser.parse_args()
    header("speed.look")
    torch.set_num_threads(1)
    config = settings(args.model, args.safe)
    look = config.model_copy(update={"split": config.split.model_copy(update={"rule": "look-again", "keep_share": None})})
    with tempfile.TemporaryDirectory() as scratch:
        folder, found = Path(scratch), []
        (folder / "shards").mkdir()
        write_shards(folder / "shards", args.rows)
        loop.run([str(folder / "shards")], str(folder / "begun"), config, until_round=1)
        for turn in range(TURNS):
            run = folder / f"turn-{turn}"
            shutil.copytree(folder / "begun", run)
            weights = {"checkpoint": str(run / "checkpoints" / "round-0001.safetensors")}
            looking = look.model_copy(update={"model": look.model.model_copy(update=weights)})
            seconds = cpu_s(lambda run=run, looking=looking: rounds.rescore(str(run), looking))
            found.append((seconds, cpu_s(lambda run=run: loop.train(str(run), config, 2))))
            shutil.rmtree(run)
        shards, scouts = folder / "shards", []
        for name in (None, args.scout) if args.scout else ():
            seconds = statistics.median(
                scout_s(shards, folder / f"scout-{name is None}-{turn}", args.model, name) for turn in range(TURNS)
            )
            scouts.append(f"a pass of a scout, {Path(name or args.model).name}: {seconds:.1f} CPU-s")
    looks, trained = (statistics.median(column) for column in zip(*found, strict=True))
    ratio = statistics.median(mine / other for mine, other in found)
    print(f"{args.rows} rows, {args.safe:.0%} safe, {Path(args.model).name}: a look {looks:.1f} CPU-s, a pass {trained:.1f}")
    shares = ", ".join(f"{ratio / every:.0%} every {every}" for every in (1, 2, 3, 4))
    print(*scouts, sep="\n", end="\n" if scouts else "")
    print(f"a look costs of the training between two looks: {shares} rounds")


if __name__ == "__main__":
    main()
