"""`pairsan plan`: what a cleaning would find, take and leave behind, from the heads of a few shards. Writes nothing."""

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.catalogue import RunConfig
from pipeline.config.profiles import PROFILES
from pipeline.queries.terminal import printable
from stages.pair import Pair, Shard
from stages.read.heads import read_head, some_shards
from stages.read.shards import Dataset, open_dataset
from stages.score.looks import WIDTH

_ROWS, _TIMED_ROWS = 128, 64  # rows of each head that is read, rows that are scored for the clock
# of signals that compare vectors, at width 512: `python -m benchmarks.speed.signals`, docs/evidence.md
_CPU_S_PER_ROW: Final = {"standard": 0.00035, "thorough": 0.0005}
_SIGNAL_BYTES: Final = 90
Estimate = dict[str, Any]


def of_data(data: Sequence[str], config: RunConfig) -> Estimate:
    """Return what is known of a dataset, and of what cleaning it would take.

    Args:
        data: Folders, files, globs or brace patterns.
        config: The settings; without weights nothing is scored, and `model`, `hours` and `disk_bytes` are None.

    Raises:
        PairsanError: The data or the weights cannot be found.
    """
    dataset = open_dataset(data, skip_unreadable=config.data.skip_unreadable)
    heads = {shard: read_head(dataset, shard, config.data, _ROWS) for shard in some_shards(dataset)}
    pairs = [pair for found, _, _ in heads.values() for pair in found]
    exact, rows = _num_rows(dataset, {shard: num for shard, (_, num, _) in heads.items()})
    reasons = Counter(str(pair.reason) for pair in pairs if pair.reason is not None)
    workers = config.executor.workers or os.cpu_count() or 1
    found: Estimate = {
        "shards": len(dataset.shards),
        "bytes": sum(shard.size_bytes for shard in dataset.shards),
        "formats": dict(Counter(shard.format for shard in dataset.shards)),
        "columns": {shard.name: names for shard, (_, _, names) in heads.items()},
        "rows": rows,
        "rows_are_exact": exact,
        "rows_read": len(pairs),
        "profile": config.profile,
        "model": None,
        "hours": None,
        "disk_bytes": None,
    }
    if config.model.checkpoint or config.model.pretrained or config.model.model:
        found |= _scored(dataset, config, [pair for pair in pairs if pair.reason is None][:_TIMED_ROWS], reasons)
        per_hour = 3600 * found["pairs_per_second"]
        found["hours"] = {str(num): rows / per_hour / num for num in sorted({1, os.cpu_count() or 1, workers})}
        found["disk_bytes"] = round(rows * found.pop("bytes_per_row"))
        found["profiles"] = {name: _added(name, rows, found["model"]["dim"]) for name in ("quick", "standard", "thorough")}
    return {**found, "broken": dict(reasons), "broken_share": sum(reasons.values()) / max(1, len(pairs))}


def _num_rows(dataset: Dataset, known: dict[Shard, float]) -> tuple[bool, int]:
    """Return whether the number of rows is exact, and the number: of Parquet by its footers, of others by their bytes."""
    parquet = [shard for shard in dataset.shards if shard.format == "parquet"]
    with ThreadPoolExecutor(32) as pool:
        rows = sum(pool.map(lambda shard: pq.read_metadata(shard.path, filesystem=dataset.store.fs).num_rows, parquet))
    others = [shard for shard in dataset.shards if shard.format != "parquet"]
    seen = {shard: num for shard, num in known.items() if shard.format != "parquet"}
    size = sum(shard.size_bytes for shard in seen)
    guessed = sum(seen.values()) * sum(shard.size_bytes for shard in others) / max(1, size)
    exact = all(shard in seen and seen[shard] < _ROWS for shard in others)
    return exact, rows + round(guessed)


