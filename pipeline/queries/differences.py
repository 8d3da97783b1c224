"""What changed between two rounds: labels, cosines, shards, plans. DuckDB joins their rows, out of core where it must."""

from pathlib import Path
from typing import Any, Final

import duckdb

from manifests.errors import ConfigError, RunError
from manifests.labels import Label
from manifests.layout import differences
from manifests.reading import Manifest
from pipeline.queries import contents
from pipeline.queries.rows_file import refuse_ending, write_rows
from pipeline.queries.terminal import printable
from stages.out_of_core import connect

_MOST_SHARDS: Final = 10
_QUANTILES: Final = (1, 10, 50, 90, 99)
_LABELS: Final = [str(label) for label in Label]
# rows of the same place; which of two labels, reasons, cosines is whose
_BOTH: Final = """
CREATE TEMP VIEW both_rounds AS SELECT a.shard::VARCHAR AS shard, a.index, a.key, hex(a.uid).lower() AS uid,
a.label::VARCHAR AS label_from, b.label::VARCHAR AS label_to, a.reason::VARCHAR AS reason_from, b.reason::VARCHAR AS reason_to,
a.cosine AS cosine_from, b.cosine AS cosine_to, b.caption, b.cosine::DOUBLE - a.cosine AS change
FROM a JOIN b USING (shard, index, uid)"""


def compare(old: Manifest, new: Manifest, flipped: Path | None = None, changed: Path | None = None) -> dict[str, Any]:
    """Compare two rounds; of two runs their images, too, which is all where they are crawls of their own.

    Args:
        old: The earlier round.
        new: The later one, of the same run or another.
        flipped: Where to write the rows whose label differs, as `.csv` or `.parquet`; None for nowhere.
        changed: The same of the addresses whose image differs.

    Returns:
        What `of_labels` returns where the rounds have rows in common, `from`, `to`, and of two runs `contents`.

    Raises:
        RunError: The rounds have nothing in common.
        ConfigError: A file has another ending, or nothing to be written to it.
    """
    refuse_ending(flipped)
    refuse_ending(changed)
    of = {which: {"run": one.run.uri, "round": one.number} for which, one in (("from", old), ("to", new))}
    if old.run.uri == new.run.uri:
        if changed is not None:
            raise ConfigError("--changed lists what two crawls hold under one address; it needs --other RUN")
        return {**of, **of_labels(old, new, flipped)}
    images = contents.compare(old, new, changed)
    try:
        return {**of, **of_labels(old, new, flipped), "contents": images}
    except RunError:
        if flipped is not None or not contents.num_both(images):  # there are no labels to compare
            raise
        return {**of, "contents": images}


def of_labels(old: Manifest, new: Manifest, flipped: Path | None = None) -> dict[str, Any]:
    """Compare two rounds over the same data, or where these have grown, over the shards that both have.

    Args:
        old: The earlier round.
        new: The later one, of the same run or another.
        flipped: Where to write the rows whose label differs, as `.csv` or `.parquet`; None for nowhere.

    Returns:
        `matrix` (rows by old label and new label), `drift` of the cosine, `shards` that moved most, `plan` lines that differ,
        `only` (shards and rows of either round alone).

    Raises:
        RunError: The rounds have no shard in common, or other rows in one.
    """
    rows_of = [{part["shard"]: part["rows"] for part in manifest.seal["parts"]} for manifest in (old, new)]
    common = rows_of[0].keys() & rows_of[1].keys()
    if not common:
        raise RunError(f"the rounds are of other data: {len(old.shards)} and {len(new.shards)} shards, none of them in both")
    with connect() as connection:
        for name, manifest in (("a", old), ("b", new)):
            connection.register(name, manifest.dataset())
        connection.execute(_BOTH)
        rows = connection.sql("SELECT label_from, label_to, count(*) FROM both_rounds GROUP BY ALL").fetchall()
        num_both = [sum(known[shard] for shard in common) for known in rows_of]
        if not sum(num for *_, num in rows) == num_both[0] == num_both[1]:
            raise RunError("the rows of the two rounds are not the same; they are of other data")
        if flipped is not None:
            write_rows(
                connection.sql("SELECT * EXCLUDE change FROM both_rounds WHERE label_from <> label_to ORDER BY ALL"), flipped
            )
        matrix = {a: dict.fromkeys(_LABELS, 0) for a in _LABELS}
        for a, b, num in rows:
            matrix[a][b] = num
        return {
            "matrix": matrix,
            "flipped": sum(num for a, b, num in rows if a != b),
            "drift": _drift(connection),
            "shards": _moved(connection),
            "plan": differences(old.seal["plan"], new.seal["plan"]),
            "only": {
                which: {"shards": sorted(known.keys() - common), "rows": sum(known.values()) - num}
                for which, known, num in zip(("from", "to"), rows_of, num_both, strict=True)
            },
        }


