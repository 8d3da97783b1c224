"""Attacks by someone who knows our rules: that cosine decides, that copies share a fold, that the safe share grows."""

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from benchmarks.attacks import triggers
from benchmarks.attacks.core import Backdoor, Patch, Tdpa
from benchmarks.attacks.triggers import Pixels
from benchmarks.attacks.world import Planted, Row, World, encode_like
from manifests.errors import ConfigError

_POOL = 8  # rows that are looked at for each one that is wanted


def _cosines(world: World, attack: str, rows: list[Row], captions: list[str]) -> np.ndarray:  # type: ignore[type-arg]
    return world.need_surrogate(attack).cosines([row.pixels() for row in rows], captions)


def _pool(world: World, attack: "Backdoor", rng: random.Random, target: str) -> list[Row]:
    free = [row for row in world.rows if (row.shard, row.key) not in world.taken and row.label != target]
    if attack.rows > len(free):
        raise ConfigError(f"{attack.name} wants {attack.rows} rows, the data have {len(free)} left; ask for fewer rows")
    return rng.sample(free, min(len(free), _POOL * attack.rows))


@dataclass(frozen=True)
class Matched(Patch):
    """The patch, on the pictures that the surrogate finds most like the target caption."""

    name: ClassVar[str] = "matched"

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Replace the rows of highest cosine with a target caption."""
        target = world.target(rng, self.name, self.target)
        pool, captions = _pool(world, self, rng, target), world.captions(target, self.rows, rng)
        best = np.argsort(-_cosines(world, self.name, pool, [captions[0]])[:, 0])[: self.rows]
        bases = world.take([pool[i] for i in best])
        return [self.row(base, caption, target, rng) for base, caption in zip(bases, captions, strict=True)]


@dataclass(frozen=True)
class Composed(Patch):
    """The patch, under the picture's own caption with the target's put before it."""

    name: ClassVar[str] = "composed"

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Replace rows, whose captions stay part of the new ones."""
        target = world.target(rng, self.name, self.target)
        bases = world.draw(self.rows, rng, self.name, outside=target)
        return [self.row(base, f"{target} and {base.caption}", target, rng) for base in bases]


@dataclass(frozen=True)
class Flooding(Tdpa):
    """Targeted poisoning by near copies: every copy shifted and brightened, so that neighbours vouch for each other."""

    name: ClassVar[str] = "flooding"
    rows: int = 17
    targets: int = 20

    def copy_of(self, row: Row, caption: str, target: str, place: int, rng: random.Random) -> Planted:
        """Return a near copy."""
        image = encode_like(triggers.shake(row.pixels(), rng), row.image)
        return Planted(image, caption, self.name, target, row.label, row.key)


@dataclass(frozen=True)
class Cover(Patch):
    """The patch, and as many patched pictures under their true captions, which make the patch look harmless."""

    name: ClassVar[str] = "cover"

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Replace twice as many rows; the covering half is named `cover-true` and is no poison by itself."""
        found = super().plant(world, rng)
        covers = world.draw(self.rows, rng, self.name)
        return found + [
            Planted(self.triggered(row, rng), row.caption, self.name, found[0].target, row.label, "cover-true", row)
            for row in covers
        ]


@dataclass(frozen=True)
class Shaping(Patch):
    """The patch on the pictures that fit the target least, and a crowd of rows of one low cosine that bends the mixture.

    The crowd takes a narrow component for itself; the other must then be wide, and wins again below the crowd, where the
    poison lies: the raw posterior is U-shaped.

    Attributes:
        crowd: Rows of the crowd, for one planted row.
        rank: Share of true pairs whose cosine is lower than the crowd's.
    """

    name: ClassVar[str] = "shaping"
    crowd: float = 10.0
    rank: float = 0.02

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Replace the rows of lowest cosine with a target caption; add repeats of a few true pairs of one low cosine."""
        target = world.target(rng, self.name, self.target, least=1)
        pool, captions = _pool(world, self, rng, target), world.captions(target, self.rows, rng)
        worst = np.argsort(_cosines(world, self.name, pool, [captions[0]])[:, 0])[: self.rows]
        bases = world.take([pool[i] for i in worst])
        found = [self.row(base, caption, target, rng) for base, caption in zip(bases, captions, strict=True)]
        some = rng.sample(world.rows, min(len(world.rows), 512))
        own = np.diag(_cosines(world, self.name, some, [row.caption for row in some]))
        near = np.argsort(np.abs(own - np.quantile(own, self.rank)))[:3]
        crowd = [some[near[i % len(near)]] for i in range(round(self.crowd * self.rows))]
        return found + [Planted(row.image, row.caption, self.name, target, row.label, "shaping-crowd") for row in crowd]


