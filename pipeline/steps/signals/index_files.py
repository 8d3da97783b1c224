"""The index that data were fetched from: which files, by which key, and the step that compares what came with it."""

from typing import Any

import pyarrow.parquet as pq

from manifests.errors import ConfigError, DataError
from manifests.layout import fingerprint
from pipeline.config.catalogue import RunConfig
from stages.read.formats.parquet import DAMAGED
from stages.read.listing import format_of, matches, meant_by
from stages.signals.index.join import Index, key_of
from stages.signals.signal_parts import HONEST, SignalParts


def index_of(config: RunConfig) -> Index | None:
    """Return the index of the settings, if any.

    Raises:
        DataError: It cannot be found or read, or has no column to find rows by, or not that of scores.
    """
    wanted = config.signals
    if wanted.index is None:
        return None
    stores = list(meant_by(wanted.index))
    infos = sorted(
        (info for store in stores for info in matches(store, lambda *_: None) if format_of(info.path) == "parquet"),
        key=lambda info: info.path,
    )
    if not infos:
        raise DataError(f"--index {wanted.index}: no Parquet files there")
    try:
        names = pq.read_schema(infos[0].path, filesystem=stores[0].fs).names
    except DAMAGED as error:
        raise DataError(f"--index {infos[0].path} cannot be read: {str(error)[:200]}") from error
    if wanted.index_score is not None and wanted.index_score not in names:
        raise ConfigError(f"--index-score: the index has no column {wanted.index_score!r}; it has {names[:30]}")
    return Index(
        store=stores[0],
        files=tuple(info.path for info in infos),
        sizes=tuple(int(info.size or 0) for info in infos),
        key=key_of(names, wanted.index_key, wanted.index),
        score=wanted.index_score,
        vectors=wanted.index_embeddings,
    )


def index_plan(index: Index) -> dict[str, Any]:
    """Return what a plan says of an index: enough to tell it from any other."""
    files = [[name.rpartition("/")[2], size] for name, size in zip(index.files, index.sizes, strict=True)]
    return {
        "files": len(files),
        "fingerprint": fingerprint(files),
        "key": index.key,
        "score": index.score,
        "embeddings": index.vectors,
    }


def is_there(parts: SignalParts, folder: str) -> bool:
    """Return whether every shard has its part in a folder, and it is known what is honest."""
    names = parts.run.names(parts.folder)
    return HONEST in names and {f"{folder}/{shard}.parquet" for shard in parts.shards} <= names
