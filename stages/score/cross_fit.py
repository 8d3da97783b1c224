"""Score with a cross-fitted scorer: every pair by the text tower that has not trained on its fold."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.score.checkpoints import Weights
from stages.score.encoders import Features, OpenClipEncoder, Pixels
from stages.score.folds import folds_of


class CrossFitEncoder:
    """One image tower and several text towers; a caption goes through the tower that never saw its image's fold.

    Attributes:
        dim: Length of the vectors.
        trims: Whether the text towers run on trimmed captions.
    """

    def __init__(self, weights: Weights, *, device: str = "cpu", precision: str = "fp32", batch_size: int = 64) -> None:
        """Load the weights; see `OpenClipEncoder`."""
        options: dict[str, Any] = {"device": device, "precision": precision, "batch_size": batch_size}
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


def make_encoder(weights: Weights, *, device: str, precision: str, batch_size: int) -> OpenClipEncoder | CrossFitEncoder:
    """Return the encoder that some weights need."""
    kind = CrossFitEncoder if weights.folds > 1 else OpenClipEncoder
    return kind(weights, device=device, precision=precision, batch_size=batch_size)
