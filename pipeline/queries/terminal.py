"""Text of a crawl on a terminal: no control characters, no marks that turn its direction, no more than fits."""

import re
from typing import Final

# C0 and C1 controls, and what reorders the text around it; the rest of Unicode is left as it is
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, width: int | None = None) -> str:
    """Return text that does nothing to a terminal but appear on it, cut to a width in characters."""
    shown = _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)
    return shown if width is None or len(shown) <= width else shown[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"
