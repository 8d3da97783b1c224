"""Read captions by a model's own tokenizer: open_clip's, or one of Hugging Face's out of a local folder.

SigLIP and towers with a Hugging Face text model need the latter. open_clip would fetch it from a hub; here a folder takes its
place: `tokenizer = DIR`, or the checkpoint's own folder where it holds a `tokenizer.json`.
"""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any, Final

import open_clip

from manifests.errors import CheckpointError, UnsafeCheckpoint

_TOKENIZER: Final = "tokenizer.json"
_CONFIGS: Final = ("config.json", "tokenizer_config.json")
_TEXT_MODEL: Final = "config.json"
_PASSED_ON: Final = ("clean", "strip_sep_token", "language")  # whatever else a file asks for is no business of it
_FOLDER: Final = "local-dir:"


def text_config(model: str) -> dict[str, Any]:
    """Return what an architecture says of its text tower; nothing for models on a hub.

    Args:
        model: open_clip's name, `local-dir:FOLDER`, or path of a model config.

    Raises:
        CheckpointError: The file is none.
    """
    if model.startswith("hf-hub:"):
        return {}
    if not model.startswith(_FOLDER) and not model.endswith(".json"):
        return dict((open_clip.get_model_config(model.replace("/", "-")) or {}).get("text_cfg", {}))
    path = Path(model.removeprefix(_FOLDER)) / "open_clip_config.json" if model.startswith(_FOLDER) else Path(model)
    try:
        config = json.loads(path.read_bytes())
        return dict(config.get("model_cfg", config)["text_cfg"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no model config: {type(error).__name__}: {error}") from None


def find_tokenizer(named: str | None, model: str) -> str | None:
    """Return the folder of the tokenizer; None where open_clip has it.

    Args:
        named: What the settings say.
        model: The architecture.

    Raises:
        CheckpointError: There is none in it, or the architecture has no use for it.
        UnsafeCheckpoint: It asks for code of its own to be run.
    """
    wanted = bool(text_config(model).get("hf_tokenizer_name"))
    own = Path(model.removeprefix(_FOLDER)) if model.startswith(_FOLDER) else None
    if named is None and (not wanted or own is None or not (own / _TOKENIZER).is_file()):
        return None
    folder = Path(named) if named is not None else own
    if folder is None or not (folder / _TOKENIZER).is_file():
        raise CheckpointError(f"{folder} has no {_TOKENIZER}; --tokenizer names the folder of a Hugging Face tokenizer")
    if not wanted:
        raise CheckpointError(f"{model} reads captions by open_clip's own tokenizer; leave out --tokenizer")
    for name in _CONFIGS:
        if (folder / name).is_file() and "auto_map" in _parsed(folder / name):
            raise UnsafeCheckpoint(f"{folder / name} asks for code of its own (auto_map), which is never run")
    return str(folder.absolute())


def covered_by(folder: str | None) -> tuple[str, ...]:
    """Return which keys of a model config fetch nothing, as a folder takes the place of what they name."""
    text_model = ("hf_model_name",) if folder is not None and (Path(folder) / _TEXT_MODEL).is_file() else ()
    return ("hf_tokenizer_name", *text_model) if folder is not None else ()


def tokenizer_sha256(folder: str) -> str:
    """Return a hex digest of the files that decide how captions are read."""
    digest = hashlib.sha256()
    for name in (_TOKENIZER, *_CONFIGS):
        path = Path(folder) / name
        digest.update(f"{name}\0".encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def local_text_model(model: str, folder: str | None) -> dict[str, Any]:
    """Return what to override of an architecture so that its text model is built from a local folder; nothing without one."""
    config = text_config(model)
    if "hf_model_name" not in covered_by(folder) or not config.get("hf_model_name"):
        return {}
    return {"text_cfg": {**config, "hf_model_name": folder, "hf_model_pretrained": False}}


def open_tokenizer(model: str, folder: str | None) -> Any:
    """Return a model's tokenizer, which makes tokens, int64 (n, context length), of captions.

    Args:
        model: The architecture; one that is a file must have been built before.
        folder: Of the tokenizer; None for open_clip's, or the one that an architecture of open_clip names on the hub.

    Raises:
        CheckpointError: It cannot be had.
    """
    config = text_config(model)
    needed = config.get("hf_tokenizer_name")
    if needed and importlib.util.find_spec("transformers") is None:
        raise CheckpointError(f"{model} reads captions by a Hugging Face tokenizer: pip install 'pairsan[hf]'")
    try:
        if folder is None:
            name = Path(model).stem if model.endswith(".json") else model
            return open_clip.get_tokenizer(name)
        options = {key: value for key, value in config.get("tokenizer_kwargs", {}).items() if key in _PASSED_ON}
        length = int(config.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH))
        mode = config.get("tokenizer_mode")
        return open_clip.tokenizer.HFTokenizer(
            folder, length, tokenizer_mode=mode, trust_remote_code=False, local_files_only=True, **options
        )
    except Exception as error:  # the hub and transformers raise many unrelated types
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(
            f"no tokenizer for {model}: {what}. --tokenizer DIR names a folder with {needed or 'its'} {_TOKENIZER}"
        ) from error


def _parsed(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    return found if isinstance(found, dict) else {}
