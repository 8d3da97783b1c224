"""Score every pair of a shard with the current checkpoint and write its scores part."""

import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.layout import CANARY_PARTS, EMBEDDINGS, REENCODED, SCORES, round_folder
from manifests.parts import Part, write_part
from manifests.schema import NOT_DOWNLOADED_KEY
from manifests.schema import SCORES as SCORES_SCHEMA
from manifests.store import Store
from stages.histogram import on_grid
from stages.pair import Shard, Stretch
from stages.score.canaries import CANARIES, CAPTION, VECTORS, Canaries
from stages.score.decode import Chunk, Decode, first_of, following, with_canaries
from stages.score.hashes import image_hashes
from stages.score.looks import looks
from stages.score.models.cross_fit import make_encoder
from stages.score.models.weights import Weights
from stages.score.reencoded import REENCODED_SCHEMA, moved
from stages.score.scored_rows import ScoredChunk, embedding_batch, embedding_schema, remember, score_batch, score_chunk
from stages.stage import Stage
from stages.vectors import packed, packed_bytes

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
        num_threads: Of a CPU.
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
    """Stage: a shard in, or a stretch of one, a scores part on disk out."""

    _chunks: Callable[[Shard], Iterable[Chunk]] | None = None

    def read_from(self, chunks: Callable[[Shard], Iterable[Chunk]]) -> None:
        """Take chunks from elsewhere (decoded on other nodes) in place of decoding here."""
        self._chunks = chunks

    def open(self) -> None:
        """Load the weights."""
        target = self.target
        if self._chunks is None:
            target.decode.open()
            self._chunks = target.decode.run
        options: dict[str, Any] = {"device": target.device, "precision": target.precision, "batch_size": target.batch_size}
        self._encoder = make_encoder(target.weights, **options, num_threads=target.num_threads)
        log.debug("model loaded; captions trimmed: %s", self._encoder.trims)

    def run(self, shard: Shard, /) -> Embedded:
        """Score one shard and write its parts, each whole or not at all; the scores last, since they say "done"."""
        target = self.target
        scored: Iterable[ScoredChunk] = self._scored(shard)
        if target.keep_embeddings:
            kept: list[ScoredChunk] = []
            schema = embedding_schema(self._encoder.dim)
            vectors = (embedding_batch(chunk, schema) for chunk in remember(scored, kept))
            self._write(EMBEDDINGS, shard, schema, vectors)
            scored = kept
        num_quarantined = 0

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal num_quarantined
            for chunk in scored:
                num_quarantined += sum(pair.reason is not None for pair in chunk.pairs)
                yield score_batch(chunk, keep_captions=target.keep_captions)

        lost = target.decode.not_downloaded(shard) if shard.first == 0 else None
        footer = {NOT_DOWNLOADED_KEY: json.dumps(lost).encode()} if lost else None
        part = self._write(SCORES, shard, SCORES_SCHEMA, batches(), footer)
        return Embedded(part.num_rows, num_quarantined)

    def write_beside(self, shard: Shard) -> None:
        """Write what is made of the first rows of a shard alone: canaries, and rows that are encoded anew."""
        first = replace(shard, stretch=Stretch(0, 0))
        chunks: Iterable[Chunk] = ()
        chunks = self._with_canaries(first, chunks) if self.target.num_canaries else chunks
        chunks = self._with_reencoded(first, chunks) if self.target.num_reencoded else chunks
        deque(chunks, maxlen=0)

    def _scored(self, shard: Shard) -> Iterator[ScoredChunk]:
        if self._chunks is None:
            raise RuntimeError("Embed.open() comes before run()")
        chunks: Iterable[Chunk] = self._chunks(shard)
        if self.target.num_canaries and shard.first == 0:
            chunks = self._with_canaries(shard, chunks)
        if self.target.num_reencoded and shard.first == 0:
            chunks = self._with_reencoded(shard, chunks)
        keep = self.target.keep_embeddings
        return (self._counted(score_chunk(chunk, self._encoder, keep_looks=keep)) for chunk in chunks)

    def _counted(self, chunk: ScoredChunk) -> ScoredChunk:
        rows, quarantined = self.so_far
        self.so_far = rows + len(chunk.pairs), quarantined + sum(pair.reason is not None for pair in chunk.pairs)
        return chunk

    def _with_canaries(self, shard: Shard, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        def write(made: Canaries | None) -> None:
            table = CANARIES.empty_table() if made is None else self._canary_table(made)
            self._write(CANARY_PARTS, shard.whole, table.schema, [table])

        return with_canaries(chunks, self._chunks, shard, self.target.num_canaries, write)

    def _with_reencoded(self, shard: Shard, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Pass chunks on; encode rows of the shard's first one that has any anew, and write how far their cosines moved."""
        num, found = self.target.num_reencoded, None
        for chunk in chunks:
            if found is None and len(chunk.rows):
                found = moved(chunk.pixels[:num], chunk.captions[:num], self._encoder)
            yield chunk
        if found is None:
            further = (chunk for chunk in following(self._chunks, shard) if len(chunk.rows))
            found = first_of(moved(chunk.pixels[:num], chunk.captions[:num], self._encoder) for chunk in further)
        table = REENCODED_SCHEMA.empty_table() if found is None else found
        self._write(REENCODED, shard.whole, REENCODED_SCHEMA, [table])

    def _canary_table(self, made: Canaries) -> pa.Table:
        target = self.target
        images, texts = self._encoder.encode_pairs(made.pixels, made.captions)
        cosines = on_grid(np.einsum("nd,nd->n", images.astype(np.float64), texts.astype(np.float64)))
        table = pa.table([pa.array(made.kinds), pa.array(cosines)], schema=CANARIES)
        if target.keep_embeddings:
            seen = packed_bytes(looks(made.pixels))
            columns = (pa.array(image_hashes(made.pixels)), packed(images), packed(texts), seen)
            for name, column in zip(VECTORS, columns, strict=True):
                table = table.append_column(name, column)
        return table.append_column(CAPTION, pa.array(made.captions)) if target.keep_captions else table

    def _write(
        self,
        kind: str,
        shard: Shard,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch | pa.Table],
        footer: dict[bytes, bytes] | None = None,
    ) -> Part:
        name = shard.part(f"{round_folder(self.target.round_number)}/{kind}")
        return write_part(self.target.run, name, schema, batches, fingerprint=self.target.fingerprint, footer=footer)
