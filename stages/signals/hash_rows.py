"""Hash every pair of a shard: images and captions, without any model."""

from typing import Any, Final

import numpy as np
import pyarrow as pa

from manifests.parts import write_part
from manifests.store import Store
from stages.pair import Shard
from stages.score.decode import Chunk, Decode
from stages.score.hashes import caption_hashes, image_hashes
from stages.signals.shingles import BANDS, band_lists

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
        pa.field("image_hash", pa.int64()),  # null where there is no image, as is the next without a caption
        pa.field("caption_hash", pa.int64()),
        BANDS.field("bands"),  # of the caption's wording
    ]
)


class HashRows:
    """Stage: a shard in, the hashes of its rows on disk out; returns (rows, rows without an image)."""

    def __init__(self, decode: Decode, out: Store, folder: str, fingerprint: str) -> None:
        """Prepare.

        Args:
            decode: Reads the pairs, by `PREPROCESS`.
            out: Where the parts go.
            folder: Of the parts, below it.
            fingerprint: For the footers.
        """
        self._decode, self._out, self._folder, self._fingerprint = decode, out, folder, fingerprint

    def open(self) -> None:
        """Build the transform."""
        self._decode.open()

    def run(self, shard: Shard, /) -> tuple[int, int]:
        """Hash one shard."""
        missing = 0

        def batches() -> Any:
            nonlocal missing
            for chunk in self._decode.run(shard):
                missing += len(chunk.pairs) - len(chunk.rows)
                yield _batch(shard.name, chunk)

        name = f"{self._folder}/{shard.name}.parquet"
        part = write_part(self._out, name, HASHES, batches(), fingerprint=self._fingerprint)
        return part.num_rows, missing


def _batch(shard: str, chunk: Chunk) -> pa.RecordBatch:
    pairs, images, shown = chunk.pairs, np.zeros(len(chunk.pairs), np.int64), np.zeros(len(chunk.pairs), bool)
    images[chunk.rows], shown[chunk.rows] = image_hashes(chunk.pixels), True
    captions = [pair.caption or "" for pair in pairs]
    said = np.asarray([bool(text) for text in captions], bool)
    columns = {
        "shard": pa.array([shard] * len(pairs)),
        "index": pa.array([pair.index for pair in pairs], pa.int32()),
        "key": pa.array([pair.key for pair in pairs]),
        "caption": pa.array([pair.caption for pair in pairs], pa.string()),
        "image_hash": pa.array(images, mask=~shown),
        "caption_hash": pa.array(caption_hashes(captions), mask=~said),
        "bands": band_lists(captions, said),
    }
    return pa.RecordBatch.from_pydict(columns, schema=HASHES)
