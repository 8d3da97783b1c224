"""Stream the rows of a sealed round for training: joined by position inside each shard, shuffled in a bounded buffer."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from manifests.errors import RunError
from manifests.reading import Manifest
from manifests.schema import Label
from stages.decode import Decode
from stages.pair import Shard

BUFFER_ROWS: Final = 8192


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one label.

    Attributes:
        label: What they may be used for.
        pixels: RGB uint8 (n, size, size, 3).
        captions: Their captions, (n,).
        uids: 16 bytes each, for error messages.
    """

    label: Label
    pixels: npt.NDArray[np.uint8]
    captions: list[str]
    uids: list[bytes]


Row = tuple[npt.NDArray[np.uint8], str, bytes]


def round_batches(
    manifest: Manifest | None,
    shards: Sequence[Shard],
    decode: Decode,
    *,
    batch_size: int,
    seed: int,
    as_label: Label | None = None,
) -> Iterator[Batch]:
    """Yield the scored rows of a round once, in an order that depends on `seed` alone, in batches of one label each.

    Safe and risky batches come in the proportion in which their rows are met. Rows that do not fill a last batch are
    left out; another order leaves out others. Memory: 8,192 rows per label.

    Args:
        manifest: The sealed round; None for a pass over all decodable rows before there is any round.
        shards: All shards of the dataset.
        decode: Opened; reads and decodes a shard.
        batch_size: Rows per batch.
        seed: Of this pass.
        as_label: Take safe and risky rows alike, under this label.

    Raises:
        RunError: A shard has other rows than its manifest.
    """
    rng = random.Random(seed)  # noqa: S311  # an order, no secret
    order = list(shards)
    rng.shuffle(order)
    buffers: dict[Label, list[Row]] = {Label.SAFE: [], Label.RISKY: []}
    for shard in order:
        for label, row in _rows(manifest, shard, decode):
            label = as_label or label
            buffer = buffers[label]
            buffer.append(row)
            if len(buffer) >= BUFFER_ROWS:
                yield _take(label, buffer, batch_size, rng)
    while any(len(buffer) >= batch_size for buffer in buffers.values()):
        weights = [len(buffer) if len(buffer) >= batch_size else 0 for buffer in buffers.values()]
        label = rng.choices(list(buffers), weights)[0]
        yield _take(label, buffers[label], batch_size, rng)


def _rows(manifest: Manifest | None, shard: Shard, decode: Decode) -> Iterator[tuple[Label, Row]]:
    labels = None if manifest is None else manifest.table(shard.name, ["label"], check_hash=True)
    words = None if labels is None else labels["label"].to_pylist()
    index = 0
    for chunk in decode.run(shard):
        slot_of = {int(position): slot for slot, position in enumerate(chunk.rows)}
        for position, pair in enumerate(chunk.pairs):
            word = str(Label.RISKY) if words is None else words[index] if index < len(words) else None
            index += 1
            if word is None:
                raise RunError(f"{shard.name} has more rows than its manifest ({len(words or [])}); has it changed?")
            if position in slot_of and word != Label.QUARANTINED:
                yield Label(word), (chunk.pixels[slot_of[position]].copy(), pair.caption or "", pair.uid)
    if words is not None and index != len(words):
        raise RunError(f"{shard.name} has {index} rows, its manifest {len(words)}; has it changed?")


def _take(label: Label, buffer: list[Row], batch_size: int, rng: random.Random) -> Batch:
    """Draw a batch out of a buffer; what is left keeps no order."""
    rows = []
    for _ in range(batch_size):
        place = rng.randrange(len(buffer))
        buffer[place], buffer[-1] = buffer[-1], buffer[place]
        rows.append(buffer.pop())
    return Batch(label, np.stack([r[0] for r in rows]), [r[1] for r in rows], [r[2] for r in rows])
