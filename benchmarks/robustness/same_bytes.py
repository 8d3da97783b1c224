"""Does another commit write the same bytes? Runs a matrix of commands with two checkouts and compares every file.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.robustness.same_bytes /tmp/before . --out /tmp/same

The digest of pairsan's own code, which goes into every plan, is pinned; all else is as it comes. Each command runs in a process
of its own with the local executor on the bundled held-out pairs. Positions and times of training are left out.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

EMOJI: Final = Path(__file__).parents[2] / "examples" / "emoji"
DATA, TINY, DEMO = str(EMOJI / "eval"), str(EMOJI / "tiny-clip"), str(EMOJI / "demo-model")
LOCAL: Final = ["--executor", "local", "--device", "cpu"]
NEAR: Final = ["--near-copy-cosine", "0.95", "--max-pair-copies", "4", "--max-near-copies", "6", "--discord-share", "0.05"]
MANY: Final = ["--max-image-repeats", "2", "--max-caption-copies", "50", "--crowded-tail", "0.02", "--outlier-share", "0.01"]
TOWER: Final = ["--reference-encoder", TINY, "--canaries", "60"]
FORMATS: Final = ("webdataset", "datacomp-npy", "parquet", "hf", "keys")
MATRIX: Final[dict[str, list[str]]] = {
    "default": ["clean", DATA, "--out", "default", "--checkpoint", TINY, *LOCAL],
    "all": ["clean", DATA, "--out", "all", "--checkpoint", TINY, *LOCAL, *NEAR, *MANY, *TOWER],
    "strata": ["clean", DATA, "--out", "strata", "--checkpoint", TINY, *LOCAL, "--null-strata", "caption-length"],
    "share": ["split", "default", "--keep-share", "0.7", "--executor", "local"],
    "cosine": ["split", "default", "--min-cosine", "0.5", "--executor", "local"],
    "mixture": ["split", "default", "--rule", "monotone", "--threshold", "0.8", "--min-separation", "0", "--executor", "local"],
    "published": ["split", "default", "--rule", "published", "--executor", "local"],
    "resplit": ["split", "all", "--keep-share", "0.9", "--crowded-tail", "0.1", "--executor", "local"],
    "scout": ["run", DATA, "--out", "scout", "--model", DEMO, "--rounds", "2", *LOCAL],
    "locked": [
        *["run", DATA, "--out", "locked", "--model", DEMO, "--rounds", "2", "--scorer", "locked", "--warmup-passes", "1"],
        *["--matching-passes", "1", "--keep-share", "0.4", "--if-unseparable", "accept", *LOCAL],
    ],
    "rescore": [
        "rescore",
        "default",
        "--model",
        DEMO,
        "--checkpoint",
        "scout/checkpoints/round-0002.safetensors",
        "--keep-share",
        "0.6",
        *LOCAL,
    ],
    "grown": ["rescore", "locked", "--checkpoint", "locked/checkpoints/round-0002.safetensors", "--growth", "0.05", *LOCAL],
    "repeats": ["repeats", DATA, "--out", "repeats", "--executor", "local"],
    **{
        f"export-{form}": ["export", "all", "--format", form, "--out", f"export-{form}", "--executor", "local"]
        for form in FORMATS
    },
    "export-risky": [
        *["export", "all", "--format", "webdataset", "--label", "risky", "--inject", "--weights", "p_safe"],
        *["--out", "export-risky", "--executor", "local"],
    ],
}
_LEFT_OUT: Final = ("timings.json", "history.json", "state.safetensors")
_DRIVER: Final = """
import importlib, sys
sys.path.insert(0, sys.argv.pop(1))
for name in ("pipeline.config.provenance", "pipeline.version"):
    try:
        provenance = importlib.import_module(name)
        break
    except ModuleNotFoundError:
        pass
provenance.code_sha256 = lambda: "pinned"
for name in ("pipeline.cli.main", "pipeline.cli"):
    try:
        main = importlib.import_module(name).main
        break
    except (ModuleNotFoundError, AttributeError):
        pass
main(prog_name="pairsan")
"""


def run(checkout: Path, out: Path, names: list[str]) -> None:
    """Run the commands of the matrix with a checkout; what is there already is run again."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        command = [sys.executable, "-c", _DRIVER, str(checkout.resolve()), *MATRIX[name]]
        done = subprocess.run(
            command, cwd=out, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""}
        )
        (out / f"{name}.log").write_text(done.stdout + done.stderr)
        print(f"{checkout}: {name}: {done.returncode}", flush=True)
        if done.returncode:
            print(done.stderr[-2000:], flush=True)


def files_of(out: Path) -> dict[str, str]:
    """Return the digest of every file that must be the same."""
    found = [path for path in sorted(out.rglob("*")) if path.is_file() and path.suffix != ".log"]
    wanted = [path for path in found if not path.name.endswith(_LEFT_OUT)]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in wanted}


def _how(before: Path, after: Path) -> str:
    """Say whether two files that differ hold the same rows: a dictionary's words may stand in another order."""
    if not (before.exists() and after.exists()):
        return "only once"
    same = before.suffix == ".parquet" and _plain(before).equals(_plain(after))
    return "same rows, other bytes" if same else "differs"


def _plain(path: Path) -> pa.Table:
    """Return a part with words in place of dictionaries, and without the footer's fingerprints."""
    table = pq.read_table(path).replace_schema_metadata(None)
    columns = [c.cast(pa.string()) if pa.types.is_dictionary(c.type) else c for c in table.columns]
    return pa.table(columns, names=table.column_names)


def main() -> None:
    """Run the matrix twice and tell what differs; ends with 1 where anything does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=[*MATRIX, []], default=list(MATRIX))
    parser.add_argument("--skip-before", action="store_true", help="the first half is there from an earlier call")
    args = parser.parse_args()
    if not args.skip_before:
        run(args.before, args.out / "before", args.only)
    run(args.after, args.out / "after", args.only)
    before, after = files_of(args.out / "before"), files_of(args.out / "after")
    differ = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in differ:
        print(f"{_how(args.out / 'before' / name, args.out / 'after' / name)}: {name}")
    print(f"{len(before)} files before, {len(after)} after, {len(differ)} differ")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
