"""How far the cosine of an honest picture moves when somebody encodes it anew: measured on rows of the data themselves.

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

from stages.score.encoders import Encoder

REENCODED_SCHEMA: Final = pa.schema([pa.field("moved", pa.float32(), nullable=False)])
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


def moved(pixels: Pixels, captions: list[str], encoder: Encoder) -> npt.NDArray[np.float32]:
    """Return by how much the cosine of each picture moves in each way, float32 (5 n,).

    Args:
        pixels: Preprocessed RGB, uint8 (n, size, size, 3).
        captions: Of the same rows, (n,).
        encoder: The model.
    """
    images, texts = encoder.encode_pairs(np.concatenate([pixels, reencoded(pixels)]), captions * (1 + len(WAYS)))
    own = texts[: len(pixels)].astype(np.float64)
    before = np.einsum("nd,nd->n", images[: len(pixels)].astype(np.float64), own)
    after = np.einsum("nd,nd->n", images[len(pixels) :].astype(np.float64), np.repeat(own, len(WAYS), axis=0))
    found: npt.NDArray[np.float32] = (after - np.repeat(before, len(WAYS))).astype(np.float32)
    return found