def _drift(connection: duckdb.DuckDBPyConnection) -> dict[str, float] | None:
    """Return how cosines changed over all rows that both rounds scored; None without any."""
    shares = [q / 100 for q in _QUANTILES]
    text = f"SELECT count(change), avg(change), stddev_pop(change), approx_quantile(change, {shares}) FROM both_rounds"  # noqa: S608
    num, mean, std, quantiles = connection.sql(text).fetchall()[0]
    named = {f"q{q:02d}": value for q, value in zip(_QUANTILES, quantiles or (), strict=False)}
    return {"rows": num, "mean": mean, "std": std, **named} if num else None


def _moved(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Return the shards of which most labels differ, by their share."""
    found = connection.execute(
        "SELECT shard, count(*) AS num_rows, count(*) FILTER (label_from <> label_to) AS flipped, coalesce(avg(change), 0) "
        "FROM both_rounds GROUP BY shard HAVING flipped > 0 ORDER BY flipped / num_rows DESC, shard LIMIT ?",
        [_MOST_SHARDS],
    )
    return [dict(zip(("shard", "rows", "flipped", "mean_change"), line, strict=True)) for line in found.fetchall()]


def as_text(found: dict[str, Any]) -> str:
    """Return a comparison for a terminal."""
    lines = [
        f"round {found['from']['round']} of {found['from']['run']} -> round {found['to']['round']} of {found['to']['run']}"
    ]
    lines += ["", *contents.as_lines(found["contents"])] if "contents" in found else []
    return "\n".join([*lines, *(_of_labels(found) if "matrix" in found else [])])


def _of_labels(found: dict[str, Any]) -> list[str]:
    lines = ["", f"{'from / to':<16}" + "".join(f"{label:>14}" for label in _LABELS)]
    lines += [f"  {a:<14}" + "".join(f"{found['matrix'][a][b]:>14,}" for b in _LABELS) for a in _LABELS]
    lines += ["", f"{found['flipped']:,} labels differ"]
    if found["drift"]:
        d = found["drift"]
        quantiles = ", ".join(f"{int(name[1:])} % {d[name]:+.3f}" for name in d if name.startswith("q"))
        lines += [f"cosine: mean change {d['mean']:+.4f}, standard deviation {d['std']:.4f}; {quantiles}"]
    if found["shards"]:
        lines += ["", "shards that moved most:"]
        lines += [f"  {s['shard']}: {s['flipped']:,} of {s['rows']:,}, cosine {s['mean_change']:+.4f}" for s in found["shards"]]
    for which, alone in found["only"].items():
        if alone["shards"]:
            names = ", ".join(printable(name, 80) for name in alone["shards"][:_MOST_SHARDS])
            where = f"are in round {found[which]['round']} alone"
            lines += ["", f"{len(alone['shards'])} shards of {alone['rows']:,} rows {where}: {names}"]
    lines += ["", "plans differ in:" if found["plan"] else "the plans are the same", *(f"  {line}" for line in found["plan"])]
    return lines
