"""Where crowds begin: a cut on neighbour distances that a stated share of ordinary rows would fall under.

A model that has learned a backdoor draws all images with the trigger to one place, so their neighbours are far nearer than
anybody else's. How near is near depends on model and data; but the distances of ordinary rows have one mode, and above it
there are no crowds. What lies above the mode, mirrored, says how far below it ordinary rows reach.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from stages.histogram import Histogram

_BINS: Final = 64
_SMOOTHING: Final = np.asarray((1.0, 2.0, 3.0, 2.0, 1.0))
_LEAST: Final = 1e-4
_STEPS: Final = 8


def crowd_cut(closeness: Histogram, tail: float) -> float:
    """Return the distance below which a share `tail` of ordinary rows lies.

    The mode is sought on a logarithmic scale, on which crowds of different tightness are spread out and the ordinary rows are
    not; the mirror is on the plain one, where the ordinary distances were seen to be nearly symmetric.

    Args:
        closeness: Of 1 - outlier, all shards.
        tail: In (0, 0.5).

    Returns:
        A distance in [0, 2]; 0 where all distances are equal.
    """
    values, counts = closeness.occupied()
    distance = np.maximum(1.0 - values, 0.0)
    if len(distance) < 2:
        return 0.0
    centre = _centre(distance, counts)
    order = np.argsort(distance)
    above = order[distance[order] >= centre]
    reached = counts[above].cumsum() / max(1, counts[above].sum())
    place = min(int(np.searchsorted(reached, 1.0 - 2.0 * tail)), len(above) - 1)
    return max(0.0, 2.0 * centre - float(distance[above[place]]))


def _centre(distance: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> float:
    """Return where the ordinary distances are centred: at the mode, then at the median of what lies around it on both sides."""
    logs = np.log(np.maximum(distance, _LEAST))
    heights, edges = np.histogram(logs, np.linspace(logs.min(), logs.max(), _BINS + 1), weights=counts)
    top = int(np.convolve(heights, _SMOOTHING, "same").argmax())
    centre, order = float(np.exp((edges[top] + edges[top + 1]) / 2)), np.argsort(distance)
    for _ in range(_STEPS):
        near = order[distance[order] >= 2.0 * centre - distance.max()]
        middle = int(np.searchsorted(counts[near].cumsum(), counts[near].sum() / 2))
        centre = float(distance[near[min(middle, len(near) - 1)]])
    return centre
