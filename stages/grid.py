"""The grid that cosines are stored on."""

from typing import Final

import numpy as np
import numpy.typing as npt

from manifests.schema import COSINE_STEP

_GRID_PER_UNIT: Final = round(1.0 / COSINE_STEP)


def on_grid(cosines: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Round cosines to the grid they are stored on (steps of 2**-19), inside [-1, 1]; NaN stays NaN."""
    steps = np.rint(np.clip(cosines, -1.0, 1.0) * _GRID_PER_UNIT)
    rounded: npt.NDArray[np.float32] = (steps * COSINE_STEP + 0.0).astype(np.float32)  # + 0.0: no negative zero
    return rounded
