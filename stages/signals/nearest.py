"""The nearest of many vectors: exactly up to a size, then in two levels; without training, on a GPU if there is one."""

import functools
from typing import Any, Final

import faiss
import numpy as np
import numpy.typing as npt

_FLAT_UP_TO: Final = 4096
_LISTS_PROBED: Final = 8
_GPU_SCRATCH_BYTES: Final = 256 << 20  # FAISS would take a fifth of the memory, beside the encoder


class Nearest:
    """An index of unit vectors. Nothing is trained, so that it is the same wherever it is built."""

    def __init__(self, vectors: npt.NDArray[np.float32], *, exact: bool = False) -> None:
        """Index unit vectors.

        Args:
            vectors: float32 (n, d). Above 4,096 they lie in lists around the first sqrt(n) of them, of which 8 are searched.
            exact: Search all of them, however many.
        """
        self.num = len(vectors)
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
