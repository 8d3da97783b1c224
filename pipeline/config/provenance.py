"""Which code and which libraries made a result."""

import hashlib
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Final

_PACKAGES: Final = ("manifests", "pipeline", "stages")
# Libraries that decode, encode or fit: another version may move a score by more than rounding.
_LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "pillow", "numpy", "pyarrow", "scipy", "scikit-learn")


@cache
def code_sha256() -> str:
    """Return a hex digest over every source file of the three packages, in all their folders."""
    digest = hashlib.sha256()
    for path, name in source_files():
        digest.update(f"{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def package_folders() -> list[Path]:
    """Return where the three packages lie; on a node that Ray has sent them to, not beside each other."""
    return [Path(path) for name in _PACKAGES for path in import_module(name).__path__]


def source_files() -> list[tuple[Path, str]]:
    """Return what the digest covers, and as what: any of it may decide a label, near copies and implied settings included."""
    return [
        (path, str(path.relative_to(folder.parent))) for folder in package_folders() for path in sorted(folder.rglob("*.py"))
    ]


def versions() -> dict[str, str]:
    """Return pairsan's own version and those of the libraries that can change a label."""
    known = {name: metadata.version(name) for name in _LIBRARIES}
    return {"pairsan": metadata.version("pairsan"), "code": code_sha256(), **known}
