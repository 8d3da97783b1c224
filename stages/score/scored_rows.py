"""A chunk of rows with their scores, and the rows of parts that it makes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.labels import Reason
from manifests.schema import NUM_NULLS, SOURCE
from manifests.schema import SCORES as SCORES_SCHEMA
from manifests.signals import SIGNALS
from stages.histogram import on_grid
from stages.pair import Pair
from stages.score.decode import Chunk
from stages.score.hashes import caption_hashes, image_hashes, pixel_hashes
from stages.score.looks import WIDTH, looks
from stages.score.models.encoders import Encoder
from stages.score.null_cosines import null_cosines
from stages.vectors import packed, packed_bytes


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """Rows of a shard with their scores.

    Attributes:
        pairs: The rows, in order; those without a score carry a reason.
        cosines: float32 (n,) on the grid of `COSINE_STEP`; NaN where there is none.
        rows: Positions in `pairs` that were encoded, int64 (m,).
        hashes: Of how their images look, int64 (m,).
        pixels: Of their images' pixels, int64 (m,).
        nulls: Cosines of their images with captions of other rows, float32 (m, 4), NaN where there is none.
        images: Their unit vectors, float32 (m, d).
        texts: Their captions' unit vectors, float32 (m, d).
        looks: What their images are like, uint8 (m, 1051); none where vectors are not kept.
    """

    pairs: list[Pair]
    cosines: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]
    nulls: npt.NDArray[np.float32]
    images: npt.NDArray[np.float32]
    texts: npt.NDArray[np.float32]
    looks: npt.NDArray[np.uint8]


def score_chunk(chunk: Chunk, encoder: Encoder, *, keep_looks: bool = False) -> ScoredChunk:
    """Encode the decoded rows of one chunk and take the cosines of their features."""
    pairs = list(chunk.pairs)
    cosines = np.full(len(pairs), np.nan, np.float32)
    images = texts = np.zeros((0, 0), np.float32)
    nulls = np.zeros((0, NUM_NULLS), np.float32)
    if len(chunk.rows):
        images, texts = encoder.encode_pairs(chunk.pixels, [pairs[row].caption or "" for row in chunk.rows])
        cosines[chunk.rows] = on_grid(np.einsum("nd,nd->n", images.astype(np.float64), texts.astype(np.float64)))
        nulls = null_cosines(images, texts, caption_hashes([pairs[row].caption or "" for row in chunk.rows]))
    for row in chunk.rows[~np.isfinite(cosines[chunk.rows])]:
        pairs[row] = pairs[row].quarantine(Reason.NOT_FINITE, "the model's features are NaN or infinite for this pair")
    hashes = (image_hashes(chunk.pixels), pixel_hashes(chunk.pixels))
    seen = looks(chunk.pixels if keep_looks else chunk.pixels[:0])
    return ScoredChunk(pairs, cosines, chunk.rows, *hashes, nulls, images, texts, seen)


def score_batch(chunk: ScoredChunk, *, keep_captions: bool = True) -> pa.RecordBatch:
    """Return a scored chunk as rows of the scores part."""
    pairs, cosines = chunk.pairs, chunk.cosines
    (hashes, pixels), has_image = np.zeros((2, len(pairs)), np.int64), np.zeros(len(pairs), bool)
    hashes[chunk.rows], pixels[chunk.rows], has_image[chunk.rows] = chunk.hashes, chunk.pixels, True
    no_caption = np.asarray([not pair.caption for pair in pairs], bool)
    columns = {
        "uid": pa.array([pair.uid for pair in pairs], pa.binary(16)),
        "key": _texts([pair.key for pair in pairs]),
        "index": pa.array([pair.index for pair in pairs], pa.int32()),
        "caption": _texts([pair.caption if keep_captions else None for pair in pairs]),
        "cosine": pa.array(cosines, pa.float32(), mask=~np.isfinite(cosines)),
        "reason": pa.array([pair.reason for pair in pairs], pa.string()).dictionary_encode(),
        "detail": _texts([pair.detail for pair in pairs]),
        "signals": pa.nulls(len(pairs), SIGNALS),
        "image_hash": pa.array(hashes, mask=~has_image),
        "pixels_hash": pa.array(pixels, mask=~has_image),
        "image_offset": pa.array([pair.place[0] if pair.place else None for pair in pairs], pa.int64()),
        "image_bytes": pa.array([pair.place[1] if pair.place else None for pair in pairs], pa.int64()),
        "null_cosines": _nulls(chunk),
        "image_edge": pa.array([pair.edge for pair in pairs], pa.int32()),
        "image_sha256": pa.array([pair.image_sha256 for pair in pairs], pa.binary(32)),
        "source": pa.array([pair.source for pair in pairs], SOURCE),
        "caption_hash": pa.array(caption_hashes([pair.caption or "" for pair in pairs]), mask=no_caption),
    }
    return pa.RecordBatch.from_pydict(columns, schema=SCORES_SCHEMA)


def _texts(values: list[str | None]) -> pa.StringArray:
    """Return texts as a column; what no UTF-8 can hold, of names in an archive, becomes a question mark."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        return pa.array([None if text is None else text.encode("utf-8", "replace").decode() for text in values], pa.string())


def _nulls(chunk: ScoredChunk) -> pa.FixedSizeListArray:
    """Return the null cosines of all rows; null where there are none."""
    values = np.full((len(chunk.pairs), NUM_NULLS), np.nan, np.float32)
    values[chunk.rows] = chunk.nulls
    flat = values.ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, mask=~np.isfinite(flat)), NUM_NULLS)


def embedding_schema(dim: int) -> pa.Schema:
    """Return the columns of an embeddings part, fixed-size binary: two fp16 vectors of `dim` numbers, and the looks."""
    widths = {"image": 2 * dim, "text": 2 * dim, "look": WIDTH}
    return pa.schema([pa.field(name, pa.binary(width), nullable=False) for name, width in widths.items()])


def embedding_batch(chunk: ScoredChunk, schema: pa.Schema) -> pa.RecordBatch:
    """Return the embeddings of a chunk, one row per pair; zeros where a pair was not encoded."""
    columns = []
    for features in (chunk.images, chunk.texts):
        filled = np.zeros((len(chunk.pairs), schema.field("image").type.byte_width // 2), np.float16)
        if len(chunk.rows):
            filled[chunk.rows] = features
        columns.append(packed(filled))
    seen = np.zeros((len(chunk.pairs), WIDTH), np.uint8)
    seen[chunk.rows] = chunk.looks
    return pa.RecordBatch.from_arrays([*columns, packed_bytes(seen)], schema=schema)


def remember(chunks: Iterable[ScoredChunk], kept: list[ScoredChunk]) -> Iterator[ScoredChunk]:
    """Pass chunks on while keeping their rows, without the vectors."""
    empty = np.zeros((0, 0), np.float32)
    for chunk in chunks:
        yield chunk
        kept.append(replace(chunk, images=empty, texts=empty, looks=chunk.looks[:0]))
