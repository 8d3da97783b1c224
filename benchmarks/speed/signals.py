"""What the signals cost: repeats, samples, neighbours, accord, near copies, wording, at several sizes, and at a billion rows.

    python -m benchmarks.speed.signals [--rows 100000 1000000] [--dim 512] [--agreement-rows 16384]

Scores and embeddings are synthetic (clusters of vectors, some repeated hashes): only speed and memory mean anything. CPU-time
of this process, so that a busy machine does not matter. `x bare` is the time against one product of all rows with a sample
of 2,048, which is the least that any search in such a sample must do. All but the samples is linear in the rows, so the last
table takes the largest size times 100 and 1,000.
"""

import argparse
import dataclasses
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.common import header, scores_table
from manifests.layout import EMBEDDINGS, SCORES, part_name
from manifests.parts import write_part
from manifests.schema import SCORES as SCORES_SCHEMA
from manifests.store import Store, open_store
from stages.pair import Shard
from stages.score.looks import WIDTH
from stages.score.scored_rows import embedding_schema
from stages.signals.near_copies import AssignCells, CopyTarget, LinkCells
from stages.signals.repeats import Repeats, repeats_name, write_repeats
from stages.signals.sample import Reference, SampleRows, SampleTarget, share_of
from stages.signals.settings import SignalSettings
from stages.signals.shingles import ShingleCaptions, write_band_counts
from stages.signals.signal_parts import AGREEMENT, CENTRES, CLUSTERS, REFERENCE, Asked, SignalParts
from stages.signals.witnesses.joint_doubt import JoinCopies, write_groups
from stages.signals.write_signals import WriteSignals
from stages.stage import Stage
from stages.vectors import packed, packed_bytes

