"""Clean a caption by one stated rule, so that the same bytes are scored, stored and shown.

1. More than `max_caption_bytes` bytes: cut there, at a character; noted.
2. Invalid UTF-8: each bad byte becomes U+FFFD; noted. If that is more than a tenth of the characters, the row is quarantined
   (`caption_undecodable`): such bytes are another encoding or no text.
3. Control characters (C0, C1, DEL, NUL, and lone surrogates) become spaces; noted, except for tab and line ends.
4. A byte order mark at the start goes, runs of white space become one space, the ends are stripped. Nothing left: quarantined
   (`caption_empty`).
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from manifests.labels import Reason
from stages.pair import Pair, Shard, make_uid
from stages.settings import ReadSettings

MAX_REPLACED_SHARE = 0.1
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Caption:
    """A cleaned caption.

    Attributes:
        text: What is left after cleaning; None only where no caption was there.
        reason: Set where it cannot be scored.
        detail: What was wrong or repaired.
    """

    text: str | None
    reason: Reason | None = None
    detail: str | None = None


def clean_caption(raw: bytes | str | None, max_caption_bytes: int) -> Caption:
    """Apply the rule at the head of this module to one raw caption."""
    if raw is None:
        return Caption(None, Reason.CAPTION_MISSING)
    notes: list[str] = []
    data = raw if isinstance(raw, bytes) else _encoded(raw, notes)
    if len(data) > max_caption_bytes:
        notes.append(f"caption cut at {max_caption_bytes} of {len(data)} bytes")
        data = _cut(data, max_caption_bytes)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
        num_bad = text.count("\ufffd") - data.count("\ufffd".encode())
        notes.append(f"{num_bad} of {len(text)} characters are not UTF-8")
        if num_bad > MAX_REPLACED_SHARE * len(text):
            return Caption(_flatten(text), Reason.CAPTION_UNDECODABLE, "; ".join(notes))
    if num_control := len(_CONTROL.findall(text)):
        notes.append(f"{num_control} control characters removed")
    text = _flatten(text)
    detail = "; ".join(notes) or None
    return Caption(text, None, detail) if text else Caption(text, Reason.CAPTION_EMPTY, detail)


def captioned(pair: Pair, raw: object, shard: Shard, options: ReadSettings) -> Iterator[Pair]:
    """Yield a row with its caption; where it has several, with one of them, with all in one, or a row for each.

    Args:
        pair: The row without a caption.
        raw: What the data have of captions: text, bytes, or a list of them, which may be written as JSON; anything else
            counts as none.
        shard: Where it lies; names the uids of further rows.
        options: Which of several.
    """
    texts = [text for text in _listed(raw) if isinstance(text, (str, bytes))]
    for number, (text, note) in enumerate(_chosen(texts, pair.uid, options.caption)):
        caption = clean_caption(text, options.max_caption_bytes)
        table = caption.reason is Reason.CAPTION_UNDECODABLE and shard.format == "text"
        hint = "--encoding names another one" if table else None
        detail = "; ".join(what for what in (caption.detail, hint, note, pair.detail) if what) or None
        found = replace(pair, caption=caption.text, reason=caption.reason, detail=detail)
        if number:
            uid = make_uid(shard.name, f"{pair.uid.hex()}\0caption {number}")
            found = replace(found, index=pair.index + number, key=f"{pair.key}#{number}", uid=uid)
        yield found


def _listed(raw: object) -> list[Any]:
    """Return the captions of a cell."""
    if isinstance(raw, str) and raw.startswith('["') and raw.endswith('"]'):
        with suppress(ValueError, RecursionError):
            return list(json.loads(raw))
    return raw if isinstance(raw, list) else [raw]


def _chosen(texts: list[str | bytes], uid: bytes, how: str) -> list[tuple[str | bytes | None, str | None]]:
    """Return the captions of the rows that are made of one, each with a note."""
    num = len(texts)
    if num < 2:
        return [(texts[0] if texts else None, None)]
    if how == "join":
        whole = b" ".join(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass") for text in texts)
        return [(whole, f"{num} captions joined")]
    picked = range(num) if how == "all" else [int.from_bytes(uid[:8]) % num if how == "random" else 0]
    return [(texts[i], f"caption {i + 1} of {num}") for i in picked]


def _encoded(text: str, notes: list[str]) -> bytes:
    """Return the bytes of a caption; halves of surrogate pairs, which stand for no character, become U+FFFD."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        whole, num = _SURROGATE.subn("\ufffd", text)
        notes.append(f"{num} lone surrogates replaced")
        return whole.encode()


def _flatten(text: str) -> str:
    return _SPACE.sub(" ", _CONTROL.sub(" ", text.removeprefix("\ufeff"))).strip()


def _cut(data: bytes, size: int) -> bytes:
    """Cut at most 3 bytes before `size`, so that no UTF-8 character is split."""
    end = size
    while end > size - 3 and end > 0 and data[end] & 0xC0 == 0x80:
        end -= 1
    return data[:end]
