"""Stream the members of a tar, plain or packed, to its very end, and say which bytes could not be read and why.

Headers are parsed by Python's own tarfile, so that names, links, sparse files and PAX records mean what they mean to every
WebDataset reader. But tarfile stops without a word at a damaged header or at an end-of-archive block in the middle (as between
concatenated tars): this reader says so and goes on at the next header. Nothing is ever extracted; links are not followed.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any, Final, cast

from stages.pair import TarPlace
from stages.read.streams import BROKEN, TarBytes, TooLong

BLOCK: Final = tarfile.BLOCKSIZE
_MOST_REWOUND: Final = 16 << 20
_SIZE: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_RECORDS: Final = [BLOCK << power for power in range(6, 13)]  # as `tar --blocking-factor` may make them, beside 10 kB
# what tarfile raises on bytes that are no header; RecursionError: long names of long names of ...
_NO_HEADER: Final = (tarfile.HeaderError, ValueError, IndexError, KeyError, OverflowError, RecursionError)
_KINDS: Final = {tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hard link", tarfile.DIRTYPE: "folder"}


@dataclass(frozen=True, slots=True)
class Member:
    """One tar member.

    Attributes:
        name: Its full name.
        size_bytes: Its length.
        kind: `file`, or what else it is (`symlink`, `hard link`, `folder`, `device`).
        data: Its bytes; None where it is no file or larger than the caller allows.
        offset: Where its data begin in the archive; None where that is packed, or the file sparse.
        place: Where its header begins.
    """

    name: str
    size_bytes: int
    kind: str
    data: bytes | None
    offset: int | None = None
    place: TarPlace | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of an archive that could not be read; other readers stop at it, unless it is `ambiguous`.

    Attributes:
        offset: Where it begins.
        num_bytes: Bytes in which members may have been; 0 where there were none, None where it is packed.
        why: What is wrong.
        ambiguous: Whether other readers read it, and may count other members than are counted here.
        at_end: Whether the archive ends with it.
        member: Name of the member that it is, where that much is known.
        packed_offset: Where it begins in the packed file, where there is one.
    """

    offset: int
    num_bytes: int | None
    why: str
    ambiguous: bool = False
    at_end: bool = False
    member: str | None = None
    packed_offset: int = 0


def read_members(stream: IO[bytes], max_bytes: int, place: TarPlace | None = None) -> Iterator[Member | Gap]:
    """Yield the members of a tar in order, and what lies between them that cannot be read.

    Args:
        stream: The archive, read once from front to back; gzip and Zstandard are recognised by their first bytes.
        max_bytes: Data of larger members is skipped, in constant memory.
        place: Where the stream stands, if not at the beginning.
    """
    reader = TarBytes(stream, None if place is None else place.offset)
    archive = _Archive(reader) if place is None else _archive_at(reader, place)
    try:
        while (found := _next(archive, max_bytes)) is not None:
            yield found
            if isinstance(found, Gap) and found.at_end:
                return
    except BROKEN as error:
        yield Gap(reader.offset, None, f"packed: {error}", at_end=True, packed_offset=reader.packed_offset)


@dataclass
class _Archive:
    """What tarfile's header parser wants of an archive, and how much of it was read."""

    fileobj: "TarBytes"
    encoding: str = "utf-8"
    errors: str = "surrogateescape"
    offset: int = 0
    pax_headers: dict[str, str] = field(default_factory=dict)
    begun: int = 0  # where the last of several concatenated ones begins
    num_headers: int = 0
    has_ended: bool = False
    rewound: int = 0  # bytes that were read again, looking for headers behind damage


def _archive_at(reader: TarBytes, place: TarPlace) -> _Archive:
    archive = _Archive(reader, offset=place.offset, pax_headers=dict(place.pax_headers))
    archive.begun, archive.num_headers, archive.rewound = place.begun, place.num_headers, place.rewound
    return archive


