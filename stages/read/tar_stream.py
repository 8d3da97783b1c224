"""Stream the members of a tar, plain or gzip, and say exactly how the archive ended.

Python's tarfile stops without a word at a damaged header in the middle of an archive; rows after it would vanish. This
reader decodes headers with tarfile's own parser but keeps count of the end: clean, or broken off, and why. Nothing is
ever extracted; links and devices are reported, not followed.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final, cast

BLOCK: Final = 512
_MAX_HEADER_DATA: Final = 1 << 20  # a GNU long name or pax header of more than 1 MiB is an attack, not a name
_READ_CHUNK: Final = 1 << 20


class BrokenArchive(Exception):
    """The archive breaks off or its next header is damaged; what came before stands."""


@dataclass(frozen=True, slots=True)
class Member:
    """One tar member.

    Attributes:
        name: Its full name.
        size_bytes: Its length.
        kind: `file`, or what else it is (`symlink`, `hard link`, `device`, `sparse file`, ...).
        data: Its bytes; None where it is no file or larger than the caller allows.
        offset: Where its data begin in the archive; None where that is packed.
    """

    name: str
    size_bytes: int
    kind: str
    data: bytes | None
    offset: int | None = None


def read_members(stream: IO[bytes], max_bytes: int) -> Iterator[Member]:
    """Yield the members of a tar in order.

    Args:
        stream: The archive, read once from front to back; gzip is recognised by its first bytes.
        max_bytes: Data of larger members is skipped, in constant memory.

    Raises:
        BrokenArchive: At the place where the archive breaks off; earlier members have been yielded.
    """
    reader = _Reader(stream)
    long_name: str | None = None
    pax: dict[str, str] = {}
    while (header := reader.header()) is not None:
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            text = reader.data(header.size, _MAX_HEADER_DATA).rstrip(b"\0").decode("utf-8", "surrogateescape")
            long_name = text if header.type == tarfile.GNUTYPE_LONGNAME else long_name
        elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            pax = _parse_pax(reader.data(header.size, _MAX_HEADER_DATA))
        elif header.type == tarfile.XGLTYPE:
            reader.skip(header.size)
        else:
            size = int(pax.get("size", header.size)) if pax.get("size", "0").isdigit() else header.size
            yield _member(reader, header, pax.get("path") or long_name or header.name, size, max_bytes)
            long_name, pax = None, {}


def _member(reader: "_Reader", header: tarfile.TarInfo, name: str, size: int, max_bytes: int) -> Member:
    kinds = {tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hard link", tarfile.DIRTYPE: "folder"}
    if header.type in tarfile.REGULAR_TYPES and header.type != tarfile.GNUTYPE_SPARSE:
        offset = reader.offset if reader.is_plain else None
        if size <= max_bytes:
            return Member(name, size, "file", reader.data(size, size), offset)
        reader.skip(size)
        return Member(name, size, "file", None, offset)
    if header.type in kinds or header.type in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        return Member(name, 0, kinds.get(header.type, "device"), None)  # these carry no data blocks
    reader.skip(size)
    return Member(name, size, "sparse file" if header.type == tarfile.GNUTYPE_SPARSE else "unknown type", None)


def _parse_pax(data: bytes) -> dict[str, str]:
    """Parse pax records (`LENGTH KEY=VALUE newline`), stopping at the first malformed one."""
    records: dict[str, str] = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            break
        record, data = data[len(length) + 1 : int(length) - 1], data[int(length) :]
        key, _, value = record.partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    return records


class _Reader:
    """Reads headers and data of a tar from a stream that cannot seek."""

    def __init__(self, stream: IO[bytes]) -> None:
        head = stream.read(BLOCK)
        self._head = head
        self._stream = stream
        if head[:2] == b"\x1f\x8b":
            whole = cast(IO[bytes], _Prefixed(head, stream))  # gzip only ever calls read()
            self._stream = cast(IO[bytes], gzip.GzipFile(fileobj=whole, mode="rb"))
            self._head = b""
        self._num_headers = 0
        self.offset, self.is_plain = 0, self._stream is stream

    def header(self) -> tarfile.TarInfo | None:
        """Return the next header, or None at a proper end of the archive (a block of zeros)."""
        block = self._read(BLOCK)
        if len(block) < BLOCK:
            what = "is empty" if not block and not self._num_headers else "ends without its end-of-archive block"
            raise BrokenArchive(f"the archive {what} (after {self._num_headers} headers)")
        if block == bytes(BLOCK):
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            where = f"header {self._num_headers + 1}" if self._num_headers else "no tar"
            raise BrokenArchive(f"{where}: {error}; starts with {block[:16]!r}") from None
        self._num_headers += 1
        return info

    def data(self, size: int, limit: int) -> bytes:
        """Return `size` bytes of data and move past their padding."""
        if size > limit:
            raise BrokenArchive(f"a header claims {size} bytes where at most {limit} make sense")
        padded = -size % BLOCK
        data = self._read(size + padded)
        if len(data) < size:
            raise BrokenArchive(f"the archive breaks off {size - len(data)} bytes before the end of a member")
        return data[:size]

    def skip(self, size: int) -> None:
        """Move past `size` bytes of data and their padding in constant memory."""
        left = size + -size % BLOCK
        while left > 0:
            chunk = self._read(min(left, _READ_CHUNK))
            if not chunk:
                raise BrokenArchive(f"the archive breaks off {left} bytes before the end of a member")
            left -= len(chunk)

    def _read(self, size: int) -> bytes:
        """Read up to `size` bytes, fewer only at the end of the stream."""
        pieces = [self._head[:size]]
        self._head = self._head[size:]
        left = size - len(pieces[0])
        while left > 0:
            try:
                chunk = self._stream.read(left)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise BrokenArchive(f"gzip: {error}") from None
            if not chunk:
                break
            pieces.append(chunk)
            left -= len(chunk)
        whole = b"".join(pieces)
        self.offset += len(whole)
        return whole


class _Prefixed:
    """A stream with its first bytes put back."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head, self._stream = head, stream

    def read(self, size: int = -1) -> bytes:
        head, self._head = (self._head, b"") if size < 0 else (self._head[:size], self._head[size:])
        if size < 0:
            return head + self._stream.read()
        return head if len(head) == size else head + self._stream.read(size - len(head))
