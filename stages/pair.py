"""The unit of data (a pair) and the unit of work (a shard)."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

from manifests.labels import Reason

ShardFormat = Literal["tar", "parquet", "text", "folder"]
TRUNCATED_KEY: Final = "__truncated__"
UNREADABLE_KEY: Final = "__unreadable__"
PIECES: Final = "-pieces"
_UID: Final = re.compile(r"[0-9a-fA-F]{32}")


class TarPlace(NamedTuple):
    """Where a reader of a plain tar may begin, and what one that comes from the front knows there.

    Attributes:
        offset: Of the next member's header, bytes.
        num_headers: Headers before it.
        begun: Where the last of several concatenated archives begins, bytes.
        rewound: Bytes that were read again.
        pax_headers: Global PAX records.
        ambiguous: Whether readers differ, from before here, on which row is which.
        seen: Keys from before that come once more.
    """

    offset: int
    num_headers: int
    begun: int
    rewound: int
    pax_headers: tuple[tuple[str, str], ...]
    ambiguous: bool = False
    seen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive rows of a shard that is worked on in pieces.

    Attributes:
        first: The first of them.
        num_rows: How many; None for all that follow.
        place: Where they begin, in a tar.
    """

    first: int
    num_rows: int | None = None
    place: TarPlace | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file, or one folder of image files.

    Attributes:
        name: Path relative to the dataset root; names the parts made of it.
        path: Path on the dataset's file system.
        format: How to read it.
        size_bytes: Its length.
        stretch: Which of its rows are meant; None for all.
    """

    name: str
    path: str
    format: ShardFormat
    size_bytes: int
    stretch: Stretch | None = None

    @property
    def title(self) -> str:
        """What people call it."""
        return self.name if self.stretch is None else f"{self.name} from row {self.first:,}"

    @property
    def first(self) -> int:
        """The first of its rows that is meant."""
        return 0 if self.stretch is None else self.stretch.first

    @property
    def whole(self) -> "Shard":
        """The same with all its rows."""
        return replace(self, stretch=None)

    def part(self, folder: str) -> str:
        """Return the name of its part in a folder of parts; of a stretch, beside that folder, until all are joined."""
        if self.stretch is None:
            return f"{folder}/{self.name}.parquet"
        return f"{folder}{PIECES}/{self.name}/{self.first:012d}.parquet"


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
