"""How well a pair fits in, by several witnesses at once: each is ranked within a sample, and the ranks are combined.

A row whose caption is another picture's is betrayed by many weak signs: its cosine is no better than that of other captions;
the pictures that carry such captions look different; by an encoder that never saw the data they do, too. None of them
finds it within a small budget, together they do (docs/method.md). A backdoor that the model has learned fools the first
two witnesses and not the third. Who plants hundreds of rows has fewer captions than that to put on them, unless he words each
anew: so it is a sign, too, that a caption occurs often.
"""

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from manifests.schema import COSINE_STEP
from stages.histogram import on_grid
from stages.signals.nearest import Nearest, similar_at
from stages.signals.repeats import Commonness, Counts
from stages.signals.sample import Reference
from stages.signals.signal_parts import AGREEMENT, Known, Source
from stages.signals.witnesses.suspects import Suspects
from stages.signals.witnesses.words import Words
from stages.vectors import unit

Vectors = npt.NDArray[np.float32]
Values = npt.NDArray[np.float32]

SAME_PICTURE: Final = 0.98  # by the checkpoint's own vectors; such pictures do not vouch for each other
SAME_PICTURE_BY_REFERENCE: Final = 0.96
ASKED_BY_REFERENCE: Final = 3  # more captions with a word in common are soon about something else
TEMPERATURE: Final = 0.01
_CONTRASTED: Final = 2048  # rows of the sample that a pair is contrasted with
_WORDS_IN_COMMON: Final = 0.05  # cosine of two captions that share more than filling words
_SPARE: Final = 16  # neighbours more than wanted, as some will be copies


@dataclass(frozen=True)
class Rows:
    """What is known of some rows.

    Attributes:
        v: Unit vectors of the images, float32 (n, d).
        t: Unit vectors of the captions, float32 (n, d).
        hashes: Of the images, int64 (n,); or clusters of near copies, where the sample has those. Equal ones do not vouch for
            each other.
        others: Unit vectors of the images by the reference encoder, float32 (n, e); None without one.
        captions: With a reference encoder; else none.
        common: Share of all rows whose captions occur at least as often, float64 (n,); None where that is no witness.
    """

    v: Vectors
    t: Vectors
    hashes: npt.NDArray[np.int64]
    others: Vectors | None = None
    captions: tuple[str, ...] = ()
    common: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Testimony:
    """What the witnesses say of some rows, float32 (n,) each; low is suspicious.

    Attributes:
        neg_clip_loss: Cosine, less what the sample explains of it.
        image_agreement: Mean cosine with the images of the captions nearest to the row's own.
        reference_agreement: The same by reference encoder and words; None without one.
        accord: p-value of all together, in [0, 1].
    """

    neg_clip_loss: Values
    image_agreement: Values
    reference_agreement: Values | None
    accord: Values


class Accord:
    """Compares rows with a sample.

    Attributes:
        own: Accord of the sample's own rows, float32 (r,); how often captions occur is left out of it.
    """

    def __init__(self, sample: Reference, neighbours: int, near_copy: float | None) -> None:
        """Index the sample and hear the witnesses on its own rows, which gives the ranks.

        Args:
            sample: Rows to compare with.
            neighbours: How many nearest captions are asked.
            near_copy: Cosine, by the vectors that copies are told by, from which pictures count as the same.
        """
        self._sample, self._k = sample, neighbours
        self._same = SAME_PICTURE if sample.others is not None else min(near_copy or SAME_PICTURE, SAME_PICTURE)
        self._same_other = min(near_copy or SAME_PICTURE_BY_REFERENCE, SAME_PICTURE_BY_REFERENCE)
        self._by_text = Nearest(sample.texts)
        if sample.others is not None:
            self._words = Words(sample.captions)
            self._centre = sample.others.mean(0)
            self._others = unit(sample.others - self._centre)
        own = Rows(sample.images, sample.texts, sample.hashes, sample.others, sample.captions)
        said = self._witnesses(own)
        self._ordinary = [np.sort(values) for values in said]
        self.own = self._together(said, None)

    def __call__(self, rows: Rows) -> Testimony:
        """Hear the witnesses on some rows.

        Source: combination of ranks: Fisher, Statistical Methods for Research Workers (1932), as if they were independent;
        the budget that is set on it makes up for what they are not.
        """
        said = self._witnesses(rows)
        return Testimony(said[0], said[1], said[2] if len(said) > 2 else None, self._together(said, rows.common))

    def _together(self, said: list[Values], common: npt.NDArray[np.float64] | None) -> Values:
        logs = np.zeros(len(said[0])) if common is None else np.log(common)
        num = len(said) + (common is not None)
        for values, ordinary in zip(said, self._ordinary, strict=True):
            logs += np.log((1.0 + np.searchsorted(ordinary, values, side="right")) / (1.0 + len(ordinary)))
        return on_grid(chi2.sf(-2.0 * np.minimum(logs, 0.0), 2 * num))

    def _witnesses(self, rows: Rows) -> list[Values]:
        sample = self._sample
        found = [neg_clip_loss(sample, rows.v, rows.t, rows.hashes)]
        places = self._by_text(rows.t, self._k + _SPARE)[1]
        found.append(agreement(rows.v, rows.hashes, sample.images, sample.hashes, places, self._k, self._same))
        if rows.others is not None and sample.others is not None:
            near, places = self._words.nearest(rows.captions, ASKED_BY_REFERENCE + _SPARE)
            known = near > _WORDS_IN_COMMON
            known &= similar_at(rows.others, sample.others, places) < self._same_other
            others = unit(rows.others - self._centre)
            args = (others, rows.hashes, self._others, sample.hashes, places, ASKED_BY_REFERENCE)
            found.append(agreement(*args, same=2.0, known=known))
        return found


