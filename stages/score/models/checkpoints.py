"""Load CLIP weights through open_clip, never through a pickle, and say exactly which weights they are."""

import difflib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from safetensors import SafetensorError, safe_open

from manifests.errors import CheckpointError
from manifests.store import open_store
from stages.score.models.safe_load import Undrawn, load_into, refuse_fetching, refuse_unsafe
from stages.score.models.tokenizers import covered_by, find_tokenizer, local_text_model
from stages.settings import ModelSettings

_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth")
_CONFIG: Final = "open_clip_config.json"
_SCHEMAS: Final = ("local-dir:", "hf-hub:")
FOLD_KEY: Final = "pairsan.fold."
FOLDS_METADATA: Final = "pairsan.folds"


@dataclass(frozen=True, slots=True)
class Weights:
    """Which architecture and weights a run uses, resolved from the settings.

    Attributes:
        model: open_clip's name of the architecture (`ViT-B-32`, `local-dir:...`), or path of a model config JSON.
        path: Local weights file; None for a pretrained tag or hub model that open_clip fetches itself.
        tag: open_clip pretrained tag, if any.
        file_sha256: Hex digest of the weights file; None for hub models.
        uri: Where `path` was fetched from; a worker on another machine fetches it again.
        folds: Text towers in the file; more than one in a cross-fitted scorer of `pairsan run`.
        tokenizer: Folder of a Hugging Face tokenizer; None for open_clip's.
    """

    model: str
    path: str | None
    tag: str | None
    file_sha256: str | None
    uri: str | None = None
    folds: int = 1
    tokenizer: str | None = None


def resolve_weights(options: ModelSettings) -> Weights:
    """Find architecture and weights that the settings ask for.

    Raises:
        CheckpointError: They do not name both, contradict each other, or point at nothing.
    """
    model, checkpoint, uri = options.model, options.checkpoint, None
    if checkpoint and options.pretrained:
        raise CheckpointError("--checkpoint and --pretrained both name weights; give one of them")
    if checkpoint is not None and "://" in checkpoint:
        uri, checkpoint = checkpoint, fetch(checkpoint)
    if checkpoint is not None and not Path(checkpoint).exists():
        raise CheckpointError(f"no checkpoint at {checkpoint}")
    if checkpoint is not None and Path(checkpoint).is_dir():
        model = model or checkpoint
        checkpoint = str(weights_in(Path(checkpoint)))
    if model is not None and Path(model).is_dir():
        if not (Path(model) / _CONFIG).is_file():
            raise CheckpointError(f"{model} has no {_CONFIG}; name the architecture with --model")
        checkpoint = checkpoint or str(weights_in(Path(model)))
        model = f"local-dir:{Path(model).absolute()}"
    if model is None:
        raise CheckpointError("which architecture? Give --model NAME, or a --checkpoint folder with open_clip_config.json")
    _check_name(model)
    tokenizer = find_tokenizer(options.tokenizer, model)
    if not options.allow_hub:
        _check_config(model, tokenizer)
    if checkpoint is None:
        if options.pretrained is None and not model.startswith("hf-hub:"):
            raise CheckpointError("which weights? Give --checkpoint FILE or --pretrained TAG")
        return Weights(model, None, options.pretrained, _tag_sha256(model, options.pretrained), tokenizer=tokenizer)
    path = Path(checkpoint).absolute()
    return Weights(model, str(path), None, file_sha256(path), uri, _num_folds(path), tokenizer)


def _check_name(model: str) -> None:
    """Refuse the name of an architecture that open_clip does not know.

    Raises:
        CheckpointError: Says which are like it.
    """
    if (
        not model.startswith(_SCHEMAS)
        and not model.endswith(".json")
        and model.replace("/", "-") not in open_clip.list_models()
    ):
        raise CheckpointError(f"open_clip knows no architecture {model!r}{_like(model, open_clip.list_models())}")


def _like(word: str, known: list[str]) -> str:
    """Return the end of a sentence that names what a word may have been meant for."""
    near = difflib.get_close_matches(word, known, 3, 0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; it knows {', '.join(known[:8])}, ..."


def _check_config(model: str, tokenizer: str | None) -> None:
    """Refuse an architecture that is a file and wants more than to be built.

    Raises:
        CheckpointError: It cannot be read.
        UnsafeCheckpoint: It would fetch something, or allocate absurdly much.
    """
    path = Path(model.removeprefix("local-dir:")) / _CONFIG if model.startswith("local-dir:") else Path(model)
    if path.suffix == ".json" and path.is_file():
        try:
            refuse_fetching(json.loads(path.read_bytes()), str(path), covered=covered_by(tokenizer))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is no model config: {error}") from None


def _num_folds(path: Path) -> int:
    if path.suffix != ".safetensors":
        return 1
    try:
        with safe_open(path, "pt") as file:
            return int((file.metadata() or {}).get(FOLDS_METADATA, 1))
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _tag_sha256(model: str, tag: str | None) -> str | None:
    """Let open_clip fetch the weights of a tag into its cache and return their digest; None for hub models.

    Raises:
        CheckpointError: open_clip knows no such tag, or cannot fetch it.
    """
    if tag is None:
        return None
    config = open_clip.get_pretrained_cfg(model, tag)
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise CheckpointError(
            f"open_clip has no weights {tag!r} for {model!r}{_like(tag, tags) if tags else ', nor any others'}"
        )
    try:
        return file_sha256(Path(open_clip.download_pretrained(config)))
    except Exception as error:  # the hub client raises many unrelated types
        raise CheckpointError(
            f"cannot fetch {tag} of {model} ({type(error).__name__}: {' '.join(str(error).split())[:200]}). Where this machine "
            "has no way to the hub, fetch the file elsewhere and name it: --checkpoint FILE"
        ) from error


def weights_in(folder: Path) -> Path:
    """Return the only weights file of a folder.

    Raises:
        CheckpointError: There is none, or more than one of the best kind.
    """
    for suffix in _WEIGHTS:
        files = sorted(folder.glob(f"*{suffix}"))
        if len(files) == 1:
            return files[0]
        if files:
            raise CheckpointError(f"{folder} holds {len(files)} {suffix} files; name one: {[f.name for f in files[:5]]}")
    raise CheckpointError(f"{folder} holds no weights ({', '.join(_WEIGHTS)})")


def fetch(uri: str) -> str:
    """Copy a remote checkpoint into this machine's cache, once per size and time of change, and return its local path."""
    store = open_store(uri)
    info = store.fs.get_file_info(store.root)
    if info.size is None:
        raise CheckpointError(f"no checkpoint at {uri}")
    folder = Path(os.environ.get("PAIRSAN_CACHE", Path.home() / ".cache" / "pairsan")) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)  # the user's own folder: in a shared one others could put weights in place
    stamp = f"{uri}\0{info.size}\0{info.mtime_ns}"
    target = folder / (hashlib.sha256(stamp.encode()).hexdigest()[:16] + Path(store.root).suffix)
    if not target.exists():
        with store.fs.open_input_stream(store.root) as source, tempfile.NamedTemporaryFile(dir=folder, delete=False) as draft:
            while chunk := source.read(8 << 20):
                draft.write(chunk)
        Path(draft.name).replace(target)
    return str(target)


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


def file_sha256(path: Path) -> str:
    """Return the hex digest of a file; read once in a process, for as long as it stays the same by size and time of change."""
    facts = path.stat()
    return _digest(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
