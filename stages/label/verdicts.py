"""What humans said of pairs, and of which rows they meant it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.reviews import VERDICTS

NOTHING: Final = -1  # nobody has said anything


@dataclass(frozen=True)
class Verdicts:
    """The newest human verdict of every pair that has one.

    Attributes:
        uids: Of the pairs.
        codes: Places in `VERDICTS`, int32; they are those of the labels that they lead to.
        shards: Where each pair lies.
        rows: Its place in the shard, int32.
    """

    uids: pa.Array
    codes: npt.NDArray[np.int32]
    shards: npt.NDArray[np.object_]
    rows: npt.NDArray[np.int32]

    @classmethod
    def of(cls, newest: pa.Table) -> "Verdicts":
        """Take over a table with uid, verdict, shard and index."""
        codes = pc.index_in(newest["verdict"].combine_chunks(), pa.array(VERDICTS)).to_numpy().astype(np.int32)
        shards, rows = (newest[name].to_numpy() for name in ("shard", "index"))
        return cls(newest["uid"].combine_chunks(), codes, shards, rows)

    def on(self, scores: pa.Table, shard: str, twin: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        """Return the verdict on each pair, -1 where there is none: int32 (n,).

        Args:
            scores: uid and index of the pairs.
            shard: Their shard.
            twin: Which share their uid with others: of these only the one that was looked at is meant, bool (n,).
        """
        if not len(self.codes):
            return np.full(len(scores), NOTHING, np.int32)
        place = pc.index_in(scores["uid"], self.uids).fill_null(-1).to_numpy()
        meant = ~twin | ((self.shards[place] == shard) & (self.rows[place] == scores["index"].to_numpy()))
        found: npt.NDArray[np.int32] = np.where((place >= 0) & meant, self.codes[place], NOTHING).astype(np.int32)
        return found
