"""Open files of weights without running what is in them, whatever a trainer has wrapped around the tensors."""

import codecs
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from manifests.errors import CheckpointError, UnsafeCheckpoint

_STATES: Final = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "ema")
_PREFIXES: Final = ("_orig_mod.", "module.", "model.")
_DRAWS: Final = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "bernoulli_")
_FETCHED: Final = (
    *("hf_model_name", "hf_tokenizer_name", "hf_model_pretrained", "hf_tokenizer", "tokenizer_name", "bpe_path"),
    *("timm_model_pretrained", "trust_remote_code", "text_model_name", "vision_model_name"),
)
_MOST: Final = {"width": 1 << 15, "layers": 1 << 10, "heads": 1 << 10, "vocab_size": 1 << 22, "context_length": 1 << 16} | {
    "image_size": 1 << 13,
    "embed_dim": 1 << 16,
    "patch_size": 1 << 10,
    "mlp_ratio": 64,
}
# numbers of NumPy that trainers put beside weights (best loss, random state): data alone, no code
_KINDS: Final = ("f8", "f4", "f2", "i8", "i4", "u4", "u8", "b1")
_NUMBERS: Final[list[Any]] = [
    *(np.dtype, np.ndarray, np.float64().__reduce__()[0], np.zeros(1).__reduce__()[0], codecs.encode),
    *(type(np.dtype(kind)) for kind in _KINDS),
]


def refuse_fetching(config: Any, where: str, table: str = "", covered: tuple[str, ...] = ()) -> None:
    """Refuse an architecture file that would make libraries fetch or run something, or allocate absurdly much.

    Args:
        config: The parsed file, or a part of it.
        where: Path of the file.
        table: Where in it the part stands.
        covered: Keys that are not followed, as something local takes their place.

    Raises:
        UnsafeCheckpoint: Names the key.
    """
    for key, value in config.items() if isinstance(config, dict) else ():
        name = f"{table}.{key}" if table else str(key)
        if isinstance(value, dict):
            refuse_fetching(value, where, name, covered)
        elif key in _FETCHED and key not in covered and value:
            raise UnsafeCheckpoint(
                f"{where}: {name} = {value!r} would fetch or run what the file names; with --allow-hub, if you trust it"
            )
        most = next((limit for word, limit in _MOST.items() if key.endswith(word)), None)
        if most is not None and isinstance(value, (int, float)) and not 0 <= value <= most:
            raise UnsafeCheckpoint(f"{where}: {name} = {value!r}, believed are 0 to {most:,}")


def load_into(model: torch.nn.Module, path: Path) -> None:
    """Load weights as open_clip does, whatever a trainer has wrapped around their names."""
    if path.suffix == ".safetensors" and not _is_wrapped(path):
        open_clip.load_checkpoint(model, str(path), weights_only=True)  # read once; a pickle is read twice
        return
    with torch.serialization.safe_globals(_NUMBERS):
        whole = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        plain = plain_state(whole)
        if plain is whole or plain is whole.get("state_dict"):
            open_clip.load_checkpoint(model, str(path), weights_only=True)
            return
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:  # open_clip converts foreign names of files alone
        save_file({key: value.contiguous().clone() for key, value in plain.items()}, file.name)
        open_clip.load_checkpoint(model, file.name, weights_only=True)


def _is_wrapped(path: Path) -> bool:
    """Return whether a safetensors file needs more than open_clip does for it: it is empty, or all its names have a prefix."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())
    return not names or any(all(name.startswith(prefix) for name in names) for prefix in _PREFIXES)


class Undrawn(TorchFunctionMode):
    """Leaves tensors as they come where they would be filled with random numbers, for as long as it is entered."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the tensor in place of drawing; call everything else."""
        named = kwargs or {}
        if getattr(func, "__name__", "") not in _DRAWS:
            return func(*args, **named)
        return args[0] if args else named["tensor"]  # torch.nn.init passes itself on, by name


def plain_state(whole: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a file as the model names them: out of their dict, without prefixes of compile, DDP or Lightning.

    Raises:
        CheckpointError: There are no tensors where any trainer that is known keeps them; names what there is.
    """
    for key in _STATES:
        if isinstance(whole, dict) and isinstance(whole.get(key), dict) and _holds_tensors(whole[key]):
            state = whole[key]
            break
    else:
        if not isinstance(whole, dict) or not _holds_tensors(whole):
            keys = list(whole)[:8] if isinstance(whole, dict) else type(whole).__name__
            raise CheckpointError(f"no weights under any of {', '.join(_STATES)}; the file has {keys}")
        state = whole
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state  # type: ignore[no-any-return]


def _holds_tensors(state: dict[Any, Any]) -> bool:
    return bool(state) and all(isinstance(value, torch.Tensor) for value in state.values())


def refuse_unsafe(path: Path) -> None:
    """Refuse pickles that hold more than tensors, and TorchScript archives, before open_clip touches the file."""
    if path.suffix in (".safetensors", ".npz"):
        return
    with path.open("rb") as file:
        head = file.read(16)
    if not head.startswith(_PICKLED):
        raise CheckpointError(
            f"{path} holds no weights: it begins with {head!r}, neither as torch.save writes nor as safetensors"
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist()):
                raise UnsafeCheckpoint(f"{path} is a TorchScript archive, which holds code; {_REMEDY}")
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        if "weights_only" in str(error) or "Weights only" in str(error) or "Unsupported" in str(error):
            first = str(error).strip().splitlines()[0][:200]
            raise UnsafeCheckpoint(
                f"{path} is a full pickle: unpickling it could run any code on this machine, so it was not opened "
                f"({first}); {_REMEDY}"
            ) from None
        raise CheckpointError(f"cannot read {path}: {type(error).__name__}: {str(error)[:300]}") from error


_PICKLED: Final = (b"PK\x03\x04", b"\x80")  # a zip archive, or a pickle as torch wrote it before 1.6
_REMEDY: Final = (
    "where you trust its source, convert it once: "
    "safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, 'model.safetensors')"
)
