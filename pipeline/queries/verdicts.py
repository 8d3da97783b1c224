"""What `pairsan reviews` does: list, export, import and take back human verdicts."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import ConfigError, RunError
from manifests.reading import Manifest
from manifests.reviews import VERDICTS, append, newest, read_all, reviewer_name
from manifests.store import Store
from pipeline.queries.terminal import printable


def listed(run: Store, *, every: bool = False) -> list[dict[str, Any]]:
    """Return verdicts as plain values, oldest first: the newest of each pair, or every act."""
    acts = read_all(run)
    rows = (acts if every else newest(acts)).to_pylist()
    return [{**row, "uid": row["uid"].hex(), "when": row["when"].isoformat(timespec="seconds")} for row in rows]


def as_text(rows: list[dict[str, Any]]) -> str:
    """Return verdicts for a terminal."""
    lines = [
        f"{row['when']}  {row['who']:<12}{row['verdict'] or 'withdrawn':<10}round {row['round']}  {row['uid']}  "
        f"{printable(row['shard'])}[{row['index']}]  {printable(row['note'] or '')}"
        for row in rows
    ]
    return "\n".join([*lines, f"({len(rows)} verdicts)"])


def export(run: Store, file: Path) -> int:
    """Write the newest verdict of each pair as .csv or .parquet; return how many.

    Raises:
        ConfigError: The file has another ending.
    """
    table = newest(read_all(run))
    table = table.set_column(0, "uid", pa.array([uid.hex() for uid in table["uid"].to_pylist()], pa.string()))
    _ending(file)
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    else:
        table.to_pandas().to_csv(file, index=False)
    return int(table.num_rows)


def import_(manifest: Manifest, file: Path, who: str | None) -> int:
    """Append the verdicts of a file to the run of a round; return how many.

    Args:
        manifest: Its pairs are those that may be named.
        file: .csv or .parquet with columns uid (hex) and verdict (empty takes back), perhaps note and who.
        who: Name that they carry; by default the file's, else the user's.

    Raises:
        ConfigError: The file cannot be read so.
        RunError: A uid is in no shard of the round; nothing is taken up.
    """
    _ending(file)
    try:
        rows = pq.read_table(file).to_pandas() if file.suffix == ".parquet" else pd.read_csv(file, dtype=str)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read verdicts from {file}: {error}") from None
    if missing := {"uid", "verdict"} - set(rows.columns):
        raise ConfigError(f"{file} has no column {', '.join(sorted(missing))}; it has {list(rows.columns)}")
    wrong = sorted(set(rows["verdict"].dropna()) - {*VERDICTS, ""})
    if wrong:
        raise ConfigError(f"{file} has verdicts {wrong[:3]}; there are: {', '.join(VERDICTS)}")
    named = rows[["shard", "index"]] if {"shard", "index"} <= set(rows.columns) else None
    places = _places(manifest, [_uid(text, file) for text in rows["uid"]], named)
    given = rows["who"] if "who" in rows and who is None else [who] * len(rows)
    append(
        manifest.run,
        places,
        verdict=_texts(rows["verdict"]),
        note=_texts(rows.get("note", [None] * len(rows))),
        who=_texts(given).fill_null(reviewer_name()),
        round_number=manifest.number,
    )
    return len(rows)


def _texts(column: Iterable[object]) -> pa.StringArray:
    """Return a column of a file as text; null where a cell is empty."""
    return pa.array([text if isinstance(text, str) and text else None for text in column], pa.string())


def revoke(manifest: Manifest, *, uids: Sequence[str], who: str | None, verdict: str | None) -> int:
    """Take back the newest verdicts that match everything that is given; return how many.

    Raises:
        ConfigError: Nothing is given.
    """
    if not (uids or who or verdict):
        raise ConfigError("which verdicts? Give --uid, --who or --verdict")
    found = newest(read_all(manifest.run))
    if uids:
        wanted = pa.array([_uid(text, Path("--uid")) for text in uids], pa.binary(16))
        found = found.filter(pc.is_in(found["uid"], wanted))
    for name, word in (("who", who), ("verdict", verdict)):
        if word is not None:
            found = found.filter(pc.equal(found[name], word))
    if found.num_rows:
        append(manifest.run, found, verdict=None, note=None, who=reviewer_name(), round_number=manifest.number)
    return int(found.num_rows)


def _places(manifest: Manifest, uids: list[bytes], named: pd.DataFrame | None) -> pa.Table:
    """Return uid, shard, index and key of pairs, in the order of their uids; `named` says which, where several have a uid."""
    wanted = pa.array(uids, pa.binary(16))
    found = []
    for shard in manifest.shards:
        table = manifest.table(shard, ["uid", "shard", "index", "key"])
        found.append(table.filter(pc.is_in(table["uid"], wanted)))
    whole = pa.concat_tables(found, promote_options="permissive")
    whole = whole.set_column(1, "shard", whole["shard"].cast(pa.string()))
    place = pc.index_in(wanted, whole["uid"].combine_chunks())
    if place.null_count:
        lost = [uid.hex() for uid, at in zip(uids, place.to_pylist(), strict=True) if at is None]
        raise RunError(
            f"{len(lost)} of {len(uids)} uids are in no shard of round {manifest.number}, e.g. {lost[0]}; none was taken up"
        )
    if whole.num_rows == len(set(uids)):
        return whole.take(place)
    return whole.take(pa.array(_among_twins(whole, uids, named)))


def _among_twins(whole: pa.Table, uids: list[bytes], named: pd.DataFrame | None) -> list[int]:
    """Return the row that each verdict means, where several rows have one uid.

    Raises:
        RunError: It is not said which; names them.
    """
    of: dict[bytes, dict[str, int]] = {}
    for row, (uid, shard, index) in enumerate(
        zip(*(whole[name].to_pylist() for name in ("uid", "shard", "index")), strict=True)
    ):
        of.setdefault(uid, {})[f"{shard}:{index}"] = row
    said = [None] * len(uids) if named is None else [f"{shard}:{index}" for shard, index in named.itertuples(index=False)]
    chosen = []
    for uid, place in zip(uids, said, strict=True):
        if len(of[uid]) > 1 and place not in of[uid]:
            raise RunError(
                f"uid {uid.hex()} is that of {len(of[uid])} rows: {', '.join(of[uid])[:300]}; say which in columns shard and "
                "index, or on the review page; none was taken up"
            )
        chosen.append(of[uid][place] if len(of[uid]) > 1 and place is not None else next(iter(of[uid].values())))
    return chosen


def _uid(text: object, file: Path) -> bytes:
    try:
        uid = bytes.fromhex(str(text))
    except ValueError:
        uid = b""
    if len(uid) != 16:
        raise ConfigError(f"{file}: {text!r} is no uid; one has 32 hex digits")
    return uid


def _ending(file: Path) -> None:
    if file.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{file}: verdicts are read and written as .csv or .parquet")
