"""Divide a big shard into pieces that are worked on, and begun again, one by one; join what comes of them.

Rows are scored in chunks of 512, and a piece begins where a chunk does: so each row meets the same others in its chunk, and
what is joined is the part, byte for byte, that the whole shard would have made. A piece of a plain tar is read from its own
first byte; of a Parquet file, from its row group; of a folder or a table of text, by passing over the names before it.

Parts of an earlier round, of a run whose data have grown, are written anew in the same way.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.layout import EMBEDDINGS, round_folder
from manifests.layout import SCORES as SCORES_KIND
from manifests.parts import write_part
from manifests.schema import FINGERPRINT_KEY, SCORES
from manifests.store import Store
from stages.pair import PIECES, Shard, Stretch, TarPlace
from stages.read.formats.delimited import count_lines
from stages.read.formats.folders import count_images
from stages.read.formats.parquet import DAMAGED
from stages.read.formats.webdataset import Run, read_pairs
from stages.read.shards import opened_at
from stages.score.embed import Embed, Embedded, EmbedTarget
from stages.score.null_cosines import CHUNK_ROWS
from stages.settings import ReadSettings
from stages.stage import Stage

PIECE_ROWS: Final = 4 * CHUNK_ROWS
_MOST_PIECES: Final = 64  # of a shard; some kinds are read from the front for each
_MOST_SEEN: Final = 10_000  # keys that come again in a tar, which every piece has to know


@dataclass(frozen=True)
class SurveyTarget:
    """Where the dataset lies, and how pairs are read."""

    store: Store
    settings: ReadSettings


class Survey(Stage[SurveyTarget, tuple[Stretch, ...]]):
    """Stage: a shard in, the pieces of it out; none where it has to stay whole."""

    def run(self, shard: Shard, /) -> tuple[Stretch, ...]:
        """Find where pieces may begin: of a tar by reading all of it, of others by much less."""
        store, settings = self.target.store, self.target.settings
        if shard.format == "tar":
            return _of_tar(store, shard, settings)
        if settings.caption == "all":
            return ()  # how many pairs a row has shows only when all of it is read
        if shard.format == "parquet":
            return _of_parquet(store, shard)
        if shard.format == "folder":
            total = count_images(store, shard, settings)
        else:
            with opened_at(store, shard) as stream:
                total = count_lines(stream, shard, settings)
        return _stretches(range(0, total, CHUNK_ROWS), total)


def _of_tar(store: Store, shard: Shard, settings: ReadSettings) -> tuple[Stretch, ...]:
    """Return the pieces of a plain tar, with the keys that each has to know of the rows before it."""
    met: dict[str, int] = {}
    again: dict[str, int] = {}
    places: dict[int, TarPlace] = {}
    index = 0
    with opened_at(store, shard) as stream:
        for found, pairs in read_pairs(stream, shard, settings):
            if isinstance(found, Run):
                if index % CHUNK_ROWS == 0 and found.place is not None:
                    places[index] = found.place
                if met.setdefault(found.key, index) != index:
                    again[found.key] = index
            index += len(pairs)
    if len(again) > _MOST_SEEN:
        return ()
    pieces = _stretches(places, index)
    return tuple(replace(piece, place=_knowing(places[piece.first], piece.first, met, again)) for piece in pieces)


def _knowing(place: TarPlace, first: int, met: dict[str, int], again: dict[str, int]) -> TarPlace:
    return place._replace(seen=tuple(key for key, last in again.items() if met[key] < first <= last))


def _of_parquet(store: Store, shard: Shard) -> tuple[Stretch, ...]:
    """Return the pieces of a Parquet file: one begins with the first chunk of a row group, which is read from its front."""
    starts, total = dict[int, None](), 0
    try:
        with store.fs.open_input_file(shard.path) as file:
            metadata = pq.ParquetFile(file).metadata
    except DAMAGED:
        return ()
    for group in range(metadata.num_row_groups):
        first, num = -(-total // CHUNK_ROWS) * CHUNK_ROWS, metadata.row_group(group).num_rows
        if first < total + num:
            starts[first] = None
        total += num
    return _stretches(starts, total)


def _stretches(starts: "range | dict[int, TarPlace] | dict[int, None]", total: int) -> tuple[Stretch, ...]:
    """Return pieces that begin at some of the rows where they may, none shorter than it has to be, but for the last."""
    least = max(PIECE_ROWS, -(-total // (_MOST_PIECES * CHUNK_ROWS)) * CHUNK_ROWS)
    chosen: list[int] = []
    for start in starts:
        if not chosen or start - chosen[-1] >= least:
            chosen.append(start)
    if len(chosen) < 2 or chosen[0] != 0:
        return ()
    ends: list[int | None] = [*chosen[1:], None]
    return tuple(Stretch(first, None if end is None else end - first) for first, end in zip(chosen, ends, strict=True))


@dataclass(frozen=True)
class JoinTarget:
    """Parts that were written piece by piece.

    Attributes:
        run: The run folder.
        folders: Of the parts; that which says "done" last.
    """

    run: Store
    folders: tuple[str, ...]


class JoinPieces(Stage[JoinTarget, int]):
    """Stage: a shard in, its parts out, joined from those of its pieces; returns its number of rows."""

    def run(self, shard: Shard, /) -> int:
        """Join the pieces of one shard, in order."""
        run, num_rows = self.target.run, 0
        for folder in self.target.folders:
            beside = f"{folder}{PIECES}/{shard.name}"
            names = [f"{beside}/{name}" for name in sorted(run.names(beside)) if name.endswith(".parquet")]
            num_rows = join_parts(run, names, shard.part(folder))
        return num_rows


def join_parts(run: Store, names: list[str], name: str, fingerprint: str | None = None) -> int:
    """Write the rows of some parts as one part, as it would have been written at once; return how many.

    Args:
        run: The run folder.
        names: Of the parts, in order.
        name: Of the new one.
        fingerprint: For its footer; that of the parts if unset.
    """
    with ExitStack() as stack:

        def opened(piece: str) -> pq.ParquetFile:
            return pq.ParquetFile(stack.enter_context(run.fs.open_input_file(run.path(piece))))

        schema = opened(names[0]).schema_arrow  # with its footer, of which the first piece's is the whole shard's
        if schema.names == SCORES.names:  # Parquet has names of its own for what is in a list
            schema = SCORES.with_metadata(schema.metadata)
        stamp = fingerprint or schema.metadata[FINGERPRINT_KEY].decode()

        def batches() -> Iterator[pa.RecordBatch]:
            for piece in names:
                yield from opened(piece).iter_batches(CHUNK_ROWS)  # as they were written: pages end alike

        return write_part(run, name, schema, batches(), fingerprint=stamp).num_rows


@dataclass(frozen=True)
class CopyTarget:
    """Parts that were written under another plan, and say the same.

    Attributes:
        run: The run folder.
        old: Folder of the parts.
        new: Folder where they are wanted.
        fingerprint: For the footers there.
    """

    run: Store
    old: str
    new: str
    fingerprint: str


class CopyParts(Stage[CopyTarget, int]):
    """Stage: a shard in, a copy of its part out; returns its number of rows."""

    def run(self, shard: Shard, /) -> int:
        """Copy one part."""
        target = self.target
        return join_parts(target.run, [shard.part(target.old)], shard.part(target.new), target.fingerprint)


@dataclass(frozen=True)
class TakeOverTarget:
    """Scores of an earlier round.

    Attributes:
        embed: How the round would score.
        earlier: The round that has.
    """

    embed: EmbedTarget
    earlier: int


class TakeOver(Stage[TakeOverTarget, Embedded]):
    """Stage: a shard in, its parts out, as the round would have made them, from those of an earlier round."""

    def open(self) -> None:
        """Load the weights where something is made anew: how many canaries a shard has depends on how many shards there are."""
        self._embed = Embed(self.target.embed)
        if self.target.embed.num_canaries or self.target.embed.num_reencoded:
            self._embed.open()

    def run(self, shard: Shard, /) -> Embedded:
        """Write the parts of one shard; the scores last."""
        embed, num_rows = self.target.embed, 0
        self._embed.write_beside(shard)
        for kind in (*([EMBEDDINGS] if embed.keep_embeddings else []), SCORES_KIND):
            old, new = (f"{round_folder(number)}/{kind}" for number in (self.target.earlier, embed.round_number))
            num_rows = CopyParts(CopyTarget(embed.run, old, new, embed.fingerprint)).run(shard)
        return Embedded(num_rows, 0)
