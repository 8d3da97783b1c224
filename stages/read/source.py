"""What a row says of where it comes from: address, hashes and size as an index has them, and columns that a user wants kept.

    url, sha256, md5, original_width, original_height    as img2dataset and DataComp name them, in any case; found by themselves
    license (or licence), status                         the same, kept among the others
    --keep-column NAME                                   any other, as text

A tar says it in the JSON of each row, a table in its columns. Hashes are of the download, before anything was encoded anew.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

from publicsuffixlist import PublicSuffixList

_TEXTS: Final = ("url", "sha256", "md5")
_NUMBERS: Final = {"original_width": "width", "original_height": "height"}
_OTHERS: Final = ("license", "licence", "status")
_MOST_CHARACTERS: Final = 4096  # of a value; a longer address is none, any other text is cut
_MOST_PIXELS: Final = 2**31


class SourceReader:
    """Picks from the facts of a row what is said of its source."""

    def __init__(self, keep: Iterable[str]) -> None:
        """Set which further columns are kept, by the exact name."""
        self._keep = tuple(keep)

    def columns(self, names: Iterable[str]) -> list[str]:
        """Return those of a table's columns that say something of the source."""
        usual = {*_TEXTS, *_NUMBERS, *_OTHERS}
        return [name for name in names if name.strip().casefold() in usual or name in self._keep]

    def __call__(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the `source` of a row, None where its facts say nothing of it.

        Args:
            facts: By name, whatever else is in them too.
        """
        folded = {name.strip().casefold(): value for name, value in facts.items() if isinstance(name, str)}
        found: dict[str, Any] = {name: _text(folded.get(name)) for name in _TEXTS}
        if found["url"] is not None:
            found["url"] = found["url"] if len(found["url"]) < _MOST_CHARACTERS else None
            found["domain"] = registered_domain(found["url"] or "")
        found |= {field: _pixels(folded.get(name)) for name, field in _NUMBERS.items()}
        others = {name: _text(folded.get(name)) for name in _OTHERS} | {name: _text(facts.get(name)) for name in self._keep}
        found["others"] = [(name, text) for name, text in others.items() if text is not None] or None
        return found if any(value is not None for value in found.values()) else None


def registered_domain(url: str) -> str | None:
    """Return the part of an address that somebody has registered, and may lose: `bbc.co.uk` of `http://img.bbc.co.uk/1.jpg`.

    By the public suffix list that the library brings, without a network; of a number, the number; None where there is no host.
    """
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:  # of brackets that do not close
        return None
    return _domain_of(host) if host else None


@lru_cache(maxsize=65_536)
def _domain_of(host: str) -> str:
    if ":" in host or host.replace(".", "").isdigit():
        return host
    return str(_suffixes().privatesuffix(host) or host)


@lru_cache(maxsize=1)
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList(only_icann=True)


def _text(value: object) -> str | None:
    """Return a value as text that any writer takes; None of nothing."""
    if value is None or isinstance(value, (list, dict)):
        return None if value is None else str(value)[:_MOST_CHARACTERS].encode("utf-8", "replace").decode()
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text[:_MOST_CHARACTERS].encode("utf-8", "replace").decode() if text.strip() else None


def _pixels(value: object) -> int | None:
    """Return a width or height in px; None where it is no such number."""
    try:
        number = int(float(value))  # type: ignore[arg-type]  # whatever is no number raises
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 < number < _MOST_PIXELS else None
