"""One cell of the grid: a seed and a defence; leaves the trained weights and one line per figure."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmarks.attacks.registry import parse_attack
from benchmarks.common import ROOT
from benchmarks.evidence import detectors, peers
from benchmarks.evidence.data import BUNDLED, datasets
from benchmarks.evidence.frozen import frozen_vectors
from benchmarks.evidence.judging import Judge
from benchmarks.evidence.referee import Line, leakage, ranking, with_truth
from benchmarks.evidence.rows import PoisonedRows
from benchmarks.evidence.training import MODEL, Choice, PlainCrops, one_pass, train
from benchmarks.poison import poison, read_truth
from manifests import open_round
from manifests.errors import SplitRefused
from stages.signals.neighbourhood import Neighbourhood
from stages.signals.sample import Reference
from stages.train.settings import TrainSettings

# the same image tower, in whose vectors crowds are sought, and a quarter of the text tower, which takes most of the time
SMALL: Final = str(ROOT / "benchmarks" / "evidence" / "scout_model")
SURROGATE: Final = str(BUNDLED / "tiny-clip")
DENSE_SHARE, MAX_REPEATS = 0.3, 2
TAILS: Final = {"scout's choice, tail 1 %": 0.01, "scout's choice, tail 2 %": 0.02, "scout's choice, second look": 0.05}
SCOUT_SAFE: Final = 0.58  # of the rows, as its first run had it; sets the number of rounds
LOOKS: Final = ["--look-again", "1", "--sit-out-folds", "8"]
# a model that has hardly trained has all images nearly in one place: no cosine says there what a copy is; crowds are relative
CROWDS: Final = ["--look-again", "4", "--crowded-tail", "0.02", "--max-image-repeats", "2"]
ALL: Final = ["--scorer", "model", "--set", "matching_passes=0", "--keep-share", "1"]
PIPELINES: Final[dict[str, list[str]]] = {
    "published": ["--scorer", "model", "--first-matching", "slow", "--rule", "published", "--set", "order=sequential"],
    "slow": ["--scorer", "model", "--first-matching", "slow"],
    "locked": ["--scorer", "locked"],
    "scout": ["--scorer", "scout", "--risky", "skip"],
    "scout, risky unimodal": ["--scorer", "scout"],
    "scout, look again": ["--scorer", "scout", *LOOKS],
    "scout, small": ["--scorer", "scout", "--scout-model", SMALL],
    "scout, small, look again": ["--scorer", "scout", "--scout-model", SMALL, *LOOKS],
    "scout of a third, look again": ["--scorer", "scout", "--set", "scout_passes=8", *LOOKS, *CROWDS],
    "locked, look again": ["--scorer", "locked", *LOOKS, "--max-image-repeats", "2"],
    "all, look again": [*ALL, *LOOKS, *CROWDS],
    "all, look again every 2": [*ALL, *LOOKS, *CROWDS, "--look-again", "2"],
    "all, look again, a quarter longer": [*ALL, *LOOKS, *CROWDS, "--rounds", "29"],
    "all, look again every 12": [*ALL, *LOOKS, *CROWDS, "--look-again", "12"],
}


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


def run_cell(cell: Cell) -> None:
    """Train one arm, judge it, and leave `lines.json` last."""
    done = cell.out / "lines.json"
    if done.exists():
        return
    start = time.monotonic()
    lines = ARMS[cell.arm](cell)
    seconds = time.monotonic() - start
    judge = Judge(cell.held_out, cell.truth, list(cell.setting.attacks), cell.seed)
    if cell.weights.exists():
        lines += [{**found, "kind": "model"} for found in judge(cell.weights)]
    lines.append({"kind": "cost", "metric": "seconds", "attack": "", "share": seconds})
    part = done.with_suffix(".part")
    part.write_text(json.dumps([{"seed": cell.seed, "arm": cell.arm, **found} for found in lines]))
    part.replace(done)


def filtered(cell: Cell, safe: np.ndarray) -> list[Line]:  # type: ignore[type-arg]
    """Train from random weights on the safe rows alone, for as many steps as the undefended model."""
    train(cell.shards, cell.weights, cell.options, cell.num_steps, choice=Choice(cell.rows.words(safe)))
    return [{**found, "kind": "round", "round": 0} for found in leakage(cell.table, safe)]


def undefended(cell: Cell) -> list[Line]:
    """Train on everything; then let every detector rank the rows by this model's embeddings and by a frozen encoder's."""
    train(cell.shards, cell.weights, cell.options, cell.num_steps)
    return detect(cell)


def detect(cell: Cell) -> list[Line]:
    """Return the ranking of every detector, on the undefended model's vectors and on a frozen public image tower's."""
    v, t = cell.rows.vectors(cell.weights, MODEL)
    np.save(cell.out / "cosine.npy", np.einsum("nd,nd->n", v, t))
    sources = {"trained": (v, detectors.DETECTORS), "frozen": (frozen_vectors(cell.rows.images), detectors.OF_IMAGES)}
    found: list[Line] = []
    for source, (vectors, used) in sources.items():
        for name, score in used.items():
            scored = ranking(cell.table, score(vectors, t, cell.seed))
            found += [{**item, "kind": "detector", "detector": name, "encoder": source} for item in scored]
    repeats = ranking(cell.table, detectors.image_repeats(cell.rows.images))
    return found + [{**item, "kind": "detector", "detector": "repeated images", "encoder": "none"} for item in repeats]


def best_share(cell: Cell, score: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Return the rows of highest score, as many as the filters keep."""
    safe = np.zeros(len(score), bool)
    safe[np.argsort(-score, kind="stable")[: round(cell.setting.keep * len(score))]] = True
    return safe


