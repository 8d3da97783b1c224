"""The passes of a whole run, and the learning rate of every step of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from stages.train.settings import TrainSettings

Kind = Literal["scout", "unimodal", "matching", "round", "refit"]
Subject = Literal["scout", "model", "scorer"]


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the rows.

    Attributes:
        index: Its place in the list, from 0.
        kind: `scout` trains the scout; `unimodal` and `matching` make the warm-up; `round` trains the model on a sealed round;
            `refit` trains the locked scorer on its safe rows.
        round_number: The round it belongs to, 0 for the warm-up.
        subject: What is trained.
    """

    index: int
    kind: Kind
    round_number: int
    subject: Subject


def passes_of(options: TrainSettings) -> list[Pass]:
    """Return the passes of a whole run in order; more rounds only add to its end."""
    locked = options.scorer == "locked"
    kinds: list[tuple[Kind, int]] = []
    kinds += [("scout", 0) for _ in range(options.num_scout_passes)]
    kinds += [("unimodal", 0) for _ in range(options.num_warmup_passes)]
    kinds += [("matching", 0) for _ in range(options.num_matching_passes)]
    for number in range(1, options.rounds + 1):
        kinds.append(("round", number))
        kinds += [("refit", number) for _ in range(options.refit_passes if locked else 0)]
    return [Pass(index, kind, number, _subject(kind, locked)) for index, (kind, number) in enumerate(kinds)]


def _subject(kind: Kind, locked: bool) -> Subject:
    if kind == "scout":
        return "scout"
    return "scorer" if kind == "refit" or (kind == "matching" and locked) else "model"


def learning_rate(options: TrainSettings, this: Pass, num_steps: int, first_step: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the step: one warm-up and one cosine over all unimodal and round passes.

    Matching and refits stand outside it, at their own constant rates; the scout has a rise and a cosine of its own. The
    schedule's clock is passes, not steps, so it ends at zero with the last step that is really taken, however the rows of
    later rounds divide.

    Args:
        options: Training settings.
        this: The pass.
        num_steps: Steps it will take.
        first_step: The step it begins with.
    """
    if this.kind in ("matching", "refit"):
        constant = options.slow_learning_rate if options.matching_is_slow else options.locked_learning_rate
        return lambda _: constant
    together = ("scout",) if this.kind == "scout" else ("unimodal", "round")
    scheduled = [p.index for p in passes_of(options) if p.kind in together]
    place, total = scheduled.index(this.index), len(scheduled)

    def rate(step: int) -> float:
        done = (place + min(1.0, (step - first_step) / max(1, num_steps))) / total
        rising = options.lr_warmup_share
        if done < rising:
            return options.learning_rate * done / rising
        return options.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (done - rising) / max(1e-9, 1.0 - rising)))

    return rate
