"""Cosines of pairs that are mismatched for certain: every image against captions of other rows, at the cost of a product.

Inside a chunk of rows each image is also compared with the captions a few seeded steps further on. What comes of it is a
measured null distribution: how high do captions score that belong to another image? Captions equal to the row's own, but for
case, digits and punctuation, are left out.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from manifests.schema import NUM_NULLS
from stages.grid import on_grid

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
    steps = np.random.default_rng((_SEED, num)).choice(np.arange(1, num), NUM_NULLS, replace=False)
    for place, step in enumerate(steps.tolist()):
        other = np.roll(np.arange(num), -step)
        cosine = on_grid(np.einsum("nd,nd->n", images.astype(np.float64), texts[other].astype(np.float64)))
        found[:, place] = np.where(captions[other] == captions, np.nan, cosine)
    return found
