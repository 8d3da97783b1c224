"""Vectors as parts hold them: fp16 in fixed-size binary; and columns of parts."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.store import Store


def read_columns(run: Store, name: str, columns: list[str] | None) -> pa.Table:
    """Return those of some columns that a part has, or all; parts of older schemas have fewer."""
    with run.fs.open_input_file(run.path(name)) as file, pq.ParquetFile(file) as parquet:
        return parquet.read(columns=columns)


def vectors_of(column: pa.ChunkedArray) -> npt.NDArray[np.float16]:
    """Return fixed-size binary as fp16 vectors, float16 (n, d), without a copy."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks)
    width = whole.type.byte_width
    data = np.frombuffer(whole.buffers()[1], np.float16, count=(len(whole) + whole.offset) * width // 2)
    return data.reshape(-1, width // 2)[whole.offset :]


def unit(vectors: npt.NDArray[np.float16] | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return vectors at length 1, float32; zero stays zero."""
    wide = np.ascontiguousarray(vectors, np.float32)
    length = np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None]
    return (wide / np.where(length > 0, length, 1.0)).astype(np.float32)


def packed(vectors: npt.NDArray[np.float32] | npt.NDArray[np.float16]) -> pa.FixedSizeBinaryArray:
    """Return vectors as fp16 in fixed-size binary, which `vectors_of` reads."""
    half = np.ascontiguousarray(vectors, np.float16)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * half.shape[1]), len(half), [None, pa.py_buffer(half)])
