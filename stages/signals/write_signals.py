"""Write the signals of every row: each source says what it knows, the table in `manifests.schema` names the fields."""

from collections.abc import Callable, Sequence
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.layout import EMBEDDINGS, SCORES, part_name
from manifests.parts import write_part
from manifests.signals import SIGNALS
from stages.pair import Shard
from stages.signals.index.promises import promise_signals
from stages.signals.near_copies import copy_signals
from stages.signals.neighbourhood import neighbour_signals
from stages.signals.repeats import Counts, repeat_signals
from stages.signals.shingles import read_bands, wording_signals
from stages.signals.signal_parts import PROMISES, WITNESS, Known, SignalParts, Source
from stages.signals.witnesses.accord import accord_signals
from stages.signals.witnesses.joint_doubt import witnessed
from stages.stage import Stage
from stages.vectors import bytes_of, read_columns, unit, vectors_of

Maker = Callable[[Counts], Source | None]
# A new signal is a file with such a function, a line here, and a line in `manifests.signals.SIGNAL_TABLE`.
SOURCES: Final[tuple[Maker, ...]] = (
    repeat_signals,
    wording_signals,
    copy_signals,
    neighbour_signals,
    accord_signals,
    promise_signals,
)
_MOST: Final = 2**31 - 1


def opened(counts: Counts, makers: Sequence[Maker] = SOURCES) -> list[Source]:
    """Return those sources that the plan asks for, with all that they compare rows with in memory."""
    faiss.omp_set_num_threads(counts.parts.num_threads)
    return [source for make in makers if (source := make(counts)) is not None]


class WriteSignals(Stage[SignalParts, int]):
    """Stage: a shard in, its signals part on disk out; returns its number of rows.

    Where near copies are judged together, what is written is a witness part, of which `JoinCopies` makes the signals part.
    """

    def open(self) -> None:
        """Load the counts and the samples."""
        self._counts = Counts(self.target)
        self._sources = opened(self._counts)

    def run(self, shard: Shard, /) -> int:
        """Write the signals of one shard, row for row."""
        parts = self.target
        columns = ["cosine", "image_hash", "pixels_hash", "caption_hash", *(["caption"] if parts.others else [])]
        scores = read_columns(parts.run, part_name(parts.scores_round, SCORES, shard.name), columns)
        scored = scores["cosine"].is_valid().to_numpy()
        signals, name = self._signals(self._known(scores, shard.name, scored), scored), parts.part(shard.name)
        table = pa.table({"signals": signals})
        if parts.asked.joins:
            images, captions = (scores[column].fill_null(0).to_numpy() for column in ("image_hash", "caption_hash"))
            table, name = witnessed(signals, self._counts.pictures(images), captions), parts.part(shard.name, WITNESS)
        return write_part(parts.run, name, table.schema, [table], fingerprint=parts.fingerprint).num_rows

    def _signals(self, known: Known, scored: npt.NDArray[np.bool_]) -> pa.StructArray:
        """Return what the sources say of the scored rows as the column of all rows."""
        places = pa.array(np.where(scored, np.cumsum(scored) - 1, 0), mask=~scored)
        found = {name: values for source in self._sources for name, values in source(known).items()} if scored.any() else {}
        columns = []
        for field in SIGNALS:
            values = found.get(field.name)
            if values is None:
                columns.append(pa.nulls(len(scored), field.type))
                continue
            counts = values.clip(max=_MOST) if pa.types.is_int32(field.type) else values
            columns.append(pa.array(counts).take(places).cast(field.type))
        return pa.StructArray.from_arrays(columns, fields=list(SIGNALS), mask=pa.array(~scored))

    def _known(self, scores: pa.Table, shard: str, scored: npt.NDArray[np.bool_]) -> Known:
        """Read what the sources are told of the scored rows."""
        parts, asked = self.target, self.target.asked
        mine = scores.filter(pa.array(scored))
        images, captions = (mine[name].fill_null(0).to_numpy() for name in ("image_hash", "caption_hash"))
        bands = read_bands(parts, shard, scored) if asked.caption_shingles else None
        # scores of before schema 6 do not tell copies from look-alikes, and are labelled as they were
        pixels = mine["pixels_hash"].fill_null(0).to_numpy() if "pixels_hash" in mine.column_names else images
        promises = None
        if asked.index is not None:
            promises = read_columns(parts.run, parts.part(shard, PROMISES), None).filter(pa.array(scored))
        if not asked.near:
            return Known(images, captions, bands=bands, pixels=pixels, promises=promises)
        vectors = read_columns(parts.run, part_name(parts.scores_round, EMBEDDINGS, shard), ["image", "text", "look"])
        v, t = (unit(vectors_of(vectors[kind])[scored]) for kind in ("image", "text"))
        kept = asked.looks and "look" in vectors.column_names
        seen = bytes_of(vectors["look"])[scored] if kept else None
        if parts.others is None:
            return Known(images, captions, v, t, bands=bands, pixels=pixels, looks=seen, promises=promises)
        others = read_columns(parts.run, f"{parts.others}/{shard}.parquet", ["image"])["image"]
        words = mine["caption"].fill_null("").to_pylist()
        return Known(images, captions, v, t, unit(vectors_of(others)[scored]), tuple(words), bands, pixels, seen, promises)
