"""What the review page sends and gets: filters as the browser writes them, rows as JSON that JavaScript can hold."""

from typing import Any, Final

import pyarrow as pa

from manifests.errors import ConfigError
from manifests.signals import SIGNAL_TABLE
from pipeline.pages.gallery import Wanted
from pipeline.pages.likeness import SIMILARITY
from pipeline.queries.inspection import Query

IDS: Final = frozenset(signal.name for signal in SIGNAL_TABLE if pa.types.is_int64(signal.type))
NUMBERS: Final = frozenset(
    signal.name for signal in SIGNAL_TABLE if pa.types.is_floating(signal.type) or pa.types.is_int32(signal.type)
)
_UNSEEN: Final = ("shard", "index", "key", "caption")


def wanted(body: dict[str, Any]) -> Wanted:
    """Read a filter as the page sends it; empty fields are left out."""
    given = body.get("filter", {})

    low, high = given.get("low"), given.get("high")
    bounds = float(low) if low not in (None, "") else -1e18, float(high) if high not in (None, "") else 1e18
    if bounds[0] > bounds[1]:
        raise ConfigError(f"{given['of']} from {low} to {high} is no range: the first number is the larger one")
    is_range = given.get("of") and (low not in (None, "") or high not in (None, ""))
    like = str(given.get("like") or "")
    query = Query(
        label=(given["label"],) if given.get("label") else (),
        reason=(given["reason"],) if given.get("reason") else (),
        ranges=((str(given["of"]), *bounds),) if is_range else (),
        caption=given.get("caption") or None,
        shard=given.get("shard") or None,
        key=given.get("key") or None,
        sort=given.get("sort") or "cosine",
        more=(SIMILARITY,) if like else (),
    )
    verdict, where, area = (str(given.get(name) or "") for name in ("verdict", "where", "area"))
    return Wanted(query, verdict, where, like, area)


def shown(row: dict[str, Any], *, unseen: bool) -> dict[str, Any]:
    """Return a row for the page; of one that is to be judged unseen, only what may be judged by."""
    return {name: row[name] for name in _UNSEEN} | {"review": None, "unseen": True} if unseen else plain(row)


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as plain values."""
    review, signals = row.get("review"), row.get("signals")
    shown = {key: value for key, value in row.items() if key != "review"} | {"uid": row["uid"].hex()}
    if signals is not None:  # numbers of JavaScript have 53 bits, hashes 64
        shown["signals"] = {key: str(value) if key in IDS and value is not None else value for key, value in signals.items()}
    if review is not None:
        shown["review"] = {key: review[key] for key in ("verdict", "note", "who", "round")} | {
            "when": review["when"].isoformat()
        }
    return shown
