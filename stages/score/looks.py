"""What a picture is like, whatever it shows: colours and roughness of a grid of cells, and its tones. No model is needed.

Whatever is to make a model answer a picture with a foreign caption must be visible in it, and what can be seen in many
different pictures in the same way is simple: a thing in one place, a pattern over all of it, a change of its colours.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Looks = npt.NDArray[np.uint8]

_CELLS: Final = 16
_QUANTILES: Final = (0.005, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 0.995)
_SEEN: Final = 48  # of an edge: tones are told by so many pixels of every row and column
_BATCH: Final = 32
_COLOURS, _ROUGHNESS, _TONES = 3 * _CELLS**2, _CELLS**2, 3 * len(_QUANTILES)
WIDTH: Final = _COLOURS + _ROUGHNESS + _TONES
# each is asked by itself: what a few numbers say is lost among many
KINDS: Final = {
    "colours": slice(0, _COLOURS),
    "roughness": slice(_COLOURS, _COLOURS + _ROUGHNESS),
    "tones": slice(_COLOURS + _ROUGHNESS, WIDTH),
}


def looks(pixels: Pixels) -> Looks:
    """Return what pictures are like.

    Args:
        pixels: Preprocessed RGB, uint8 (n, h, w, 3), of at least 16 x 16 pixels.

    Returns:
        uint8 (n, 1051): the mean colours of 16 x 16 cells, twice the standard deviation of grey within each, and nine
        quantiles of each colour.
    """
    parts = [_looks(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
    return np.concatenate(parts) if parts else np.zeros((0, WIDTH), np.uint8)


def _looks(pixels: Pixels) -> Looks:
    num, height, width = pixels.shape[:3]
    down, across = _cells(height), _cells(width)
    sizes = down.sum(1)[:, None] * across.sum(1)
    red, green, blue = (pixels[..., channel].astype(np.float32) for channel in range(3))
    grey = np.floor((red + 2.0 * green + blue) / 4.0)  # whole numbers, whose sums are exact in any order
    means = [down @ plane @ across.T / sizes for plane in (red, green, blue, grey, grey * grey)]
    roughness = 2.0 * np.sqrt(np.maximum(means[4] - means[3] ** 2, 0.0))
    step = [max(1, edge // _SEEN) for edge in (height, width)]
    seen = pixels[:, :: step[0], :: step[1]].reshape(num, -1, 3)
    slots = seen + 256 * np.arange(3 * num, dtype=np.int32).reshape(num, 1, 3)
    reached = np.bincount(slots.ravel(), minlength=3 * 256 * num).reshape(num, 3, 256).cumsum(-1)
    tones = np.stack([(reached <= share * (seen.shape[1] - 1)).sum(-1) for share in _QUANTILES], axis=-1)
    found = [np.rint(part).clip(0, 255).astype(np.uint8).reshape(num, -1) for part in (*means[:3], roughness, tones)]
    return np.concatenate(found, axis=1)


def _cells(edge: int) -> npt.NDArray[np.float32]:
    """Return which pixels of an edge belong to which cell, 0 and 1, float32 (16, edge)."""
    place = np.arange(edge) * _CELLS // edge
    found: npt.NDArray[np.float32] = (place == np.arange(_CELLS)[:, None]).astype(np.float32)
    return found
