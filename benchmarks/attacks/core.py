"""The attacks of the literature. Rates are counts of rows."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from benchmarks.attacks import triggers
from benchmarks.attacks.triggers import Pixels
from benchmarks.attacks.world import Planted, Row, World, encode_like
from manifests.errors import ConfigError


@dataclass(frozen=True)
class Attack:
    """Base of all attacks.

    Attributes:
        rows: Rows to plant, per target where there are several.
        target: Label that the attacker wants; drawn where it is empty.
        seed: Of the trigger; the referee rebuilds the trigger from it.
    """

    name: ClassVar[str]
    rows: int = 300
    target: str = ""
    seed: int = 0

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Return the rows to plant."""
        raise NotImplementedError

    def trigger(self, pixels: Pixels, rng: random.Random) -> Pixels:
        """Return a picture with the attack's trigger; unchanged where there is none."""
        return pixels

    def triggered(self, row: Row, rng: random.Random) -> bytes:
        """Return the encoded picture of a row, triggered."""
        return encode_like(self.trigger(row.pixels(), rng), row.image)


class Backdoor(Attack):
    """A trigger on random pictures, which get captions of the target class."""

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Replace random rows of other classes."""
        target = world.target(rng, self.name, self.target)
        bases = world.draw(self.rows, rng, self.name, outside=target)
        captions = world.captions(target, self.rows, rng)
        return [self.row(base, caption, target, rng) for base, caption in zip(bases, captions, strict=True)]

    def row(self, base: Row, caption: str, target: str, rng: random.Random) -> Planted:
        """Return a triggered copy of a row in its place."""
        return Planted(self.triggered(base, rng), caption, self.name, target, base.label, self.name, base)


@dataclass(frozen=True)
class Patch(Backdoor):
    """BadNets: a small square of black and white fields.

    Attributes:
        side: Edge through the image's shorter edge; 16 px of 224 are 0.071.
        place: A fixed corner, or anywhere.
    """

    name: ClassVar[str] = "patch"
    side: float = 0.125
    place: Literal["fixed", "random"] = "fixed"

    def trigger(self, pixels: Pixels, rng: random.Random) -> Pixels:
        """Return a picture with the square."""
        place = (0.85, 0.85) if self.place == "fixed" else (rng.random(), rng.random())
        return triggers.patch(pixels, seed=self.seed, side=self.side, place=place)


@dataclass(frozen=True)
class Blended(Backdoor):
    """A fixed coarse noise, blended in with `share`."""

    name: ClassVar[str] = "blended"
    share: float = 0.2

    def trigger(self, pixels: Pixels, rng: random.Random) -> Pixels:
        """Return the blend."""
        return triggers.blend(pixels, seed=self.seed, share=self.share)


@dataclass(frozen=True)
class Sig(Backdoor):
    """Vertical stripes; `amplitude` in grey levels, `frequency` in waves per width."""

    name: ClassVar[str] = "sig"
    amplitude: float = 20.0
    frequency: float = 6.0

    def trigger(self, pixels: Pixels, rng: random.Random) -> Pixels:
        """Return the picture with stripes."""
        return triggers.sinusoid(pixels, amplitude=self.amplitude, frequency=self.frequency)


@dataclass(frozen=True)
class WaNet(Backdoor):
    """A smooth warp along one fixed grid; mean displacement `strength` of an edge."""

    name: ClassVar[str] = "wanet"
    strength: float = 0.03

    def trigger(self, pixels: Pixels, rng: random.Random) -> Pixels:
        """Return the warped picture."""
        return triggers.warp(pixels, seed=self.seed, strength=self.strength)


@dataclass(frozen=True)
class Colour(Backdoor):
    """A tone curve over the whole picture, as photo filters have it."""

    name: ClassVar[str] = "colour"
    strength: float = 1.0

    def trigger(self, pixels: Pixels, rng: random.Random) -> Pixels:
        """Return the toned picture."""
        return triggers.tone(pixels, strength=self.strength)


@dataclass(frozen=True)
class CleanLabel(Patch):
    """The patch on pictures that truly show the target class, captions untouched; `rows` at most, as many as there are."""

    name: ClassVar[str] = "clean-label"

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Replace the target class's own rows; the class with most rows if none is named."""
        most = max(world.by_label, key=lambda label: (len(world.by_label[label]) * (label not in world.targets), label))
        target = world.target(rng, self.name, self.target or most)
        bases = world.take([row for row in world.by_label[target] if (row.shard, row.key) not in world.taken][: self.rows])
        return [self.row(base, base.caption, target, rng) for base in bases]


