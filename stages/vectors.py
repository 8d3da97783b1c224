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
    return bytes_of(column).view(np.float16)


def bytes_of(column: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """Return fixed-size binary as bytes, uint8 (n, w), without a copy."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks)
    width = whole.type.byte_width
    data = np.frombuffer(whole.buffers()[1], np.uint8, count=(len(whole) + whole.offset) * width)
    return data.reshape(-1, width)[whole.offset :]


def unit(vectors: npt.NDArray[np.float16] | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return vectors at length 1, float32; zero stays zero."""
    wide = np.ascontiguousarray(vectors, np.float32)
    length = np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None]
    return (wide / np.where(length > 0, length, 1.0)).astype(np.float32)


def packed(vectors: npt.NDArray[np.float32] | npt.NDArray[np.float16]) -> pa.FixedSizeBinaryArray:
    """Return vectors as fp16 in fixed-size binary, which `vectors_of` reads."""
    return packed_bytes(np.ascontiguousarray(vectors, np.float16).view(np.uint8))


def packed_bytes(rows: npt.NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """Return bytes, uint8 (n, w), as fixed-size binary, which `bytes_of` reads."""
    whole = np.ascontiguousarray(rows)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(whole.shape[1]), len(whole), [None, pa.py_buffer(whole)])