def agreement(
    v: Vectors,
    hashes: npt.NDArray[np.int64],
    images: Vectors,
    image_hashes: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    k: int,
    same: float,
    known: npt.NDArray[np.bool_] | None = None,
) -> Values:
    """Return the mean cosine of images with those that lie at some places of a sample, but for pictures that are the same.

    Args:
        v: Unit vectors, float32 (n, d).
        hashes: Of the images, int64 (n,).
        images: Unit vectors of the sample, float32 (r, d).
        image_hashes: Of the sample's images, int64 (r,).
        places: Best first, int64 (n, m).
        k: How many are asked; the first ones that are other pictures.
        same: From this cosine on pictures are the same.
        known: Which places are to be asked at all, bool (n, m); all by default.

    Returns:
        float32 (n,), in [-1, 1]; 0 where nobody can be asked.
    """
    similar = similar_at(v, images, places)
    asked = (similar < same) & (image_hashes[places] != hashes[:, None])
    if known is not None:
        asked &= known
    asked &= asked.cumsum(1) <= k
    found: Values = ((similar * asked).sum(1) / np.maximum(1, asked.sum(1))).astype(np.float32)
    return found


def neg_clip_loss(sample: Reference, v: Vectors, t: Vectors, hashes: npt.NDArray[np.int64]) -> Values:
    """Return the cosine of each pair, less half the temperature times how well a sample's captions and images would fit it.

    Args:
        sample: The first 2,048 of its rows are the contrast; copies of the row's own image are left out.
        v: Unit vectors of the images, float32 (n, d).
        t: Unit vectors of the captions, float32 (n, d).
        hashes: Of the images, int64 (n,).

    Returns:
        float32 (n,); near 0 where nothing else fits, lower the better other pairs fit.

    Source: Wang et al.: CLIPLoss and Norm-Based Data Selection Methods for Multimodal Contrastive Learning (NeurIPS 2024).
    """
    images, texts, theirs = sample.images[:_CONTRASTED], sample.texts[:_CONTRASTED], sample.hashes[:_CONTRASTED]
    found = np.empty(len(v), np.float32)
    for start in range(0, len(v), _CONTRASTED):
        part = slice(start, start + _CONTRASTED)
        own = np.einsum("nd,nd->n", v[part], t[part])
        copy = theirs[None] == hashes[part, None]
        explained = sum(_explained(own, scores, copy) for scores in (v[part] @ texts.T, t[part] @ images.T))
        found[part] = np.rint((own - 0.5 * explained) / COSINE_STEP) * COSINE_STEP  # its ranks are compared
    return found


def _explained(own: Values, scores: Vectors, left_out: npt.NDArray[np.bool_]) -> Values:
    """Return temperature * log sum exp(score / temperature) over a row's own cosine and those of others, float32 (n,)."""
    scores[left_out] = -np.inf
    top = np.maximum(own, scores.max(axis=1))
    np.exp((scores - top[:, None]) / TEMPERATURE, out=scores)  # float32: terms far below the greatest do not matter
    found: Values = (top + TEMPERATURE * np.log(scores.sum(axis=1) + np.exp((own - top) / TEMPERATURE))).astype(np.float32)
    return found


def accord_signals(counts: Counts) -> Source | None:
    """Return what all witnesses together say of a pair; None where captions are not compared with others."""
    parts = counts.parts
    if not parts.asked.accord:
        return None
    sample = Reference.read(parts.run, parts.name(AGREEMENT))
    if counts.clusters is not None:
        sample = sample.once_each(counts.pictures(sample.hashes))
    accord = Accord(sample, parts.asked.agreement_neighbours, parts.asked.near_copy_cosine)
    suspects = None if sample.looks is None or not len(sample.looks) else Suspects(sample.hashes, sample.looks, accord.own)
    common = Commonness(counts.captions, parts.num_scored) if parts.asked.common_captions else None

    def source(rows: Known) -> dict[str, Values]:
        if rows.v is None or rows.t is None or (parts.others and rows.others is None):
            return {}  # without one of the witnesses the ranks would mean something else
        often = common(rows.captions) if common is not None and rows.captions is not None else None
        pictures = counts.pictures(rows.images)
        said = accord(Rows(rows.v, rows.t, pictures, rows.others, rows.words, often))
        found = {field.name: values for field in fields(said) if (values := getattr(said, field.name)) is not None}
        if suspects is not None and rows.looks is not None:
            found["look_accord"] = suspects(pictures, rows.looks, said.accord)
        return found

    return source
