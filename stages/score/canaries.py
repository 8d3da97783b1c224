"""Known poison, made from the data's own rows and scored with everything else: the false negatives of this run on this data.

Canaries are never written into a manifest and never trained on. They tell what the cut does with poison that the checkpoint has
not learned; they cannot tell what it does with poison that the checkpoint was trained on.

    mismatched   an image with another row's caption
    repeated     one image, four times, each with another row's caption
    patch        an image with a checkered patch in a corner and another row's caption
    composed     an image with its own caption, followed by another row's
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Kind = Literal["mismatched", "repeated", "patch", "composed"]
KINDS: Final[tuple[Kind, ...]] = ("mismatched", "repeated", "patch", "composed")
FOREIGN: Final[tuple[Kind, ...]] = ("mismatched", "repeated", "patch")
REPEATED: Final = "repeated"  # the kind whose canaries are copies of each other
REPEATS: Final = 4
CANARIES: Final = pa.schema([pa.field("kind", pa.string(), nullable=False), pa.field("cosine", pa.float32(), nullable=False)])
VECTORS: Final = ("image_hash", "image", "text", "look")  # more columns, where embeddings are kept
CAPTION: Final = "caption"  # another, where captions are
_FEWEST: Final = 8
_PATCH_SHARE: Final = 6
_SQUARES: Final = 4
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Canaries:
    """Canaries of one shard, not yet scored.

    Attributes:
        kinds: Of each, (n,).
        pixels: Preprocessed RGB, uint8 (n, size, size, 3).
        captions: (n,).
    """

    kinds: list[Kind]
    pixels: Pixels
    captions: list[str]


@dataclass(frozen=True)
class CanaryScores:
    """What is known of some canaries of one kind.

    Attributes:
        cosines: float32 (n,).
        signals: Values by field of the signals, float64 (n,) each; those that could be computed.
        codes: Strata of their captions, int8 (n,); None where rows are not grouped by captions, or captions are not kept.
    """

    cosines: npt.NDArray[np.float32]
    signals: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    codes: npt.NDArray[np.int8] | None = None

    @classmethod
    def joined(cls, parts: "Sequence[CanaryScores]") -> "CanaryScores":
        """Return several as one."""
        names = set.intersection(*(set(part.signals) for part in parts)) if parts else set()
        signals = {name: np.concatenate([part.signals[name] for part in parts]) for name in sorted(names)}
        codes = [part.codes for part in parts if part.codes is not None]
        known = np.concatenate(codes) if codes and len(codes) == len(parts) else None
        return cls(np.concatenate([part.cosines for part in parts]), signals, known)

    def where(self, chosen: npt.NDArray[np.bool_]) -> "CanaryScores":
        """Return some of them."""
        signals = {name: values[chosen] for name, values in self.signals.items()}
        return CanaryScores(self.cosines[chosen], signals, None if self.codes is None else self.codes[chosen])


def canaries_of(shard: str, pixels: Pixels, captions: list[str], num: int) -> Canaries | None:
    """Return a shard's canaries, made of its first chunk that has the rows for it; the same whatever the size of the pixels."""
    return make_canaries(
        pixels, captions, num, int.from_bytes(hashlib.blake2b(shard.encode(), digest_size=4).digest(), "little")
    )


def make_canaries(pixels: Pixels, captions: list[str], num: int, seed: int) -> Canaries | None:
    """Make `num` canaries of each kind from rows of a shard.

    Args:
        pixels: Preprocessed RGB, uint8 (m, size, size, 3).
        captions: Of the same rows, (m,).
        num: Of each kind; fewer where there are fewer rows.
        seed: Of the rows that are drawn.

    Returns:
        None where there are fewer than 8 rows.
    """
    if len(pixels) < _FEWEST:
        return None
    rng = np.random.default_rng((0xCA9A, seed))
    kinds: list[Kind] = []
    shown: list[Pixels] = []
    words: list[str] = []

    def foreign(row: int) -> str:
        others = [
            text for text in (captions[i] for i in rng.permutation(len(captions))[:_FEWEST].tolist()) if text != captions[row]
        ]
        return others[0] if others else captions[(row + 1) % len(captions)]

    for kind in KINDS:
        size = num // REPEATS + 1 if kind == "repeated" else num
        for row in rng.permutation(len(pixels))[:size].tolist():
            for _ in range(REPEATS if kind == "repeated" else 1):
                kinds.append(kind)
                shown.append(patched(pixels[row]) if kind == "patch" else pixels[row])
                words.append(f"{captions[row]} {foreign(row)}" if kind == "composed" else foreign(row))
    return Canaries(kinds, np.stack(shown), words)


def patched(pixels: Pixels) -> Pixels:
    """Return an image with a checkered patch of a sixth of its edge in the lower right corner."""
    edge = max(_SQUARES, pixels.shape[0] // _PATCH_SHARE)
    place = np.arange(edge) * _SQUARES // edge
    found = pixels.copy()
    found[-edge:, -edge:] = np.where((place[:, None] + place[None]) % 2, 255, 0).astype(np.uint8)[..., None]
    return found
