"""Find single rows of shards again: their original image bytes, without reading all that lies before them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from manifests.store import Store
from stages.pair import Shard
from stages.read.formats.parquet import DAMAGED, batches, cells, column_names
from stages.read.formats.tables import TableReader
from stages.read.shards import read_shard
from stages.settings import ReadSettings

_KEPT: Final = 256
Places = npt.NDArray[np.int64]


class Originals:
    """Reads original images of a dataset by shard and row. Safe to use from several threads.

    Of a plain tar single members are read, where the scores say where they lie; of Parquet the row group; other shards (gzip,
    text tables, scores of the first schema) are read from the front up to the last row that is wanted.
    """

    def __init__(
        self,
        store: Store,
        shards: Iterable[Shard],
        options: ReadSettings,
        places: Callable[[str], Places | None] = lambda _: None,
    ) -> None:
        """Say where the shards lie; nothing is opened yet.

        Args:
            store: Where the dataset lies.
            shards: Its shards.
            options: How they are read.
            places: Returns offset and length of every row's image in a shard, int64 (n, 2), -1 where there is none; None where
                they are not known.
        """
        self._store, self._options, self._find = store, options, places
        self._shards = {shard.name: shard for shard in shards}
        self._places: OrderedDict[str, Places | None] = OrderedDict()
        self._lock = threading.Lock()

    def images(self, shard_name: str, rows: Iterable[int]) -> Mapping[int, bytes]:
        """Return the encoded images of some rows of a shard; rows without one are left out.

        Raises:
            OSError: The shard cannot be read.
            KeyError: The dataset has no such shard.
        """
        shard, wanted = self._shards[shard_name], sorted(set(rows))
        if shard.format == "parquet" and self._options.caption != "all":  # else one row of it may be several here
            images: dict[int, bytes] = {}
            with suppress(*DAMAGED):  # those of its rows are quarantined, and have no image
                self._from_parquet(shard, wanted, images)
            return images
        places = self._places_of(shard)
        if places is not None:
            return self._from_places(shard, places, wanted)
        found: dict[int, bytes] = {}
        for pair in read_shard(self._store, shard, self._options):
            if wanted and pair.index > wanted[-1]:
                break
            if pair.index in wanted and pair.image is not None:
                found[pair.index] = pair.image
        return found

    def _places_of(self, shard: Shard) -> Places | None:
        with self._lock:
            if shard.name in self._places:
                self._places.move_to_end(shard.name)
                return self._places[shard.name]
        found = self._find(shard.name) if shard.format == "tar" else None
        with self._lock:
            self._places[shard.name] = found
            while len(self._places) > _KEPT:
                self._places.popitem(last=False)
        return found

    def _from_places(self, shard: Shard, places: Places, wanted: list[int]) -> Mapping[int, bytes]:
        found: dict[int, bytes] = {}
        with self._store.fs.open_input_file(shard.path) as file:
            for row in wanted:
                offset, length = places[row].tolist() if row < len(places) else (-1, 0)
                if offset >= 0 and length <= self._options.max_image_bytes:
                    file.seek(offset)
                    found[row] = bytes(file.read(length))
        return found

    def _from_parquet(self, shard: Shard, wanted: list[int], found: dict[int, bytes]) -> None:
        with self._store.fs.open_input_file(shard.path) as file, pq.ParquetFile(file) as parquet:
            reader, first = TableReader(self._store, shard, column_names(parquet), self._options), 0
            for group in range(parquet.num_row_groups):
                num = parquet.metadata.row_group(group).num_rows
                if any(first <= row < first + num for row in wanted):
                    with suppress(*DAMAGED):
                        found |= self._from_group(parquet, group, reader, first, wanted)
                first += num

    @staticmethod
    def _from_group(
        parquet: pq.ParquetFile, group: int, reader: TableReader, first: int, wanted: list[int]
    ) -> Mapping[int, bytes]:
        """Read a row group batch by batch, as one may have gigabytes, up to the last row that is wanted."""
        found: dict[int, bytes] = {}
        for batch in batches(parquet, group, reader.columns):
            inside = [row for row in wanted if first <= row < first + batch.num_rows]
            if inside:
                some = cells(batch.take([row - first for row in inside]))
                pairs = [pair for row, cell in zip(inside, some, strict=True) for pair in reader.pairs(row, cell)]
                found |= {pair.index: pair.image for pair in pairs if pair.image is not None}
            first += batch.num_rows
            if first > wanted[-1]:
                break
        return found