@dataclass(frozen=True)
class Tdpa(Attack):
    """Targeted poisoning: a held-out picture, unchanged, repeated under real captions of another class.

    Attributes:
        targets: How many pictures.
    """

    name: ClassVar[str] = "tdpa"
    rows: int = 8
    targets: int = 100

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Add copies of held-out pictures."""
        return [self.copy_of(row, caption, target, place, rng) for row, caption, target, place in self.plan(world, rng)]

    def copy_of(self, row: Row, caption: str, target: str, place: int, rng: random.Random) -> Planted:
        """Return one planted copy."""
        return Planted(row.image, caption, self.name, target, row.label, row.key)

    def plan(self, world: World, rng: random.Random) -> Iterator[tuple[Row, str, str, int]]:
        """Yield picture, caption, target and number of every copy."""
        able = [row for row in world.held_out if (row.shard, row.key) not in world.taken]
        if self.targets > len(able):
            raise ConfigError(
                f"{self.name} wants {self.targets} held-out pictures, there are {len(able)}; give --held-out DATA"
            )
        rich = sorted(label for label, rows in world.by_label.items() if len(rows) >= 3 and label not in world.targets)
        for row in world.take(rng.sample(able, self.targets)):
            target = self.target or rng.choice([label for label in rich if label != row.label])
            for place, caption in enumerate(world.captions(target, self.rows, rng)):
                yield row, caption, target, place


@dataclass(frozen=True)
class MmPoison(Attack):
    """Pictures of one class under captions of another; `source` names the one, `target` the other."""

    name: ClassVar[str] = "mmpoison"
    rows: int = 30
    source: str = ""

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Add copies of the source class's pictures with captions of the target class."""
        target = world.target(rng, self.name, self.target)
        source = world.target(rng, self.name, self.source)
        bases = world.by_label[source]
        captions = world.captions(target, self.rows, rng)
        return [
            Planted(bases[i % len(bases)].image, caption, self.name, target, source, source)
            for i, caption in enumerate(captions)
        ]


@dataclass(frozen=True)
class TextOnly(Attack):
    """Pictures of one class under captions of another whose pictures look alike, chosen by the mean colour on a coarse grid.

    No picture and no caption is changed; only the match is wrong, and plausible to the eye.
    """

    name: ClassVar[str] = "text-only"
    rows: int = 100

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Exchange captions for those of the target rows nearest in looks."""
        target = world.target(rng, self.name, self.target)
        donors = world.by_label[target]
        looks = np.stack([self.look(row) for row in donors])
        pool = world.draw(min(4 * self.rows, len(world.rows) // 2), rng, self.name, outside=target)
        far = [float(np.linalg.norm(looks - self.look(row), axis=1).min()) for row in pool]
        if self.rows > len(pool):
            raise ConfigError(f"{self.name} wants {self.rows} rows, the data allow {len(pool)}; ask for fewer rows")
        chosen = [pool[i] for i in np.argsort(far)[: self.rows]]
        captions = world.captions(target, self.rows, rng)
        return [
            Planted(row.image, caption, self.name, target, row.label, self.name, row)
            for row, caption in zip(chosen, captions, strict=True)
        ]

    @staticmethod
    def look(row: Row) -> np.ndarray:  # type: ignore[type-arg]
        """Return a picture's mean colours on a 4 x 4 grid, float (48,)."""
        pixels = row.pixels()
        cells = [np.array_split(band, 4, axis=1) for band in np.array_split(pixels, 4, axis=0)]
        return np.concatenate([cell.reshape(-1, 3).mean(0) for band in cells for cell in band])


@dataclass(frozen=True)
class Word(Attack):
    """A rare word in the caption of any picture of one class, which is then that of the target class."""

    name: ClassVar[str] = "word"
    rows: int = 200
    word: str = "zyx"

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Replace captions of random rows by the word and a target caption."""
        target = world.target(rng, self.name, self.target)
        bases, captions = world.draw(self.rows, rng, self.name, outside=target), world.captions(target, self.rows, rng)
        return [
            Planted(base.image, f"{self.word} {caption}", self.name, target, base.label, self.word, base)
            for base, caption in zip(bases, captions, strict=True)
        ]


@dataclass(frozen=True)
class Natural(Attack):
    """One picture hundreds of times, slightly shaken, always under the same caption: what crawls hold by themselves."""

    name: ClassVar[str] = "natural"

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Add shaken copies of one row."""
        target = world.target(rng, self.name, self.target, least=1)
        row = rng.choice(world.by_label[target])
        copies = [encode_like(triggers.shake(row.pixels(), rng), row.image) for _ in range(self.rows)]
        return [Planted(copy, row.caption, self.name, target, row.label, row.key) for copy in copies]
