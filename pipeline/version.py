"""Which code and which libraries made a result."""

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

# Libraries that decode, encode or fit: another version may move a score by more than rounding.
_LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "pillow", "numpy", "pyarrow", "scipy", "scikit-learn")


@cache
def code_sha256() -> str:
    """Return a hex digest over the sources of the packages that can change a label."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for package in ("manifests", "stages"):
        for path in sorted((root / package).glob("*.py")):
            digest.update(f"{package}/{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return pairsan's own version and those of the libraries that can change a label."""
    known = {name: metadata.version(name) for name in _LIBRARIES}
    return {"pairsan": metadata.version("pairsan"), "code": code_sha256(), **known}
