"""Count canaries: their cosines, and what neighbours would say of them if they were rows."""

from dataclasses import replace

import faiss
import numpy as np
import pyarrow as pa

from manifests.errors import RunError
from manifests.layout import CANARY_PARTS, part_name
from manifests.reading import open_part
from manifests.store import Store
from stages.label.strata import COLUMN, StrataKind, strata_of
from stages.pair import Shard
from stages.score.canaries import CAPTION, REPEATED, VECTORS, CanaryScores
from stages.score.hashes import caption_hashes
from stages.signals.accord import Accord, Rows
from stages.signals.joint_doubt import jointly
from stages.signals.neighbourhood import Neighbourhood
from stages.signals.repeats import Commonness, Repeats, repeats_name
from stages.signals.sample import Reference
from stages.signals.write_signals import SignalTarget, accord_of
from stages.vectors import read_columns, unit, vectors_of


class TallyCanaries:
    """Stage: a shard in, what is known of its canaries out, by kind."""

    def __init__(
        self, run: Store, scores_round: int, fingerprint: str, near: SignalTarget | None, strata: StrataKind | None = None
    ) -> None:
        """Prepare.

        Args:
            run: The run folder.
            scores_round: Round of the canaries.
            fingerprint: Under which they must have been written.
            near: Where the samples lie; None where neighbours were not sought.
            strata: How rows are grouped; None: not at all.
        """
        self._run, self._round, self._fingerprint, self._near = run, scores_round, fingerprint, near
        self._strata = strata if strata and COLUMN[strata] == CAPTION else None

    def open(self) -> None:
        """Load the samples."""
        near = self._near
        self._accord: Accord | None = None
        self._clusters: Repeats | None = None
        self._common: Commonness | None = None
        self._around: Neighbourhood | None = None
        if near is None or near.reference is None:
            return
        faiss.omp_set_num_threads(near.num_threads)
        self._around = Neighbourhood(Reference.read(self._run, near.reference), near.neighbours)
        if near.agreement is not None:
            self._clusters = Repeats.read(self._run, near.clusters) if near.clusters else None
            self._accord = accord_of(near, self._clusters)
            if near.num_rows is not None:
                self._common = Commonness(Repeats.read(self._run, repeats_name(near.folder, "caption")), near.num_rows)

    def run(self, shard: Shard, /) -> dict[str, CanaryScores]:
        """Read one part.

        Raises:
            RunError: It was written under another plan.
        """
        name = part_name(self._round, CANARY_PARTS, shard.name)
        table, _ = open_part(self._run, name, ["kind", "cosine", *VECTORS, CAPTION], self._fingerprint)
        codes = strata_of(self._strata, table[CAPTION]) if self._strata and CAPTION in table.column_names else None
        whole = CanaryScores(table["cosine"].to_numpy(), self._signals(table, shard), codes)
        kinds = table["kind"].to_numpy().astype(str)
        return {str(kind): whole.where(kinds == kind) for kind in np.unique(kinds)}

    def _signals(self, table: pa.Table, shard: Shard) -> dict[str, np.ndarray]:
        if self._around is None or VECTORS[0] not in table.column_names:
            return {}
        hashes = table["image_hash"].to_numpy()
        v, t = (unit(vectors_of(table[kind])) for kind in ("image", "text"))
        near = self._around(v, t, hashes)
        found = {"outlier": near.outlier, "neighbour_outlier": near.neighbour_outlier}
        pictures = self._clusters.clusters_of(hashes) if self._clusters else hashes
        common = None
        if self._common is not None and CAPTION in table.column_names:
            common = self._common(caption_hashes(table[CAPTION].to_pylist()))
        rows = self._with_reference(Rows(v, t, pictures, common=common), table, shard)
        if self._accord is not None and rows is not None:
            found["accord"] = self._accord(rows).accord
        signals = {name: values.astype(np.float64) for name, values in found.items()}
        copies = table["kind"].to_numpy().astype(str) == REPEATED
        if "accord" in signals and self._near is not None and self._near.witness is not None and copies.any():
            signals["accord"][copies] = jointly(signals["accord"][copies], hashes[copies])
        return signals

    def _with_reference(self, rows: Rows, table: pa.Table, shard: Shard) -> Rows | None:
        """Return rows with what the reference encoder sees of them, where there is one; None where that is not known."""
        near = self._near
        if near is None or near.others is None:
            return rows
        name = f"{near.canaries}/{shard.name}.parquet"
        if near.canaries is None or CAPTION not in table.column_names or not self._run.exists(name):
            return None
        others = vectors_of(read_columns(self._run, name, ["image"])["image"])
        if len(others) != len(table):
            raise RunError(f"{name} has {len(others)} canaries, the scores have {len(table)}; delete that folder and go on")
        return replace(rows, others=unit(others), captions=tuple(table[CAPTION].to_pylist()))
