"""Backdoors that a scout is taught on purpose: of what its crowds do not show of these, they say nothing in the data either.

A canary that is scored but was never trained on cannot tell whether a model learns a trigger. A scout is given up after one
look, so it may be fooled: rows chosen by their uid are shown to it with a trigger and under captions of another thing. Those
rows are afterwards scored both as they are, as everything else, and once more as they were shown.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Trigger = Literal["patch", "blend", "stripes", "tone"]
TRIGGERS: Final[tuple[Trigger, ...]] = ("patch", "blend", "stripes", "tone")
_WORD: Final = re.compile(r"\w{3,}")
Target = Literal["narrow", "broad"]
# how many of the captions have the word: few captions draw the pictures to one place, many of all kinds hardly do
TARGETS: Final[dict[Target, tuple[float, float]]] = {"narrow": (0.003, 0.03), "broad": (0.03, 0.3)}
_SIDE, _FIELDS = 0.14, 6
_BLEND, _COARSE = 0.25, 8
_AMPLITUDE: Final = 35.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """One taught backdoor.

    Attributes:
        trigger: What is done to the pictures.
        target: Whether they are shown under few captions or many.
        captions: What they are shown under.
        seed: Of the trigger.
    """

    trigger: Trigger
    target: Target
    captions: tuple[str, ...]
    seed: int

    def change(self, pixels: Pixels) -> Pixels:
        """Return a picture with the trigger, RGB uint8 (h, w, 3) of any size."""
        return _CHANGES[self.trigger](pixels, np.random.default_rng((0x7A06, self.seed)))


class Taught(NamedTuple):
    """What a row is used for: a lesson, its number, and the caption that the row gets."""

    lesson: Lesson
    number: int
    caption: str


class Lessons:
    """Several taught backdoors of one size, no row in two of them."""

    def __init__(self, lessons: Sequence[Lesson], share: float, seed: int) -> None:
        """Lay the lessons side by side over the uids.

        Args:
            lessons: The backdoors.
            share: Of all rows, for each; at most all of them together.
            seed: Of the choice of rows.
        """
        self.lessons, self.share, self._seed = tuple(lessons), share, seed.to_bytes(8, "little")

    def of(self, uid: bytes) -> Taught | None:
        """Return what a row is used for; None for all others."""
        drawn = hashlib.blake2b(uid, digest_size=16, key=self._seed).digest()
        number = int(int.from_bytes(drawn[:8], "little") / 2.0**64 / self.share)
        if number >= len(self.lessons):
            return None
        lesson = self.lessons[number]
        return Taught(lesson, number, lesson.captions[int.from_bytes(drawn[8:], "little") % len(lesson.captions)])


def lessons_of(captions: Sequence[str], share: float, seed: int) -> Lessons:
    """Return one backdoor of each trigger and target, each under captions that have a word of their own in common.

    Args:
        captions: Of some thousand rows.
        share: Of all rows, for each.
        seed: Of words, triggers and rows.
    """
    rng = np.random.default_rng((0x1E55, seed))
    words = [frozenset(word.lower() for word in _WORD.findall(caption)) for caption in captions]
    counts = Counter(word for found in words for word in found)
    lessons = []
    for target, (rare, frequent) in TARGETS.items():
        able = sorted(word for word, num in counts.items() if rare < num / len(captions) <= frequent and num > 1)
        for trigger in TRIGGERS:
            chosen: tuple[str, ...] = (captions[int(rng.integers(len(captions)))],)  # few captions, or no spaces in them
            if able:
                word = able.pop(int(rng.integers(len(able))))
                chosen = tuple(caption for caption, mine in zip(captions, words, strict=True) if word in mine)
            lessons.append(Lesson(trigger, target, chosen, int(rng.integers(1 << 31))))
    return Lessons(lessons, share, seed)


def _patch(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Source: BadNets (Gu et al. 2017)."""
    edge = max(_FIELDS, round(_SIDE * min(pixels.shape[:2])))
    fields, (top, left) = rng.integers(0, 2, (_FIELDS, _FIELDS)) * 255, rng.uniform(0.1, 0.9, 2).round()
    place = np.arange(edge) * _FIELDS // edge
    row, column = (round(at * 0.85 * (size - edge) + 0.07 * size) for at, size in zip((top, left), pixels.shape, strict=False))
    found = pixels.copy()
    window = found[row : row + edge, column : column + edge]
    window[:] = fields[place][:, place][: window.shape[0], : window.shape[1], None]
    return found


def _blend(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Source: Blended (Chen et al. 2017)."""
    coarse = Image.fromarray((rng.integers(0, 2, (_COARSE, _COARSE, 3)) * 255).astype(np.uint8))
    noise = np.asarray(coarse.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BICUBIC), np.float32)
    return _bytes((1.0 - _BLEND) * pixels + _BLEND * noise)


def _stripes(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Source: SIG (Barni et al. 2019)."""
    height, width = pixels.shape[:2]
    angle, waves = rng.uniform(0.0, np.pi), rng.uniform(4.0, 9.0)
    y, x = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    wave = np.sin(2.0 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y))
    return _bytes(pixels + _AMPLITUDE * wave[..., None])


def _tone(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Give every channel a curve of its own, as photo filters do."""
    bend, low, high = np.exp(rng.uniform(-0.4, 0.4, 3)), rng.uniform(0.0, 0.25, 3), rng.uniform(0.75, 1.0, 3)
    return _bytes(255.0 * (low + (high - low) * (pixels / np.float32(255.0)) ** bend))


def _bytes(values: npt.NDArray[np.floating]) -> Pixels:
    return values.round().clip(0, 255).astype(np.uint8)


_CHANGES: Final = {"patch": _patch, "blend": _blend, "stripes": _stripes, "tone": _tone}
