"""Count the rows of a shard that have an image and a caption, without decoding any, and those that never reached it."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

import pyarrow.parquet as pq

from manifests.store import Store
from stages.pair import Shard
from stages.read.formats.parquet import DAMAGED
from stages.read.shards import read_shard
from stages.settings import ReadSettings
from stages.stage import Stage

_TAR: Final = re.compile(r"\.tar(\.gz)?$", re.IGNORECASE)
_MOST_KINDS: Final = 20


@dataclass(frozen=True)
class CountTarget:
    """Where the dataset lies, and how pairs are read."""

    store: Store
    settings: ReadSettings


class CountRows(Stage[CountTarget, int]):
    """Stage: a shard in, the number of its readable rows out."""

    def run(self, shard: Shard, /) -> int:
        """Return how many rows have an image and a caption."""
        return sum(pair.reason is None for pair in read_shard(self.target.store, shard, self.target.settings))


def not_downloaded(store: Store, shard: Shard) -> dict[str, int]:
    """Count the rows of a crawl that never reached a tar, by the table that img2dataset leaves beside it.

    Args:
        store: Where both lie.
        shard: The shard.

    Returns:
        Rows by `status` and what the error began with; empty where there is no such table, or it cannot be read.
    """
    beside, cut = _TAR.subn(".parquet", shard.path)
    if not cut:
        return {}
    counts: Counter[str] = Counter()
    try:
        with store.fs.open_input_file(beside) as file, pq.ParquetFile(file) as parquet:
            columns = [name for name in ("status", "error_message") if name in parquet.schema_arrow.names]
            if "status" not in columns:
                return {}
            for batch in parquet.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    if row["status"] not in (None, "success"):
                        counts[f"{row['status']}: {str(row.get('error_message') or '')[:40]}".removesuffix(": ")] += 1
    except DAMAGED:
        return {}
    common = dict(counts.most_common(_MOST_KINDS))
    rest = counts.total() - sum(common.values())
    return common | ({"others": rest} if rest else {})
