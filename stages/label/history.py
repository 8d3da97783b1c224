"""What a row was in the round before and what becomes of it: the start of a round that looks again.

Such a round does not judge all rows by one cut. What the model has trained on as a pair fits because of that, so such rows
keep their label; only rows that it has not matched, or not lately, are asked about, each kind at a cut of its own.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.labels import VETOES, Label, Voice
from manifests.layout import LABELS, part_name
from manifests.schema import HISTORY
from manifests.store import Store

# what the round before made of a row: places in the cuts of a round that looks again
TRAINED, OPEN, SAT_OUT, VETOED = range(4)
Places = npt.NDArray[np.int8]
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_LABELS: Final = pa.array([str(label) for label in Label])


@dataclass(frozen=True)
class Before:
    """The rows of a shard, or some in a row, as the sealed round before has them.

    Attributes:
        number: Of that round.
        labels: Places in `Label`, int32 (n,).
        reasons: Why each is not safe, strings (n,).
        voices: Who said so, strings (n,); null in manifests before version 5.
        since: Round since which, int32 (n,).
        unmatched: Which rows the weights that look have not matched lately: those that were not safe, or sat out, in the round
            that they trained on, bool (n,).
    """

    number: int
    labels: npt.NDArray[np.int32]
    reasons: pa.Array
    voices: pa.Array
    since: npt.NDArray[np.int32]
    unmatched: npt.NDArray[np.bool_]

    @classmethod
    def read(cls, run: Store, number: int, shard: str, trained_on: int | None = None) -> "Before":
        """Read a manifest part of any version.

        Args:
            run: The run folder.
            number: The sealed round before.
            shard: Whose part it is.
            trained_on: Round that the weights trained on, where that is an older one.
        """
        with run.fs.open_input_file(run.path(part_name(number, LABELS, shard))) as file, pq.ParquetFile(file) as parquet:
            names = [name for name in ("label", "reason", *HISTORY) if name in parquet.schema_arrow.names]
            table = parquet.read(columns=names)
        num = len(table)

        def column(name: str, kind: pa.DataType) -> pa.Array:
            return table[name].cast(kind).combine_chunks() if name in names else pa.nulls(num, kind)

        labels = pc.index_in(column("label", pa.string()), _LABELS).to_numpy(zero_copy_only=False).astype(np.int32)
        out = column("sits_out", pa.bool_()).fill_null(False).to_numpy(zero_copy_only=False)
        unmatched = (labels != 0) | out
        if trained_on is not None and trained_on != number:
            unmatched = cls.read(run, trained_on, shard).unmatched
        return cls(
            number,
            labels,
            column("reason", pa.string()),
            column("voice", pa.string()),
            column("since", pa.int32()).fill_null(number).to_numpy(),
            unmatched,
        )

    def slice(self, first: int, num: int) -> "Before":
        """Return some rows."""
        rows = slice(first, first + num)
        reasons, voices = (column.slice(first, num) for column in (self.reasons, self.voices))
        return Before(self.number, self.labels[rows], reasons, voices, self.since[rows], self.unmatched[rows])

    @property
    def places(self) -> Places:
        """What each row is asked: `TRAINED`, `OPEN`, `SAT_OUT` or `VETOED`, int8 (n,).

        What a human said counts as open: it is said again for as long as the verdict stands. What was put out after the weights
        had matched it stays out, as if vetoed, until weights look that have not.
        """
        vetoed = pc.is_in(self.reasons, pa.array(VETOES, pa.string())).to_numpy(zero_copy_only=False)
        unsafe = np.where(vetoed | ~self.unmatched, VETOED, OPEN)
        found: Places = np.where(self.labels == 0, np.where(self.unmatched, SAT_OUT, TRAINED), unsafe).astype(np.int8)
        return found

    def history(
        self, number: int, labels: npt.NDArray[np.int32], reasons: pa.Array, voices: pa.Array
    ) -> tuple[pa.Array, npt.NDArray[np.int32]]:
        """Return who made each row what it is, and since which round: of old where nothing has changed, else of now.

        Args:
            number: Of the round now.
            labels: What each row is now.
            reasons: And why.
            voices: Who says so now.
        """
        same_reason = pc.equal(reasons.fill_null(""), self.reasons.fill_null("")).to_numpy(zero_copy_only=False)
        same = (labels == self.labels) & same_reason
        known = pa.array(same & self.voices.is_valid().to_numpy(zero_copy_only=False))
        since = np.where(same, self.since, number).astype(np.int32)
        return pc.if_else(known, self.voices, voices), since


def sits_out(image_hashes: pa.ChunkedArray, number: int, num_folds: int) -> npt.NDArray[np.bool_]:
    """Return whose turn it is to sit out in a round, bool (n,): one fold after another, like images together.

    Args:
        image_hashes: Perceptual hashes of the rows' images, int64 (n,); rows without one never sit out.
        number: Of the round.
        num_folds: Rounds in which every row has its turn; below 2 nobody sits out.
    """
    known = image_hashes.is_valid().to_numpy()
    if num_folds < 2:
        return np.zeros(len(known), bool)
    hashes = image_hashes.fill_null(0).to_numpy().astype(np.uint64)
    folds = ((hashes * _MIX) >> np.uint64(32)) % np.uint64(num_folds)
    turn: npt.NDArray[np.bool_] = known & (folds == np.uint64(number % num_folds))
    return turn


def spoken(why: npt.NDArray[np.int32], reviewed: npt.NDArray[np.bool_], places: Places | None) -> pa.Array:
    """Return who speaks of each row in this round, strings (n,).

    Args:
        why: -1 where nothing speaks against the row, 0 where the cut does, else a limit.
        reviewed: Where a human does.
        places: What each row was asked; None in a round that does not look at the one before.
    """
    words = np.where(why > 0, str(Voice.VETO), str(Voice.SPLIT)).astype(object)
    if places is not None:
        words[(places == OPEN) & (why < 0)] = str(Voice.TAKEN_BACK)
        words[(places == SAT_OUT) & (why == 0)] = str(Voice.PUT_OUT)
    words[reviewed] = str(Voice.REVIEW)
    return pa.array(words, pa.string())
