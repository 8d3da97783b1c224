"""Hashes by which rows that show the same image, or carry the same caption, find each other without a model."""

import hashlib
import re
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.int64]

_COLUMNS, _ROWS, _COLOUR_CELLS = 9, 8, 2
_COLOUR_STEP: Final = 64
_MARGIN: Final = 8
_GREY: Final = np.asarray((0.299, 0.587, 0.114), np.float32)
_NOT_WORDS: Final = re.compile(r"[\W\d_]+")


def image_hashes(pixels: npt.NDArray[np.uint8]) -> Hashes:
    """Return a perceptual hash of each image: equal for copies that were re-encoded or resized.

    64 bits say where the grey image, averaged over 8 x 9 cells, grows brighter to the right (a difference hash) by more than
    a margin, which noise on flat areas does not reach; 12 numbers say its colours, averaged over 2 x 2 cells, in quarters:
    drawings of one shape in other colours are other images. Of 3,072 drawings, 74 to 78 % keep their hash through a JPEG of
    quality 90, and 26 share one by chance with two others or more (docs/method.md has what else was measured). The hash
    is of what the encoder sees, so images that differ only outside the centre crop share it.

    Args:
        pixels: Preprocessed RGB, uint8 (n, h, w, 3), of at least 9 x 8 pixels.

    Returns:
        int64 (n,).
    """
    if not len(pixels):
        return np.zeros(0, np.int64)
    wide = pixels.astype(np.float32)
    # whole numbers: a float's last bit must not decide between neighbours that are equal
    grey = np.rint(_cells(wide @ _GREY, _ROWS, _COLUMNS)).astype(np.int16)
    brighter = np.packbits((grey[:, :, 1:] > grey[:, :, :-1] + _MARGIN).reshape(len(pixels), -1), axis=1)
    colours = np.stack([_cells(wide[..., channel], _COLOUR_CELLS, _COLOUR_CELLS) for channel in range(3)], axis=-1)
    steps = (np.rint(colours) // _COLOUR_STEP).astype(np.uint8).reshape(len(pixels), -1)
    return np.asarray([_int64(row.tobytes()) for row in np.concatenate([brighter, steps], axis=1)], np.int64)


def pixel_hashes(pixels: npt.NDArray[np.uint8]) -> Hashes:
    """Return a hash of each image's pixels, equal for exact copies only: uint8 (n, h, w, 3) to int64 (n,)."""
    return np.asarray([_int64(image.tobytes()) for image in pixels], np.int64)


def caption_hashes(captions: Sequence[str]) -> Hashes:
    """Return a hash of each caption that overlooks case, digits, punctuation and white space: int64 (n,)."""
    return np.asarray([_int64(normalised(caption).encode("utf-8", "surrogatepass")) for caption in captions], np.int64)


def normalised(caption: str) -> str:
    """Return a caption without case, digits, punctuation and doubled white space; itself where nothing else is in it."""
    return _NOT_WORDS.sub(" ", caption.casefold()).strip() or caption


def _cells(images: npt.NDArray[np.float32], rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Return the means over a grid of cells, float32 (n, rows, columns)."""
    for axis, num in ((1, rows), (2, columns)):
        size = images.shape[axis]
        edges = np.linspace(0, size, num + 1).astype(int)
        counts = np.diff(edges).astype(np.float32)
        sums = np.add.reduceat(images, edges[:-1], axis=axis)
        images = (sums / counts.reshape([-1 if i == axis else 1 for i in range(3)])).astype(np.float32)
    return images


def _int64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)
