"""Small pictures of pairs, made anew from their pixels: a crawl's own bytes never reach a browser."""

import io
from collections.abc import Iterable

from PIL import Image

from manifests.store import open_store
from pipeline.plans import read_run
from stages.images import UndecodableImage, decode
from stages.options import ReadOptions
from stages.originals import Originals
from stages.shards import open_dataset

_QUALITY = 80


class Thumbnails:
    """Thumbnails of a run's dataset, by shard and row. Safe to use from several threads."""

    def __init__(self, originals: Originals, options: ReadOptions) -> None:
        """Say where the images come from."""
        self._originals, self._options = originals, options

    @classmethod
    def of_run(cls, run: str) -> "Thumbnails":
        """Return the thumbnails of a run, whose data must still lie where they were.

        Raises:
            DataError: They do not.
        """
        facts = read_run(open_store(run))
        dataset = open_dataset(facts.data)
        return cls(Originals(dataset.store, dataset.shards, facts.config.data), facts.config.data)

    def of(self, shard: str, rows: Iterable[int], size_px: int) -> dict[int, bytes]:
        """Return WebP thumbnails of at most `size_px` a side; rows whose image is missing or cannot be decoded are left out.

        Raises:
            OSError: The shard cannot be read.
            KeyError: There is no such shard.
        """
        found: dict[int, bytes] = {}
        for row, data in self._originals.images(shard, rows).items():
            try:
                found[row] = decode(
                    data,
                    lambda image: _small(image, size_px),
                    size_px=size_px,
                    max_pixels=self._options.max_image_pixels,
                    draft=lambda width, height: (min(width, 2 * size_px), min(height, 2 * size_px)),
                )
            except UndecodableImage:
                continue
        return found


def _small(image: Image.Image, size_px: int) -> bytes:
    image.thumbnail((size_px, size_px))
    out = io.BytesIO()
    image.save(out, "WEBP", quality=_QUALITY)
    return out.getvalue()