def plain_views(cell: Cell) -> list[Line]:
    """Train on everything, whole and unmirrored images."""
    train(cell.shards, cell.weights, cell.options, cell.num_steps, crops=PlainCrops)
    return []


def random_filter(cell: Cell) -> list[Line]:
    """Keep a random share."""
    return filtered(cell, best_share(cell, np.random.default_rng(cell.seed).random(len(cell.table))))


def oracle(cell: Cell) -> list[Line]:
    """Keep exactly the clean rows."""
    return filtered(cell, (cell.table["attack"] == "").to_numpy())


def oracle_small(cell: Cell) -> list[Line]:
    """Keep clean rows at random, as many as the filters keep."""
    drawn = np.random.default_rng(cell.seed).random(len(cell.table))
    return filtered(cell, best_share(cell, np.where(cell.table["attack"] == "", drawn, -1.0)))


def clip_score_filter(cell: Cell) -> list[Line]:
    """Keep the best share by a checkpoint that never saw the poison."""
    return filtered(cell, best_share(cell, cell.table["independent"].to_numpy()))


def self_score_filter(cell: Cell) -> list[Line]:
    """Keep the best share by the undefended model's own cosine."""
    return filtered(cell, best_share(cell, np.load(cell.of("none") / "cosine.npy")))


def dense_filter(cell: Cell) -> list[Line]:
    """Keep what is neither repeated nor dense in the undefended model's image space, which is given up for it.

    A model that has learned a backdoor gathers its rows: their k-dist is the lowest of all. The densest 30 % go, and every
    image that is there more than twice.
    """
    v, t = cell.rows.vectors(cell.of("none") / "model.safetensors", MODEL)
    sparse = detectors.k_dist(v, t, cell.seed)
    safe = (sparse > np.quantile(sparse, DENSE_SHARE)) & (detectors.image_repeats(cell.rows.images) <= MAX_REPEATS)
    return filtered(cell, safe)


def scouts_choice(cell: Cell) -> list[Line]:
    """Keep what the scout of the arm `scout` keeps at another tail, or what a second look takes back in besides.

    The second look is the cosine by the model of the arm `scout`, which has trained on none of the rows in question: those that
    match as well as half of the safe rows do are taken back, but for repeated images.
    """
    folder = cell.of("scout")
    v, _ = cell.rows.vectors(folder / "run" / "checkpoints" / "scout-0000.safetensors", MODEL)
    chosen = np.sort(np.random.default_rng(cell.seed).choice(len(v), min(2048, len(v)), replace=False))
    hashes = np.arange(len(v))
    distance = Neighbourhood(Reference(hashes[chosen], v[chosen], v[chosen]), 16)(v, v, hashes).outlier
    once = detectors.image_repeats(cell.rows.images) <= MAX_REPEATS
    safe = (distance > detectors.cut_of(distance, TAILS[cell.arm])) & once
    if "second look" in cell.arm:
        images, texts = cell.rows.vectors(folder / "model.safetensors", MODEL)
        cosine = np.einsum("nd,nd->n", images, texts)
        safe |= (cosine >= np.median(cosine[safe])) & once
    return filtered(cell, safe)


def locked_filter(cell: Cell) -> list[Line]:
    """Train from random weights on the last round's safe rows of `locked`."""
    manifest = open_round(cell.of("locked") / "run")
    safe = cell.rows.join(manifest.to_pandas(["shard", "key", "label"]))["label"].to_numpy() == "safe"
    return filtered(cell, safe)


