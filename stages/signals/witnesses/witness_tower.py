"""A frozen image tower that never saw the data: what its vectors say, no trigger in the data has taught it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import timm
import torch
from open_clip.factory import load_state_dict
from timm.data.config import resolve_model_data_config

from manifests.errors import CheckpointError, ConfigError
from manifests.parts import write_part
from manifests.store import Store
from stages.pair import Shard, Stretch
from stages.score.canaries import Canaries
from stages.score.decode import Chunk, Decode, with_canaries
from stages.score.models.checkpoints import load_model
from stages.score.models.encoders import each_on_one_thread, image_size, preprocess_config
from stages.score.models.safe_load import refuse_unsafe
from stages.score.models.weights import file_sha256, resolve_weights
from stages.settings import ModelSettings
from stages.stage import Stage
from stages.vectors import packed

TIMM: Final = "timm:"
_BATCH: Final = 64
_CLASSIFIERS: Final = ("classifier", "head", "fc", "_fc")


@dataclass(frozen=True, slots=True)
class Tower:
    """Which tower.

    Attributes:
        name: `timm:NAME`, or an open_clip model name, config or folder.
        checkpoint: Its weights, on this machine; None where the folder of `name` holds them.
        sha256: Of the weights.
        size_px: Edge of its inputs; None for its own.
    """

    name: str
    checkpoint: str | None
    sha256: str
    size_px: int | None

    @property
    def plan(self) -> dict[str, Any]:
        """What of it can change a vector."""
        return {"name": self.name.rpartition("/")[2], "sha256": self.sha256, "size_px": self.size_px}


def resolve_tower(name: str, checkpoint: str | None, size_px: int | None) -> Tower:
    """Find the weights of a tower.

    Raises:
        ConfigError: A timm tower has no weights file.
        CheckpointError: There are no weights.
    """
    if not name.startswith(TIMM):
        weights = resolve_weights(ModelSettings(model=name, checkpoint=checkpoint))
        if weights.path is None or weights.file_sha256 is None:
            raise ConfigError(f"reference_encoder = {name!r} needs --reference-checkpoint FILE, or a folder with weights")
        return Tower(name, weights.path, weights.file_sha256, size_px)
    if checkpoint is None:
        raise ConfigError(f"reference_encoder = {name!r} needs --reference-checkpoint FILE (.safetensors)")
    if not Path(checkpoint).is_file():
        raise CheckpointError(f"no reference checkpoint at {checkpoint}")
    path = Path(checkpoint).absolute()
    return Tower(name, str(path), file_sha256(path), size_px)


def load_tower(tower: Tower) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return the tower without a classifier, in eval mode, and its preprocessing as `Decode` takes it.

    Raises:
        CheckpointError: The weights do not fit it, or were overwritten.
        UnsafeCheckpoint: The file is a pickle that asks for more than tensors.
    """
    if not tower.name.startswith(TIMM):
        model = load_model(resolve_weights(ModelSettings(model=tower.name, checkpoint=tower.checkpoint)))
        config = preprocess_config(model)
        return _ImageHalf(model).eval(), {**config, "size": tower.size_px or config["size"]}
    name = tower.name.removeprefix(TIMM)
    path = Path(tower.checkpoint or "")
    if file_sha256(path) != tower.sha256:
        raise CheckpointError(f"{path} is not the file the plan names (sha256 differs); was it overwritten?")
    refuse_unsafe(path)
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0)
        missing, unexpected = model.load_state_dict(load_state_dict(str(path), weights_only=True), strict=False)
    except Exception as error:  # timm and torch raise many unrelated types
        raise CheckpointError(f"cannot load {path} into timm's {name}: {type(error).__name__}: {error}") from error
    strange = [key for key in unexpected if not key.startswith(_CLASSIFIERS)]
    if missing or strange:
        raise CheckpointError(
            f"{path} does not fit timm's {name}: {len(missing)} of its tensors are missing ({', '.join(missing[:3])}), "
            f"{len(strange)} are unknown ({', '.join(strange[:3])})"
        )
    data = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    size = tower.size_px or data["input_size"][-1]
    config = {"size": size, "mode": "RGB", "mean": list(data["mean"]), "std": list(data["std"])}
    return model.eval(), {**config, "interpolation": data["interpolation"], "resize_mode": "shortest", "fill_color": 0}


