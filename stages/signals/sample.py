"""A small, seeded sample of all rows' vectors, the same however many workers draw it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.layout import EMBEDDINGS, SCORES, part_name
from manifests.parts import write_part
from manifests.store import Store
from stages.pair import Shard
from stages.signals.signal_parts import SignalParts
from stages.stage import Stage
from stages.vectors import bytes_of, packed, packed_bytes, read_columns, unit, vectors_of

_WHOLE = float(2**64)


@dataclass(frozen=True, slots=True)
class Sampled:
    """Rows that one shard offers for the sample.

    Attributes:
        priorities: The lowest of all shards are taken, uint64 (n,).
        hashes: Of their images, int64 (n,).
        images: fp16 vectors (n, d).
        texts: fp16 vectors (n, d).
        others: fp16 vectors of the images by the reference encoder, (n, e); None without one.
        captions: With a reference encoder; else none.
        looks: What the images are like, uint8 (n, w); None where that was not kept.
    """

    priorities: npt.NDArray[np.uint64]
    hashes: npt.NDArray[np.int64]
    images: npt.NDArray[np.float16]
    texts: npt.NDArray[np.float16]
    others: npt.NDArray[np.float16] | None = None
    captions: tuple[str, ...] = ()
    looks: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class SampleTarget:
    """What every shard offers.

    Attributes:
        parts: Which rows, with or without the reference encoder's vectors.
        share: Of all rows.
    """

    parts: SignalParts
    share: float


class SampleRows(Stage[SampleTarget, Sampled]):
    """Stage: a shard in, those of its rows out that may be in the sample."""

    def run(self, shard: Shard, /) -> Sampled:
        """Offer the scored rows of lowest priority."""
        parts, share = self.target.parts, self.target.share
        columns = ["uid", "cosine", "image_hash", *(["caption"] if parts.others else [])]
        scores = read_columns(parts.run, part_name(parts.scores_round, SCORES, shard.name), columns)
        drawn = priorities(scores["uid"], parts.asked.signals_seed)
        wanted = scores["cosine"].is_valid().to_numpy() & (drawn <= np.uint64(min(share * _WHOLE, _WHOLE - 2048)))
        rows = np.flatnonzero(wanted)
        vectors = read_columns(parts.run, part_name(parts.scores_round, EMBEDDINGS, shard.name), ["image", "text", "look"])
        hashes = scores["image_hash"].fill_null(0).to_numpy()
        found = Sampled(drawn[rows], hashes[rows], vectors_of(vectors["image"])[rows], vectors_of(vectors["text"])[rows])
        if parts.asked.looks and "look" in vectors.column_names:
            found = replace(found, looks=bytes_of(vectors["look"])[rows])
        if parts.others is None:
            return found
        others = read_columns(parts.run, f"{parts.others}/{shard.name}.parquet", ["image"])["image"]
        captions = scores["caption"].take(rows).fill_null("").to_pylist()
        return replace(found, others=vectors_of(others)[rows], captions=tuple(captions))


def priorities(uids: pa.ChunkedArray, seed: int) -> npt.NDArray[np.uint64]:
    """Return a number for each uid that is uniform in [0, 2**64) and follows from uid and seed alone, uint64 (n,).

    Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014), its 64-bit finalizer.
    """
    whole = uids.combine_chunks()
    words = np.frombuffer(whole.buffers()[1], np.uint64, count=2 * (len(whole) + whole.offset))[2 * whole.offset :]
    with np.errstate(over="ignore"):
        mixed = words[0::2] ^ (words[1::2] * np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(seed * 0xD1B54A32D192ED03 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: npt.NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return found


def share_of(num_rows: int, num_scored: int) -> float:
    """Return which share of rows to offer so that `num_rows` of `num_scored` come together but for one case in a billion."""
    return min(1.0, (num_rows + 6.0 * float(np.sqrt(num_rows)) + 6.0) / max(1, num_scored))


@dataclass(frozen=True)
class Reference:
    """The sample. No two rows of it show the same image, so that copies are nobody's neighbours.

    Attributes:
        hashes: Of the images, int64 (r,).
        images: Unit vectors, float32 (r, d).
        texts: Unit vectors, float32 (r, d).
        others: Unit vectors of the images by the reference encoder, float32 (r, e); None without one.
        captions: With a reference encoder; else none.
        looks: What the images are like, uint8 (r, w); None where that was not kept of all of them.
    """

    hashes: npt.NDArray[np.int64]
    images: npt.NDArray[np.float32]
    texts: npt.NDArray[np.float32]
    others: npt.NDArray[np.float32] | None = None
    captions: tuple[str, ...] = ()
    looks: npt.NDArray[np.uint8] | None = None

    @classmethod
    def choose(cls, offered: Sequence[Sampled], num_rows: int) -> "Reference":
        """Take the rows of lowest priority, each image once."""
        drawn = np.concatenate([part.priorities for part in offered])
        order = np.argsort(drawn, kind="stable")[:num_rows]
        hashes = np.concatenate([part.hashes for part in offered])[order]
        first = np.sort(np.unique(hashes, return_index=True)[1])
        rows = order[first]
        images, texts = (unit(np.concatenate([getattr(part, kind) for part in offered])[rows]) for kind in ("images", "texts"))
        others = [part.others for part in offered if part.others is not None]
        captions = [caption for part in offered for caption in part.captions]
        seen = [part.looks for part in offered if part.looks is not None]
        found = cls(hashes[first], images, texts)
        if len(seen) == len(offered):
            found = replace(found, looks=np.concatenate(seen)[rows])
        if not others:
            return found
        return replace(found, others=unit(np.concatenate(others)[rows]), captions=tuple(captions[row] for row in rows))

    def once_each(self, pictures: npt.NDArray[np.int64]) -> "Reference":
        """Return the first row of each picture, with the pictures in place of the hashes.

        Args:
            pictures: Of each row, int64 (r,): the same for whatever is to count as one.
        """
        rows = np.sort(np.unique(pictures, return_index=True)[1])
        others = None if self.others is None else self.others[rows]
        captions = tuple(self.captions[row] for row in rows) if self.captions else ()
        seen = None if self.looks is None else self.looks[rows]
        return Reference(pictures[rows], self.images[rows], self.texts[rows], others, captions, seen)

    def with_rows(self, rows: "Reference") -> "Reference":
        """Return vectors and looks of this sample and of other rows, each image once."""
        hashes, images, texts = (
            np.concatenate([getattr(part, kind) for part in (self, rows)]) for kind in ("hashes", "images", "texts")
        )
        seen = None if self.looks is None or rows.looks is None else np.concatenate([self.looks, rows.looks])
        both = Reference(hashes, images, texts, looks=seen)
        return both.once_each(both.hashes)

    def write(self, run: Store, name: str, fingerprint: str) -> None:
        """Write the sample as one part, so that workers read what is in no message."""
        columns = {"image_hash": pa.array(self.hashes), "image": packed(self.images), "text": packed(self.texts)}
        if self.others is not None:
            columns |= {"other": packed(self.others), "caption": pa.array(self.captions, pa.string())}
        if self.looks is not None:
            columns["look"] = packed_bytes(self.looks)
        table = pa.table(columns)
        write_part(run, name, table.schema, [table], fingerprint=fingerprint)

    @classmethod
    def read(cls, run: Store, name: str) -> "Reference":
        """Read what `write` left."""
        table = read_columns(run, name, None)
        found = cls(table["image_hash"].to_numpy(), unit(vectors_of(table["image"])), unit(vectors_of(table["text"])))
        if "look" in table.column_names:
            found = replace(found, looks=bytes_of(table["look"]))
        if "other" not in table.column_names:
            return found
        return replace(found, others=unit(vectors_of(table["other"])), captions=tuple(table["caption"].to_pylist()))
