"""Read rows of TSV, CSV and JSON Lines: any line ends, packed or not, UTF-8 or UTF-16, and quotes that never swallow lines.

A quoted field may hold separators, and line breaks where the record that comes of it has the header's number of fields, ends
within 100 lines, and (in TSV) none of its lines is a row by itself. Else a quote is a character like any other, and the line
stands alone. Separators are tabs in .tsv, else whichever of `, ; | tab` the header has most of.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Final

from manifests.store import Store
from stages.pair import Pair, Shard
from stages.read.formats.tables import TableReader, unreadable
from stages.read.streams import BROKEN, Prefixed, unpacked
from stages.settings import ReadSettings

_MOST_LINES: Final = 100
_JSON: Final = (".jsonl", ".ndjson")
_SEPARATORS: Final = (",", ";", "|", "\t")
csv.field_size_limit(1 << 30)  # a 200 kB caption is cut and noted later; it must not end the shard


def read_text(store: Store, stream: IO[bytes], shard: Shard, options: ReadSettings) -> Iterator[Pair]:
    """Yield one pair for every row of a TSV, CSV or JSON Lines file, and a last one for what cannot be unpacked."""
    index, raw = 0, Prefixed(b"", stream)
    try:
        table = opened(raw, shard, options)
        if not table.names or table.names == [""]:
            what = "no line is a JSON object" if table.separator is None else "no header line"
            yield unreadable(shard, 0, what, shard.size_bytes)
            return
        reader = TableReader(store, shard, table.names, options)
        for row in table.rows():
            if index < shard.first:  # only where each row is a pair; see `stages.score.pieces`
                if not isinstance(row, str):
                    reader.pass_over(index, row)
                index += 1
                continue
            pairs = [reader.malformed(index, row)] if isinstance(row, str) else reader.pairs(index, row)
            yield from pairs
            index += len(pairs)
    except (*BROKEN, UnicodeError) as error:
        # how much is behind it nobody can say; it is something
        yield unreadable(shard, index, f"{type(error).__name__}: {error}", max(1, shard.size_bytes - raw.num_read))


def count_lines(stream: IO[bytes], shard: Shard, options: ReadSettings) -> int:
    """Return how many rows a table of text has, as far as it can be unpacked; no image is opened."""
    num = 0
    try:
        for _ in opened(Prefixed(b"", stream), shard, options).rows():
            num += 1
    except (*BROKEN, UnicodeError):
        pass  # what stands for the rest belongs to the last piece
    return num


def _text(stream: Any, encoding: str | None) -> io.TextIOWrapper:
    head = stream.read(4)
    raw: Any = io.BufferedReader(Prefixed(head, stream))
    data = unpacked(head, raw) or raw
    wide = data.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
    known = encoding or ("utf-16" if wide else "utf-8-sig")
    # two bytes a character leave no way to carry one that is wrong along
    return io.TextIOWrapper(data, known, errors="strict" if wide else "surrogateescape", newline="")


@dataclass(frozen=True)
class TextTable:
    """A table of text that was opened.

    Attributes:
        lines: Those that are rows.
        separator: What stands between the fields of a line; None where each is a JSON object.
        names: Of the columns.
    """

    lines: "_Lines"
    separator: str | None
    names: list[str]

    def rows(self) -> Iterator[dict[str, Any] | str]:
        """Yield every row by column, or what is wrong with it."""
        if self.separator is None:
            yield from (_object(line) for line in self.lines if line.strip())
            return
        for fields in records(self.lines, self.separator, len(self.names)):
            if len(fields) == len(self.names):
                yield dict(zip(self.names, fields, strict=True))
            else:
                yield f"{len(fields)} fields where the header has {len(self.names)}"


def opened(stream: Any, shard: Shard, options: ReadSettings) -> TextTable:
    """Open a table of text: look what its columns are."""
    lines, name = _Lines(_text(stream, options.encoding)), shard.name.lower().removesuffix(".gz").removesuffix(".zst")
    if name.endswith(_JSON):
        rows = [row for line in lines.ahead(_MOST_LINES) if isinstance(row := _object(line), dict)]
        return TextTable(lines, None, list(dict.fromkeys(key for row in rows for key in row)))
    first = next(lines, "").rstrip("\r\n")
    separator = options.separator or _separator_of(name, first)
    return TextTable(lines, separator, [name.strip() for name in _fields(first, separator) or first.split(separator)])


def _object(line: str) -> dict[str, Any] | str:
    """Return the object that a line of JSON holds, or what else it is."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"[:300]
    return found if isinstance(found, dict) else f"JSON of {type(found).__name__}, not of an object"


def _separator_of(name: str, header: str) -> str:
    """Return what separates the fields of a file, by its name and its first line."""
    if name.endswith(".tsv") and "\t" in header:
        return "\t"
    return max(_SEPARATORS, key=header.count)


def records(lines: "_Lines", separator: str, num_fields: int) -> Iterator[list[str]]:
    """Yield the fields of every row; see the head of this module. Empty lines are none."""
    for line in lines:
        if not line.rstrip("\r\n"):
            continue
        fields = _fields(line, separator)
        if fields is None:
            more = lines.ahead(_MOST_LINES)
            num = _spanned(line, more, separator, num_fields)
            fields = _fields(line + "".join(more[:num]), separator) if num else None
            for _ in range(num):
                next(lines)
        yield fields if fields is not None else line.rstrip("\r\n").split(separator)


def _spanned(line: str, more: list[str], separator: str, num_fields: int) -> int:
    """Return how many of the next lines belong to this one; 0 where its quote is a mere character."""
    for num, last in enumerate(more, start=1):
        if separator == "\t" and len(last.split("\t")) == num_fields:
            return 0
        if '"' in last and (fields := _fields(line + "".join(more[:num]), separator)) is not None:
            return num if len(fields) == num_fields else 0
    return 0


def _fields(text: str, separator: str) -> list[str] | None:
    """Return the fields of one record; None where a quote is left open, or is followed by something else than a separator."""
    if '"' not in text:
        fields = text.rstrip("\r\n").split(separator)
        return fields if separator == "\t" else [field.strip(" ") for field in fields]
    try:
        rows = list(
            csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=separator != "\t")
        )
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


class _Lines:
    """Lines, some of which can be looked at ahead."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self._waiting = lines, list[str]()

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        return self._waiting.pop(0) if self._waiting else next(self._lines)

    def ahead(self, num: int) -> list[str]:
        """Return the next lines without taking them."""
        self._waiting += islice(self._lines, max(0, num - len(self._waiting)))
        return self._waiting[:num]
