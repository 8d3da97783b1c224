"""Arms that train from random weights on what a filter keeps, and the control that keeps everything."""

from typing import Final

import numpy as np

from benchmarks.evidence import detectors
from benchmarks.evidence.arms.cell import Cell
from benchmarks.evidence.frozen import frozen_vectors
from benchmarks.evidence.referee import Line, leakage, ranking
from benchmarks.evidence.training import MODEL, Choice, PlainCrops, train
from manifests import open_round
from stages.signals.neighbourhood import Neighbourhood
from stages.signals.sample import Reference

DENSE_SHARE, MAX_REPEATS = 0.3, 2
TAILS: Final = {"scout's choice, tail 1 %": 0.01, "scout's choice, tail 2 %": 0.02, "scout's choice, second look": 0.05}


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
