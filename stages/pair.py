"""The unit of data (a pair) and the unit of work (a shard)."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from manifests.schema import Reason

ShardFormat = Literal["tar", "parquet", "text", "folder"]
TRUNCATED_KEY: Final = "__truncated__"
UNREADABLE_KEY: Final = "__unreadable__"
_UID: Final = re.compile(r"[0-9a-fA-F]{32}")


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file, or one folder of image files.

    Attributes:
        name: Path relative to the dataset root; names the parts made of it.
        path: Path on the dataset's file system.
        format: How to read it.
        size_bytes: Its length.
    """

    name: str
    path: str
    format: ShardFormat
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Pair:
    """One image with its caption, or the reason why there is none to score.

    Attributes:
        index: Row position inside the shard, from 0.
        key: Name of the row in its source.
        uid: 16 bytes; stable over runs.
        image: Encoded image; None where `reason` is set.
        caption: Cleaned caption; None where there was none.
        reason: Set where the row cannot be scored.
        detail: What was wrong, or what was repaired.
        path: Local path of the image file, where it is a file of its own.
        place: Offset and length of the encoded image inside a plain tar.
        edge: Shorter side of the encoded image, px; known once it was decoded.
        image_sha256: Of the encoded image; known once it was decoded, or could not be.
        source: What the row says of where it comes from, by the fields of `manifests.schema.SOURCE`.
    """

    index: int
    key: str
    uid: bytes
    image: bytes | None
    caption: str | None
    reason: Reason | None = None
    detail: str | None = None
    path: str | None = None
    place: tuple[int, int] | None = None
    edge: int | None = None
    image_sha256: bytes | None = None
    source: Mapping[str, Any] | None = None

    def quarantine(self, reason: Reason, detail: str | None) -> "Pair":
        """Return this pair without its image, marked as unscorable."""
        return replace(self, image=None, reason=reason, detail=detail)


def make_uid(shard: str, key: str, source_uid: object = None) -> bytes:
    """Return a stable 128-bit id.

    Args:
        shard: Name of the shard, relative to the dataset root.
        key: Key of the row inside it; must be unique there.
        source_uid: The source's own uid; used where it is 32 hex digits (DataComp's form).
    """
    if isinstance(source_uid, str) and _UID.fullmatch(source_uid):
        return bytes.fromhex(source_uid)
    return hashlib.blake2b(f"{shard}\0{key}".encode("utf-8", "surrogateescape"), digest_size=16).digest()
