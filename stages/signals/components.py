"""Connected components of links between things that are numbered."""

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def components(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], num: int) -> npt.NDArray[np.int64]:
    """Return the first node of the component that each of `num` nodes is in, int64 (num,).

    Args:
        a: One end of every link, int64 (m,).
        b: The other, int64 (m,).
        num: Of nodes.
    """
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(num, num))
    found = connected_components(graph, directed=False)[1]
    first = np.unique(found, return_index=True)[1]
    firsts: npt.NDArray[np.int64] = first[found].astype(np.int64)
    return firsts
