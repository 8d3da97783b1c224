"""What an attacker sees of a dataset: its pairs by class, and pictures that are not in it."""

import collections
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from manifests.errors import ConfigError, DataError
from manifests.store import Store
from stages.pair import Pair, Shard
from stages.read.shards import open_dataset, read_shard
from stages.settings import ReadSettings

Pixels = npt.NDArray[np.uint8]
TEMPLATES = ("{}", "a picture of {}", "drawing of {}", "{} emoji", "a colour icon showing {}", "{} icon", "icon of {}")


@dataclass(frozen=True)
class Row:
    """One readable pair.

    Attributes:
        key: Its name; unique in the dataset together with `shard`.
        image: Encoded.
        caption: As it stands in the data.
        label: Its class; the caption where the source names none.
        shard: Name of its shard.
    """

    key: str
    image: bytes
    caption: str
    label: str
    shard: str = ""

    def pixels(self) -> Pixels:
        """Return the image as RGB, uint8 (h, w, 3)."""
        with Image.open(io.BytesIO(self.image)) as image:
            return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class Planted:
    """One pair that an attacker puts in.

    Attributes:
        image: Encoded.
        caption: With it.
        attack: Name of the attack.
        target: What the attacker wants the model to answer: a label.
        source: Label of what the picture really shows.
        trigger: Which of the attack's triggers or targets this row serves.
        replaces: The clean row whose place it takes; None if it is added.
    """

    image: bytes
    caption: str
    attack: str
    target: str
    source: str
    trigger: str
    replaces: Row | None = None


class Surrogate(Protocol):
    """A model of his own that an attacker ranks with."""

    def cosines(self, images: Sequence[Pixels], captions: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the cosine of every image with every caption, float32 (num_images, num_captions)."""
        ...

    def optimise_patch(self, images: Sequence[Pixels], caption: str, side: float, steps: int, seed: int) -> Pixels:
        """Return a square patch, uint8 (side, side, 3), that pulls images towards a caption when it lies on them."""
        ...


@dataclass
class World:
    """The data under attack. Rows that one attack has taken are not given to the next.

    Attributes:
        rows: All readable clean pairs.
        held_out: Pairs that are not in the data, for targeted poisoning.
        surrogate: The attacker's own model, if he has one.
    """

    rows: list[Row]
    held_out: list[Row]
    surrogate: Surrogate | None = None
    taken: set[tuple[str, str]] = field(default_factory=set)
    targets: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Index by class."""
        self.by_label: dict[str, list[Row]] = collections.defaultdict(list)
        for row in self.rows:
            self.by_label[row.label].append(row)

    def draw(self, num: int, rng: random.Random, attack: str, *, outside: str = "") -> list[Row]:
        """Take clean rows that no attack has taken before, none of a class.

        Raises:
            ConfigError: There are not so many.
        """
        free = [row for row in self.rows if (row.shard, row.key) not in self.taken and row.label != outside]
        if num > len(free):
            raise ConfigError(f"{attack} wants {num} rows, the data have {len(free)} left; ask for fewer rows")
        return self.take(rng.sample(free, num))

    def take(self, rows: list[Row]) -> list[Row]:
        """Mark rows as taken and return them."""
        self.taken |= {(row.shard, row.key) for row in rows}
        return rows

    def target(self, rng: random.Random, attack: str, wanted: str = "", least: int = 3) -> str:
        """Return a class that no other attack aims at: the one that is wanted, else one with a few pairs, at random.

        Raises:
            ConfigError: There is none.
        """
        able = sorted(label for label, rows in self.by_label.items() if len(rows) >= least and label not in self.targets)
        if wanted and wanted not in self.by_label:
            raise ConfigError(f"{attack} aims at {wanted!r}, which no pair is labelled; e.g. {able[:3]}")
        if not wanted and not able:
            raise ConfigError(f"{attack} finds no class with {least} pairs that no other attack aims at")
        found = wanted or rng.choice(able)
        self.targets.add(found)
        return found

    def captions(self, label: str, num: int, rng: random.Random) -> list[str]:
        """Return captions of a class: its real ones and templates, in random order, repeated as often as it takes."""
        known = list(dict.fromkeys([row.caption for row in self.by_label[label]] + [text.format(label) for text in TEMPLATES]))
        rng.shuffle(known)
        return [known[i % len(known)] for i in range(num)]

    def need_surrogate(self, attack: str) -> Surrogate:
        """Return the surrogate.

        Raises:
            ConfigError: There is none.
        """
        if self.surrogate is None:
            raise ConfigError(f"{attack} ranks with a model of the attacker's; give --surrogate FOLDER")
        return self.surrogate


def load_rows(data: list[str], options: ReadSettings | None = None, label_column: str = "json:label") -> list[Row]:
    """Read all pairs of a dataset that can be read, with their classes where the source names them.

    Args:
        data: Folders, files, globs or brace patterns, in any format that pairsan reads.
        options: How pairs are read.
        label_column: Where the class stands, as in `caption_column`.
    """
    dataset, options = open_dataset(data), options or ReadSettings()
    named = options.model_copy(update={"caption_column": label_column})
    rows = []
    for shard in dataset.shards:
        labels = _labels([pair for pair in _read(dataset.store, shard, named) if pair.reason is None])
        for pair in _read(dataset.store, shard, options):
            if pair.reason is None and pair.image is not None and pair.caption:
                rows.append(Row(pair.key, pair.image, pair.caption, labels.get(pair.key, pair.caption), shard.name))
    return rows


def _read(store: Store, shard: Shard, options: ReadSettings) -> list[Pair]:
    try:
        return list(read_shard(store, shard, options))
    except DataError:  # a table without such a column
        if options.caption_column and options.caption_column.startswith("json:"):
            return []
        raise


def _labels(pairs: list[Pair]) -> dict[str, str]:
    return {pair.key: pair.caption for pair in pairs if pair.caption}


def encode_like(pixels: Pixels, like: bytes) -> bytes:
    """Return an image encoded without loss, as PNG or, where the original was WebP, as WebP."""
    out = io.BytesIO()
    webp = like[8:12] == b"WEBP"
    Image.fromarray(pixels).save(out, "WEBP" if webp else "PNG", **({"lossless": True} if webp else {}))
    return out.getvalue()


def suffix_of(image: bytes) -> str:
    """Return the file name ending of an encoded image."""
    with Image.open(io.BytesIO(image)) as found:
        return {"JPEG": "jpg"}.get(found.format or "", (found.format or "img").lower())
