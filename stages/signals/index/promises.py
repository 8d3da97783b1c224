"""What an index promised of every row, and what came: the same bytes, others, or nothing to compare.

    exact     the hash of the download is the index's
    differs   it is another one; `p_reencoded` says how unusual that would be of an honest picture that was encoded anew
    no_hash   one of both has no hash, or the index has several under one key
    unknown   the index has no such row

`p_reencoded` is 1 for what is exact, else the smallest of up to three p-values times their number: that so much of the aspect
ratio is lost when a picture is resized and cut at its borders by up to a twentieth each, by simulation; that the cosine is so
far from the one which the index states, and the image's vector from the index's, as those of rows encoded anew here, and of
exact rows, moved (`stages.score.reencoded`); where there are no hashes, as cosines of the data lie above the index's, for a
picture put in place of another makes them fall. Null where there is nothing to compare with.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.signals.repeats import Counts
from stages.signals.signal_parts import HONEST, Known, Source
from stages.vectors import read_columns

PROMISE: Final = pa.schema(
    [
        pa.field("promise", pa.string(), nullable=False),
        pa.field("aspect", pa.float32()),  # |log| of the ratio of both aspect ratios
        pa.field("gap", pa.float32()),  # cosine of today less the index's, less what is usual of exact rows
        pa.field("turn", pa.float32()),  # 1 - cosine of the image's vector with the index's
        pa.field("file", pa.int32()),  # of the index, and the row in it
        pa.field("row", pa.int64()),
    ]
)
HONEST_SCHEMA: Final = pa.schema([pa.field("kind", pa.string()), pa.field("distance", pa.float32())])
ASPECT, GAP, TURN = "aspect", "gap", "turn"
KINDS: Final = (ASPECT, GAP, TURN)
MIRRORED: Final = "mirrored"  # gaps again, honest ones of an index without hashes
DRAWS: Final = 100_000
_MOST_CUT: Final = 0.05
Distances = npt.NDArray[np.float32]


def simulated_aspects() -> Distances:
    """Return by how much honest pictures change their aspect ratio: resized, and cut at each border by up to a twentieth."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(64, 1600, (2, DRAWS))
    kept = np.round(sizes * (1.0 - rng.uniform(0.0, _MOST_CUT, (2, DRAWS)) - rng.uniform(0.0, _MOST_CUT, (2, DRAWS))))
    small = np.maximum(1.0, np.round(kept * rng.uniform(0.25, 1.0, DRAWS)))
    found: Distances = np.abs(np.log(small[0] / small[1]) - np.log(sizes[0] / sizes[1])).astype(np.float32)
    return found


def beyond(distances: Distances, honest: Distances) -> npt.NDArray[np.float64]:
    """Return the share of honest distances that are as large, float64 (n,): in (0, 1], NaN where nothing is to be compared.

    Args:
        distances: (n,); NaN where there is none.
        honest: Ascending, (m,); one is added to them, so that none is beyond all.
    """
    above = len(honest) - np.searchsorted(honest, distances, side="left")
    return np.where(np.isnan(distances) | (len(honest) == 0), np.nan, (1.0 + above) / (1.0 + len(honest)))


def promise_signals(counts: Counts) -> Source | None:
    """Return what was promised of rows, and how unusual it is; None where there is no index."""
    parts = counts.parts
    if parts.asked.index is None:
        return None
    table = read_columns(parts.run, parts.name(HONEST), None)
    kinds, distances = np.asarray(table["kind"].to_pylist()), table["distance"].to_numpy()
    honest = {kind: distances[(kinds == kind) | ((kinds == MIRRORED) & (kind == GAP))] for kind in KINDS}

    def source(rows: Known) -> dict[str, npt.NDArray[Any]]:
        if rows.promises is None:
            return {}
        promise = np.asarray(rows.promises["promise"].to_pylist(), object)
        each = [beyond(np.abs(rows.promises[kind].to_numpy()), honest[kind]) for kind in KINDS]
        num = np.sum([~np.isnan(one) for one in each], axis=0)
        p = np.fmin(1.0, np.fmin.reduce(each) * num)
        return {"promise": promise, "p_reencoded": np.select([promise == "exact", promise == "unknown"], [1.0, np.nan], p)}

    return source
