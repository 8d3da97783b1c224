"""Captions nearest to a caption by their words alone: TF-IDF within a sample, no model."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer

_WORD: Final = r"[^\W\d_]+"
_AT_ONCE: Final = 256


class Words:
    """The captions of a sample by their words, rare ones weighing more.

    Scripts that put no space between words are compared by whole runs of letters, which hardly ever agree.
    """

    def __init__(self, sample: Sequence[str]) -> None:
        """Index a sample of captions; without a single word in it, nothing is near to anything."""
        self._vectorizer, self._num = TfidfVectorizer(sublinear_tf=True, token_pattern=_WORD), len(sample)
        try:
            self._theirs = self._vectorizer.fit_transform(sample).astype(np.float32).T.tocsr()
        except ValueError:  # an empty vocabulary
            self._theirs = None

    def nearest(self, captions: Sequence[str], num: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return cosines with and places of the captions of the sample that are nearest, nearest first.

        Args:
            captions: To look up.
            num: How many for each; fewer where the sample is smaller.

        Returns:
            float32 (n, num) and int64 (n, num); cosine 0 where no word is shared.
        """
        num = min(num, self._num)
        similar, places = np.zeros((len(captions), num), np.float32), np.zeros((len(captions), num), np.int64)
        if self._theirs is None or not len(captions):
            return similar, places
        mine = self._vectorizer.transform(captions).astype(np.float32)
        for start in range(0, len(captions), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            scores = (mine[part] @ self._theirs).toarray()
            best = np.argpartition(-scores, num - 1, axis=1)[:, :num]
            order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
            places[part] = np.take_along_axis(best, order, 1)
            similar[part] = np.take_along_axis(scores, places[part], 1)
        return similar, places
