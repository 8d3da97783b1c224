"""How far cosine and vector of an honest picture move when somebody encodes it anew: measured on rows of the data themselves.

The pixels that the model sees are encoded again (JPEG at quality 50 and 75, WebP at 60), made half as large and large again,
and cut by a twenty-fifth at every border. At the model's size each does more harm than at the original's, so that what is
measured errs towards calling a picture honest.
"""

import io
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from stages.score.models.encoders import Encoder

REENCODED_SCHEMA: Final = pa.schema([pa.field(name, pa.float32(), nullable=False) for name in ("moved", "turned")])
ROWS: Final = 1024  # of a run
_BORDER: Final = 25
Pixels = npt.NDArray[np.uint8]


def _encoded(kind: str, quality: int) -> Callable[[Image.Image], Image.Image]:
    def again(image: Image.Image) -> Image.Image:
        packed = io.BytesIO()
        image.save(packed, kind, quality=quality)
        return Image.open(packed)

    return again


def _halved(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BILINEAR).resize(image.size)


def _cropped(image: Image.Image) -> Image.Image:
    margin = max(1, image.width // _BORDER)
    return image.crop((margin, margin, image.width - margin, image.height - margin)).resize(image.size)


WAYS: Final[tuple[Callable[[Image.Image], Image.Image], ...]] = (
    _encoded("JPEG", 50),
    _encoded("JPEG", 75),
    _encoded("WEBP", 60),
    _halved,
    _cropped,
)


def reencoded(pixels: Pixels) -> Pixels:
    """Return every picture in each of the five ways, uint8 (5 n, size, size, 3): all of the first picture, then of the next."""
    shown = [np.asarray(way(Image.fromarray(picture)).convert("RGB")) for picture in pixels for way in WAYS]
    return np.stack(shown).astype(np.uint8) if shown else pixels[:0]


def moved(pixels: Pixels, captions: list[str], encoder: Encoder) -> pa.Table:
    """Return by how much the cosine of each picture moves in each way, and by 1 - which cosine its vector turns, 5 n rows.

    Args:
        pixels: Preprocessed RGB, uint8 (n, size, size, 3).
        captions: Of the same rows, (n,).
        encoder: The model.
    """
    images, texts = encoder.encode_pairs(np.concatenate([pixels, reencoded(pixels)]), captions * (1 + len(WAYS)))
    old, own = (np.repeat(vectors[: len(pixels)].astype(np.float64), len(WAYS), axis=0) for vectors in (images, texts))
    new = images[len(pixels) :].astype(np.float64)
    found = (np.einsum("nd,nd->n", new - old, own), 1.0 - np.einsum("nd,nd->n", new, old))
    return pa.table([pa.array(values.astype(np.float32)) for values in found], schema=REENCODED_SCHEMA)
