"""Hash every pair of a shard: images and captions, without any model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from manifests.parts import write_part
from manifests.store import Store
from stages.pair import Shard
from stages.score.decode import Chunk, Decode
from stages.score.hashes import caption_hashes, image_hashes, pixel_hashes
from stages.signals.shingles import BAND_SCHEMA, band_lists
from stages.stage import Stage

# what most CLIP models see of an image, but small
PREPROCESS: Final[dict[str, Any]] = {
    **{"size": 64, "mode": "RGB", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    **{"interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0},
}
HASHES: Final = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("image_hash", pa.int64()),  # null where there is no image, as is the next
        pa.field("pixels_hash", pa.int64()),
        pa.field("caption_hash", pa.int64()),  # null where there is no caption
        BAND_SCHEMA.field("bands"),  # of the caption's wording
    ]
)


@dataclass(frozen=True)
class HashTarget:
    """Where hashes go.

    Attributes:
        decode: Reads the pairs, by `PREPROCESS`.
        out: Where the parts go.
        folder: Of the parts, below it.
        fingerprint: For the footers.
    """

    decode: Decode
    out: Store
    folder: str
    fingerprint: str


class HashRows(Stage[HashTarget, tuple[int, int]]):
    """Stage: a shard in, the hashes of its rows on disk out; returns (rows, rows without an image)."""

    def open(self) -> None:
        """Build the transform."""
        self.target.decode.open()

    def run(self, shard: Shard, /) -> tuple[int, int]:
        """Hash one shard."""
        target, missing = self.target, 0

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal missing
            for chunk in target.decode.run(shard):
                missing += len(chunk.pairs) - len(chunk.rows)
                yield _batch(shard.name, chunk)

        name = f"{target.folder}/{shard.name}.parquet"
        part = write_part(target.out, name, HASHES, batches(), fingerprint=target.fingerprint)
        return part.num_rows, missing


def _batch(shard: str, chunk: Chunk) -> pa.RecordBatch:
    pairs, shown = chunk.pairs, np.zeros(len(chunk.pairs), bool)
    images, pixels = np.zeros((2, len(pairs)), np.int64)
    images[chunk.rows], pixels[chunk.rows], shown[chunk.rows] = image_hashes(chunk.pixels), pixel_hashes(chunk.pixels), True
    captions = [pair.caption or "" for pair in pairs]
    said = np.asarray([bool(text) for text in captions], bool)
    columns = {
        "shard": pa.array([shard] * len(pairs)),
        "index": pa.array([pair.index for pair in pairs], pa.int32()),
        "key": pa.array([pair.key for pair in pairs]),
        "caption": pa.array([pair.caption for pair in pairs], pa.string()),
        "image_hash": pa.array(images, mask=~shown),
        "pixels_hash": pa.array(pixels, mask=~shown),
        "caption_hash": pa.array(caption_hashes(captions), mask=~said),
        "bands": band_lists(captions, said),
    }
    return pa.RecordBatch.from_pydict(columns, schema=HASHES)
