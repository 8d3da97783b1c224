"""What a row says of where it comes from: address, hashes and size as an index has them, and columns that a user wants kept.

    url, sha256, md5, original_width, original_height    as img2dataset and DataComp name them, in any case; found by themselves
    license (or licence), status                         the same, kept among the others
    --keep-column NAME                                   any other, as text

A tar says it in the JSON of each row, a table in its columns. Hashes are of the download, before anything was encoded anew.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

from publicsuffixlist import PublicSuffixList

from manifests.errors import DataError
from manifests.store import open_store
from stages.pair import Pair

_TEXTS: Final = ("url", "sha256", "md5")
_NUMBERS: Final = {"original_width": "width", "original_height": "height"}
_OTHERS: Final = ("license", "licence", "status")
_MOST_CHARACTERS: Final = 4096  # of a value; a longer address is none, any other text is cut
_MOST_PIXELS: Final = 2**31
_DIGEST: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
_HOST: Final = re.compile(r"[^\s/:@]+\.[^\s/:@]+|localhost|\[[0-9a-f:.]+\]")


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
        told = {name: text for name, text in others.items() if text is not None}
        found["others"] = json.dumps(told, ensure_ascii=False) if told else None
        return found if any(value is not None for value in found.values()) else None


def registered_domain(url: str) -> str | None:
    """Return the part of an address that somebody has registered, and may lose: `bbc.co.uk` of `http://img.bbc.co.uk/1.jpg`.

    By the public suffix list that the library brings, without a network; of a number, the number; None where there is no host.
    """
    host = _host(url)
    return _domain_of(host) if host else None


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:  # of brackets that do not close
        return ""


@dataclass(frozen=True)
class Denied:
    """What is never to be trained on, whatever it scores.

    Attributes:
        domains: Registered domains, or hosts, lower case.
        digests: uids, and sha256 or md5 of downloads or of the images as they lie in the data: hex, lower case.
    """

    domains: frozenset[str]
    digests: frozenset[str]

    @classmethod
    def read(cls, files: Iterable[str]) -> "Denied":
        """Read files with a domain, uid or hash a line; what follows a `#` is left out.

        Raises:
            DataError: A file cannot be read, or a line is neither.
        """
        domains, digests = set(), set()
        for name in files:
            store = open_store(name)
            try:
                lines = store.read_bytes("").decode("utf-8-sig").splitlines()
            except (OSError, UnicodeError) as error:
                raise DataError(f"--deny {name}: cannot be read: {str(error)[:200]}") from error
            for number, line in enumerate(lines, start=1):
                word = line.partition("#")[0].strip().lower()
                if _DIGEST.fullmatch(word):
                    digests.add(word)
                elif _HOST.fullmatch(word):
                    domains.add(word)
                elif word:
                    raise DataError(
                        f"--deny {name}, line {number}: {line[:80]!r} is neither a domain, nor a uid or hash in hex"
                    )
        return cls(frozenset(domains), frozenset(digests))

    def __call__(self, pair: Pair, image_sha256: bytes) -> str | None:
        """Return what of a pair is denied, None where nothing is."""
        said = pair.source or {}
        found = [pair.uid.hex(), image_sha256.hex(), *((said.get(kind) or "").lower() for kind in ("sha256", "md5"))]
        if self.domains and said.get("url"):
            found += [said.get("domain") or "", _host(said["url"])]
        return next((word for word in found if word in self.digests or word in self.domains), None)


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
