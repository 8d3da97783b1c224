"""Stream the members of a tar, plain or gzip, to its very end, and say which bytes could not be read and why.

Headers are parsed by Python's own tarfile, so that names, links, sparse files and PAX records mean what they mean to every
WebDataset reader. But tarfile stops without a word at a damaged header or at an end-of-archive block in the middle (as between
concatenated tars): this reader says so and goes on at the next header. Nothing is ever extracted; links are not followed.
"""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any, Final, cast

BLOCK: Final = tarfile.BLOCKSIZE
_MOST_HEADER_BYTES: Final = 256 << 10  # of one member, PAX records and GNU names included
_SIZE: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_RECORDS: Final = [BLOCK << power for power in range(6, 13)]  # as `tar --blocking-factor` may make them, beside 10 kB
_READ_CHUNK: Final = 1 << 20
_DIGITS: Final = re.compile(rb"\d{200}")  # Pythons before 3.11.10 take quadratic time for long runs of digits in PAX records
BROKEN_GZIP: Final = (EOFError, gzip.BadGzipFile, zlib.error)
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
    """

    name: str
    size_bytes: int
    kind: str
    data: bytes | None
    offset: int | None = None


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


def read_members(stream: IO[bytes], max_bytes: int) -> Iterator[Member | Gap]:
    """Yield the members of a tar in order, and what lies between them that cannot be read.

    Args:
        stream: The archive, read once from front to back; gzip is recognised by its first bytes.
        max_bytes: Data of larger members is skipped, in constant memory.
    """
    reader = _Reader(stream)
    archive = _Archive(reader)
    try:
        while (found := _next(archive, max_bytes)) is not None:
            yield found
            if isinstance(found, Gap) and found.at_end:
                return
    except BROKEN_GZIP as error:
        yield Gap(reader.offset, None, f"gzip: {error}", at_end=True, packed_offset=reader.packed_offset)


@dataclass
class _Archive:
    """What tarfile's header parser wants of an archive, and how much of it was read."""

    fileobj: "_Reader"
    encoding: str = "utf-8"
    errors: str = "surrogateescape"
    offset: int = 0
    pax_headers: dict[str, str] = field(default_factory=dict)
    begun: int = 0  # where the last of several concatenated ones begins
    num_headers: int = 0
    has_ended: bool = False


class _TooLong(tarfile.HeaderError):
    """A header that other readers may take, but that is too long to be one."""


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
        reader.back_to_mark()
        return _gap(archive, start, error)
    reader.forget_mark()
    stated = info.pax_headers.get("size", "0")
    if info.size < 0 or archive.offset < reader.offset or _SIZE.fullmatch(stated) is None:
        found = _gap(
            archive, start, tarfile.HeaderError(f"a size of {info.size if stated == '0' else stated[:40]!r}"), skip=False
        )
        return replace(found, num_bytes=0, member=info.name)
    if archive.has_ended:
        archive.begun = start
    archive.num_headers, archive.has_ended = archive.num_headers + 1, False
    return _member(archive, info, max_bytes)


def _zeros(start: int, end: int, begun: int) -> Gap | None:
    """Return what is odd about the zeros that end an archive: more than fill its last record are what a damaged disk leaves."""
    record = next((size for size in _RECORDS if end % size == 0 and end - start <= size), tarfile.RECORDSIZE)
    usual = -(-(start + 2 * BLOCK) // record) * record
    return Gap(begun + usual, end - usual, f"{end - start} zeros at its end", at_end=True) if end > usual else None


def _member(archive: _Archive, info: tarfile.TarInfo, max_bytes: int) -> Member | Gap:
    reader, where = archive.fileobj, info.offset_data
    if not info.isreg():
        return Member(info.name, 0, _KINDS.get(info.type, "device"), None)
    plain = reader.is_plain and info.sparse is None
    if info.size > max_bytes:
        return Member(info.name, info.size, "file", None, where if plain else None)
    stored = archive.offset - where if info.sparse is not None else info.size
    data = reader.read(min(stored, archive.offset - where))
    if len(data) < stored:
        why = f"the archive breaks off {stored - len(data)} bytes before the end of a member"
        return Gap(where, len(data), why, at_end=True)
    if info.sparse is not None:
        data = _unfolded(info, data)
    return Member(info.name, info.size, "file", data, where if plain else None)


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
    long = isinstance(error, _TooLong)  # its own bytes hold no member
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


class _Reader:
    """The bytes of an archive from a stream that cannot seek; headers can be put back.

    Attributes:
        offset: In the archive, of what is read next.
        is_plain: Whether that is a place in the file, too.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        head = stream.read(2)
        self.is_plain, self.offset = head != b"\x1f\x8b", 0
        self._packed = Prefixed(head, stream)
        self._stream: Any = stream if self.is_plain else gzip.GzipFile(fileobj=io.BufferedReader(self._packed))
        self._ahead = head if self.is_plain else b""
        self._marked: bytes | None = None

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, fewer only at the end of the stream."""
        if self._marked is not None and not 0 <= size <= _MOST_HEADER_BYTES - len(self._marked):
            raise _TooLong(f"it claims {size} bytes of names or PAX records, allowed are {_MOST_HEADER_BYTES}")
        pieces, left = [self._ahead[:size]], size - len(self._ahead[:size])
        self._ahead = self._ahead[size:]
        while left > 0 and (chunk := self._stream.read(min(left, _READ_CHUNK))):
            pieces.append(chunk)
            left -= len(chunk)
        data = b"".join(pieces)
        self.offset += len(data)
        if self._marked is not None:
            self._marked += data
            if _DIGITS.search(data):
                raise _TooLong("its PAX records hold a number of more than 200 digits")
        return data

    @property
    def packed_offset(self) -> int:
        """How much of a packed file was taken."""
        return self._packed.num_read

    def tell(self) -> int:
        """Return the offset, as tarfile asks for it."""
        return self.offset

    def skip(self, size: int) -> bool:
        """Move on in constant memory; return whether there were so many bytes."""
        while size > 0 and (chunk := self.read(min(size, _READ_CHUNK))):
            size -= len(chunk)
        return size == 0

    def put_back(self, data: bytes) -> None:
        """Let these bytes be read again."""
        self._ahead, self.offset = data + self._ahead, self.offset - len(data)

    def mark(self) -> None:
        """Keep what is read from here on, for `back_to_mark`."""
        self._marked = b""

    def forget_mark(self) -> None:
        """Keep nothing any longer."""
        self._marked = None

    def back_to_mark(self) -> None:
        """Let everything since the mark be read again."""
        kept, self._marked = self._marked or b"", None
        self.put_back(kept)


class Prefixed(io.RawIOBase):
    """A stream with its first bytes put back.

    Attributes:
        num_read: Bytes that were taken.
    """

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        """Read `head` first, then the stream."""
        self._head, self._stream, self.num_read = head, stream, 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or less of it; return how much."""
        data = self._head[: len(buffer)] or self._stream.read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        self.num_read += len(data)
        return len(data)
