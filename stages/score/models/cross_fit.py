"""Score with a cross-fitted scorer: every pair by the text tower that has not trained on its fold.

A scorer that has trained on a pair finds it a good match, wrong or not, and the copies of a planted image teach it to each
other. A pair is therefore scored by a text tower that has seen no pair of its fold. That only helps where the copies of one
image share a fold, so the fold follows from 16 coarse bits of the picture, not from its key or its bytes.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from stages.score.models.encoders import Features, OpenClipEncoder, Pixels
from stages.score.models.weights import Weights

_CELLS: Final = 4
_GREY: Final = (0.299, 0.587, 0.114)


class CrossFitEncoder:
    """One image tower and several text towers; a caption goes through the tower that never saw its image's fold.

    Attributes:
        dim: Length of the vectors.
        trims: Whether the text towers run on trimmed captions.
    """

    def __init__(self, weights: Weights, **options: Any) -> None:
        """Load the weights; see `OpenClipEncoder`."""
        self._encoders = [OpenClipEncoder(weights, fold=fold, **options) for fold in range(weights.folds)]
        self.dim, self.trims = self._encoders[0].dim, self._encoders[0].trims

    def encode_images(self, pixels: Pixels) -> Features:
        """Return unit vectors, float32 (n, d), of uint8 RGB pixels (n, h, w, 3)."""
        return self._encoders[0].encode_images(pixels)

    def encode_captions(self, captions: Sequence[str]) -> Features:
        """Return unit vectors, float32 (n, d), of captions that belong to no image, by the first text tower."""
        return self._encoders[0].encode_captions(captions)

    def encode_pairs(self, pixels: Pixels, captions: Sequence[str]) -> tuple[Features, Features]:
        """Return unit vectors of images and of their captions, float32 (n, d) each."""
        folds = folds_of(pixels, len(self._encoders))
        texts = np.zeros((len(captions), self.dim), np.float32)
        for fold in np.unique(folds):
            rows = np.flatnonzero(folds == fold)
            texts[rows] = self._encoders[int(fold)].encode_captions([captions[row] for row in rows.tolist()])
        return self.encode_images(pixels), texts


def make_encoder(
    weights: Weights, *, device: str, precision: str, batch_size: int, num_threads: int | None = None
) -> OpenClipEncoder | CrossFitEncoder:
    """Return the encoder that some weights need; see `OpenClipEncoder`."""
    kind = CrossFitEncoder if weights.folds > 1 else OpenClipEncoder
    return kind(weights, device=device, precision=precision, batch_size=batch_size, num_threads=num_threads)


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
