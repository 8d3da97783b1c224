"""Detectors of the literature, formula first: embeddings in, one score per row out, higher is more suspicious.

v, t: unit vectors of images and captions, float32 (n, d). r_k(x): distance to the k-th neighbour in a small random reference
set, since in the whole corpus the siblings of a poisoned row are its neighbours.

Sources: k-dist, SLOF and DAO as in Huang et al. 2025 ("Detecting Backdoor Samples in Contrastive Language Image
Pretraining"); LID: Amsaleg et al. 2015; Isolation Forest: Liu et al. 2008; negCLIPLoss: Wang et al. 2024;
CASCADE: arXiv 2608.04052.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any, Final

import faiss
import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.ensemble import IsolationForest

from stages.histogram import Histogram, count
from stages.label.fit.crowds import crowd_cut

Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
K: Final = 16
REFERENCE: Final = 2048
_TINY: Final = 1e-6


def clip_score(v: Vectors, t: Vectors, seed: int) -> Scores:
    """Return -cos(v_i, t_i)."""
    return -np.einsum("nd,nd->n", v, t).astype(np.float64)


def neg_clip_loss(v: Vectors, t: Vectors, seed: int, tau: float = 0.01, batch: int = 2048) -> Scores:
    """Return minus the cosine, less tau / 2 times what a random batch explains of it: hub images and captions count less."""
    order, found = np.random.default_rng(seed).permutation(len(v)), np.zeros(len(v))
    for rows in np.array_split(order, max(1, len(v) // batch)):
        s = (v[rows] @ t[rows].T).astype(np.float64) / tau
        found[rows] = np.diag(s) - 0.5 * (_log_sum_exp(s, 1) + _log_sum_exp(s, 0))
    return -tau * found


def _log_sum_exp(s: Scores, axis: int) -> Scores:
    top = s.max(axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.exp(s - top).sum(axis))


def neighbours(v: Vectors, seed: int, k: int = K, reference: int = REFERENCE) -> tuple[Scores, npt.NDArray[np.int64], Scores]:
    """Return r_1..r_k of all rows (n, k), the reference rows they lead to (n, k), and r_1..r_k of those reference rows (m, k).

    No row is a neighbour of itself. Distances are Euclidean, at least 1e-6.
    """
    chosen = np.sort(np.random.default_rng(seed).choice(len(v), min(reference, len(v)), replace=False))
    similar, found = faiss.knn(v, v[chosen], k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    own = chosen[found] == np.arange(len(v))[:, None]
    drop = np.where(own.any(1), own.argmax(1), k)  # the row itself, else the farthest
    keep = np.arange(k + 1)[None] != drop[:, None]
    distance = np.sqrt(np.maximum(2 - 2 * similar[keep].reshape(-1, k).astype(np.float64), _TINY**2))
    return distance, found[keep].reshape(-1, k), distance[chosen]


def k_dist(v: Vectors, t: Vectors, seed: int) -> Scores:
    """Return r_k(v_i)."""
    return neighbours(v, seed)[0][:, -1]


def slof(v: Vectors, t: Vectors, seed: int) -> Scores:
    """Return the mean over neighbours j of r_k(i) / r_k(j)."""
    r, near, at = neighbours(v, seed)
    return (r[:, -1:] / at[near, -1]).mean(1)


def dao(v: Vectors, t: Vectors, seed: int) -> Scores:
    """Return the mean over neighbours j of LID_j ln(r_k(i) / r_k(j))."""
    r, near, at = neighbours(v, seed)
    return (_dimension(at)[near] * np.log(r[:, -1:] / at[near, -1])).mean(1)


def dao_as_released(v: Vectors, t: Vectors, seed: int) -> Scores:
    """Return DAO with the published code's slip: places found without the self column, read in distances that still have it."""
    r, near, at = neighbours(v, seed)
    shifted = np.concatenate([np.full((len(at), 1), _TINY), at[:, :-1]], axis=1)
    return (_dimension(shifted)[near] * np.log(r[:, -1:] / shifted[near, -1])).mean(1)


def lid(v: Vectors, t: Vectors, seed: int) -> Scores:
    """Return the local intrinsic dimension of v_i, by maximum likelihood."""
    return _dimension(neighbours(v, seed)[0])


def _dimension(r: Scores) -> Scores:
    return -r.shape[1] / np.minimum(np.log(r / r[:, -1:]).sum(1), -_TINY)


def near_certain_poison(v: Vectors, t: Vectors, seed: int, least: float = 0.05, most: float = 0.5, k: int = 8) -> Scores:
    """Return how much nearer a caption is to those of certain poison than to those of certain benign pairs, by k of each.

    Certain are the pairs of lowest and of highest cosine. CASCADE's second step, as its abstract has it; its own score and
    shares are not known to us.
    """
    order = np.argsort(np.einsum("nd,nd->n", v, t))
    nearness = []
    for certain in (order[: round(least * len(t))], order[len(t) - round(most * len(t)) :]):
        similar, found = faiss.knn(t, np.ascontiguousarray(t[certain]), k + 1, metric=faiss.METRIC_INNER_PRODUCT)
        own = certain[found] == np.arange(len(t))[:, None]
        drop = np.where(own.any(1), own.argmax(1), k)
        keep = np.arange(k + 1)[None] != drop[:, None]
        nearness.append(similar[keep].reshape(-1, k).astype(np.float64).mean(1))
    return nearness[0] - nearness[1]


def isolation_forest(v: Vectors, t: Vectors, seed: int) -> Scores:
    """Return scikit-learn's Isolation Forest on the images."""
    return -IsolationForest(random_state=seed).fit(v).score_samples(v)


def image_repeats(images: Sequence[bytes]) -> Scores:
    """Return how many rows have the same 64-bit difference hash, on a 9 x 8 grid of greys; no model is needed."""
    codes = []
    for data in images:
        grey = np.asarray(Image.open(io.BytesIO(data)).convert("L").resize((9, 8)), dtype=np.int16)
        colour = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((2, 2))) // 32
        bits = np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes() + colour.astype(np.uint8).tobytes()
        codes.append(hashlib.blake2b(bits, digest_size=8).digest())
    _, place, count = np.unique(np.asarray(codes), return_inverse=True, return_counts=True)
    return count[place].astype(np.float64)


Detectors = dict[str, Callable[[Vectors, Vectors, int], Scores]]
OF_IMAGES: Final[Detectors] = {
    "k-dist": k_dist,
    "SLOF": slof,
    "DAO": dao,
    "DAO as released": dao_as_released,
    "LID": lid,
    "Isolation Forest": isolation_forest,
}
# these need captions in the space of the images, which a frozen image tower has not
OF_PAIRS: Final[Detectors] = {
    "CLIP score": clip_score,
    "negCLIPLoss": neg_clip_loss,
    "CASCADE, second step": near_certain_poison,
}
DETECTORS: Final[Detectors] = {**OF_PAIRS, **OF_IMAGES}


def cut_of(distance: npt.NDArray[np.floating[Any]], tail: float) -> float:
    """Return where crowds begin in distances to a k-th neighbour, (n,), as a split finds it."""
    closeness = Histogram()
    closeness.add(count((1.0 - distance.astype(np.float64)).astype(np.float32)))
    return crowd_cut(closeness, tail)
