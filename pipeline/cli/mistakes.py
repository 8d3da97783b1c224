"""What an error of the machine means for whoever typed the command: what, where, and the option to change."""

import errno
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from manifests.errors import PlaceError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_SENTENCES: Final = {
    errno.EADDRINUSE: "the port is taken by another program; --port 0 takes a free one",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "that file system is read-only",
    errno.EEXIST: "a file is in the way of a folder",
    errno.ENOTDIR: "a file is in the way of a folder",
    errno.EISDIR: "a folder is in the way of a file",
    errno.ENOENT: "no such file or folder",
    errno.EMFILE: "too many open files; raise the limit (`ulimit -n`) or lower --workers",
    **dict.fromkeys(_FULL, "no space left; what was finished is whole and stays. Make room, and the same command goes on"),
}
# libraries whose errors are the network's, or an account's
_NETWORK: Final = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "aiohttp", "botocore", "gcsfs", "huggingface_hub")
_CLOUD: Final = re.compile(r"AWS Error|google::cloud::Status|curlCode|Could not resolve|Connection refused")
_QUOTED: Final = re.compile(r"'(/[^']+)'")  # how pyarrow names a path
_OURS: Final = ("manifests", "pipeline", "stages")
_ARGUMENTS: Final = ("data", "run", "file")
_EXTRAS: Final = {"s3fs": "s3", "transformers": "hf", "tokenizers": "hf", "huggingface_hub": "hf", "atheris": "fuzz"}


def explained(error: Exception, params: Mapping[str, Any]) -> PlaceError | None:
    """Return one line about an error that is no fault of ours; None where it may be one, and its traceback is wanted.

    Args:
        error: As it was raised.
        params: What the command was given, by the names of its options: a place that is among them is named by its option.
    """
    if isinstance(error, BrokenPipeError):  # of `| head`; click ends quietly
        return None
    if isinstance(error, ImportError) and error.name and not error.name.startswith(_OURS):
        package = error.name.partition(".")[0]
        extra = f"pairsan[{_EXTRAS[package]}]" if package in _EXTRAS else package
        return PlaceError(f"{package} is needed for this and not installed here: pip install '{extra}'")
    text = " ".join(str(error).split())
    cloud = type(error).__module__.partition(".")[0] in _NETWORK or _CLOUD.search(text) is not None
    if cloud or isinstance(error, (ConnectionError, TimeoutError)):
        place = _of_option(params, lambda value: "://" in value and _bucket(value) in text)
        place = place or _of_option(params, lambda value: "://" in value)
        return PlaceError(
            f"{place or 'an address outside'} cannot be reached: {text[:300]}. Check network, address and credentials"
        )
    if isinstance(error, OSError) and (said := _SENTENCES.get(error.errno or 0)):
        quoted = _QUOTED.search(text)
        name = str(error.filename or (quoted[1] if quoted else ""))
        place = f"--port {params.get('port')}" if error.errno == errno.EADDRINUSE else _place_of(name, params)
        return PlaceError(": ".join(part for part in (place, "" if place.endswith(name) else name, said) if part))
    return None


def _place_of(name: str, params: Mapping[str, Any]) -> str:
    """Return the option that names a file, a folder above or below it, or what a draft beside it was to become."""
    if not name:  # what writes leaves the name out; it can only be where results go
        return next(
            (f"--out {params[key]}" if key == "out" else f"RUN {params[key]}" for key in ("out", "run") if params.get(key)), ""
        )
    beside = _of_option(params, lambda value: Path(value).absolute().parent == Path(name).absolute().parent)
    return _of_option(params, lambda value: _is_below(name, value)) or beside


def _of_option(params: Mapping[str, Any], fits: Callable[[str], bool]) -> str:
    """Return the first option, with its value, whose value fits, e.g. `--out /data/run`."""
    for name, value in params.items():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, (str, Path)) and str(one) and fits(str(one)):
                return f"{name.upper() if name in _ARGUMENTS else '--' + name.replace('_', '-')} {one}"
    return ""


def _bucket(uri: str) -> str:
    return uri.partition("://")[2].partition("/")[0]


def _is_below(name: str, value: str) -> bool:
    whole = str(Path(value).expanduser().absolute())
    return name == value or Path(name).absolute().is_relative_to(whole) or Path(whole).is_relative_to(Path(name).absolute())