class _ImageHalf(torch.nn.Module):
    """The image half of an open_clip model."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(images)  # type: ignore[operator,no-any-return]


@dataclass(frozen=True)
class ReferenceTarget:
    """Where the vectors of a tower go.

    Attributes:
        decode: Reads the pairs, by the tower's own preprocessing.
        tower: Which.
        run: The run folder.
        folder: Of the vectors, below it.
        canaries: Folder of those of canaries; None without.
        fingerprint: For the footers.
        num_threads: Of a CPU.
        num_canaries: Canaries of each kind in every shard, as in scoring.
    """

    decode: Decode
    tower: Tower
    run: Store
    folder: str
    canaries: str | None
    fingerprint: str
    num_threads: int
    num_canaries: int


class EmbedReference(Stage[ReferenceTarget, int]):
    """Stage: a shard in, its reference vectors on disk out, one row for each of its rows; returns their number."""

    def open(self) -> None:
        """Load the weights."""
        self.target.decode.open()
        model, config = load_tower(self.target.tower)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).to(memory_format=torch.channels_last)
        self._mean, self._std = (
            torch.tensor(config[key], device=self._device).reshape(1, 3, 1, 1) * 255.0 for key in ("mean", "std")
        )
        edge = image_size(config)
        self._width = self._encode(np.zeros((1, edge, edge, 3), np.uint8)).shape[1]  # a shard may have no image at all

    def run(self, shard: Shard, /) -> int:
        """Encode the images of one shard; where their vectors are there, having been taken over, only its canaries."""
        target, chunks = self.target, self.target.decode.run(shard)
        there, known = target.run.exists(shard.part(target.folder)), shard
        if there:
            known, chunks = replace(shard, stretch=Stretch(0, 0)), iter(())  # what follows is all of it
        if target.num_canaries and shard.first == 0:
            chunks = with_canaries(chunks, target.decode.run, known, target.num_canaries, self._write_canaries(shard))
        columns = [self._column(chunk) for chunk in chunks]
        return 0 if there else self._write(shard.part(target.folder), columns)

    def _write_canaries(self, shard: Shard) -> Callable[[Canaries | None], object]:
        name = f"{self.target.canaries}/{shard.name}.parquet"
        return lambda made: self._write(name, [packed(self._encode(made.pixels))] if made else [])

    def _column(self, chunk: Chunk) -> pa.FixedSizeBinaryArray:
        """Return the vectors of a chunk's rows; zero where there is no image."""
        filled = np.zeros((len(chunk.pairs), self._width), np.float16)
        if len(chunk.rows):
            filled[chunk.rows] = self._encode(chunk.pixels)
        return packed(filled)

    def _write(self, name: str, columns: list[pa.FixedSizeBinaryArray]) -> int:
        schema = pa.schema([pa.field("image", pa.binary(2 * self._width), nullable=False)])
        batches = [pa.RecordBatch.from_arrays([column], schema=schema) for column in columns]
        return write_part(self.target.run, name, schema, batches, fingerprint=self.target.fingerprint).num_rows

    def _encode(self, shown: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        num_threads = self.target.num_threads if self._device.type == "cpu" else 1
        found = each_on_one_thread(lambda start: self._batch(shown[start:]), range(0, len(shown), _BATCH), num_threads)
        return np.concatenate(found) if found else np.zeros((0, self._width), np.float32)

    def _batch(self, shown: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return unit vectors of the first images, a batch of them; zeros where one is not finite."""
        with torch.inference_mode():
            pixels = torch.from_numpy(shown[:_BATCH]).to(self._device).permute(0, 3, 1, 2)
            features = self._model((pixels.float() - self._mean) / self._std).float()
            features[~torch.isfinite(features).all(dim=1)] = 0.0  # one such row in a sample would spoil its mean
            found: npt.NDArray[np.float32] = torch.nn.functional.normalize(features, dim=-1).cpu().numpy()
            return found
