"""Split and manifest writing: rows per CPU-second, and the driver's memory from 1M to 30M synthetic score rows.

    python -m benchmarks.speed.split [--rows 1_000_000 30_000_000] [--signals none] [--shard-rows 10]

Scores are synthetic (captions of 20 to 60 random characters), in shards of 100,000 rows; nothing is embedded. All shards have
one set of captions and cosines, each has uids and hashes of its own. By default the repeats of images and captions are counted,
too, as a user's split does; with `--signals none` it is split, labels and seal alone; `--shard-rows 10`: what a shard costs.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.common import Usage, header, run_tree, scores_table
from manifests.layout import fingerprint
from manifests.parts import write_json, write_part
from manifests.schema import NUM_NULLS, SCHEMA_VERSION, SCORES
from manifests.store import Store, open_store
from pipeline.config.catalogue import RunConfig
from stages.histogram import on_grid


def main() -> None:
    """Build a run of each size, split it, and print rates and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 30_000_000])
    parser.add_argument("--shard-rows", type=int, default=100_000)
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    parser.add_argument("--signals", choices=["none", "repeats"], default="repeats")
    args = parser.parse_args()
    header("speed.split")
    peaks = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            build(open_store(folder), rows // args.shard_rows, args.shard_rows)
            pairsan = Path(sys.executable).parent / "pairsan"
            idle = run_tree([pairsan, "status", folder])
            command = [pairsan, "split", folder, "--executor", args.executor, "--keep-share", "0.9", "--signals", args.signals]
            usage, peak_mb = driver_usage(command)
            peaks.append(peak_mb)
            rate = rows / (usage.cpu_s - idle.cpu_s)
            written = sum(path.stat().st_size for path in Path(folder, "rounds/0002").rglob("*.parquet"))
            alone = written / disk_bytes_per_s(Path(folder))
            print(f"{rows:,} rows: {usage.wall_s:.0f} s, {usage.cpu_s:.1f} CPU s, {rate:,.0f} rows per CPU-second,", end=" ")
            print(f"{1000 * (usage.cpu_s - idle.cpu_s) / (rows / args.shard_rows):.2f} CPU ms a shard,", end=" ")
            print(
                f"driver's peak {peak_mb:.0f} MB; {written / 1e9:.2f} GB written, by the disk alone {alone:.0f} s", flush=True
            )
    print(f"ratio of the driver's peak memory, largest / smallest: {peaks[-1] / peaks[0]:.3f}")


def disk_bytes_per_s(folder: Path) -> float:
    """Return how fast one file of 1 GB is written and synced."""
    path, block = folder / "probe", os.urandom(1 << 20)
    start = time.monotonic()
    with path.open("wb") as file:
        for _ in range(1000):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.monotonic() - start
    path.unlink()
    return 1000 * len(block) / seconds


def driver_usage(command: list[object]) -> tuple[Usage, float]:
    """Return what the whole tree took, and the peak memory of the command's own process in MB."""
    measure = (  # VmHWM: unlike ru_maxrss it does not remember the process that this one was forked from
        "import re, runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: open(sys.argv[2] + '/peak', 'w').write(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    usage = run_tree([sys.executable, "-c", measure, *command])
    return usage, int((Path(str(command[2])) / "peak").read_text()) / 1024


def build(run: Store, num_shards: int, shard_rows: int) -> None:
    """Write run.json, a plan and the scores of every shard."""
    shards = [[f"{i:06d}.tar", f"/synthetic/{i:06d}.tar", "tar", 1] for i in range(num_shards)]
    dataset = {"fingerprint": "synthetic", "num_shards": num_shards, "shards": shards}
    write_json(run, "run.json", {"data": ["synthetic"], "dataset": dataset, "config": RunConfig().model_dump()})
    known = {"fingerprint": "synthetic", "num_shards": num_shards}
    scores = {
        "dataset": known,
        "keep": {"captions": True, "embeddings": False},
        "canaries": 0,
        "model": {"architecture": "none", "state_sha256": "none"},
    }
    plan = {"schema_version": SCHEMA_VERSION, "round": 1, "kind": "embed", "scores": scores, "scores_round": 1, "split": None}
    write_json(run, "rounds/0001/plan.json", plan)
    rng, stamp = np.random.default_rng(0), fingerprint(scores)
    alike = scores_table(columns(rng, shard_rows))
    for name, *_ in shards:
        write_part(run, f"rounds/0001/scores/{name}.parquet", SCORES, [own(alike, rng)], fingerprint=stamp)


def own(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Return rows with other uids and hashes."""
    for name, width in (("uid", 16), ("image_sha256", 32)):
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(table), [None, pa.py_buffer(rng.bytes(width * len(table)))]
        )
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    for name in ("image_hash", "caption_hash", "pixels_hash"):
        hashes = pa.array(rng.integers(0, 2**62, len(table)))
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), hashes)
    return table


def columns(rng: np.random.Generator, num: int) -> dict[str, pa.Array]:
    """Return the columns of a synthetic shard; `own` gives it uids and hashes."""
    num_bad = num // 20
    cosines = np.r_[rng.normal(0.3, 0.06, num - num_bad), rng.normal(0.06, 0.04, num_bad)]
    letters = rng.integers(97, 123, 80 * num, np.uint8).tobytes().decode()
    lengths = rng.integers(20, 61, num)
    nulls = on_grid(rng.normal(0.06, 0.04, NUM_NULLS * num))
    return {
        "uid": pa.array([bytes(16)] * num, pa.binary(16)),
        "key": pa.array([f"{i:09d}" for i in range(num)]),
        "index": pa.array(np.arange(num, dtype=np.int32)),
        "caption": pa.array([letters[80 * i : 80 * i + n] for i, n in enumerate(lengths)]),
        "cosine": pa.array(on_grid(rng.permutation(cosines))),
        "null_cosines": pa.FixedSizeListArray.from_arrays(pa.array(nulls), NUM_NULLS),
        **{name: pa.array(np.arange(num) * 20_480) for name in ("image_offset", "image_bytes")},
        "image_edge": pa.array(np.full(num, 224, np.int32)),
    }


if __name__ == "__main__":
    main()
