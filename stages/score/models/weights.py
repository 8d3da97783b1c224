"""Find the architecture and weights that the settings name, and say exactly which file they are; nothing is loaded yet."""

import difflib
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import open_clip
from safetensors import SafetensorError, safe_open

from manifests.errors import CheckpointError
from manifests.store import open_store
from stages.score.models.safe_load import refuse_fetching
from stages.score.models.tokenizers import covered_by, find_tokenizer
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


def file_sha256(path: Path) -> str:
    """Return the hex digest of a file; read once in a process, for as long as it stays the same by size and time of change."""
    facts = path.stat()
    return _digest(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
