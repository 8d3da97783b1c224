"""Small pictures of pairs, made anew from their pixels: a crawl's own bytes never reach a browser."""

import io
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from manifests.errors import DataError
from manifests.reading import Manifest
from pipeline.steps.plan import read_run
from stages.export.single_images import Originals, Places
from stages.read.images import UndecodableImage, decode
from stages.settings import ReadSettings

_QUALITY = 80


class Thumbnails:
    """Thumbnails of a run's dataset, by shard and row. Safe to use from several threads."""

    def __init__(self, originals: Originals, options: ReadSettings) -> None:
        """Say where the images come from."""
        self._originals, self._options = originals, options

    @classmethod
    def of_round(cls, manifest: Manifest) -> "Thumbnails":
        """Return the thumbnails of a round, whose data must still lie where they were.

        Raises:
            DataError: They do not.
        """
        facts = read_run(manifest.run)
        dataset = facts.open_data()
        if dataset.fingerprint != manifest.seal["plan"]["scores"]["dataset"]["fingerprint"]:
            raise DataError(
                f"the data of {manifest.run.uri} have changed since round {manifest.number}: rows would get other images"
            )
        return cls(Originals(dataset.store, dataset.shards, facts.config.data, places_of(manifest)), facts.config.data)

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


def places_of(manifest: Manifest) -> Callable[[str], Places | None]:
    """Return a function that reads from a shard's scores where its images lie."""
    parts = {part["shard"]: part["scores"]["name"] for part in manifest.seal["parts"] if "scores" in part}

    def find(shard: str) -> Places | None:
        with manifest.run.fs.open_input_file(manifest.run.path(parts[shard])) as file, pq.ParquetFile(file) as parquet:
            if "image_offset" not in parquet.schema_arrow.names:
                return None
            table = parquet.read(columns=["image_offset", "image_bytes"])
        if table["image_offset"].null_count == table.num_rows:
            return None  # packed
        return np.stack([column.fill_null(-1).to_numpy() for column in table.columns], axis=1)

    return find