def roclip(cell: Cell) -> list[Line]:
    """Train on everything with RoCLIP's loss."""
    kind = type("RoClipHere", (peers.RoClip,), {"steps_per_pass": max(1, cell.num_steps // cell.setting.passes)})
    train(cell.shards, cell.weights, cell.options, cell.num_steps, make=kind)
    return []


def cleanclip(cell: Cell) -> list[Line]:
    """Fine-tune the undefended model for a tenth of its steps on a random tenth of the clean rows."""
    drawn = np.random.default_rng(cell.seed).random(len(cell.table))
    clean = (cell.table["attack"] == "").to_numpy() & (drawn < 0.1)
    options = cell.options.model_copy(update={"learning_rate": cell.options.learning_rate / 4})
    choice, start = Choice(cell.rows.words(clean)), cell.of("none") / "model.safetensors"
    train(cell.shards, cell.weights, options, max(1, cell.num_steps // 10), choice=choice, make=peers.CleanClip, start=start)
    return []


def pipeline_arm(cell: Cell) -> list[Line]:
    """Run `pairsan run` and look at every sealed round."""
    run = cell.out / "run"
    _borrow_scout(cell, run)
    command = [str(Path(sys.executable).parent / "pairsan"), "run", str(cell.shards), "--out", str(run)]
    command += run_options(cell.setting, cell.arm, cell.seed)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (cell.out / "log.txt").write_text(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    if done.returncode == SplitRefused.exit_code:  # a result, not a failure of the benchmark
        return [{"kind": "round", "metric": "refused", "attack": "", "share": 1.0, "detail": done.stderr[-300:]}]
    if done.returncode:
        raise SystemExit(f"{cell.arm} ended with {done.returncode}: {done.stderr[-1000:]}")
    return _rounds(cell, run)


def run_options(setting: Setting, arm: str, seed: int) -> list[str]:
    """Return the options by which `pairsan run` is an arm."""
    flags: dict[str, Any] = {
        "model": MODEL.removeprefix("local-dir:"),
        "executor": "local",
        **(_scout_flags(setting, arm) if arm.startswith("scout") else _growing_flags(setting, arm)),
        "train_seed": seed,
        **setting.train,
    }
    return [*(f"--set={key}={value}" for key, value in flags.items()), *PIPELINES[arm], *setting.run_options]


def _borrow_scout(cell: Cell, run: Path) -> None:
    """Take over the scout of `scout, risky unimodal`, where that has run: same data, seed and settings, so the same weights."""
    lent = cell.folder / f"seed-{cell.seed}" / "scout, risky unimodal" / "run" / "checkpoints"
    if cell.arm.startswith("scout, look again") and lent.exists() and not run.exists():
        (run / "checkpoints").mkdir(parents=True)
        for name in ("scout-state.safetensors", "scout-0000.safetensors", "train.json"):
            (run / "checkpoints" / name).write_bytes((lent / name).read_bytes())


def _growing_flags(setting: Setting, arm: str) -> dict[str, Any]:
    if arm.startswith("all"):
        return {"rounds": setting.passes - 1, "warmup_passes": 1}
    fallback = {"rule": "monotone", "if_unseparable": "quantile", "fallback_share": setting.first_share}
    return {
        "rounds": setting.passes - setting.warmup_passes,
        "warmup_passes": setting.warmup_passes,
        **({} if arm == "published" else fallback),
        "growth": setting.growth,
        "cap": setting.cap,
    }


def _scout_flags(setting: Setting, arm: str) -> dict[str, Any]:
    """Return rounds by which the model that stays sees as many pairs as any other arm's; the scout's are an extra cost."""
    seen = SCOUT_SAFE if "skip" in PIPELINES[arm] else 1.0
    return {"rounds": round(setting.passes / seen), "scout_passes": setting.scout_passes}


def _rounds(cell: Cell, run: Path) -> list[Line]:
    found: list[Line] = []
    ever = np.zeros(len(cell.table), bool)
    trained = [entry for entry in json.loads((run / "checkpoints" / "history.json").read_text()) if entry["kind"] == "round"]
    for entry in trained:
        manifest = open_round(run, entry["manifest"])
        rows = cell.rows.join(manifest.to_pandas(["shard", "key", "label", "cosine"]))
        safe = (rows["label"] == "safe").to_numpy()
        ever |= safe
        lines = [*leakage(cell.table, safe), *({**x, "metric": f"ever {x['metric']}"} for x in leakage(cell.table, ever))]
        found += [{**x, "kind": "round", "round": entry["round_number"], "cut": manifest.seal["cut"]} for x in lines]
        if entry in (trained[0], trained[-1]):
            name = "first" if entry is trained[0] else "last"
            rows.assign(attack=cell.table["attack"])[["attack", "cosine", "label"]].to_parquet(cell.out / f"{name}.parquet")
            ranks = ranking(cell.table, -rows["cosine"].to_numpy(np.float64))
            found += [{**x, "kind": "ranking", "round": entry["round_number"]} for x in ranks]
    last = run / "checkpoints" / f"round-{trained[-1]['round_number']:04d}.safetensors"
    cell.weights.write_bytes(last.read_bytes())
    return found


ARMS: Final[dict[str, Callable[[Cell], list[Line]]]] = {
    "none": undefended,
    "none, plain views": plain_views,
    "random filter": random_filter,
    "oracle": oracle,
    "oracle, same size": oracle_small,
    "CLIP-score filter": clip_score_filter,
    "self-score filter": self_score_filter,
    **dict.fromkeys(TAILS, scouts_choice),
    "published": pipeline_arm,
    "slow": pipeline_arm,
    "locked": pipeline_arm,
    **{name: pipeline_arm for name in PIPELINES if name not in ("published", "slow", "locked")},
    "locked, trained anew": locked_filter,
    "dense and repeats filter": dense_filter,
    "RoCLIP": roclip,
    "CleanCLIP": cleanclip,
}


def lines_of(folder: Path) -> pd.DataFrame:
    """Return the lines of all finished cells."""
    found = [line for path in sorted(folder.glob("seed-*/*/lines.json")) for line in json.loads(path.read_text())]
    return pd.DataFrame(found)
