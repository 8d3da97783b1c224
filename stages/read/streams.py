"""Bytes of a shard as its readers take them: once, from front to back, packed or not, with a little that can be put back."""

import gzip
import io
import re
import tarfile
import zlib
from typing import IO, Any, Final

import pyarrow as pa

BROKEN: Final = (EOFError, gzip.BadGzipFile, zlib.error)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MOST_HEADER_BYTES: Final = 256 << 10  # of one member, PAX records and GNU names included
_READ_CHUNK: Final = 1 << 20
_DIGITS: Final = re.compile(rb"\d{200}")  # Pythons before 3.11.10 take quadratic time for long runs of digits in PAX records


class BrokenZstd(EOFError):
    """A Zstandard file that is cut or damaged."""


class _Zstd(io.RawIOBase):
    """Unpacks Zstandard, any number of frames; Arrow's codec, whose complaints are told from those of the file system."""

    def __init__(self, packed: Any) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            if "ZSTD" not in str(error) and "compressed stream" not in str(error):
                raise
            raise BrokenZstd(str(error)) from None
        buffer[: len(data)] = data
        return len(data)


def unpacked(head: bytes, packed: Any) -> Any | None:
    """Return the bytes of a gzip or Zstandard file of any number of members; None where it is neither.

    Args:
        head: Its first four bytes, whatever its name says.
        packed: A buffered stream of the whole file.
    """
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=packed)
    return io.BufferedReader(_Zstd(packed)) if head.startswith(_ZSTD) else None


class TooLong(tarfile.HeaderError):
    """A header that other readers may take, but that is too long to be one."""


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


class TarBytes:
    """The bytes of an archive from a stream that cannot seek; headers can be put back.

    Attributes:
        offset: In the archive, of what is read next.
        is_plain: Whether that is a place in the file, too.
    """

    def __init__(self, stream: IO[bytes], offset: int | None = None) -> None:
        """Look at the first bytes, which say whether it is packed; where they are not the first, it is known that it is not."""
        head = stream.read(4) if offset is None else b""
        self._packed = Prefixed(head, stream)
        self._stream: Any = unpacked(head, io.BufferedReader(self._packed))
        self.is_plain, self.offset = self._stream is None, offset or 0
        self._stream = stream if self.is_plain else self._stream
        self._ahead = head if self.is_plain else b""
        self._marked: bytes | None = None

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, fewer only at the end of the stream."""
        if self._marked is not None and not 0 <= size <= _MOST_HEADER_BYTES - len(self._marked):
            raise TooLong(f"it claims {size} bytes of names or PAX records, allowed are {_MOST_HEADER_BYTES}")
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
                raise TooLong("its PAX records hold a number of more than 200 digits")
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