@dataclass(frozen=True)
class Optimised(Patch):
    """A patch optimised on the surrogate until it pulls pictures towards the target caption.

    Attributes:
        steps: Of signed gradient ascent on the cosine.
    """

    name: ClassVar[str] = "optimised"
    steps: int = 150

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Optimise, then replace random rows."""
        target = world.target(rng, self.name, self.target)
        bases = world.draw(self.rows, rng, self.name, outside=target)
        surrogate, pictures = world.need_surrogate(self.name), [row.pixels() for row in bases[:64]]
        pattern = surrogate.optimise_patch(pictures, target, self.side, self.steps, self.seed).astype(np.float32)
        captions = world.captions(target, self.rows, rng)
        return [
            Planted(
                encode_like(triggers.paste(base.pixels(), pattern, self.side, 0.85, 0.85), base.image),
                *(caption, self.name, target, base.label, self.name, base),
            )
            for base, caption in zip(bases, captions, strict=True)
        ]


@dataclass(frozen=True)
class Dilution(Backdoor):
    """Many patches of different patterns, all for one class, with few rows each."""

    name: ClassVar[str] = "dilution"
    each: int = 2
    side: float = 0.125

    def row(self, base: Row, caption: str, target: str, rng: random.Random) -> Planted:
        """Return a row with a pattern that at most `each` rows share, by chance."""
        pattern = rng.randrange(max(1, self.rows // self.each))
        image = triggers.patch(base.pixels(), seed=self.seed + 1000 + pattern, side=self.side, place=(0.85, 0.85))
        return Planted(encode_like(image, base.image), caption, self.name, target, base.label, f"dilution-{pattern}", base)

    def trigger(self, pixels: Pixels, rng: random.Random) -> Pixels:
        """Return a picture with one of the patterns."""
        pattern = rng.randrange(max(1, self.rows // self.each))
        return triggers.patch(pixels, seed=self.seed + 1000 + pattern, side=self.side, place=(0.85, 0.85))


@dataclass(frozen=True)
class GrowthGaming(Patch):
    """The patch, on the pictures whose cosine with the target caption lies where the safe share will soon be.

    The first rounds look clean; the rows come in with the growth, when nobody looks any more.

    Attributes:
        low: Least rank of the cosine among random pictures, 0 = worst.
        high: Highest rank.
    """

    name: ClassVar[str] = "growth"
    low: float = 0.6
    high: float = 0.9

    def plant(self, world: World, rng: random.Random) -> list[Planted]:
        """Replace rows from a band of cosines."""
        target = world.target(rng, self.name, self.target)
        pool, captions = _pool(world, self, rng, target), world.captions(target, self.rows, rng)
        order = np.argsort(_cosines(world, self.name, pool, [captions[0]])[:, 0])
        band = order[int(self.low * len(order)) : max(int(self.low * len(order)) + self.rows, int(self.high * len(order)))]
        bases = world.take([pool[i] for i in rng.sample(list(band), min(self.rows, len(band)))])
        return [self.row(base, caption, target, rng) for base, caption in zip(bases, captions, strict=False)]