def _next(archive: _Archive, max_bytes: int) -> Member | Gap | None:
    """Return what comes next; None at the end of an archive that ends as it should."""
    reader, start = archive.fileobj, archive.offset
    if reader.offset < start and not reader.skip(start - reader.offset):
        return Gap(reader.offset, 0, "the archive breaks off inside a member", at_end=True)
    start = reader.offset
    block = reader.read(BLOCK)
    while block == bytes(BLOCK):  # an end-of-archive block; more may follow, as in concatenated tars
        archive.has_ended = True
        block = reader.read(BLOCK)
    if len(block) < BLOCK:
        if archive.has_ended and not block.strip(b"\0"):
            return _zeros(start - archive.begun, reader.offset - archive.begun, archive.begun)
        what = "ends without its end-of-archive block" if archive.num_headers or block else "is empty"
        why = f"the archive {what} (after {archive.num_headers} headers)"
        return Gap(start, len(block), why, at_end=True)
    reader.put_back(block)
    start = reader.offset
    try:
        reader.mark()
        info = tarfile.TarInfo.fromtarfile(cast(Any, archive))
    except _NO_HEADER as error:
        if isinstance(error, RecursionError) or archive.rewound > _MOST_REWOUND:
            reader.forget_mark()  # an archive made to be read over and over
            return _gap(archive, start, error, skip=False)
        reached = reader.offset
        reader.back_to_mark()
        archive.rewound += reached - reader.offset
        return _gap(archive, start, error)
    reader.forget_mark()
    stated = info.pax_headers.get("size", "0")
    if info.size < 0 or archive.offset < reader.offset or _SIZE.fullmatch(stated) is None:
        found = _gap(
            archive, start, tarfile.HeaderError(f"a size of {info.size if stated == '0' else stated[:40]!r}"), skip=False
        )
        # nothing but its own data lies before the next header; where none follows, nobody knows what was there
        return found if found.at_end else replace(found, num_bytes=0, member=info.name)
    if archive.has_ended:
        archive.begun = start
    place = TarPlace(start, archive.num_headers, archive.begun, archive.rewound, tuple(archive.pax_headers.items()))
    archive.num_headers, archive.has_ended = archive.num_headers + 1, False
    return _member(archive, info, max_bytes, place if reader.is_plain else None)


def _zeros(start: int, end: int, begun: int) -> Gap | None:
    """Return what is odd about the zeros that end an archive: more than fill its last record are what a damaged disk leaves."""
    record = next((size for size in _RECORDS if end % size == 0 and end - start <= size), tarfile.RECORDSIZE)
    usual = -(-(start + 2 * BLOCK) // record) * record
    return Gap(begun + usual, end - usual, f"{end - start} zeros at its end", at_end=True) if end > usual else None


def _member(archive: _Archive, info: tarfile.TarInfo, max_bytes: int, place: TarPlace | None) -> Member | Gap:
    reader, where = archive.fileobj, info.offset_data
    if not info.isreg():
        return Member(info.name, 0, _KINDS.get(info.type, "device"), None, place=place)
    plain = reader.is_plain and info.sparse is None
    if info.size > max_bytes:
        return Member(info.name, info.size, "file", None, where if plain else None, place)
    stored = archive.offset - where if info.sparse is not None else info.size
    data = reader.read(min(stored, archive.offset - where))
    if len(data) < stored:
        why = f"the archive breaks off {stored - len(data)} bytes before the end of a member"
        return Gap(where, len(data), why, at_end=True)
    if info.sparse is not None:
        data = _unfolded(info, data)
    return Member(info.name, info.size, "file", data, where if plain else None, place)


def _unfolded(info: tarfile.TarInfo, stored: bytes) -> bytes:
    """Return a sparse file with its holes."""
    data, place = bytearray(info.size), 0
    holes: list[tuple[int, int]] = info.sparse or []  # type: ignore[assignment]  # typeshed knows it as bytes
    for offset, size in holes:
        piece = stored[place : place + size][: max(0, info.size - offset)]
        data[offset : offset + len(piece)] = piece
        place += size
    return bytes(data[: info.size])


def _gap(archive: _Archive, start: int, error: Exception, *, skip: bool = True) -> Gap:
    """Look for the next header, block by block, the first one left out or not, and return what was passed over."""
    reader = archive.fileobj
    block = reader.read(BLOCK)
    if not skip:
        reader.put_back(block)
    long = isinstance(error, TooLong)  # its own bytes hold no member
    where = f"header {archive.num_headers + 1}" if archive.num_headers else "no tar"
    why = f"{where}: {type(error).__name__ if isinstance(error, RecursionError) else error}; starts with {block[:16]!r}"
    at_end = False
    while True:
        block = reader.read(BLOCK)
        if len(block) < BLOCK:
            at_end = True
            break
        if _is_header(block):
            reader.put_back(block)
            break
    archive.offset, archive.has_ended = reader.offset, at_end
    return Gap(start, 0 if long else reader.offset - start, why, long, at_end)


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except _NO_HEADER:
        return False
    return True
