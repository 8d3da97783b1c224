"""Which code and which libraries made a result."""

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]
_PACKAGES: Final = ("manifests", "stages", "pipeline")
# Libraries that decode, encode or fit: another version may move a score by more than rounding.
_LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "pillow", "numpy", "pyarrow", "scipy", "scikit-learn")


@cache
def code_sha256() -> str:
    """Return a hex digest over every source file of the three packages, in all their folders."""
    digest = hashlib.sha256()
    for path in source_files():
        digest.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def source_files() -> list[Path]:
    """Return what the digest covers: any of it may decide a label, near copies and implied settings included."""
    return sorted(path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py"))


def versions() -> dict[str, str]:
    """Return pairsan's own version and those of the libraries that can change a label."""
    known = {name: metadata.version(name) for name in _LIBRARIES}
    return {"pairsan": metadata.version("pairsan"), "code": code_sha256(), **known}
