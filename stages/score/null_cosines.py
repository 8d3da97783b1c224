"""Cosines of pairs that are mismatched for certain: every image against captions of other rows, at the cost of a product.

Inside a chunk of rows each image is also compared with the captions a few seeded steps further on. What comes of it is a
measured null distribution: how high do captions score that belong to another image? Captions equal to the row's own, but for
case, digits and punctuation, are left out.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from manifests.schema import NUM_NULLS
from stages.histogram import on_grid

CHUNK_ROWS: Final = 512  # scored together
_FEWEST: Final = 8
_SEED: Final = 0x5EED


def null_cosines(
    images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32], captions: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Return cosines of each image with captions of other rows.

    Args:
        images: Unit vectors, float32 (n, d).
        texts: Unit vectors of the captions, float32 (n, d).
        captions: Hashes of the captions, int64 (n,).

    Returns:
        float32 (n, 4) on the grid of cosines; NaN where a caption is the row's own again, or where there are fewer than 8 rows.
    """
    num = len(images)
    found = np.full((num, NUM_NULLS), np.nan, np.float32)
    if num < _FEWEST:
        return found
    for place, step in enumerate(_steps(num)):
        other = np.roll(np.arange(num), -step)
        cosine = on_grid(np.einsum("nd,nd->n", images.astype(np.float64), texts[other].astype(np.float64)))
        found[:, place] = np.where(captions[other] == captions, np.nan, cosine)
    return found


def caption_rows(decoded: npt.NDArray[np.bool_], chunk_rows: int = CHUNK_ROWS) -> npt.NDArray[np.int64]:
    """Return whose caption each null cosine of a shard was taken with.

    Args:
        decoded: Which rows of the shard have an image, bool (n,).
        chunk_rows: Of the chunks in which it was scored.

    Returns:
        Row numbers, int64 (n, 4); -1 where there is no null.
    """
    found = np.full((len(decoded), NUM_NULLS), -1, np.int64)
    for start in range(0, len(decoded), chunk_rows):
        rows = start + np.flatnonzero(decoded[start : start + chunk_rows])
        if len(rows) >= _FEWEST:
            found[rows] = np.stack([np.roll(rows, -step) for step in _steps(len(rows))], axis=1)
    return found


def _steps(num: int) -> list[int]:
    """Return how many rows further on the captions lie, for a chunk of so many rows."""
    steps: list[int] = np.random.default_rng((_SEED, num)).choice(np.arange(1, num), NUM_NULLS, replace=False).tolist()
    return steps
