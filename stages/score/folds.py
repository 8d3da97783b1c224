"""Which fold a pair belongs to, for cross-fitting; decided by the look of its image, so that copies stay together.

A scorer that has trained on a pair finds it a good match, wrong or not, and the copies of a planted image teach it to each
other. A pair is therefore scored by a text tower that has seen no pair of its fold. That only helps where the copies of one
image share a fold, so the fold follows from 16 coarse bits of the picture, not from its key or its bytes.
"""

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt

_CELLS: Final = 4
_GREY: Final = (0.299, 0.587, 0.114)


def folds_of(pixels: npt.NDArray[np.uint8], num_folds: int) -> npt.NDArray[np.int64]:
    """Return the fold of each image.

    The image is averaged over 4 x 4 cells; a cell brighter than the mean of all is a bit. Fine noise, re-encoding and small
    shifts seldom change a bit.

    Args:
        pixels: Preprocessed RGB, uint8 (n, size, size, 3).
        num_folds: How many folds, from 1.

    Returns:
        int64 (n,), in 0 .. num_folds - 1.
    """
    num, size = pixels.shape[:2]
    if num_folds == 1 or num == 0:
        return np.zeros(num, np.int64)
    edges = np.linspace(0, size, _CELLS + 1).astype(int)[:-1]
    grey = pixels.astype(np.float32) @ np.asarray(_GREY, np.float32)
    sums = np.add.reduceat(np.add.reduceat(grey, edges, axis=1), edges, axis=2)
    counts = np.diff(np.append(edges, size))
    cells = (sums / np.outer(counts, counts)).reshape(num, -1)
    bits = np.packbits(cells > cells.mean(axis=1, keepdims=True), axis=1)
    words = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in bits]
    return np.asarray([int.from_bytes(word, "little") % num_folds for word in words], np.int64)
