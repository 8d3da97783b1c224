"""Score every pair of a shard with the current checkpoint and write its scores part."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from manifests.layout import CANARY_PARTS, EMBEDDINGS, REENCODED, SCORES, part_name
from manifests.parts import write_part
from manifests.schema import NOT_DOWNLOADED_KEY, NUM_NULLS, SIGNALS, SOURCE, Reason
from manifests.schema import SCORES as SCORES_SCHEMA
from manifests.store import Store
from stages.histogram import on_grid
from stages.pair import Pair, Shard
from stages.score.canaries import CANARIES, CAPTION, VECTORS, Canaries, canaries_of
from stages.score.checkpoints import Weights
from stages.score.cross_fit import make_encoder
from stages.score.decode import Chunk, Decode
from stages.score.encoders import Encoder
from stages.score.hashes import caption_hashes, image_hashes, pixel_hashes
from stages.score.null_cosines import null_cosines
from stages.score.reencoded import REENCODED_SCHEMA, moved
from stages.stage import Stage
from stages.vectors import packed

log = logging.getLogger("pairsan.embed")


@dataclass(frozen=True, slots=True)
class EmbedTarget:
    """Where scores go and how they are made.

    Attributes:
        decode: The reading half, which an executor may run elsewhere and hand in through `read_from`.
        weights: The model.
        run: The run folder.
        round_number: The round.
        fingerprint: Of the plan's scoring half; goes into every footer.
        device: `cpu` or `cuda`.
        precision: `fp32`, `bf16` or `fp16`.
        batch_size: Rows per forward pass.
        num_threads: Torch threads on a CPU.
        keep_embeddings: Whether to write fp16 embeddings beside the scores.
        keep_captions: Whether captions are written.
        num_canaries: Canaries of each kind in every shard.
        num_reencoded: Rows of every shard that are encoded anew, to see how far their cosines move.
    """

    decode: Decode
    weights: Weights
    run: Store
    round_number: int
    fingerprint: str
    device: str
    precision: str
    batch_size: int
    num_threads: int
    keep_embeddings: bool
    keep_captions: bool
    num_canaries: int = 0
    num_reencoded: int = 0


@dataclass(frozen=True, slots=True)
class Embedded:
    """What is known of a shard after it was scored: counts for the progress line."""

    num_rows: int
    num_quarantined: int


class Embed(Stage[EmbedTarget, Embedded]):
    """Stage: a shard in, a scores part on disk out."""

    _chunks: Callable[[Shard], Iterable[Chunk]] | None = None

    def read_from(self, chunks: Callable[[Shard], Iterable[Chunk]]) -> None:
        """Take chunks from elsewhere (decoded on other nodes) in place of decoding here."""
        self._chunks = chunks

    def open(self) -> None:
        """Load the weights."""
        target = self.target
        os.environ["OMP_NUM_THREADS"] = str(target.num_threads)
        torch.set_num_threads(target.num_threads)
        if self._chunks is None:
            target.decode.open()
            self._chunks = target.decode.run
        self._encoder = make_encoder(
            target.weights, device=target.device, precision=target.precision, batch_size=target.batch_size
        )
        log.debug("model loaded; captions trimmed: %s", self._encoder.trims)

    def run(self, shard: Shard, /) -> Embedded:
        """Score one shard and write its parts, each whole or not at all; the scores last, since they say "done"."""
        target, number = self.target, self.target.round_number
        scored: Iterable[ScoredChunk] = self._scored(shard)
        if target.keep_embeddings:
            kept: list[ScoredChunk] = []
            schema = embedding_schema(self._encoder.dim)
            vectors = (embedding_batch(chunk, schema) for chunk in _remember(scored, kept))
            write_part(target.run, part_name(number, EMBEDDINGS, shard.name), schema, vectors, fingerprint=target.fingerprint)
            scored = kept
        num_quarantined = 0

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal num_quarantined
            for chunk in scored:
                num_quarantined += sum(pair.reason is not None for pair in chunk.pairs)
                yield score_batch(chunk, keep_captions=target.keep_captions)

        name = part_name(number, SCORES, shard.name)
        lost = target.decode.not_downloaded(shard)
        footer = {NOT_DOWNLOADED_KEY: json.dumps(lost).encode()} if lost else None
        part = write_part(target.run, name, SCORES_SCHEMA, batches(), fingerprint=target.fingerprint, footer=footer)
        return Embedded(part.num_rows, num_quarantined)

    def _scored(self, shard: Shard) -> Iterator["ScoredChunk"]:
        if self._chunks is None:
            raise RuntimeError("Embed.open() comes before run()")
        chunks: Iterable[Chunk] = self._chunks(shard)
        if self.target.num_canaries:
            chunks = self._with_canaries(shard, chunks)
        if self.target.num_reencoded:
            chunks = self._with_reencoded(shard, chunks)
        return (self._counted(score_chunk(chunk, self._encoder)) for chunk in chunks)

    def _counted(self, chunk: "ScoredChunk") -> "ScoredChunk":
        rows, quarantined = self.so_far
        self.so_far = rows + len(chunk.pairs), quarantined + sum(pair.reason is not None for pair in chunk.pairs)
        return chunk

    def _with_canaries(self, shard: Shard, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Pass chunks on; make canaries of the first one that has the rows for it, and write their part."""
        target, made = self.target, None
        for chunk in chunks:
            if made is None:
                made = canaries_of(shard.name, chunk.pixels, chunk.captions, target.num_canaries)
                if made is not None:
                    self._write_canaries(shard, made)
            yield chunk
        if made is None:
            self._write_canaries(shard, None)

    def _with_reencoded(self, shard: Shard, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Pass chunks on; encode rows of the first one anew, and write how far their cosines moved."""
        target, found = self.target, None
        for chunk in chunks:
            if found is None and len(chunk.rows):
                found = moved(chunk.pixels[: target.num_reencoded], chunk.captions[: target.num_reencoded], self._encoder)
            yield chunk
        table = REENCODED_SCHEMA.empty_table() if found is None else found
        name = part_name(target.round_number, REENCODED, shard.name)
        write_part(target.run, name, REENCODED_SCHEMA, [table], fingerprint=target.fingerprint)

    def _write_canaries(self, shard: Shard, made: Canaries | None) -> None:
        target, table = self.target, CANARIES.empty_table()
        if made is not None:
            images, texts = self._encoder.encode_pairs(made.pixels, made.captions)
            cosines = on_grid(np.einsum("nd,nd->n", images.astype(np.float64), texts.astype(np.float64)))
            table = pa.table([pa.array(made.kinds), pa.array(cosines)], schema=CANARIES)
            if target.keep_embeddings:
                columns = (pa.array(image_hashes(made.pixels)), packed(images), packed(texts))
                for name, column in zip(VECTORS, columns, strict=True):
                    table = table.append_column(name, column)
            if target.keep_captions:
                table = table.append_column(CAPTION, pa.array(made.captions))
        name = part_name(target.round_number, CANARY_PARTS, shard.name)
        write_part(target.run, name, table.schema, [table], fingerprint=target.fingerprint)


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
    """

    pairs: list[Pair]
    cosines: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]
    nulls: npt.NDArray[np.float32]
    images: npt.NDArray[np.float32]
    texts: npt.NDArray[np.float32]


def score_chunk(chunk: Chunk, encoder: Encoder) -> ScoredChunk:
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
    return ScoredChunk(pairs, cosines, chunk.rows, *hashes, nulls, images, texts)


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
    """Return the columns of an embeddings part: two fp16 vectors of `dim` numbers as fixed-size binary."""
    width = pa.binary(2 * dim)
    return pa.schema([pa.field("image", width, nullable=False), pa.field("text", width, nullable=False)])


def embedding_batch(chunk: ScoredChunk, schema: pa.Schema) -> pa.RecordBatch:
    """Return the embeddings of a chunk, one row per pair; zeros where a pair was not encoded."""
    columns = []
    for features in (chunk.images, chunk.texts):
        filled = np.zeros((len(chunk.pairs), schema.field("image").type.byte_width // 2), np.float16)
        if len(chunk.rows):
            filled[chunk.rows] = features
        columns.append(packed(filled))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _remember(chunks: Iterable[ScoredChunk], kept: list[ScoredChunk]) -> Iterator[ScoredChunk]:
    """Pass chunks on while keeping their rows, without the vectors."""
    empty = np.zeros((0, 0), np.float32)
    for chunk in chunks:
        yield chunk
        kept.append(replace(chunk, images=empty, texts=empty))
