"""From settings to a ready `Embed` stage and the half of the plan that decides scores."""

from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch

from manifests.errors import ConfigError
from manifests.layout import Plan, fingerprint
from manifests.store import Store
from pipeline.config.catalogue import RunConfig
from pipeline.config.provenance import versions
from stages.read.shards import Dataset
from stages.read.source import Denied
from stages.score.decode import Decode
from stages.score.embed import Embed, EmbedTarget
from stages.score.models.checkpoints import load_model, weights_sha256
from stages.score.models.encoders import preprocess_config
from stages.score.models.tokenizers import tokenizer_sha256
from stages.score.models.weights import Weights, resolve_weights
from stages.score.reencoded import ROWS
from stages.settings import ModelSettings, ReadSettings


@dataclass(frozen=True)
class Scoring:
    """Everything that decides scores.

    Attributes:
        plan: The `scores` half of a round's plan.
        weights: The model.
        device: `cpu` or `cuda`, where workers run it.
        data: Where the dataset lies.
        config: The settings.
        bytes_per_row: Of the shards, about, for the progress line; None where nobody knows.
    """

    plan: Plan
    weights: Weights
    device: str
    data: Store
    config: RunConfig
    bytes_per_row: float | None = None

    def stage(self, run: Store, number: int, *, num_shards: int, num_threads: int) -> Embed:
        """Return the stage that scores shards into a round, on `num_threads` CPU threads in each worker."""
        preprocess, config = self.plan["model"]["preprocess"], self.config
        prefetch, denied = self.device == "cuda", denied_by(config.data)
        target = EmbedTarget(
            decode=Decode(self.data, config.data, preprocess, num_threads=num_threads, prefetch=prefetch, denied=denied),
            weights=self.weights,
            run=run,
            round_number=number,
            fingerprint=fingerprint(self.plan),
            device=self.device,
            precision=self.plan["model"]["precision"],
            batch_size=config.embed.batch_size,
            num_threads=num_threads,
            keep_embeddings=config.embed.keep_embeddings,
            keep_captions=config.embed.keep_captions,
            num_reencoded=-(-ROWS // max(1, num_shards)) if config.signals.index else 0,
            num_canaries=-(-config.embed.canaries // max(1, num_shards)),
        )
        return Embed(target)


def prepare_scoring(config: RunConfig, dataset: Dataset, *, device: str) -> Scoring:
    """Resolve precision and weights, and load the model once to learn exactly what it is.

    Args:
        config: The settings.
        dataset: The data; its fingerprint goes into the plan.
        device: `cpu` or `cuda`, where workers run the model.

    Raises:
        ConfigError: The precision is not to be had.
        CheckpointError: The weights cannot be loaded.
    """
    denied = denied_by(config.data)
    precision = choose_precision(config.model, device)
    weights = resolve_weights(config.model)
    model = load_model(weights)
    plan: Plan = {
        "dataset": {"fingerprint": dataset.fingerprint, "num_shards": len(dataset.shards)}
        | ({"skipped": list(dataset.skipped)} if dataset.skipped else {}),
        "read": config.data.model_dump(exclude={"deny"}),  # what the files say stands beside it
        **({"denied": _digest_of(denied)} if denied else {}),
        "keep": {"captions": config.embed.keep_captions, "embeddings": config.embed.keep_embeddings},
        "canaries": config.embed.canaries,
        "model": {
            "architecture": weights.model.rpartition("/")[2],
            "architecture_sha256": _architecture_sha256(weights),
            "tag": weights.tag,
            "file_sha256": weights.file_sha256,
            "state_sha256": weights_sha256(weights, model),
            "folds": weights.folds,
            **({"tokenizer_sha256": tokenizer_sha256(weights.tokenizer)} if weights.tokenizer else {}),
            "preprocess": preprocess_config(model),
            "device": device,
            "precision": precision,
        },
        "versions": versions(),
    }
    return Scoring(plan, weights, device, dataset.store, config)


def denied_by(settings: ReadSettings) -> Denied | None:
    """Return what the settings deny, None where nothing.

    Raises:
        DataError: A file cannot be read, or has an odd line.
    """
    return Denied.read(name.strip() for name in settings.deny.split(",")) if settings.deny else None


def _digest_of(denied: Denied) -> str:
    return fingerprint([sorted(denied.domains), sorted(denied.digests)])


def choose_precision(options: ModelSettings, device: str) -> str:
    """Return the precision that `auto` stands for, or check the one asked for.

    On a CPU `auto` is always fp32: scores must not depend on which machine of a cluster made them.

    Raises:
        ConfigError: The CPU would emulate the precision (bf16 was measured 9 times slower than fp32 on AVX2).
    """
    if options.precision == "auto":
        return "fp32" if device == "cpu" else ("bf16" if torch.cuda.is_bf16_supported() else "fp16")
    if device == "cpu" and options.precision == "fp16":
        raise ConfigError("--precision fp16 needs a GPU; on a CPU use fp32")
    if device == "cpu" and options.precision == "bf16" and not cpu_has_bf16():
        raise ConfigError("--precision bf16: this CPU has neither AMX nor AVX512-BF16 and would only emulate it; use fp32")
    return options.precision


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bf16 natively (AMX or AVX512-BF16)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _architecture_sha256(weights: Weights) -> str:
    """Return a digest of the model config; `load_model` has made it known to open_clip."""
    name = weights.model
    return fingerprint(open_clip.get_model_config(Path(name).stem if name.endswith(".json") else name))
