"""Clean a caption by one stated rule, so that the same bytes are scored, stored and shown.

1. More than `max_caption_bytes` bytes: cut there, at a character; noted.
2. Invalid UTF-8: each bad byte becomes U+FFFD; noted. If that is more than a tenth of the characters, the row is quarantined
   (`caption_undecodable`): such bytes are another encoding or no text.
3. Control characters (C0, C1, DEL, NUL, and lone surrogates) become spaces; noted, except for tab and line ends.
4. Runs of white space become one space; the ends are stripped. Nothing left: quarantined (`caption_empty`).
"""

import re
from dataclasses import dataclass

from manifests.schema import Reason

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
