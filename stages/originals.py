"""Find single rows of shards again: their original image bytes, without reading all that lies before them."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import IO, Final, cast

import pyarrow.parquet as pq

from manifests.store import Store
from stages.options import ReadOptions
from stages.pair import Pair, Shard
from stages.shards import read_shard
from stages.tables import TableReader
from stages.tar_members import BrokenArchive
from stages.tars import image_member, read_runs

_INDEXES: Final = 64
Place = tuple[int, int]


class Originals:
    """Reads original images of a dataset by shard and row. Safe to use from several threads.

    Of a plain tar the headers are read once, seeking past the data, and then single members; of Parquet the row group; other
    shards (gzip, text tables) are read from the front up to the last row that is wanted.
    """

    def __init__(self, store: Store, shards: Iterable[Shard], options: ReadOptions) -> None:
        """Say where the shards lie; nothing is opened yet."""
        self._store, self._options = store, options
        self._shards = {shard.name: shard for shard in shards}
        self._indexes: OrderedDict[str, list[Place | None]] = OrderedDict()
        self._lock = threading.Lock()

    def images(self, shard_name: str, rows: Iterable[int]) -> Mapping[int, bytes]:
        """Return the encoded images of some rows of a shard; rows without one are left out.

        Raises:
            OSError: The shard cannot be read.
            KeyError: The dataset has no such shard.
        """
        shard, wanted = self._shards[shard_name], sorted(set(rows))
        if shard.format == "tar" and not self._is_gzip(shard):
            return self._from_tar(shard, wanted)
        if shard.format == "parquet":
            return self._from_parquet(shard, wanted)
        found: dict[int, bytes] = {}
        for pair in read_shard(self._store, shard, self._options):
            if wanted and pair.index > wanted[-1]:
                break
            if pair.index in wanted and pair.image is not None:
                found[pair.index] = pair.image
        return found

    def _is_gzip(self, shard: Shard) -> bool:
        with self._store.fs.open_input_file(shard.path) as file:
            return bytes(file.read(2)) == b"\x1f\x8b"

    def _from_tar(self, shard: Shard, wanted: list[int]) -> Mapping[int, bytes]:
        places = self._index(shard)
        found: dict[int, bytes] = {}
        with self._store.fs.open_input_file(shard.path) as file:
            for row in wanted:
                place = places[row] if row < len(places) else None
                if place is not None:
                    file.seek(place[0])
                    found[row] = bytes(file.read(place[1]))
        return found

    def _index(self, shard: Shard) -> list[Place | None]:
        with self._lock:
            if shard.name in self._indexes:
                self._indexes.move_to_end(shard.name)
                return self._indexes[shard.name]
        places: list[Place | None] = []
        with self._store.fs.open_input_file(shard.path) as file:
            try:
                for run in read_runs(cast(IO[bytes], file), 0):
                    image = image_member(run.members, self._options)
                    small = image is not None and image.kind == "file" and image.size_bytes <= self._options.max_image_bytes
                    places.append((image.offset, image.size_bytes) if image is not None and small else None)
            except BrokenArchive:
                pass  # what came before stands
        with self._lock:
            self._indexes[shard.name] = places
            while len(self._indexes) > _INDEXES:
                self._indexes.popitem(last=False)
        return places

    def _from_parquet(self, shard: Shard, wanted: list[int]) -> Mapping[int, bytes]:
        found: dict[int, bytes] = {}
        with self._store.fs.open_input_file(shard.path) as file, pq.ParquetFile(file) as parquet:
            reader, first = TableReader(self._store, shard, parquet.schema_arrow.names, self._options), 0
            for group in range(parquet.num_row_groups):
                num = parquet.metadata.row_group(group).num_rows
                inside = [row for row in wanted if first <= row < first + num]
                if inside:
                    rows = parquet.read_row_group(group, columns=reader.columns).take([row - first for row in inside])
                    pairs: list[Pair] = [reader.pair(i, row) for i, row in zip(inside, rows.to_pylist(), strict=True)]
                    found |= {pair.index: pair.image for pair in pairs if pair.image is not None}
                first += num
        return found
