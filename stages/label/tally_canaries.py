"""Count canaries: their cosines, and what neighbours would say of them if they were rows."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from manifests.errors import RunError
from manifests.layout import CANARY_PARTS, part_name
from manifests.reading import open_part
from stages.label.fit.strata import COLUMN, strata_of
from stages.label.history import OPEN
from stages.label.tally import ScoresTarget
from stages.pair import Shard
from stages.score.canaries import CAPTION, REPEATED, VECTORS, CanaryScores
from stages.score.hashes import caption_hashes
from stages.signals.neighbourhood import neighbour_signals
from stages.signals.repeats import Counts
from stages.signals.signal_parts import Known, SignalParts
from stages.signals.witnesses.accord import accord_signals
from stages.signals.witnesses.joint_doubt import jointly
from stages.signals.write_signals import opened
from stages.stage import Stage
from stages.vectors import bytes_of, read_columns, unit, vectors_of

_CROWDS = ("outlier", "neighbour_outlier", "half_outlier", "neighbour_half_outlier")
_TOLD = (*_CROWDS, "accord", "look_accord")  # the others limit nothing, or compare a row with its own copies


class TallyCanaries(Stage[ScoresTarget, dict[str, CanaryScores]]):
    """Stage: a shard in, what is known of its canaries out, by kind."""

    def open(self) -> None:
        """Load the samples, where neighbours are sought."""
        parts = self.target.signals
        self._sources = opened(Counts(parts), (neighbour_signals, accord_signals)) if parts and parts.asked.near else []

    def run(self, shard: Shard, /) -> dict[str, CanaryScores]:
        """Read one part.

        Raises:
            RunError: It was written under another plan.
        """
        target = self.target
        name = part_name(target.scores_round, CANARY_PARTS, shard.name)
        table, _ = open_part(target.run, name, ["kind", "cosine", *VECTORS, CAPTION], target.fingerprint)
        codes = None
        if target.before is not None:  # a canary is no row: nobody has trained on it, nothing vetoes it
            codes = np.full(len(table), OPEN, np.int8)
        elif target.strata is not None and COLUMN[target.strata] == CAPTION and CAPTION in table.column_names:
            codes = strata_of(target.strata, table[CAPTION])
        whole = CanaryScores(table["cosine"].to_numpy(), self._signals(table, shard), codes)
        kinds = table["kind"].to_numpy().astype(str)
        return {str(kind): whole.where(kinds == kind) for kind in np.unique(kinds)}

    def _signals(self, table: pa.Table, shard: Shard) -> dict[str, np.ndarray]:
        parts = self.target.signals
        if parts is None or not self._sources or VECTORS[0] not in table.column_names:
            return {}
        known = self._known(table, shard, parts)
        found = {name: values for source in self._sources for name, values in source(known).items() if name in _TOLD}
        signals = {name: values.astype(np.float64) for name, values in found.items()}
        copies = table["kind"].to_numpy().astype(str) == REPEATED
        if "accord" in signals and parts.asked.joins and copies.any():
            signals["accord"][copies] = jointly(signals["accord"][copies], known.images[copies])
        return signals

    def _known(self, table: pa.Table, shard: Shard, parts: SignalParts) -> Known:
        """Return what the sources are told of canaries."""
        v, t = (unit(vectors_of(table[kind])) for kind in ("image", "text"))
        told = CAPTION in table.column_names
        captions = caption_hashes(table[CAPTION].to_pylist()) if told else None
        seen = bytes_of(table["look"]) if "look" in table.column_names else None
        known = Known(table["image_hash"].to_numpy(), captions, v, t, looks=seen)
        name = f"{parts.canaries}/{shard.name}.parquet"
        if parts.others is None or parts.canaries is None or not told or not parts.run.exists(name):
            return known
        others = vectors_of(read_columns(parts.run, name, ["image"])["image"])
        if len(others) != len(table):
            raise RunError(f"{name} has {len(others)} canaries, the scores have {len(table)}; delete that folder and go on")
        return replace(known, others=unit(others), words=tuple(table[CAPTION].to_pylist()))
