"""Groups of rows whose mismatched pairs may score unlike those of others: by caption length, by its script, by image size.

A short, general caption fits many images a little; captions in a script that the checkpoint hardly knows fit all of them alike.
One null for all would then state a rate that holds for none of the groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.histogram import Histogram, grid_bins
from stages.label.fit.calibration import FEWEST_NULLS, Calibration, calibrate

StrataKind = Literal["caption-length", "script", "image-size", "before"]
Codes = npt.NDArray[np.int8]

_WORDS: Final = (3, 6, 11, 21)
_EDGES_PX: Final = (128, 256, 512)
_SCRIPTS: Final = {
    "Latin": r"\p{Latin}",
    "Cyrillic": r"\p{Cyrillic}",
    "Greek": r"\p{Greek}",
    "Arabic": r"\p{Arabic}",
    "Hebrew": r"\p{Hebrew}",
    "Devanagari": r"\p{Devanagari}",
    "Thai": r"\p{Thai}",
    "Hangul": r"\p{Hangul}",
    "Han and kana": r"[\p{Han}\p{Hiragana}\p{Katakana}]",
}
STRATA: Final[dict[StrataKind, tuple[str, ...]]] = {
    "caption-length": ("1 or 2 words", "3 to 5 words", "6 to 10 words", "11 to 20 words", "more than 20 words"),
    "script": (*_SCRIPTS, "no known script"),
    "image-size": ("below 128 px", "128 to 255 px", "256 to 511 px", "512 px and more"),
    # what the round before made of a row, in the order of `stages.label.history`; of a round that looks again
    "before": ("safe, trained on", "risky, open", "safe, sat out", "vetoed"),
}
COLUMN: Final[dict[StrataKind, str]] = {"caption-length": "caption", "script": "caption", "image-size": "image_edge"}


def strata_of(kind: StrataKind, values: pa.ChunkedArray | pa.Array) -> Codes:
    """Return the stratum of each row, as a place in `STRATA[kind]`: int8 (n,).

    Args:
        kind: How rows are grouped.
        values: Captions, or shorter sides of the images in px; rows without one are in the first stratum.
    """
    if kind == "image-size":
        return _places(_EDGES_PX, values.fill_null(0).to_numpy())
    captions = values.fill_null("")
    if kind == "caption-length":
        return _places(_WORDS, pc.count_substring_regex(captions, r"\S+").to_numpy())
    letters = np.stack([pc.count_substring_regex(captions, pattern).to_numpy() for pattern in _SCRIPTS.values()])
    found: Codes = np.where(letters.any(axis=0), letters.argmax(axis=0), len(_SCRIPTS)).astype(np.int8)
    return found


def _places(bounds: tuple[int, ...], values: npt.NDArray[np.int32]) -> Codes:
    found: Codes = np.searchsorted(bounds, values, side="right").astype(np.int8)
    return found


@dataclass(frozen=True, slots=True)
class Strata:
    """A calibration of its own for every stratum that has enough mismatched pairs; the others share that of all rows.

    Attributes:
        kind: How rows are grouped.
        cuts: Least cosine of a safe row in each stratum; above 1 where nothing in it is safe. float64 (k,).
        local: Probability of being mismatched at every grid point, float32 (k, 2**20 + 1).
        facts: What the seal says of each stratum that has rows.
        num_safe: Rows at or above their cuts.
    """

    kind: StrataKind
    cuts: npt.NDArray[np.float64]
    local: npt.NDArray[np.float32]
    facts: tuple[dict[str, Any], ...]
    num_safe: int

    def is_safe(self, cosines: npt.NDArray[np.float32], codes: Codes) -> npt.NDArray[np.bool_]:
        """Return which finite cosines are safe, by the stratum of each: bool (n,)."""
        safe: npt.NDArray[np.bool_] = cosines >= self.cuts[codes].astype(np.float32)
        return safe

    def p_mismatch(self, cosines: npt.NDArray[np.float32], codes: Codes) -> npt.NDArray[np.float32]:
        """Return the probability of being mismatched, by the stratum of each, float32 (n,)."""
        return self.local[codes, grid_bins(cosines)]


def calibrate_strata(
    kind: StrataKind, counted: Mapping[int, tuple[Histogram, Histogram]], whole: Calibration, alpha: float, most: float
) -> Strata:
    """Calibrate every stratum by itself.

    Args:
        kind: How rows are grouped.
        counted: Cosines of the rows and of the mismatched pairs of every stratum that has rows.
        whole: The calibration of all rows, for strata with fewer than 1,000 mismatched pairs.
        alpha: See `Calibration.cut`.
        most: See `Calibration.cut`.
    """
    names = STRATA[kind]
    cuts, local, facts, num_safe = np.full(len(names), np.inf), np.tile(whole.local, (len(names), 1)), [], 0
    for code, (pairs, nulls) in sorted(counted.items()):
        if not pairs.num_rows:
            continue
        own = nulls.num_rows >= FEWEST_NULLS
        known = calibrate(pairs, nulls) if own else whole
        cut = known.cut(alpha, most)
        local[code], cuts[code] = known.local, np.inf if cut is None else cut
        safe = 0 if cut is None else pairs.num_at_least(cut)
        num_safe += safe
        stated = None if cut is None else known.tail_at(cut)
        facts.append(
            {
                **{"stratum": names[code], "rows": pairs.num_rows, "safe": safe, "cut": cut, "own_null": own},
                **{"mismatched_share": known.mismatched_share, "stated_mismatched_in_safe": stated},
            }
        )
    return Strata(kind, cuts, local, tuple(facts), num_safe)
