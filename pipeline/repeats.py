"""`pairsan repeats`: images that many pairs show, found by hash alone in one pass over the data, with no model."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from manifests.layout import fingerprint, require_same_plan
from manifests.parts import write_json, write_part
from manifests.store import Store, open_store
from pipeline.config import RunConfig
from pipeline.executors import connected, make_executor
from pipeline.version import versions
from pipeline.work import run_stage
from stages.decode import Decode
from stages.hash_rows import HASHES, PREPROCESS, HashRows
from stages.shards import open_dataset

PLAN, PARTS, REPEATS = "plan.json", "hashes", "repeats.parquet"
REPEATED: Final = pa.schema(
    [
        *(pa.field(name, HASHES.field(name).type) for name in ("shard", "index", "key", "caption", "image_hash")),
        pa.field("num_rows", pa.int64()),
        pa.field("num_captions", pa.int64()),
    ]
)
_SHOWN, _BATCH_ROWS, _MEMORY = 10, 100_000, "2GB"


def find_repeats(data: Sequence[str], out: str, config: RunConfig, *, more_than: int, verbose: bool = False) -> dict[str, Any]:
    """Hash all pairs and list those whose image more than so many rows show.

    Args:
        data: Folders, files, globs or brace patterns.
        out: Folder for the hashes, one part a shard, and for `repeats.parquet`; an interrupted call goes on.
        config: How pairs are read, and where the work runs.
        more_than: Rows that may show the same image.
        verbose: Whether to let Ray speak.

    Returns:
        `rows`, `without_image`, `repeated_rows`, `images` (how many such), `groups` (the largest: rows, captions, an example).

    Raises:
        PlanMismatch: The folder was begun with other data or settings.
        StageFailed: Shards could not be read.
    """
    dataset, store = open_dataset(data), open_store(out)
    plan = {"dataset": dataset.fingerprint, "read": config.data.model_dump(), "versions": versions()}
    if store.exists(PLAN):
        require_same_plan(store.read_json(PLAN), plan, where=out, hint="Give another --out for other data or settings.")
    else:
        write_json(store, PLAN, plan)
    done = store.names(PARTS)
    todo = [shard for shard in dataset.shards if f"{shard.name}.parquet" not in done]
    options = config.executor.model_copy(update={"decode": "worker"})
    with connected(options, verbose=verbose):
        executor = make_executor(options, use_gpus=False, num_shards=len(dataset.shards))
        decode = Decode(dataset.store, config.data, PREPROCESS, num_threads=executor.num_threads)
        stage = HashRows(decode, store, PARTS, fingerprint(plan))
        before = len(dataset.shards) - len(todo)
        run_stage(executor, stage, todo, what="hash", folder=(store, None), collect=lambda _, n: n, num_done_before=before)
    return _listed(store, [f"{PARTS}/{shard.name}.parquet" for shard in dataset.shards], more_than, fingerprint(plan))


def _listed(store: Store, parts: list[str], more_than: int, stamp: str) -> dict[str, Any]:
    """Group by image, write the rows of large groups, largest first, and return what to tell."""
    files = [store.path(name) for name in parts]
    rows = pads.dataset(files, schema=HASHES, format="parquet", filesystem=store.fs)
    with duckdb.connect(config={"memory_limit": _MEMORY}) as connection:
        connection.register("pairs", rows)
        connection.execute(
            "CREATE TEMP TABLE large AS SELECT image_hash, count(*) AS num_rows, count(DISTINCT caption_hash) AS num_captions "
            "FROM pairs WHERE image_hash IS NOT NULL GROUP BY 1 HAVING count(*) > ?",
            [more_than],
        )
        found = connection.sql(
            "SELECT shard, index, key, caption, image_hash, num_rows, num_captions FROM pairs JOIN large USING (image_hash) "
            "ORDER BY num_rows DESC, image_hash, shard, index"
        )
        write_part(store, REPEATS, REPEATED, _tables(found.to_arrow_reader(_BATCH_ROWS)), fingerprint=stamp)
        total, missing = connection.sql("SELECT count(*), count(*) - count(image_hash) FROM pairs").fetchall()[0]
        images, repeated = connection.sql("SELECT count(*), coalesce(sum(num_rows), 0)::BIGINT FROM large").fetchall()[0]
        top = connection.sql(
            "SELECT num_rows, num_captions, first(key ORDER BY shard, index) AS key, "
            "first(caption ORDER BY shard, index) AS caption FROM pairs JOIN large USING (image_hash) "
            "GROUP BY image_hash, num_rows, num_captions ORDER BY num_rows DESC, image_hash"
        ).limit(_SHOWN)
        groups = [dict(zip(top.columns, row, strict=True)) for row in top.fetchall()]
    facts = {"rows": total, "without_image": missing, "repeated_rows": repeated, "images": images}
    return {**facts, "more_than": more_than, "groups": groups, "file": store.path(REPEATS)}


def _tables(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    for batch in reader:
        yield pa.Table.from_batches([batch]).cast(REPEATED)


def as_text(found: dict[str, Any]) -> str:
    """Return the findings for a terminal."""
    lines = [
        f"{found['rows']:,} rows, {found['without_image']:,} without an image that can be decoded",
        f"{found['images']:,} images have more than {found['more_than']:,} rows each, {found['repeated_rows']:,} together:",
    ]
    shown = [
        f"{group['num_rows']:>9,} rows, {group['num_captions']:>7,} captions   {_short(group)}" for group in found["groups"]
    ]
    return "\n".join([*lines, *shown, f"all of their rows: {found['file']}"])


def _short(group: dict[str, Any]) -> str:
    text = f"{group['key']}   {group['caption'] or ''}"
    return "".join(c if c.isprintable() else " " for c in text)[:90]
