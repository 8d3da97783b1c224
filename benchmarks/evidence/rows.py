"""The poisoned rows in memory, in the order of their shards."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from benchmarks.attacks.world import Row, load_rows
from benchmarks.evidence.referee import with_truth
from benchmarks.evidence.training import MODEL
from benchmarks.poison import read_truth
from manifests.errors import RunError
from stages.read.shards import open_dataset
from stages.score.decode import Decode
from stages.score.models.encoders import OpenClipEncoder, preprocess_config
from stages.score.models.weights import resolve_weights
from stages.settings import ModelSettings, ReadSettings
from stages.train.learner import new_model


class PoisonedRows:
    """All rows, with what the referee asks of them.

    Attributes:
        rows: In the order of shards and rows.
    """

    def __init__(self, shards: Path) -> None:
        """Read them."""
        self._shards = shards
        self.rows: list[Row] = load_rows([str(shards)])

    @property
    def images(self) -> list[bytes]:
        """Encoded images."""
        return [row.image for row in self.rows]

    def table(self) -> pd.DataFrame:
        """Return shard, key and how many rows have the same class."""
        found = pd.DataFrame({"shard": [r.shard for r in self.rows], "key": [r.key for r in self.rows]})
        labels = pd.Series([row.label for row in self.rows])
        found["class_size"] = labels.map(labels.value_counts()).to_numpy()
        return found

    def join(self, manifest: pd.DataFrame) -> pd.DataFrame:
        """Return a manifest's rows in this order.

        Raises:
            RunError: Some are missing.
        """
        found = self.table()[["shard", "key"]].merge(manifest, on=["shard", "key"], how="left")
        if found["label"].isna().any():
            raise RunError(f"{int(found['label'].isna().sum())} of {len(found)} rows are not in the manifest: other shards?")
        return found

    def words(self, safe: npt.NDArray[np.bool_]) -> dict[str, list[str]]:
        """Return the labels of every shard, in row order."""
        words: dict[str, list[str]] = {}
        for row, good in zip(self.rows, safe, strict=True):
            words.setdefault(row.shard, []).append("safe" if good else "risky")
        return words

    def vectors(self, checkpoint: Path | str, model: str | None = None) -> tuple[npt.NDArray[np.float32], ...]:
        """Return unit vectors of all images and captions by a checkpoint, float32 (n, d) each."""
        name = model.removeprefix("local-dir:") if model else None
        encoder = OpenClipEncoder(resolve_weights(ModelSettings(model=name, checkpoint=str(checkpoint))), batch_size=256)
        dataset = open_dataset([str(self._shards)])
        preprocess = preprocess_config(new_model(model or f"local-dir:{checkpoint}", 0))
        decode = Decode(dataset.store, ReadSettings(), preprocess, num_threads=1)
        decode.open()
        found = [
            encoder.encode_pairs(chunk.pixels, [chunk.pairs[row].caption or "" for row in chunk.rows])
            for shard in dataset.shards
            for chunk in decode.run(shard)
        ]
        v, t = (np.concatenate(part) for part in zip(*found, strict=True))
        if len(v) != len(self.rows):
            raise RunError(f"{len(self.rows)} rows were read, {len(v)} decoded")
        return v, t


class Trained:
    """A poisoned set as the model sees it that was trained on all of it.

    Attributes:
        weights: Of the model.
        v: Its image vectors, (n, d).
        t: Its caption vectors, (n, d).
        attack: Of each row, empty where it is clean, (n,).
    """

    def __init__(self, out: Path, seed: int) -> None:
        """Embed the rows of a seed."""
        folder = out / f"seed-{seed}"
        self.weights = folder / "none" / "model.safetensors"
        rows = PoisonedRows(folder / "data" / "shards")
        truth = read_truth(folder / "data", pa.Table.from_pandas(rows.table()))
        self.attack = with_truth(rows.table(), truth.to_pandas())["attack"].to_numpy()
        self.v, self.t = rows.vectors(self.weights, MODEL)
