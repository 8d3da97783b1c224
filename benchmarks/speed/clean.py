"""`pairsan clean` on Ray against a bare loop: pairs per CPU-second, start-up counted apart.

    python -m benchmarks.speed.clean [--data FOLDER] [--checkpoint FOLDER] [--repeat 2]

Both run on all shards and on the first two alone; the difference is the work without start-up. CPU time is that of the
whole process tree, Ray's daemons included. Needs the larger emoji set: python examples/emoji/build.py --benchmark
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.common import CACHE, ROOT, Usage, header, run_tree

FEW = 2


def main() -> None:
    """Run both in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=CACHE / "emoji-benchmark")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "examples/emoji/tiny-clip")
    parser.add_argument("--repeat", type=int, default=2)
    args = parser.parse_args()
    header("speed.clean")
    shards = sorted(args.data.glob("*.tar"))
    if len(shards) <= FEW:
        raise SystemExit(f"{args.data} holds {len(shards)} tars; build the set: python examples/emoji/build.py --benchmark")
    ratios = []
    for _ in range(args.repeat):
        ours = [clean(shards[:limit], args.checkpoint) for limit in (None, FEW)]
        bare = [bare_loop(args.data, args.checkpoint, limit) for limit in (None, FEW)]
        ratios.append((bare[0].cpu_s - bare[1].cpu_s) / (ours[0].cpu_s - ours[1].cpu_s))
        for name, (whole, few) in (("pairsan clean", ours), ("bare loop", bare)):
            print(f"{name}: {whole.cpu_s:.1f} CPU s, {whole.wall_s:.1f} s for {len(shards)} shards; ", end="")
            print(f"{few.cpu_s:.1f} CPU s, {few.wall_s:.1f} s for {FEW}")
    print(f"ratio of pairs per CPU-second, ours / bare: {', '.join(f'{r:.2f}' for r in ratios)}")


def clean(shards: list[Path], checkpoint: Path, *more: str) -> Usage:
    """Run `pairsan clean` into a fresh folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        pairsan = Path(sys.executable).parent / "pairsan"
        options = ["--keep-share", "0.9", "--max-quarantined-share", "0.5"]
        usage = run_tree([pairsan, "clean", *shards, "--checkpoint", checkpoint, "--out", out, *options, *more])
        shutil.rmtree(out)
        return usage


def bare_loop(data: Path, checkpoint: Path, limit: int | None) -> Usage:
    """Run the bare loop."""
    few = ["--limit", limit] if limit else []
    return run_tree([sys.executable, "-m", "benchmarks.speed.bare_loop", data, checkpoint, *few])


if __name__ == "__main__":
    main()