def _scored(dataset: Dataset, config: RunConfig, pairs: list[Pair], reasons: Counter[str]) -> Estimate:
    """Load the weights, score some pairs on one thread, and return model, speed and bytes a row."""
    from stages.score.decode import Chunk, Decode
    from stages.score.models.checkpoints import load_model
    from stages.score.models.cross_fit import make_encoder
    from stages.score.models.encoders import image_size, preprocess_config
    from stages.score.models.weights import resolve_weights
    from stages.score.scored_rows import score_batch, score_chunk

    threads = config.executor.threads_per_worker or 1
    weights = resolve_weights(config.model)
    preprocess = preprocess_config(load_model(weights))
    encoder = make_encoder(weights, device="cpu", precision="fp32", batch_size=config.embed.batch_size, num_threads=threads)
    decode = Decode(dataset.store, config.data, preprocess, num_threads=threads)
    decode.open()
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        pixels = decode.pixels(pairs, pool)
    shown = [row for row, some in enumerate(pixels) if some is not None]
    reasons["image_undecodable"] += len(pairs) - len(shown)
    edge = image_size(preprocess)
    stacked = np.stack([some for some in pixels if some is not None]) if shown else np.zeros((0, edge, edge, 3), np.uint8)
    scored = score_chunk(Chunk(pairs, np.asarray(shown, np.int64), stacked), encoder)
    seconds = time.perf_counter() - start
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_batches([score_batch(scored)]), buffer, compression="zstd")
    kept = 4 * encoder.dim + WIDTH if config.embed.keep_embeddings else 0
    return {
        "model": {"architecture": weights.model.rpartition("/")[2], "dim": encoder.dim, "image_px": edge},
        "pairs_per_second": max(1, len(pairs)) / seconds,
        # scores and manifest hold nearly the same columns
        "bytes_per_row": 2 * buffer.getvalue().size / max(1, len(pairs)) + kept,
    }


def _added(profile: str, rows: int, dim: int) -> Estimate:
    """Return what a profile costs beyond the scores."""
    near = "near_copy_cosine" in PROFILES[profile].settings.get("signals", {})
    hours = rows * _CPU_S_PER_ROW.get(profile, 0.0) * dim / 512 / 3600
    return {
        "does": PROFILES[profile].text,
        "disk_bytes": rows * (4 * dim + WIDTH + _SIGNAL_BYTES) if near else rows * _SIGNAL_BYTES // 3,
        "cpu_hours": hours,
        "more_image_passes": int(profile == "thorough"),
    }


def as_text(found: Estimate) -> str:
    """Return an estimate for a terminal."""
    about = "" if found["rows_are_exact"] else "about "
    formats = ", ".join(f"{num:,} {form}" for form, num in found["formats"].items())
    lines = [f"{about}{found['rows']:,} pairs in {found['shards']:,} shards ({formats}), {_size(found['bytes'])}"]
    for shard, names in found["columns"].items():
        lines.append(f"  {printable(shard, 40)}: {printable(', '.join(names), 90)}")
    lines.append(f"of {found['rows_read']:,} pairs read, {found['broken_share']:.1%} cannot be scored")
    lines += [f"  {reason:<22}{num:>8,}" for reason, num in found["broken"].items() if num]
    if found["model"] is None:
        return "\n".join([*lines, "no weights named: what it would take is not known; give --model and --checkpoint"])
    model = found["model"]
    lines.append(
        f"{model['architecture']}, {model['image_px']} px, width {model['dim']}: {found['pairs_per_second']:,.1f} pairs/s"
    )
    for num, hours in found["hours"].items():
        lines.append(f"  {_time(hours):>10} with {num} worker{'s' * (num != '1')} of this CPU's speed")
    lines.append(f"  {_size(found['disk_bytes']):>10} of scores and labels")
    for name, added in found["profiles"].items():
        more = ", one more image pass" if added["more_image_passes"] else ""
        lines.append(f"--profile {name}: + {_size(added['disk_bytes'])}, + {_time(added['cpu_hours'])} of one CPU{more}")
        lines.append(f"    {added['does']}")
    return "\n".join([*lines, "nothing was written"])


def _time(hours: float) -> str:
    """Return a time in the unit that a person would say it in."""
    if hours < 1 / 60:
        return f"{max(1, round(3600 * hours))} s"
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:,.1f} h"


def _size(num: float) -> str:
    """Return a number of bytes in the unit that a person would say it in."""
    power = min(4, int(math.log(max(1.0, num), 1000)))
    return f"{num / 1000**power:,.{min(1, power)}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
