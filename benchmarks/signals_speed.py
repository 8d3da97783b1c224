"""What the signals cost: counting of repeats, drawing of the reference, neighbours, at several sizes.

    python -m benchmarks.signals_speed [--rows 100000 1000000] [--dim 512]

Scores and embeddings are synthetic (clusters of vectors, some repeated hashes): only speed and memory mean anything. CPU-time
of this process, so that a busy machine does not matter; the last column is the time against one product of all rows with the
reference, which is what must be done at least.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.common import header
from manifests.layout import EMBEDDINGS, SCORES, part_name
from manifests.parts import write_part
from manifests.schema import SCORES as SCORES_SCHEMA
from manifests.schema import SIGNALS
from manifests.store import Store, open_store
from stages.embed import embedding_schema
from stages.neighbours import Neighbours, SignalTarget
from stages.pair import Shard
from stages.reference import Reference, SampleRows, share_of
from stages.repeats import write_repeats

SHARD_ROWS = 10_000
REFERENCES = (2_048, 16_384)


def build(run: Store, num_shards: int, dim: int) -> list[Shard]:
    """Write scores and embeddings of synthetic rows."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1000, dim)).astype(np.float32)
    shards = [Shard(f"{i:05d}.tar", "", "tar", 0) for i in range(num_shards)]
    for shard in shards:
        v, t = (
            centres[rng.integers(0, 1000, SHARD_ROWS)] + rng.normal(size=(SHARD_ROWS, dim)).astype(np.float32) for _ in range(2)
        )
        schema = embedding_schema(dim)
        columns = []
        for part in (v, t):
            half = (part / np.linalg.norm(part, axis=1, keepdims=True)).astype(np.float16)
            columns.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * dim), SHARD_ROWS, [None, pa.py_buffer(half)]))
        write_part(run, part_name(1, EMBEDDINGS, shard.name), schema, [pa.table(columns, schema=schema)], fingerprint="x")
        hashes = np.where(rng.random(SHARD_ROWS) < 0.05, rng.integers(0, 5000, SHARD_ROWS), rng.integers(0, 2**62, SHARD_ROWS))
        table = pa.table(
            {
                "uid": pa.array([rng.bytes(16) for _ in range(SHARD_ROWS)], pa.binary(16)),
                "key": pa.array([str(i) for i in range(SHARD_ROWS)]),
                "index": pa.array(np.arange(SHARD_ROWS, dtype=np.int32)),
                "caption": pa.nulls(SHARD_ROWS, pa.string()),
                "cosine": pa.array(rng.random(SHARD_ROWS, np.float32)),
                "reason": pa.nulls(SHARD_ROWS, pa.string()).dictionary_encode(),
                "detail": pa.nulls(SHARD_ROWS, pa.string()),
                "signals": pa.nulls(SHARD_ROWS, SIGNALS),
                "image_hash": pa.array(hashes),
                "caption_hash": pa.array(rng.permutation(hashes)),
                "image_offset": pa.nulls(SHARD_ROWS, pa.int64()),
                "image_bytes": pa.nulls(SHARD_ROWS, pa.int64()),
                "null_cosines": pa.nulls(SHARD_ROWS, SCORES_SCHEMA.field("null_cosines").type),
            },
            schema=SCORES_SCHEMA,
        )
        write_part(run, part_name(1, SCORES, shard.name), SCORES_SCHEMA, [table], fingerprint="x")
    return shards


def bare_product(num_rows: int, rows: int, dim: int) -> float:
    """Return CPU-seconds of a product of all rows with a reference, in blocks."""
    rng = np.random.default_rng(1)
    reference, block = rng.random((rows, dim), np.float32), rng.random((SHARD_ROWS, dim), np.float32)
    start = time.process_time()
    for _ in range(num_rows // SHARD_ROWS):
        (block @ reference.T).max()
    return time.process_time() - start


def main() -> None:
    """Print one line per size and reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=512)
    args = parser.parse_args()
    header("signals_speed")
    for num_rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            run = open_store(Path(folder))
            shards = build(run, num_rows // SHARD_ROWS, args.dim)
            start = time.process_time()
            write_repeats(run, 1, [shard.name for shard in shards], "signals", memory_bytes=1 << 30, fingerprint="x")
            print(f"{num_rows:>10,} rows: repeats {time.process_time() - start:.1f} CPU-s", flush=True)
            for size in REFERENCES:
                start = time.process_time()
                sample = SampleRows(run, 1, share=share_of(size, num_rows), seed=0)
                offered = [sample.run(shard) for shard in shards]
                Reference.choose(offered, size).write(run, f"signals/reference-{size}.parquet", "x")
                drawn = time.process_time() - start
                stage = Neighbours(SignalTarget(run, 1, "signals", "x", f"signals/reference-{size}.parquet", 16, 2))
                stage.open()
                start = time.process_time()
                for shard in shards:
                    stage.run(shard)
                spent = time.process_time() - start
                bare = bare_product(num_rows, size, args.dim)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
                rate = num_rows / spent
                line = f"sample {drawn:.1f}, neighbours {spent:.1f} CPU-s ({rate:,.0f} rows/CPU-s), {spent / bare:.2f} x bare"
                print(f"{'':>16} reference {size:,}: {line}; peak {peak:,.0f} MB", flush=True)


if __name__ == "__main__":
    main()
