"""Rows of different places that carry one uid: who lists or overrules one by its uid would mean the other too."""

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from manifests.layout import SCORES, part_name, round_folder
from manifests.store import Store
from stages.out_of_core import write_counts
from stages.vectors import read_columns

TWINS: Final = pa.schema([pa.field("uid", pa.binary(16), nullable=False), pa.field("num_rows", pa.int64(), nullable=False)])
_UIDS: Final = pa.schema([TWINS.field("uid")])
_MEMORY_BYTES: Final = 512 << 20  # 20 M uids in one pass; 2 GiB took as long


def write_twins(run: Store, scores_round: int, shards: Sequence[str], num_rows: int, fingerprint: str) -> str:
    """Write the uids that more than one scored row of a round has, once for its scores; return the part's name.

    Args:
        run: The run folder.
        scores_round: Whose scores.
        shards: Names of all shards.
        num_rows: How many rows they have.
        fingerprint: Of the scores.
    """
    name = f"{round_folder(scores_round)}/twins-{fingerprint[:8]}.parquet"
    if not run.exists(name):
        parts = [part_name(scores_round, SCORES, shard) for shard in shards]
        limits = {"num_values": num_rows, "memory_bytes": _MEMORY_BYTES}
        write_counts(run, name, TWINS, "uid", parts=(parts, _UIDS), **limits, fingerprint=fingerprint)
    return name


def read_twins(run: Store, name: str) -> pa.Array | None:
    """Return the uids of a part that `write_twins` left; None where there are none."""
    uids = read_columns(run, name, ["uid"])["uid"].combine_chunks()
    return uids if len(uids) else None


def are_twins(uids: pa.ChunkedArray, twins: pa.Array) -> pa.Array:
    """Return which rows have a uid that others have too, bool (n,)."""
    return pc.is_in(uids, twins)
