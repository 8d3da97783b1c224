"""What two crawls hold under one address: the same bytes, the same picture encoded anew, or another one.

Who learns when a crawl is taken can change a picture before, and back after it (front-running, Carlini et al. 2023): only a
second crawl shows that.
"""

from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from manifests.errors import RunError
from manifests.reading import Manifest
from manifests.schema import SCORES
from pipeline.queries.rows_file import write_rows
from pipeline.queries.terminal import printable
from stages.out_of_core import connect

_COLUMNS: Final = pa.schema([SCORES.field(name) for name in ("uid", "image_sha256", "image_hash", "source")])
_MOST_DOMAINS: Final = 10
# one row for each address, which is the URL, or where none was kept the uid; several captions of one image are one row
_CRAWL: Final = """
CREATE TEMP TABLE {name} AS SELECT coalesce(source.url, lower(hex(scores.uid))) AS address, any_value(source.domain) AS domain,
min(image_sha256) AS sha256, arg_min(image_hash, image_sha256) AS look, arg_min(label::VARCHAR, image_sha256) AS label
FROM {name}_scores AS scores JOIN {name}_labels AS labels USING (uid) WHERE image_sha256 IS NOT NULL GROUP BY 1"""
_BOTH: Final = """
CREATE TEMP TABLE found AS SELECT coalesce(a.address, b.address) AS address, coalesce(b.domain, a.domain) AS domain,
CASE WHEN a.address IS NULL THEN 'only_to' WHEN b.address IS NULL THEN 'only_from' WHEN a.sha256 = b.sha256 THEN 'same'
WHEN a.look = b.look THEN 'alike' ELSE 'other' END AS change,
lower(hex(a.sha256)) AS sha256_from, lower(hex(b.sha256)) AS sha256_to, a.label AS label_from, b.label AS label_to
FROM a FULL JOIN b USING (address)"""
_CHANGES: Final = ("same", "alike", "other", "only_from", "only_to")


def compare(old: Manifest, new: Manifest, changed: Path | None = None) -> dict[str, Any]:
    """Compare the images of two crawls, address by address.

    Args:
        old: A round of the one.
        new: A round of the other.
        changed: Where to write the addresses whose image differs or is in one crawl alone, as `.csv` or `.parquet`.

    Returns:
        Addresses by what came of them (`same` bytes; `alike`: other bytes of one perceptual hash; `other`; `only_from`,
        `only_to`), `safe` (those with another picture that the newer round calls safe), `domains` of the most such.

    Raises:
        RunError: One of them keeps no hashes of its images.
    """
    with connect() as connection:
        for name, manifest in (("a", old), ("b", new)):
            files = [manifest.run.path(part["scores"]["name"]) for part in manifest.seal["parts"]]
            scores = pads.dataset(files, schema=_COLUMNS, format="parquet", filesystem=manifest.run.fs)
            connection.register(f"{name}_scores", scores.scanner(cache_metadata=False))
            connection.register(f"{name}_labels", manifest.dataset().scanner(["uid", "label"], cache_metadata=False))
            connection.execute(_CRAWL.format(name=name))
            _check_kept(connection, name, manifest)
        connection.execute(_BOTH)
        if changed is not None:
            write_rows(connection.sql("SELECT * FROM found WHERE change <> 'same' ORDER BY change, address"), changed)
        counts = dict(connection.sql("SELECT change, count(*) FROM found GROUP BY 1").fetchall())
        safe = connection.sql("SELECT count(*) FROM found WHERE change = 'other' AND label_to = 'safe'").fetchall()[0][0]
        return {**{change: counts.get(change, 0) for change in _CHANGES}, "safe": safe, "domains": _domains(connection)}


def _check_kept(connection: duckdb.DuckDBPyConnection, name: str, manifest: Manifest) -> None:
    if not connection.table(name).shape[0] and manifest.seal["counts"]["scored"]:
        raise RunError(
            f"round {manifest.number} of {manifest.run.uri} keeps no sha256 of its images (it was scored before schema 7), so "
            "there is nothing to compare; score it again: pairsan clean into a new folder"
        )


def _domains(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Return the domains with the most addresses that show another picture."""
    found = connection.execute(
        "SELECT domain, count(*) AS num, count(*) FILTER (change = 'other') AS other FROM found "
        "WHERE domain IS NOT NULL AND change IN ('same', 'alike', 'other') GROUP BY 1 HAVING other > 0 "
        "ORDER BY other DESC, domain LIMIT ?",
        [_MOST_DOMAINS],
    )
    return [dict(zip(("domain", "rows", "other"), line, strict=True)) for line in found.fetchall()]


def num_both(found: dict[str, Any]) -> int:
    """Return how many addresses both crawls have."""
    return int(found["same"] + found["alike"] + found["other"])


def as_lines(found: dict[str, Any]) -> list[str]:
    """Return a comparison for a terminal."""
    lines = [
        f"images of {num_both(found):,} addresses in both: {found['same']:,} the same bytes, {found['alike']:,} encoded anew, "
        f"{found['other']:,} another picture ({found['safe']:,} of them safe); {found['only_from']:,} and {found['only_to']:,} "
        "addresses in one alone"
    ]
    if found["domains"]:
        lines += ["", "domains with other pictures:"]
        lines += [f"  {printable(one['domain'], 80)}: {one['other']:,} of {one['rows']:,}" for one in found["domains"]]
    return lines
