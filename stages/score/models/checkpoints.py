"""Load CLIP weights through open_clip, never through a pickle."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import safe_open

from manifests.errors import CheckpointError
from stages.score.models.safe_load import Undrawn, load_into, refuse_unsafe
from stages.score.models.tokenizers import local_text_model
from stages.score.models.weights import FOLD_KEY, Weights, fetch, file_sha256


def load_model(weights: Weights, fold: int = 0) -> torch.nn.Module:
    """Build the architecture and load the weights into it, on the CPU, in fp32 and eval mode.

    Args:
        weights: Which.
        fold: Which text tower, of a cross-fitted scorer.

    Raises:
        UnsafeCheckpoint: The file is a pickle that asks for more than tensors.
        CheckpointError: The weights do not fit the architecture, or cannot be read or fetched.
    """
    if weights.uri is not None:
        weights = replace(weights, path=fetch(weights.uri))
    if weights.path is not None and file_sha256(Path(weights.path)) != weights.file_sha256:
        raise CheckpointError(f"{weights.path} is not the file the plan names (sha256 differs); was it overwritten?")
    try:
        with quiet_open_clip():
            # values that a file replaces need not be drawn first: 2 of the CPU-seconds of a ViT-B-32, in each process
            with Undrawn() if weights.path is not None else nullcontext():
                model = _create(weights)
            if weights.path is not None:
                refuse_unsafe(Path(weights.path))
                if weights.folds > 1:
                    model.load_state_dict(_fold_of(weights.path, fold))
                else:
                    load_into(model, Path(weights.path))
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # open_clip, torch and the hub raise many unrelated types
        source = weights.path or f"{weights.model} {weights.tag or ''}"
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"cannot load {source} into {weights.model}: {what[:500]}") from error
    return model.float().eval()


def _fold_of(path: str, fold: int) -> dict[str, torch.Tensor]:
    """Return the shared image tower and one text tower of a cross-fitted scorer."""
    prefix = f"{FOLD_KEY}{fold}."
    found = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118  # no mapping
            if key.startswith(prefix) or not key.startswith(FOLD_KEY):
                found[key.removeprefix(prefix)] = file.get_tensor(key)
    return found


def weights_sha256(weights: Weights, model: torch.nn.Module) -> str:
    """Return `state_sha256` of what was loaded; over all text towers, of a cross-fitted scorer."""
    if weights.folds == 1:
        return state_sha256(model)
    states = [state_sha256(load_model(weights, fold)) for fold in range(weights.folds)]
    return hashlib.sha256("".join(states).encode()).hexdigest()


def state_sha256(model: torch.nn.Module) -> str:
    """Return a hex digest of the weights themselves, the same for one model in any file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name}\0{array.dtype}\0{tuple(array.shape)}\0".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _create(weights: Weights) -> torch.nn.Module:
    name = weights.model
    if name.endswith(".json"):
        if not Path(name).is_file():
            raise CheckpointError(f"no model config at {name}")
        open_clip.add_model_config(Path(name))
        name = Path(name).stem
    options: dict[str, Any] = {"pretrained_text": False, "weights_only": True}
    options |= local_text_model(weights.model, weights.tokenizer)
    if weights.path is not None:
        model: torch.nn.Module = open_clip.create_model(name, load_weights=False, **options)
    else:
        model = open_clip.create_model(name, pretrained=weights.tag, require_pretrained=True, **options)
    return model


@contextmanager
def quiet_open_clip() -> Iterator[None]:
    """Drop open_clip's root-logger messages on missing weights: they are loaded, or made, in the next line."""

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "No pretrained weights loaded" not in text and "no CLIP weights found" not in text

    root = logging.getLogger()
    root.addFilter(keep)
    handler = logging.NullHandler()
    root.addHandler(handler)  # else open_clip's logging.info() would install a handler of its own
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(keep)
