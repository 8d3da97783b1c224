"""`pairsan repeats`: images that many pairs show, looks and captions that many have, by hashes in one pass, with no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import pyarrow as pa

from manifests.layout import fingerprint, require_same_plan
from manifests.parts import write_json
from manifests.store import Store, open_store
from pipeline.config.catalogue import RunConfig
from pipeline.config.provenance import versions
from pipeline.queries.terminal import printable
from pipeline.workers.connect import connected, make_executor
from pipeline.workers.run_stage import run_stage
from stages.out_of_core import over_parts, write_answer
from stages.read.shards import open_dataset
from stages.score.decode import Decode
from stages.signals.hash_rows import HASHES, PREPROCESS, HashRows, HashTarget

PLAN, PARTS = "plan.json", "hashes"
_SHOWN, _MEMORY_BYTES = 10, 2 << 30


@dataclass(frozen=True, slots=True)
class _Kind:
    """What rows have in common.

    Attributes:
        file: Where their rows are listed.
        groups: SQL that gives `common` and `num_rows` of what more than $most rows share.
        members: SQL that gives the shard and index of each of their rows, and `common`.
    """

    file: str
    groups: str
    members: str


_IMAGES: Final = _Kind(
    "repeats.parquet",
    "SELECT pixels_hash AS common, count(*) AS num_rows FROM parts WHERE pixels_hash IS NOT NULL "
    "GROUP BY 1 HAVING num_rows > $most",
    "SELECT shard, index, pixels_hash AS common FROM parts SEMI JOIN large ON pixels_hash = common",
)
# what is one image in all of its rows is listed above
_LOOKS: Final = _Kind(
    "look-alikes.parquet",
    "SELECT image_hash AS common, count(*) AS num_rows FROM parts WHERE image_hash IS NOT NULL "
    "GROUP BY 1 HAVING num_rows > $most AND count(DISTINCT pixels_hash) > 1",
    "SELECT shard, index, image_hash AS common FROM parts SEMI JOIN large ON image_hash = common",
)
# captions share some of six bands, not all: a row belongs to the largest group that has a band of it
_CAPTIONS: Final = _Kind(
    "repeated-captions.parquet",
    "SELECT band AS common, count(*) AS num_rows FROM (SELECT unnest(bands) AS band FROM parts) "
    "GROUP BY 1 HAVING num_rows > $most",
    "SELECT shard, index, arg_max(common, (num_rows, common)) AS common "
    "FROM (SELECT shard, index, unnest(bands) AS band FROM parts) JOIN large ON band = common GROUP BY 1, 2",
)


def repeated_schema(common: str) -> pa.Schema:
    """Return the columns of a list of repeats; `common` names the hash that the rows of a group share."""
    named = [pa.field(name, HASHES.field(name).type) for name in ("shard", "index", "key", "caption")]
    return pa.schema([*named, *(pa.field(name, pa.int64()) for name in (common, "num_rows", "num_captions", "num_images"))])


def find_repeats(
    data: Sequence[str],
    out: str,
    config: RunConfig,
    *,
    more_than: int,
    captions_more_than: int,
    verbose: bool = False,
) -> dict[str, Any]:
    """Hash all pairs; list those whose image, look, or wording more than so many rows have.

    Args:
        data: Folders, files, globs or brace patterns.
        out: Folder for the hashes, one part a shard, and for the two lists; an interrupted call goes on.
        config: How pairs are read, and where the work runs.
        more_than: Rows that may show the very same image, or look alike.
        captions_more_than: Rows that may have nearly the same caption.
        verbose: Whether to let Ray speak.

    Returns:
        `rows`, `without_image`, `repeated_rows`, `images` (how many such), `groups` (the largest: rows, captions, images, an
        example), `file`; under `look_alikes` and `captions` the same: `repeated_rows`, `looks` or `wordings`, `groups`, `file`.

    Raises:
        PlanMismatch: The folder was begun with other data or settings.
        StageFailed: Shards could not be read.
    """
    dataset, store = open_dataset(data, skip_unreadable=config.data.skip_unreadable), open_store(out)
    plan = {"dataset": dataset.fingerprint, "read": config.data.model_dump(), "versions": versions()}
    if store.exists(PLAN):
        require_same_plan(store.read_json(PLAN), plan, where=out, hint="Give another --out for other data or settings.")
    else:
        write_json(store, PLAN, plan)
    done = store.names(PARTS)
    todo = [shard for shard in dataset.shards if f"{shard.name}.parquet" not in done]
    options = config.executor.model_copy(update={"decode": "worker"})
    with connected(options, verbose=verbose):
        executor = make_executor(options, use_gpus=False)
        decode = Decode(dataset.store, config.data, PREPROCESS, num_threads=executor.num_threads)
        stage = HashRows(HashTarget(decode, store, PARTS, fingerprint(plan)))
        before = len(dataset.shards) - len(todo)
        run_stage(executor, stage, todo, what="hash", folder=(store, None), collect=lambda _, n: n, num_done_before=before)
    parts = [f"{PARTS}/{shard.name}.parquet" for shard in dataset.shards]
    with over_parts(store, parts, HASHES, _MEMORY_BYTES) as connection:
        total, missing = connection.sql("SELECT count(*), count(*) - count(image_hash) FROM parts").fetchall()[0]
        images = _listed(connection, store, _IMAGES, more_than, "pixels_hash", fingerprint(plan))
        looks = _listed(connection, store, _LOOKS, more_than, "image_hash", fingerprint(plan))
        captions = _listed(connection, store, _CAPTIONS, captions_more_than, "wording", fingerprint(plan))
    found = {"rows": total, "without_image": missing, "images": images.pop("shared"), **images}
    found["look_alikes"] = {"looks": looks.pop("shared"), **looks}
    return {**found, "captions": {"wordings": captions.pop("shared"), **captions}}


def _listed(
    connection: duckdb.DuckDBPyConnection, store: Store, kind: _Kind, most: int, common: str, stamp: str
) -> dict[str, Any]:
    """Write the rows of large groups, largest first, and return what to tell."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE large AS {kind.groups}", {"most": most})
    connection.execute(f"CREATE OR REPLACE TEMP TABLE members AS {kind.members}")
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE counted AS SELECT common, num_rows, count(DISTINCT caption_hash) AS num_captions, "
        "count(DISTINCT pixels_hash) AS num_images, first(key ORDER BY shard, index) AS key, "
        "first(caption ORDER BY shard, index) AS caption "
        "FROM members JOIN parts USING (shard, index) JOIN large USING (common) GROUP BY 1, 2"
    )
    found = connection.sql(
        f"SELECT shard, index, parts.key, parts.caption, common AS {common}, num_rows, num_captions, num_images "  # noqa: S608
        "FROM members JOIN parts USING (shard, index) JOIN counted USING (common) ORDER BY num_rows DESC, common, shard, index"
    )
    write_answer(found, store, kind.file, repeated_schema(common), fingerprint=stamp)
    repeated, shared = connection.sql("SELECT (SELECT count(*) FROM members), count(*) FROM counted").fetchall()[0]
    top = connection.sql("SELECT * EXCLUDE (common) FROM counted ORDER BY num_rows DESC, common").limit(_SHOWN)
    groups = [dict(zip(top.columns, row, strict=True)) for row in top.fetchall()]
    return {"repeated_rows": repeated, "shared": shared, "more_than": most, "groups": groups, "file": store.path(kind.file)}


def as_text(found: dict[str, Any]) -> str:
    """Return the findings for a terminal."""
    looks, captions = found["look_alikes"], found["captions"]
    return "\n".join(
        [
            f"{found['rows']:,} rows, {found['without_image']:,} without an image that can be decoded",
            f"{found['images']:,} images have more than {found['more_than']:,} rows each, {found['repeated_rows']:,} together:",
            *(_line(group, "captions") for group in found["groups"]),
            f"all of their rows: {found['file']}",
            f"{looks['looks']:,} groups of different images look alike in more than {looks['more_than']:,} rows each, "
            f"{looks['repeated_rows']:,} together:",
            *(_line(group, "images") for group in looks["groups"]),
            f"all of their rows: {looks['file']}",
            f"{captions['wordings']:,} wordings have more than {captions['more_than']:,} rows each, "
            f"{captions['repeated_rows']:,} together:",
            *(_line(group, "images") for group in captions["groups"]),
            f"all of their rows: {captions['file']}",
        ]
    )


def _line(group: dict[str, Any], others: str) -> str:
    shown = printable(f"{group['key']}   {group['caption'] or ''}", 90)
    return f"{group['num_rows']:>9,} rows, {group[f'num_{others}']:>7,} {others}   {shown}"
