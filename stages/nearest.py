"""The nearest of many vectors: exactly up to a size, then through two levels, the same on every machine."""

from typing import Final

import faiss
import numpy as np
import numpy.typing as npt

_FLAT_UP_TO: Final = 4096
_LISTS_PROBED: Final = 8


class Nearest:
    """An index of unit vectors. Nothing is trained, so that it is the same wherever it is built."""

    def __init__(self, vectors: npt.NDArray[np.float32]) -> None:
        """Index unit vectors, float32 (n, d): all of them up to 4,096, else in lists around the first sqrt(n) of them."""
        self.num = len(vectors)
        self._flat = faiss.IndexFlatIP(vectors.shape[1])
        self._index: faiss.Index = self._flat
        if self.num > _FLAT_UP_TO:
            num_lists = int(np.sqrt(self.num))
            self._flat.add(np.ascontiguousarray(vectors[:num_lists]))
            lists = faiss.IndexIVFFlat(self._flat, vectors.shape[1], num_lists, faiss.METRIC_INNER_PRODUCT)
            lists.nprobe, lists.is_trained = _LISTS_PROBED, True
            self._index = lists
        self._index.add(np.ascontiguousarray(vectors))

    def __call__(self, queries: npt.NDArray[np.float32], num: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return cosines with and places of the `num` nearest, nearest first; fewer where there are fewer.

        Args:
            queries: Unit vectors, float32 (m, d).
            num: How many.

        Returns:
            float32 (m, num) and int64 (m, num); where the lists that were looked at hold fewer, the nearest is repeated.
        """
        num = min(num, self.num)
        if not len(queries):
            return np.zeros((0, num), np.float32), np.zeros((0, num), np.int64)
        similar, found = self._index.search(np.ascontiguousarray(queries), num)
        missing = found < 0
        return np.where(missing, similar[:, :1], similar), np.where(missing, found[:, :1], found)
