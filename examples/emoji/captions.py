"""Captions for drawings: several wordings of one concept, so that vendors differ.

A caption is drawn from a label and its tags by a hash of (vendor, name); the same input gives the same words on every
machine. All captions have 2 to 12 words.
"""

import hashlib
import random
import re

MIN_WORDS, MAX_WORDS = 2, 12

_TEMPLATES = (
    "{label}, {tags}",
    "{tags}: {label}",
    "drawing of {label}, {tags}",
    "{label} ({tags})",
    "{label}",
    "a picture of {label}",
    "{tags} and {label}",
    "{label} emoji, {tags}",
)
_ICON_TEMPLATES = (
    "{label} icon",
    "icon of {label}, {tags}",
    "a colour icon showing {label}",
    "{label}, {tags} icon",
    "{tags} icon: {label}",
)


def slug(text: str) -> str:
    """Return `text` as icon sets spell names: lower case words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def caption(vendor: str, name: str, label: str, tags: list[str], *, emoji: bool) -> str:
    """Return one caption of 2 to 12 words for a drawing.

    Args:
        vendor: Name of the icon set; seeds the draw together with `name`.
        name: Name of the drawing inside its set.
        label: What the drawing shows, in words.
        tags: Further words for it, may be empty.
        emoji: Whether the drawing is an emoji (else a plain icon).
    """
    seed = hashlib.blake2b(f"{vendor}/{name}".encode(), digest_size=8).digest()
    rng = random.Random(int.from_bytes(seed, "big"))  # wording, not secrecy
    known = set(slug(label).split("-"))
    fresh = [tag for tag in tags if tag.lower() not in known]
    rng.shuffle(fresh)
    templates = _TEMPLATES if emoji else _ICON_TEMPLATES
    usable = [t for t in templates if fresh or "{tags}" not in t]
    text = rng.choice(usable).format(label=label, tags=" ".join(fresh[: rng.randint(1, 3)]))
    words = text.split()[:MAX_WORDS]
    if len(words) < MIN_WORDS:
        words.append("emoji" if emoji else "icon")
    return " ".join(words).rstrip(",:( ")
