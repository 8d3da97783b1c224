"""`pairsan clean` beside other tools that score image-caption pairs: same shards, same random ViT-B-32, whole commands.

    python -m benchmarks.speed.peers [--data FOLDER] [--rows 1024] [--only NAME ...] [--part clean | noisy]

clip-retrieval and Data-Juicer are installed in environments of their own (needs PyPI, 12 GB under ~/.cache/pairsan/peers).
Each command runs on half of the rows and on all; the difference is the work without start-up. CPU time and memory are those
of the whole process tree. Then each gets shards in which every fourth row is broken. --data: shards of JPEGs; without, the
bundled drawings as JPEGs of 224 px.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.common import Usage, header, run_tree
from benchmarks.speed.peers import tools
from benchmarks.speed.peers.data import ROWS_PER_SHARD, write_clean, write_noisy
from benchmarks.speed.peers.weights import write_weights

NOISY_LIMIT_S: Final = 300.0
TOOLS: Final[dict[str, Callable[[], tools.Tool]]] = {
    "pairsan": lambda: tools.pairsan("fp32"),
    "pairsan-bf16": lambda: tools.pairsan("bf16"),
    "bare": tools.bare_loop,
    "bare-trimmed": lambda: tools.bare_loop("--trimmed"),
    "clip-retrieval": tools.clip_retrieval,
    "data-juicer": tools.data_juicer,
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--only", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--part", choices=("clean", "noisy", "both"), default="both")
    args = parser.parse_args()
    header("speed.peers")
    if args.rows % (2 * ROWS_PER_SHARD):
        raise SystemExit(f"--rows: a multiple of {2 * ROWS_PER_SHARD}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder / "weights")
        for kind, num in (("half", args.rows // 2), ("all", args.rows)):
            write_clean(args.data, folder / kind, num)
        whole = write_noisy(args.data, folder / "noisy")
        chosen = [TOOLS[name]() for name in args.only]
        for tool in chosen:
            if tool.packages:
                tool.command(folder / "half", folder, folder)  # makes the environment, before anything is timed
        if args.part != "noisy":
            print("| | pairs per CPU-second | seconds, half | seconds, all | peak memory | mean cosine |\n" + "|---" * 6 + "|")
            for tool in chosen:
                print(clean(tool, folder, args.rows), flush=True)
        if args.part != "clean":
            print(f"\n| {whole} whole rows among broken ones | ends | scored | of the whole rows' number |\n|---|---|---|---|")
            for tool in chosen:
                if not tool.name.startswith("bare"):
                    print(noisy(tool, folder, whole), flush=True)


def clean(tool: tools.Tool, folder: Path, rows: int) -> str:
    """Return a tool's line on clean shards."""
    half, _ = once(tool, folder, "half")
    full, cosines = once(tool, folder, "all")
    if len(cosines) not in (0, rows):
        raise SystemExit(f"{tool.name} scored {len(cosines)} of {rows} clean rows")
    rate = rows / 2 / (full.cpu_s - half.cpu_s)
    mean = f"{cosines.mean():.4f}" if len(cosines) else "-"
    memory = f"{full.peak_bytes / 2**30:.1f} GiB"
    return f"| {tool.name} | {rate:.2f} | {half.wall_s:.0f} | {full.wall_s:.0f} | {memory} | {mean} |"


def noisy(tool: tools.Tool, folder: Path, whole: int) -> str:
    """Return a tool's line on shards with broken rows."""
    failed = io.StringIO()
    try:
        with contextlib.redirect_stderr(failed):
            used, cosines = once(tool, folder, "noisy", NOISY_LIMIT_S)
        ends = f"after {used.wall_s:.0f} s"
    except SystemExit as error:
        ends, cosines = str(error).splitlines()[-1][:80], np.zeros(0)
    return f"| {tool.name} | {ends} | {len(cosines)} | {len(cosines) - whole:+d} |"


def once(tool: tools.Tool, folder: Path, kind: str, limit_s: float | None = None) -> tuple[Usage, np.ndarray]:
    """Run a tool into a fresh folder; return what it took and its cosines."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        used = run_tree(tool.command(folder / kind, folder / "weights", Path(out)), limit_s)
        return used, tool.scored(Path(out))


if __name__ == "__main__":
    main()
