"""Read pairs from WebDataset tars (plain, img2dataset, DataComp).

A row is a run of adjacent members with one key, as every WebDataset loader counts them, so that row i here is row i in
the trainer. Its key is the member's name up to the first dot of its last component. Members without a key (no dot, or
a name that begins with one) belong to no row.

    a run without an image or caption   quarantined: image_missing, caption_missing
    a key met before in this shard      quarantined: duplicate_key (its parts are not joined across the shard)
    a symlink, hard link or device      counts as absent; the detail says so
    the archive breaks off              the row inside which it does, or one extra last row: tar_truncated
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import IO, Final

from manifests.schema import Reason
from stages.pair import TRUNCATED_KEY, Pair, Shard, make_uid
from stages.read.captions import clean_caption
from stages.read.tar_stream import BrokenArchive, Member, read_members
from stages.settings import ReadSettings

IMAGE_EXTENSIONS: Final = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ico", "img")
_NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")


@dataclass(slots=True)
class Run:
    """Members of one key, as they come.

    Attributes:
        key: Their common name.
        repeated: Whether an earlier run of the shard had it too.
        members: By extension.
    """

    key: str
    repeated: bool
    members: dict[str, Member] = field(default_factory=dict)


def read_tar(stream: IO[bytes], shard: Shard, options: ReadSettings) -> Iterator[Pair]:
    """Yield one pair for every row of a tar, in order, whatever is wrong with it.

    Args:
        stream: The tar, plain or gzip.
        shard: Its name goes into the uids.
        options: Limits, and the extensions of image and caption if not the usual ones.
    """
    num_rows, last, broken = 0, None, None
    runs = read_runs(stream, options.max_image_bytes)
    while True:
        try:
            run = next(runs, None)
        except BrokenArchive as error:
            broken, run = error, None
        if last is not None and run is not None:
            yield _pair(last, num_rows, shard, options)
            num_rows += 1
        if run is None:
            break
        last = run
    if broken is not None:
        yield from _last_rows(last, num_rows, shard, options, str(broken))
    elif last is not None:
        yield _pair(last, num_rows, shard, options)


def read_runs(stream: IO[bytes], max_bytes: int) -> Iterator[Run]:
    """Yield the rows of a tar as they lie there: runs of adjacent members with one key; see the head of this module.

    Args:
        stream: The tar, plain or gzip.
        max_bytes: Data of larger members is left out.

    Raises:
        BrokenArchive: At the place where the archive breaks off, after what it holds before, the last run included.
    """
    current: Run | None = None
    seen: set[str] = set()
    try:
        for member in read_members(stream, max_bytes):
            if (match := _NAME.match(member.name)) is None or member.kind == "folder":
                continue
            key, extension = match[1], match[2].lower()
            if current is None or current.key != key or extension in current.members:
                if current is not None:
                    yield current
                current = Run(key, repeated=key in seen)
                seen.add(key)
            current.members[extension] = member
    except BrokenArchive:
        if current is not None:
            yield current
        raise
    if current is not None:
        yield current


def image_member(members: Mapping[str, Member], options: ReadSettings) -> Member | None:
    """Return the member of a row that is its image, None where there is none."""
    wanted = (options.image_column.lower(),) if options.image_column else IMAGE_EXTENSIONS
    return next((members[e] for e in wanted if e in members), None)


def _last_rows(current: Run | None, index: int, shard: Shard, options: ReadSettings, what: str) -> Iterator[Pair]:
    """Yield what a broken archive ends with: the row it broke off in, or that row whole and a marker after it."""
    if current is not None:
        pair = _pair(current, index, shard, options)
        if pair.reason in (Reason.IMAGE_MISSING, Reason.CAPTION_MISSING):
            yield pair.quarantine(Reason.TAR_TRUNCATED, what)
            return
        yield pair
        index += 1
    yield Pair(index, TRUNCATED_KEY, make_uid(shard.name, TRUNCATED_KEY), None, None, Reason.TAR_TRUNCATED, what)


def _pair(run: Run, index: int, shard: Shard, options: ReadSettings) -> Pair:
    facts = _facts(run.members.get("json"))
    caption = clean_caption(_caption(run, facts, options), options.max_caption_bytes)
    key = run.key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    uid = make_uid(shard.name, f"{key}\0{index}" if run.repeated else key, facts.get("uid"))
    pair = Pair(index, key, uid, None, caption.text, caption.reason, caption.detail)
    if run.repeated:
        return pair.quarantine(Reason.DUPLICATE_KEY, f"the key {key[:80]!r} was met before in this shard")
    image = image_member(run.members, options)
    if image is None or image.data is None:
        return pair.quarantine(*_why_no_image(run, image, options))
    place = None if image.offset is None else (image.offset, image.size_bytes)
    return replace(pair, image=None if pair.reason else image.data, place=place)


def _why_no_image(run: Run, image: Member | None, options: ReadSettings) -> tuple[Reason, str]:
    if image is None:
        return Reason.IMAGE_MISSING, f"members: {', '.join(sorted(run.members))[:200]}"
    if image.kind != "file":
        return Reason.IMAGE_MISSING, f"{image.name[-100:]!r} is a {image.kind}"
    return (
        Reason.IMAGE_TOO_LARGE,
        f"{image.size_bytes} bytes, allowed are {options.max_image_bytes} (max_image_bytes)",
    )


def _caption(run: Run, facts: dict[str, object], options: ReadSettings) -> bytes | str | None:
    column = options.caption_column
    if column is not None and column.startswith("json:"):
        value = facts.get(column.removeprefix("json:"))
        return value if isinstance(value, str) else None
    member = run.members.get(column.lower() if column else "txt")
    if member is not None and member.data is not None:
        return member.data
    value = facts.get("caption") if column is None else None
    return value if isinstance(value, str) else None


def _facts(member: Member | None) -> dict[str, object]:
    """Return the row's JSON object; nothing where there is none or it does not parse."""
    if member is None or member.data is None:
        return {}
    try:
        facts = json.loads(member.data)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
