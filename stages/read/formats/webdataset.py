"""Read pairs from WebDataset tars (plain, img2dataset, DataComp).

A row is a run of adjacent members with one key, by the rules of the `webdataset` library, so that row i here is row i in the
trainer. Its key is the member's name up to the first dot of its last component; what follows is the extension. Links, folders,
devices, hidden files, names without a dot and the library's own (`__name__`) belong to no row.

    a run without an image or caption   quarantined: image_missing, caption_missing
    a key met before in this shard      quarantined: duplicate_key (its parts are not joined across the shard)
    a name twice in a run               open_clip's reader begins a row there, the library's does not: from there on ambiguous
    the archive breaks off              the row inside which it does, or one extra last row: tar_truncated
    damage in the middle                one extra row there, shard_unreadable; rows after it, which others never see, follow
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import IO, Final

from manifests.labels import Reason
from stages.pair import TRUNCATED_KEY, UNREADABLE_KEY, Pair, Shard, TarPlace, make_uid
from stages.read.captions import captioned
from stages.read.formats.tar_stream import Gap, Member, read_members
from stages.read.paths import too_large
from stages.read.source import SourceReader
from stages.settings import ReadSettings

IMAGE_EXTENSIONS: Final = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ico", "img")
CAPTION_EXTENSIONS: Final = ("txt", "cap", "caption", "text")
_NAME: Final = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)$")
_META: Final = re.compile(r"__[^/]*__(/|$)")
_MOST_MEMBERS: Final = 1_000  # of one row, whose bytes are kept
_OF_THE_LIBRARY: Final = ("__key__", "__url__", "__bad__")  # as an extension, these change what it makes of a row


@dataclass(slots=True)
class Run:
    """Members of one key, as they come.

    Attributes:
        key: Their common name.
        repeated: Whether an earlier run of the shard had it too.
        ambiguous: Whether readers differ on which row this is.
        members: By extension.
        links: Kinds of what is no file, by extension.
        broken: The gap right after it.
        place: Where it begins, for a reader that begins there; None where none can.
    """

    key: str
    repeated: bool
    ambiguous: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    broken: Gap | None = None
    place: TarPlace | None = None


def read_tar(stream: IO[bytes], shard: Shard, options: ReadSettings) -> Iterator[Pair]:
    """Yield one pair for every row of a tar, in order, whatever is wrong with it.

    Args:
        stream: The tar, plain or gzip.
        shard: Its name goes into the uids.
        options: Limits, and the extensions of image and caption if not the usual ones.
    """
    for _, pairs in read_pairs(stream, shard, options):
        yield from pairs


def read_pairs(stream: IO[bytes], shard: Shard, options: ReadSettings) -> Iterator[tuple[Run | Gap, list[Pair]]]:
    """Yield what a tar holds, with the pairs that are made of it: several where each caption of a row is to be one."""
    index, begin = shard.first, shard.stretch.place if shard.stretch else None
    for found in read_rows(stream, options, begin):
        pairs = [_marker(found, index, shard)] if isinstance(found, Gap) else _pairs(found, index, shard, options)
        if isinstance(found, Run) and found.broken and _is_torn(found, options):
            place = (found.broken.offset, _lost(found.broken, shard))
            pairs = [replace(pairs[0].quarantine(Reason.TAR_TRUNCATED, found.broken.why), place=place)]
        yield found, pairs
        index += len(pairs)


def read_rows(stream: IO[bytes], options: ReadSettings, place: TarPlace | None = None) -> Iterator[Run | Gap]:
    """Yield the rows of a tar: runs, and the gaps that have rows of their own.

    Args:
        stream: The tar, plain or gzip.
        options: Limits; what is an image, and what a caption.
        place: Where the stream stands, if not at the beginning.
    """
    torn = None
    for found in _runs(read_members(stream, options.max_image_bytes, place), 2 * options.max_image_bytes, place):
        if isinstance(found, Run):
            torn = found.broken if found.broken and _is_torn(found, options) else None
        elif found is torn:
            continue  # its row stands for it
        yield found


def _runs(members: Iterator[Member | Gap], most_bytes: int, place: TarPlace | None) -> Iterator[Run | Gap]:
    """Join adjacent members of one key; of one row at most so many bytes and members are held."""
    current: Run | None = None
    seen = set(place.seen if place else ())
    ambiguous, held = place is not None and place.ambiguous, 0
    for member in members:
        if isinstance(member, Gap) and member.member is not None and (match := _NAME.match(member.member)):
            if current is None or current.key != match[1]:
                if current is not None:
                    yield current
                current = Run(match[1], match[1] in seen, ambiguous)
                seen.add(match[1])
            current.links[match[2].lower()] = member.why
            continue
        if isinstance(member, Gap):
            if current is not None:
                current.broken = member
                yield current
            current, ambiguous = None, ambiguous or member.ambiguous
            yield member
            continue
        match = None if _META.match(member.name) else _NAME.match(member.name)
        if match is None:
            continue
        key, extension = match[1], match[2].lower()
        if member.kind != "file":
            if current is not None and current.key == key:
                current.links[extension] = member.kind
            continue
        if current is None or current.key != key or extension in current.members:
            if current is not None:
                # a name twice: what comes is this row's to some readers, to others a new one
                current.ambiguous = ambiguous = ambiguous or current.key == key
                yield current
            start = member.place and member.place._replace(ambiguous=ambiguous)  # whatever this row still turns out to be
            current, held = Run(key, key in seen, ambiguous, place=start), 0
            seen.add(key)
        if extension in _OF_THE_LIBRARY:
            current.ambiguous = ambiguous = True
        held += len(member.data or b"")
        whole = held <= most_bytes and len(current.members) < _MOST_MEMBERS
        current.members[extension] = member if whole else replace(member, data=None)
    if current is not None:
        yield current


def _is_torn(run: Run, options: ReadSettings) -> bool:
    """Return whether a run lacks what the archive may have broken off."""
    return image_member(run.members, options) is None or _caption(run, _facts(run.members.get("json")), options) is None


def _marker(gap: Gap, index: int, shard: Shard) -> Pair:
    """Return the row that stands for a gap."""
    key = TRUNCATED_KEY if gap.at_end else f"{UNREADABLE_KEY}{gap.offset}"
    reason, place = Reason.TAR_TRUNCATED if gap.at_end else Reason.SHARD_UNREADABLE, (gap.offset, _lost(gap, shard))
    return Pair(index, key, make_uid(shard.name, key), None, None, reason, gap.why[:300], place=place)


def _lost(gap: Gap, shard: Shard) -> int:
    """Return how many bytes of a shard a gap stands for."""
    return gap.num_bytes if gap.num_bytes is not None else max(1, shard.size_bytes - gap.packed_offset)


def image_member(members: Mapping[str, Member], options: ReadSettings) -> Member | None:
    """Return the member of a row that is its image, None where there is none."""
    wanted = (options.image_column.lower(),) if options.image_column else IMAGE_EXTENSIONS
    return next((members[e] for e in wanted if e in members), None)


def _pairs(run: Run, index: int, shard: Shard, options: ReadSettings) -> list[Pair]:
    try:
        return list(_read(run, index, shard, options))
    except Exception as error:  # noqa: BLE001  # one row must not take its shard along
        key = f"{UNREADABLE_KEY}{index}"
        what = f"{type(error).__name__}: {error}"[:300]
        return [Pair(index, key, make_uid(shard.name, key), None, None, Reason.READER_ERROR, what)]


def _read(run: Run, index: int, shard: Shard, options: ReadSettings) -> Iterator[Pair]:
    facts = _facts(run.members.get("json"))
    key = run.key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    uid = make_uid(shard.name, f"{key}\0{index}" if run.repeated else key, facts.get("uid"))
    source = SourceReader(options.kept_columns)(facts)
    for pair in captioned(Pair(index, key, uid, None, None, source=source), _caption(run, facts, options), shard, options):
        image = image_member(run.members, options)
        if run.ambiguous and not options.allow_ambiguous:
            yield pair.quarantine(Reason.AMBIGUOUS, "readers of tars count rows differently from here on (--allow-ambiguous)")
        elif run.repeated:
            yield pair.quarantine(Reason.DUPLICATE_KEY, f"the key {key[:80]!r} was met before in this shard")
        elif image is None or image.data is None:
            yield pair.quarantine(*_why_no_image(run, image, options))
        else:
            place = None if image.offset is None else (image.offset, image.size_bytes)
            yield replace(pair, image=None if pair.reason else image.data, place=place)


def _why_no_image(run: Run, image: Member | None, options: ReadSettings) -> tuple[Reason, str]:
    if image is None:
        links = "".join(f"; {end}: {kind}" for end, kind in run.links.items())
        return Reason.IMAGE_MISSING, f"members: {', '.join(sorted(run.members))[:200]}{links[:150]}"
    return too_large(image.size_bytes, options.max_image_bytes)


def _caption(run: Run, facts: dict[str, object], options: ReadSettings) -> object:
    """Return the caption of a run, or a list of several; None where there is none."""
    column = options.caption_column
    if column is not None and column.startswith("json:"):
        return facts.get(column.removeprefix("json:"))
    for ending in (column.lower(),) if column else CAPTION_EXTENSIONS:
        member = run.members.get(ending)
        if member is not None and member.data is not None:
            return member.data
    return facts.get("caption") if column is None else None


def _facts(member: Member | None) -> dict[str, object]:
    """Return the row's JSON object; nothing where there is none or it does not parse."""
    if member is None or member.data is None:
        return {}
    try:
        facts = json.loads(member.data)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
