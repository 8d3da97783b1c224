"""The nearest of many vectors: exactly up to a size, then in two levels; without training, on a GPU if there is one."""

import functools
from typing import Any, Final

import faiss
import numpy as np
import numpy.typing as npt

_FLAT_UP_TO: Final = 4096
_LISTS_PROBED: Final = 8
_GATHERED: Final = 512  # rows whose neighbours' vectors are held at once
_GPU_SCRATCH_BYTES: Final = 256 << 20  # FAISS would take a fifth of the memory, beside the encoder


class Nearest:
    """An index of unit vectors. Nothing is trained, so that it is the same wherever it is built."""

    def __init__(self, vectors: npt.NDArray[np.float32], *, exact: bool = False) -> None:
        """Index unit vectors.

        Args:
            vectors: float32 (n, d). Above 4,096 they lie in lists around the first sqrt(n) of them, of which 8 are searched.
            exact: Search all of them, however many.
        """
        self.num, self._vectors = len(vectors), vectors
        self._flat = faiss.IndexFlatIP(vectors.shape[1])
        index: faiss.Index = self._flat
        if self.num > _FLAT_UP_TO and not exact:
            num_lists = int(np.sqrt(self.num))
            self._flat.add(np.ascontiguousarray(vectors[:num_lists]))
            index = faiss.IndexIVFFlat(self._flat, vectors.shape[1], num_lists, faiss.METRIC_INNER_PRODUCT)
            index.nprobe, index.is_trained = _LISTS_PROBED, True
        index.add(np.ascontiguousarray(vectors))
        self._index = _placed(index)

    def __call__(self, queries: npt.NDArray[np.float32], num: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return cosines with and places of the `num` nearest, nearest first; fewer where there are fewer.

        Cosines are taken anew, and equal ones come by place: in the last digits of what FAISS says, and so in its order, the
        number of its threads shows.

        Args:
            queries: Unit vectors, float32 (m, d).
            num: How many.

        Returns:
            float32 (m, num) and int64 (m, num); where the lists that were looked at hold fewer, the nearest is repeated.
        """
        places = np.sort(self.places(queries, num), axis=1)
        similar = similar_at(queries, self._vectors, places)
        order = np.argsort(-similar, axis=1, kind="stable")
        return np.take_along_axis(similar, order, 1), np.take_along_axis(places, order, 1)

    def places(self, queries: npt.NDArray[np.float32], num: int) -> npt.NDArray[np.int64]:
        """Return the same places, int64 (m, num), those of nearly equal cosines in any order."""
        num = min(num, self.num)
        if not len(queries):
            return np.zeros((0, num), np.int64)
        found: npt.NDArray[np.int64] = self._index.search(np.ascontiguousarray(queries), num)[1]
        return np.where(found < 0, found[:, :1], found)


def similar_at(
    v: npt.NDArray[np.float32], images: npt.NDArray[np.float32], places: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Return the cosines of unit vectors (n, d) with those at some places (n, m) of a sample (r, d), float32 (n, m)."""
    similar = np.empty(places.shape, np.float32)
    for start in range(0, len(v), _GATHERED):  # what is gathered is m times as large as the rows
        part = slice(start, start + _GATHERED)
        similar[part] = np.einsum("nd,nmd->nm", v[part], images[places[part]])
    return similar


def _placed(index: faiss.Index) -> faiss.Index:
    """Return the index on this worker's first GPU, where FAISS is built for GPUs and sees one; else as it is."""
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return index
    return faiss.index_cpu_to_gpu(_gpu_resources(), 0, index)


@functools.cache
def _gpu_resources() -> Any:
    """Return what FAISS keeps on the GPU between searches; once per process."""
    found = faiss.StandardGpuResources()
    found.setTempMemory(_GPU_SCRATCH_BYTES)
    return found
