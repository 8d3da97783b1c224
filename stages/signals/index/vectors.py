"""Compare image vectors of an index, made by this very checkpoint at its time, with those of what came."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import DataError
from manifests.layout import EMBEDDINGS, part_name
from manifests.parts import write_part
from stages.pair import Shard
from stages.signals.index.join import FOUND, Index, encoded_anew, write_honest
from stages.signals.index.promises import ASPECT, DRAWS, PROMISE, TURN
from stages.signals.signal_parts import HONEST, PROMISES, SignalParts
from stages.stage import Stage
from stages.vectors import read_columns, unit, vectors_of

_KEPT_FILES: Final = 2
_MOST_TURN: Final = 0.05  # median, of exact rows: more is another model's


@dataclass(frozen=True)
class VectorTarget:
    """The signals of a round, and the index."""

    parts: SignalParts
    index: Index


class CompareVectors(Stage[VectorTarget, int]):
    """Stage: a shard in, its promises on disk out, with how far its pictures have turned; returns its number of rows."""

    def open(self) -> None:
        """Hold no vectors yet."""
        self._files: OrderedDict[int, npt.NDArray[np.floating]] = OrderedDict()

    def run(self, shard: Shard, /) -> int:
        """Compare one shard.

        Raises:
            DataError: The vectors of the index have another width, or there are fewer of them than rows.
        """
        parts = self.target.parts
        found = read_columns(parts.run, parts.part(shard.name, FOUND), None)
        column = read_columns(parts.run, part_name(parts.scores_round, EMBEDDINGS, shard.name), ["image"])["image"]
        today = unit(vectors_of(column)) if len(found) else np.zeros((0, 1), np.float32)
        files, rows = (found[name].fill_null(-1).to_numpy() for name in ("file", "row"))
        turn = np.full(len(found), np.nan, np.float32)
        for number in np.unique(files[files >= 0]).tolist():
            mine, promised = files == number, self._vectors(number)
            self._refuse_odd(number, promised, int(rows[mine].max()), today.shape[1])
            turn[mine] = 1.0 - np.einsum("nd,nd->n", today[mine], unit(promised[rows[mine]].astype(np.float32)))
        turn[~today.any(axis=1)] = np.nan  # rows that nothing could encode
        table = found.set_column(found.schema.get_field_index("turn"), "turn", pa.array(turn, mask=np.isnan(turn)))
        return write_part(
            parts.run, parts.part(shard.name, PROMISES), PROMISE, [table.cast(PROMISE)], fingerprint=parts.fingerprint
        ).num_rows

    def _refuse_odd(self, number: int, promised: npt.NDArray[np.floating], last: int, width: int) -> None:
        if promised.ndim != 2 or promised.shape[1] != width or last >= len(promised):
            raise DataError(
                f"--index-embeddings {self.target.index.vectors}: {self.target.index.files[number]} has vectors of shape "
                f"{promised.shape}, wanted are at least {last + 1:,} of {width} numbers; they are another model's"
            )

    def _vectors(self, number: int) -> npt.NDArray[np.floating]:
        """Return the vectors of one of the index's files; a few are kept."""
        if number not in self._files:
            self._files[number] = read_vectors(self.target.index, number)
        self._files.move_to_end(number)
        while len(self._files) > _KEPT_FILES:
            self._files.popitem(last=False)
        return self._files[number]


def read_vectors(index: Index, number: int) -> npt.NDArray[np.floating]:
    """Return the image vectors of one of the index's files, (rows, width), whole: of its column, or of the .npz beside it.

    Raises:
        DataError: There are none.
    """
    name, path = index.vectors or "", index.files[number]
    with index.store.fs.open_input_file(path) as file, pq.ParquetFile(file) as parquet:
        if name in parquet.schema_arrow.names:
            column = parquet.read(columns=[name])[name].combine_chunks()
            if pa.types.is_fixed_size_binary(column.type):
                return vectors_of(pa.chunked_array([column]))
            values = pc.list_flatten(column).to_numpy(zero_copy_only=False)
            return values.reshape(len(column), -1) if column.null_count == 0 and len(column) else np.zeros((0, 0), np.float32)
    beside = path.removesuffix(".parquet") + ".npz"
    try:
        with index.store.fs.open_input_file(beside) as file, np.load(file, allow_pickle=False) as arrays:
            found: npt.NDArray[np.floating] = arrays[name]
            return found
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"--index-embeddings {name}: neither a column of {path} nor an array of {beside} ({error})") from error


def add_honest_turns(parts: SignalParts, index: Index) -> None:
    """Write how far honest pictures turn beside what else is honest.

    Raises:
        DataError: The index's vectors are another model's.
    """
    exact, num = list[npt.NDArray[np.float32]](), 0
    for shard in parts.shards:
        table = read_columns(parts.run, parts.part(shard, PROMISES), ["promise", "turn"])
        exact.append(table.filter(pc.equal(table["promise"], "exact"))["turn"].drop_null().to_numpy())
        num += len(exact[-1])
        if num >= DRAWS:
            break
    usual, steps = np.concatenate(exact), encoded_anew(parts, "turned")
    if len(usual) and np.median(usual) > _MOST_TURN:
        raise DataError(
            f"--index-embeddings {index.vectors}: of {len(usual):,} exact rows the vectors are {np.median(usual):.3f} (median, "
            "1 - cosine) from this checkpoint's; they are another model's"
        )
    table = read_columns(parts.run, parts.name(HONEST), None)
    kinds, distances = np.asarray(table["kind"].to_pylist()), table["distance"].to_numpy()
    noise = np.random.default_rng(0).choice(usual, len(steps)) if len(usual) else np.zeros(0, np.float32)
    turns = (steps + noise).astype(np.float32) if len(noise) else steps[:0]
    write_honest(parts, {ASPECT: distances[kinds == ASPECT], TURN: turns})
