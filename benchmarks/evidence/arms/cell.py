"""One cell of the grid: a seed and an arm, its poisoned data, and where its files lie."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from benchmarks.attacks.registry import parse_attack
from benchmarks.evidence.data import BUNDLED, datasets
from benchmarks.evidence.referee import with_truth
from benchmarks.evidence.rows import PoisonedRows
from benchmarks.evidence.training import one_pass
from benchmarks.poison import poison, read_truth
from stages.train.settings import TrainSettings

SURROGATE: Final = str(BUNDLED / "tiny-clip")


@dataclass(frozen=True)
class Setting:
    """What all cells of a grid share.

    Attributes:
        data: `bundled`, `emoji`, `full` or `photos`.
        attacks: As `python -m benchmarks.poison --attack` takes them.
        passes: Pairs that every arm sees, in passes over the data.
        warmup_passes: How many of them the pipelines spend on the unimodal warm-up.
        scout_passes: Passes of a scout, beside those.
        train: Training options of all arms.
        first_share: Safe share of the first round where the mixture is not believed.
        growth: Of the safe share, per round.
        cap: Of the safe share.
        keep: Share that the filters keep.
        run_options: More options of `pairsan run`, for the pipelines alone.
        reword: Whether planted captions are made unlike each other.
    """

    data: str = "emoji"
    attacks: tuple[str, ...] = ()
    passes: int = 15
    warmup_passes: int = 3
    scout_passes: int = 24
    train: dict[str, Any] = field(default_factory=dict)
    first_share: float = 0.1
    growth: float = 0.05
    cap: float = 0.6
    keep: float = 0.6
    run_options: tuple[str, ...] = ()
    reword: bool = False


@dataclass
class Cell:
    """A seed and an arm, and where its files lie."""

    setting: Setting
    folder: Path
    seed: int
    arm: str

    def __post_init__(self) -> None:
        """Poison the data of the seed, unless they are there, and read them."""
        self.poisoned, self.out = self.folder / f"seed-{self.seed}" / "data", self.folder / f"seed-{self.seed}" / self.arm
        train_data, self.held_out = datasets(self.setting.data)
        attacks = [parse_attack(text) for text in self.setting.attacks]
        surrogate = SURROGATE if any(type(a).__module__.endswith("adaptive") for a in attacks) else ""
        poison(
            [str(train_data)], [str(self.held_out)], attacks, self.poisoned,
            seed=self.seed, surrogate=surrogate, reword=self.setting.reword,
        )  # fmt: skip
        self.out.mkdir(parents=True, exist_ok=True)
        self.shards = self.poisoned / "shards"
        self.options = one_pass(TrainSettings(train_seed=self.seed, **self.setting.train))
        self.rows = PoisonedRows(self.shards)
        self.truth = read_truth(self.poisoned, pa.Table.from_pandas(self.rows.table()))
        self.table = with_truth(self.rows.table(), self.truth.to_pandas())
        self.table["independent"] = self.independent()
        self.num_steps = self.setting.passes * len(self.table) // self.options.train_batch_size

    def independent(self) -> np.ndarray:  # type: ignore[type-arg]
        """Return every row's cosine by a checkpoint that saw no poison, float32 (n,); made once for all arms of a seed."""
        path = self.folder / f"seed-{self.seed}" / "independent.npy"
        if not path.exists():
            v, t = self.rows.vectors(SURROGATE)
            part = path.with_suffix(f".{os.getpid()}.part.npy")
            np.save(part, np.einsum("nd,nd->n", v, t))
            part.replace(path)
        found: np.ndarray = np.load(path)  # type: ignore[type-arg]
        return found

    @property
    def weights(self) -> Path:
        """Where the arm's final weights lie."""
        return self.out / "model.safetensors"

    def of(self, arm: str) -> Path:
        """Return the folder of another arm of this seed.

        Raises:
            SystemExit: It has not run.
        """
        folder = self.folder / f"seed-{self.seed}" / arm
        if not (folder / "lines.json").exists():
            raise SystemExit(f"arm {self.arm} builds on {arm} of seed {self.seed}, which has not run: name it before in --arms")
        return folder
