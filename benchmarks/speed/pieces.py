"""One big shard on one worker and on two: how much faster is the second, start-up apart, and what do pieces cost?

    python -m benchmarks.speed.pieces [--rows 30000] [--checkpoint FOLDER] [--repeat 2]

A tar of noise at 64 px, and one of an eighth of its rows; the difference is the work without start-up. `whole` is the same
stage over the same shard in one go, in this process.
"""

import argparse
import io
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import ROOT, header
from benchmarks.speed.clean import clean
from manifests.store import open_store
from pipeline.config.load import load_config
from pipeline.steps.embed_stage import prepare_scoring
from stages.read.shards import open_dataset
from stages.score.pieces import JoinPieces, JoinTarget, Survey, SurveyTarget

EDGE_PX = 64
FEW = 8


def main() -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "examples/emoji/tiny-clip")
    parser.add_argument("--repeat", type=int, default=2)
    args = parser.parse_args()
    header("speed.pieces")
    with tempfile.TemporaryDirectory() as folder:
        tars = [Path(folder) / name / "0.tar" for name in ("all", "few")]
        for tar, rows in zip(tars, (args.rows, args.rows // FEW), strict=True):
            make(tar, rows)
        print(f"{args.rows:,} rows, {tars[0].stat().st_size / 2**20:.0f} MiB")
        ratios = []
        for _ in range(args.repeat):
            seconds = []
            for workers in (1, 2):
                walls = [clean([tar], args.checkpoint, "--workers", str(workers)).wall_s for tar in tars]
                seconds.append(walls[0] - walls[1])
                print(f"clean, {workers} workers: {walls[0]:.1f} s, {walls[1]:.1f} s of them for an eighth")
            ratios.append(seconds[0] / seconds[1])
        told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"two workers are {told} times as fast, start-up apart")
        in_this_process(tars[0].parent, args.checkpoint, Path(folder))


def make(path: Path, rows: int) -> None:
    """Write a tar of noise."""
    path.parent.mkdir()
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(rows):
            image = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (EDGE_PX, EDGE_PX, 3), np.uint8)).save(image, "PNG")
            for end, data in (("png", image.getvalue()), ("txt", b"a thing of kind %d" % i)):
                info = tarfile.TarInfo(f"{i:06d}.{end}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def in_this_process(data: Path, checkpoint: Path, folder: Path) -> None:
    """Print what dividing and joining cost beside the work, and whether the part is the same."""
    config, dataset = load_config(None, {"checkpoint": str(checkpoint)}), open_dataset([str(data)])
    scoring, (shard,) = prepare_scoring(config, dataset, device="cpu"), dataset.shards
    runs = [open_store(folder / name) for name in ("whole", "pieces")]
    times: dict[str, float] = {}
    stages = [scoring.stage(run, 1, num_shards=1, num_threads=1) for run in runs]
    for stage in stages:
        stage.open()
    times["whole"] = timed(lambda: stages[0].run(shard))
    found = []
    times["divide"] = timed(lambda: found.extend(Survey(SurveyTarget(dataset.store, config.data)).run(shard)))
    times["pieces"] = timed(lambda: [stages[1].run(replace(shard, stretch=piece)) for piece in found])
    scores = "rounds/0001/scores"
    times["join"] = timed(lambda: JoinPieces(JoinTarget(runs[1], (scores,))).run(shard))
    same = runs[0].read_bytes(shard.part(scores)) == runs[1].read_bytes(shard.part(scores))
    print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items()), f"({len(found)} pieces)")
    print(f"divide and join: {100 * (times['divide'] + times['join']) / times['whole']:.1f} % of whole; same bytes: {same}")


def timed(work: Callable[[], object]) -> float:
    """Return how many CPU-seconds a call took."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
