"""Human verdicts on pairs: appended, never changed; the newest one of a pair counts.

Every act of a reviewer is a file of its own below `reviews/`, written whole or not at all, so that any number of people and
pages may write at once and nothing is lost. A verdict is taken back by a newer one that is empty.
"""

import getpass
import hashlib
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import RunError
from manifests.parts import write_part
from manifests.store import Store

if TYPE_CHECKING:
    import pandas as pd

FOLDER: Final = "reviews"
VERDICTS: Final = ("safe", "risky", "drop")
REVIEWS: Final = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("verdict", pa.string()),  # safe, risky, drop; null takes earlier ones back
        pa.field("note", pa.string()),
        pa.field("who", pa.string(), nullable=False),
        pa.field("when", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
    ]
)


def reviewer_name() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def append(run: Store, rows: pa.Table, *, verdict: Any, who: Any, round_number: int, note: Any = None) -> str:
    """Write one act: what was said of some rows just now.

    Args:
        run: The run folder.
        rows: Columns uid, shard, index and key of the pairs.
        verdict: `safe`, `risky` or `drop`, None to take earlier ones back: one for all rows, or a column; as are the next two.
        who: Name of the reviewer.
        round_number: The round that was looked at.
        note: Free text.

    Returns:
        Name of the new file below the run.

    Raises:
        RunError: The verdict is no word that is known, or there are no rows.
    """
    said = [verdict] if verdict is None or isinstance(verdict, str) else pc.unique(verdict).to_pylist()
    if unknown := [word for word in said if word is not None and word not in VERDICTS]:
        raise RunError(f"no verdict {unknown[0]!r}; there are: {', '.join(VERDICTS)}")
    if not rows.num_rows:
        raise RunError("no rows to give a verdict on")
    now = datetime.now(UTC)
    facts = {"verdict": verdict, "note": note, "who": who, "when": now, "round": round_number}
    columns = {name: rows[name] for name in ("uid", "shard", "index", "key")}
    for name, value in facts.items():
        column = isinstance(value, (pa.Array, pa.ChunkedArray))
        columns[name] = value if column else pa.array([value] * rows.num_rows, REVIEWS.field(name).type)
    file = f"{FOLDER}/{now:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}.parquet"
    write_part(run, file, REVIEWS, [pa.table(columns).select(REVIEWS.names).cast(REVIEWS)], fingerprint="")
    return file


def append_frame(run: Store, frame: "pd.DataFrame", *, round_number: int, who: str | None = None) -> str:
    """Write what a pandas frame says of some rows, such as those of `Manifest.to_pandas`, as one act; see `append`.

    Args:
        run: The run folder.
        frame: Columns uid, shard, index and key of the pairs, `verdict`, and `note` where there is one.
        round_number: The round that was looked at.
        who: Name of the reviewer; the user who runs this process if None.

    Raises:
        RunError: A column is missing, a verdict is no word that is known, or there are no rows.
    """
    names = ["uid", "shard", "index", "key", "verdict", *(["note"] if "note" in frame.columns else [])]
    if missing := [name for name in names if name not in frame.columns]:
        raise RunError(f"verdicts need the columns {', '.join(names)}; {', '.join(missing)} is not there")
    wanted = pa.schema([REVIEWS.field(name) for name in names])
    rows = pa.Table.from_pandas(frame[names].astype({"shard": str}), schema=wanted, preserve_index=False)
    note = rows["note"] if "note" in names else None
    return append(run, rows, verdict=rows["verdict"], note=note, who=who or reviewer_name(), round_number=round_number)


def undo(run: Store, name: str, *, who: str, round_number: int) -> int:
    """Give every pair of an act the verdict that it had before, unless a newer act has changed it since; return how many.

    Raises:
        RunError: There is no such act.
    """
    if not name.startswith(f"{FOLDER}/") or name.removeprefix(f"{FOLDER}/") not in run.names(FOLDER):
        raise RunError(f"{run.uri} has no act {name!r}")
    with run.fs.open_input_file(run.path(name)) as file:
        mine = pq.read_table(file).cast(REVIEWS)
    acts = read_all(run)
    when = pc.max(mine["when"])
    newer = acts.filter(pc.greater(acts["when"], when))["uid"].combine_chunks()
    rows = mine.filter(pc.invert(pc.is_in(mine["uid"], newer)))
    if not rows.num_rows:
        return 0
    before = newest(acts.filter(pc.less(acts["when"], when)))
    place = pc.index_in(rows["uid"], before["uid"].combine_chunks())
    verdict, note = (before[name].take(place) for name in ("verdict", "note"))
    append(run, rows, verdict=verdict, note=note, who=who, round_number=round_number)
    return int(rows.num_rows)


def read_all(run: Store, until: str | None = None) -> pa.Table:
    """Return all acts, oldest first.

    Args:
        run: The run folder.
        until: Leave out what is newer than this time (ISO 8601).
    """
    tables = []
    for name in sorted(name for name in run.names(FOLDER) if name.endswith(".parquet")):
        with run.fs.open_input_file(run.path(f"{FOLDER}/{name}")) as file:
            tables.append(pq.read_table(file).cast(REVIEWS))
    table = pa.concat_tables(tables) if tables else REVIEWS.empty_table()
    if until is not None:
        limit = pa.scalar(datetime.fromisoformat(until), REVIEWS.field("when").type)
        table = table.filter(pc.less_equal(table["when"], limit))
    return table.sort_by("when")


def newest(acts: pa.Table) -> pa.Table:
    """Return the newest verdict of every pair that has one; those taken back are left out."""
    place = pa.array(range(acts.num_rows), pa.int64())
    last = acts.append_column("place", place).group_by("uid", use_threads=False).aggregate([("place", "max")])
    found = acts.take(last["place_max"].sort())
    return found.filter(pc.is_valid(found["verdict"]))


def snapshot(run: Store) -> dict[str, Any] | None:
    """Return what a plan says of the verdicts there are now; see `described`."""
    return described(read_all(run))


def described(acts: pa.Table) -> dict[str, Any] | None:
    """Return number of verdicts, time of the newest act and a digest; None where there are no acts."""
    if not acts.num_rows:
        return None
    verdicts = newest(acts)
    digest = hashlib.sha256()
    for uid, verdict in sorted(zip(verdicts["uid"].to_pylist(), verdicts["verdict"].to_pylist(), strict=True)):
        digest.update(uid + verdict.encode() + b"\n")
    until = pc.max(acts["when"]).as_py().isoformat()
    return {"num": verdicts.num_rows, "until": until, "sha256": digest.hexdigest()}
