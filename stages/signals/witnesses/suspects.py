"""What doubted pairs look like: whose picture looks as theirs do is suspect, however well its own caption seems to fit.

A doubt about one pair is weak, and a model that has learned a backdoor has no doubt at all about half of its rows. But where
a trigger stands, pairs are doubted more often than elsewhere, whatever their captions are; so how doubted a pair is, and
whether it is among the most doubted, are fitted linearly to what the pictures are like (`stages.score.looks`). In honest data
a caption's mistakes hardly depend on that.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import chi2, rankdata

from manifests.schema import COSINE_STEP
from stages.histogram import on_grid
from stages.score.looks import KINDS, Looks

Values = npt.NDArray[np.float64]

# of the sample: of a half-learned trigger the model doubts a part much, and how it ranks the others is noise; of one that is
# hardly learned it doubts all a little, which ranks show best
_MOST_DOUBTED: Final = 0.25
_SHRINK: Final = 0.35  # of a feature's variance; 0.1 and 1 find about as much
_BLOCK: Final = 2048


class Suspects:
    """Compares the looks of pictures with those of a sample whose pairs are doubted more or less."""

    def __init__(self, hashes: npt.NDArray[np.int64], looks: Looks, accord: npt.NDArray[np.float32]) -> None:
        """Fit the doubts of a sample to each kind of looks.

        Args:
            hashes: Of its pictures, int64 (r,), each once.
            looks: Of its pictures, uint8 (r, w).
            accord: Of its pairs, float32 (r,).
        """
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]
        ranks = rankdata(accord) / len(accord)
        doubts = np.stack([-ranks, ranks <= _MOST_DOUBTED], axis=1)
        self._fits = [_Fit(looks[:, kind], doubts) for kind in KINDS.values()]

    def __call__(self, hashes: npt.NDArray[np.int64], looks: Looks, accord: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return how usual it is to look so doubtful and to be so doubted: a p-value in [0, 1], float32 (n,).

        What is asked about a picture of the sample is answered by the others of it. Looks and accord of a row are independent
        where its picture has no part in the doubt, so they are combined as Fisher does.

        Args:
            hashes: Of the pictures, int64 (n,).
            looks: Of the pictures, uint8 (n, w).
            accord: Of the pairs, float32 (n,).
        """
        near = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
        places = np.where(self._hashes[near] == hashes, self._order[near], -1)
        usual = np.concatenate(
            [fit.usual(looks[:, kind], places) for fit, kind in zip(self._fits, KINDS.values(), strict=True)], axis=1
        )
        look = np.minimum(1.0, usual.shape[1] * usual.min(axis=1))  # Bonferroni: any of them will do
        return on_grid(chi2.sf(-2.0 * (np.log(look) + np.log(np.maximum(accord, COSINE_STEP))), 4))


class _Fit:
    """Ridge regression of doubts on one kind of looks, and how its predictions lie for ordinary pictures."""

    def __init__(self, looks: Looks, doubts: Values) -> None:
        """Fit several kinds of doubts (r, t) to looks (r, d)."""
        self._mean, self._scale = looks.mean(0, dtype=np.float64), np.maximum(looks.std(0, dtype=np.float64), 1.0)
        self._doubts = doubts - doubts.mean(0)
        gram, pull = np.zeros((looks.shape[1],) * 2), np.zeros((looks.shape[1], doubts.shape[1]))
        for part, wide in self._blocks(looks):
            gram += wide.T @ wide
            pull += wide.T @ self._doubts[part]
        gram[np.diag_indices_from(gram)] += _SHRINK * len(looks)
        factor = cho_factor(gram)
        self._weights = cho_solve(factor, pull)
        # what a row's own doubt does to its prediction, so that it can be taken out: leave-one-out, in closed form
        self._own = np.concatenate([(wide * cho_solve(factor, wide.T).T).sum(1) for _, wide in self._blocks(looks)])
        found = self._predicted(looks, np.arange(len(looks)))
        self._middle = np.median(found, axis=0)
        self._below = [np.sort(middle - one[one <= middle]) for middle, one in zip(self._middle, found.T, strict=True)]

    def usual(self, looks: Looks, places: npt.NDArray[np.int64]) -> Values:
        """Return the share of ordinary pictures that look as doubtful, float64 (n, t): what lies below the median, mirrored."""
        above = self._predicted(looks, places) - self._middle
        shares = [
            (len(below) - np.searchsorted(below, one, side="left") + 1) / (len(below) + 1)
            for below, one in zip(self._below, above.T, strict=True)
        ]
        found: Values = np.where(above > 0, 0.5 * np.stack(shares, axis=1), 1.0)
        return found

    def _predicted(self, looks: Looks, places: npt.NDArray[np.int64]) -> Values:
        """Return predicted doubts, those of pictures of the sample (place >= 0) by all others, float64 (n, t)."""
        found = np.concatenate([wide @ self._weights for _, wide in self._blocks(looks)])
        own = np.where(places >= 0, self._own[places], 0.0)[:, None]
        found = (found - own * self._doubts[places]) / (1.0 - own)
        on_steps: Values = np.rint(found / COSINE_STEP) * COSINE_STEP  # compared by rank; last bits depend on the machine
        return on_steps

    def _blocks(self, looks: Looks) -> Iterator[tuple[slice, Values]]:
        """Yield looks block by block, each number as deviations from its mean."""
        for start in range(0, len(looks), _BLOCK):
            part = slice(start, start + _BLOCK)
            yield part, (looks[part] - self._mean) / self._scale
