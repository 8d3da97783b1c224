"""Of copies, which one is kept: the first, by age or cosine, of those that would be safe but for their number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.store import Store
from stages.out_of_core import over_parts, write_answer

OFFERS: Final = pa.schema(
    [
        pa.field("place", pa.int32(), nullable=False),  # of the limit, from 1
        pa.field("cluster", pa.int64(), nullable=False),
        pa.field("cosine", pa.float32(), nullable=False),
        pa.field("age", pa.int32(), nullable=False),  # the first round that has the shard
        pa.field("shard", pa.int32(), nullable=False),  # its number
        pa.field("row", pa.int64(), nullable=False),  # in the shard, from 0
    ]
)
KEPT: Final = pa.schema([OFFERS.field(name) for name in ("shard", "row", "place")])
_MEMORY_BYTES: Final = 1 << 30
_FIRST: Final = {
    "oldest": "age, shard, row",
    "newest": "age DESC, shard DESC, row DESC",
    "best": "cosine DESC, age, shard, row",
}


def write_kept(run: Store, name: str, offers: Sequence[str], which: str, *, fingerprint: str) -> None:
    """Write the first row of each cluster as one part, sorted by shard and row.

    Args:
        run: The run folder.
        name: Of the part.
        offers: Names of the parts with rows that may be kept.
        which: `oldest`, `newest` or `best`.
        fingerprint: For the footer.
    """
    first = f"row_number() OVER (PARTITION BY place, cluster ORDER BY {_FIRST[which]}) = 1"
    with over_parts(run, offers, OFFERS, _MEMORY_BYTES) as connection:
        found = connection.sql(f"SELECT shard, row, place FROM parts QUALIFY {first} ORDER BY ALL")  # noqa: S608  # our own words
        write_answer(found, run, name, KEPT, fingerprint=fingerprint)


@dataclass(frozen=True)
class Kept:
    """The rows of a shard that are kept: rows, ascending, int64, by the place of the limit."""

    rows: Mapping[int, npt.NDArray[np.int64]]

    @classmethod
    def read(cls, run: Store, name: str, shard: int) -> "Kept":
        """Read what a part that `write_kept` left says of one shard."""
        table = pq.read_table(run.path(name), filesystem=run.fs, filters=[("shard", "==", shard)])
        places, rows = (table[column].to_numpy() for column in ("place", "row"))
        return cls({int(place): rows[places == place] for place in np.unique(places)})

    def among(self, first: int, num: int) -> dict[int, npt.NDArray[np.bool_]]:
        """Return which of some rows in a row are kept, bool (num,) each, by the place of the limit."""
        found = {place: np.zeros(num, bool) for place in self.rows}
        for place, rows in self.rows.items():
            found[place][rows[(rows >= first) & (rows < first + num)] - first] = True
        return found