SHARD_ROWS = 10_000
_ASKED = SignalSettings()
CELL_ROWS = (1_000, 4_000)
WORDS = np.asarray([f"word{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(5_000)])


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
            columns.append(packed(part / np.linalg.norm(part, axis=1, keepdims=True)))
        columns.append(packed_bytes(rng.integers(0, 256, (SHARD_ROWS, WIDTH), dtype=np.uint8)))
        write_part(run, part_name(1, EMBEDDINGS, shard.name), schema, [pa.table(columns, schema=schema)], fingerprint="x")
        hashes = np.where(rng.random(SHARD_ROWS) < 0.05, rng.integers(0, 5000, SHARD_ROWS), rng.integers(0, 2**62, SHARD_ROWS))
        table = scores_table(
            {
                "uid": pa.array([rng.bytes(16) for _ in range(SHARD_ROWS)], pa.binary(16)),
                "key": pa.array([str(i) for i in range(SHARD_ROWS)]),
                "index": pa.array(np.arange(SHARD_ROWS, dtype=np.int32)),
                "caption": [" ".join(words) for words in WORDS[rng.integers(0, len(WORDS), (SHARD_ROWS, 8))]],
                "cosine": pa.array(rng.random(SHARD_ROWS, np.float32)),
                "image_hash": pa.array(hashes),
                "pixels_hash": pa.array(hashes),
                "caption_hash": pa.array(rng.permutation(hashes)),
            }
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
    """Print one line per size and step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--agreement-rows", type=int, default=_ASKED.agreement_rows)
    args = parser.parse_args()
    header("speed.signals")
    spent: dict[str, float] = {}
    for num_rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            run = open_store(Path(folder))
            shards = build(run, num_rows // SHARD_ROWS, args.dim)
            bare = bare_product(num_rows, _ASKED.reference_rows, args.dim)
            for step, work in steps(run, shards, num_rows, args.agreement_rows):
                start = time.process_time()
                work()
                spent[step] = time.process_time() - start
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
                rate = f"{num_rows / spent[step]:>11,.0f} rows/CPU-s, {spent[step] / bare:6.2f} x bare"
                print(f"{num_rows:>10,} rows: {step:<46} {spent[step]:8.1f} CPU-s, {rate}; peak {peak:,.0f} MB", flush=True)
    for scale in (100_000_000, 1_000_000_000):
        hours = ", ".join(f"{step} {seconds * scale / args.rows[-1] / 3600:,.1f}" for step, seconds in spent.items())
        print(f"at {scale:,} rows, CPU-hours: {hours}")


def steps(run: Store, shards: list[Shard], num_rows: int, sampled: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the steps of the signals, each with what does it; in this order, as each needs the files of those before."""
    names = tuple(shard.name for shard in shards)
    near = Asked(signals="all", neighbours=_ASKED.neighbours, reference_rows=_ASKED.reference_rows, looks=True)
    more = {"agreement_rows": sampled, "agreement_neighbours": _ASKED.agreement_neighbours}
    full = dataclasses.replace(near, **more, common_captions=True, looks=False)
    parts = SignalParts(run, 1, names, "signals", "x", near, num_scored=num_rows, memory_bytes=1 << 30)
    yield "repeats", lambda: write_repeats(parts)
    for name, size in {REFERENCE: _ASKED.reference_rows, AGREEMENT: sampled}.items():
        yield f"sample of {size:,}", lambda name=name, size=size: draw(parts, shards, name, size)
    yield f"{_ASKED.neighbours} neighbours in {_ASKED.reference_rows:,}", lambda: each(WriteSignals(parts), shards)
    asked = dataclasses.replace(parts, asked=full)
    yield f"the same, and accord by {sampled:,}", lambda: each(WriteSignals(asked), shards)
    seen = dataclasses.replace(asked, asked=dataclasses.replace(full, looks=True))
    yield "the same, and looks", lambda: each(WriteSignals(seen), shards)
    for rows in CELL_ROWS:
        cells = max(1, num_rows // rows)
        yield f"centres of cells of {rows:,} rows", lambda cells=cells: draw(parts, shards, CENTRES, cells)
        blocks, vectors = max(1, num_rows // 100_000), f"rounds/0001/{EMBEDDINGS}"
        copies = CopyTarget(run, 1, names, vectors, "signals", parts.name(CENTRES), "image", cells, blocks, 0.98, "x", 1)
        yield f"near copies: into cells of {rows:,} rows", lambda copies=copies: each(AssignCells(copies), shards)
        yield f"near copies: compare in cells of {rows:,} rows", lambda copies=copies: each(LinkCells(copies), copies.blocks())
    joined = dataclasses.replace(asked, asked=dataclasses.replace(full, near_copy_cosine=0.98))
    link(joined, num_rows)
    yield f"accord by {sampled:,}, copies to be joined", lambda: each(WriteSignals(joined), shards)
    yield "sum up the doubts about copies", lambda: write_groups(joined)
    yield "join the copies", lambda: each(JoinCopies(joined), shards)
    yield "shingle captions", lambda: each(ShingleCaptions(joined), shards)
    yield "count bands", lambda: write_band_counts(joined)


def link(parts: SignalParts, num_rows: int) -> None:
    """Join repeated hashes at random, a tenth as many links as rows: as many copies as a crawl has."""
    repeats = Repeats.read(parts.run, parts.name(repeats_name("image")))
    pairs = np.random.default_rng(2).choice(repeats.hashes, (2, num_rows // 10))
    repeats.joined(pairs).write(parts.run, parts.name(CLUSTERS), fingerprint="x")


def each(stage: Stage[Any, int], shards: list[Shard]) -> None:
    """Run a stage over shards, here."""
    stage.open()
    for shard in shards:
        stage.run(shard)


def draw(parts: SignalParts, shards: list[Shard], name: str, size: int) -> None:
    """Draw a sample and write it."""
    sample = SampleRows(SampleTarget(parts, share_of(size, parts.num_scored)))
    Reference.choose([sample.run(shard) for shard in shards], size).write(parts.run, parts.name(name), "x")


if __name__ == "__main__":
    main()
