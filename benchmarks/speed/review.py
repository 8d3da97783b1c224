"""How fast the review page and the report answer on a large round.

    python -m benchmarks.speed.review [--rows 10000000] [--folder DIR] [--width 512]

A synthetic manifest (random cosines, captions of the bundled pairs) over a tar of bundled pairs that stands for every shard
by hard links; with `--width`, random vectors of so many numbers, too, for search by image and the map. Requests go through the
whole application, without a socket. Ratios: each request against a bare count(*) of the same parts by DuckDB.
"""

import argparse
import io
import json
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from starlette.testclient import TestClient

from benchmarks.attacks.world import load_rows, suffix_of
from benchmarks.common import header
from benchmarks.evidence.data import BUNDLED
from manifests.layout import RUN, fingerprint
from manifests.parts import write_json, write_part
from manifests.reading import Manifest
from manifests.schema import MANIFEST, SCHEMA_VERSION, SOURCE
from manifests.signals import SIGNALS
from manifests.store import open_store
from pipeline.config.catalogue import RunConfig
from pipeline.pages import report
from pipeline.pages.gallery import Gallery
from pipeline.pages.review import Reviewer, make_app
from pipeline.pages.thumbnails import Thumbnails, places_of
from stages.export.single_images import Originals
from stages.pair import Shard
from stages.read.formats.webdataset import read_tar
from stages.read.shards import open_dataset
from stages.settings import ReadSettings
from stages.vectors import packed, unit

SHARD_ROWS = 10_000
PLACES = pa.schema([("image_offset", pa.int64()), ("image_bytes", pa.int64())])
CUT = 0.2


def build(folder: Path, num_shards: int, width: int = 0) -> None:
    """Write data and manifest, unless they are there."""
    data, run = folder / "data", open_store(folder / "run")
    if (folder / "run" / "rounds" / "0001" / "manifest.json").exists():
        return
    data.mkdir(parents=True, exist_ok=True)
    rows = load_rows([str(BUNDLED / "eval")])
    with tarfile.open(data / "00000.tar", "w") as tar:
        for i in range(SHARD_ROWS):
            row = rows[i % len(rows)]
            for end, content in ((suffix_of(row.image), row.image), ("txt", row.caption.encode())):
                info = tarfile.TarInfo(f"{i:06d}.{end}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with (data / "00000.tar").open("rb") as file:
        places = [pair.place for pair in read_tar(file, Shard("x", "", "tar", 0), ReadSettings())]
    offsets = pa.table({name: pa.array([p[i] for p in places if p]) for i, name in enumerate(PLACES.names)})
    rng, parts, totals = np.random.default_rng(0), [], {"safe": 0, "risky": 0, "quarantined": 0}
    captions = pa.array([f"{rows[i % len(rows)].caption} no {i}" for i in range(SHARD_ROWS)])
    for number in range(num_shards):
        name = f"{number:05d}.tar"
        if number:
            (data / name).hardlink_to(data / "00000.tar")
        table, labels = _part(name, rng, captions)
        path = f"rounds/0001/manifest/{name}.parquet"
        part = write_part(run, path, MANIFEST, [table], fingerprint="x")
        entry = {"name": path, "size_bytes": part.size_bytes, "sha256": part.sha256}
        places = {"name": f"rounds/0001/scores/{name}.parquet"}
        write_part(run, places["name"], PLACES, [offsets], fingerprint="x")
        parts.append({"shard": name, "rows": SHARD_ROWS, "labels": labels, "manifest": entry, "scores": places})
        if width:
            parts[-1]["embeddings"] = {"name": f"rounds/0001/embeddings/{name}.parquet"}
            vectors = packed(unit(rng.standard_normal((SHARD_ROWS, width), np.float32)))
            table = pa.table({"image": vectors})
            write_part(run, parts[-1]["embeddings"]["name"], table.schema, [table], fingerprint="x")
        totals = {label: totals[label] + labels[label] for label in totals}
    shards = [[shard.name, shard.path, shard.format, shard.size_bytes] for shard in open_dataset([str(data)]).shards]
    write_json(run, RUN, {"data": [str(data)], "dataset": {"shards": shards}, "config": RunConfig().model_dump()})
    write_json(run, "rounds/0001/plan.json", {"round": 1})
    write_json(run, "rounds/0001/manifest.json", _seal(parts, totals))


def _part(name: str, rng: np.random.Generator, captions: pa.Array) -> tuple[pa.Table, dict[str, int]]:
    cosine = rng.normal(0.28, 0.07, SHARD_ROWS).astype(np.float32)
    code = np.where(cosine >= CUT, 0, 1).astype(np.int32)
    code[:20] = 2
    near = np.where(rng.random(SHARD_ROWS) < 0.01, rng.integers(0, 2000, SHARD_ROWS), -rng.integers(1, 2**40, SHARD_ROWS))
    known = {
        "outlier": pa.array(rng.random(SHARD_ROWS, np.float32)),
        "image_cluster": pa.array(near),
        "image_cluster_size": pa.array(np.where(near >= 0, 50, 1).astype(np.int32)),
        "caption_cluster_size": pa.array(np.ones(SHARD_ROWS, np.int32)),
        "caption_agreement": pa.array(rng.random(SHARD_ROWS, np.float32)),
        "exact_copy_cluster": pa.array(rng.integers(-(2**63), 2**63 - 1, SHARD_ROWS)),
        "exact_copies": pa.array(np.ones(SHARD_ROWS, np.int32)),
    }
    columns = [known.get(field.name, pa.nulls(SHARD_ROWS, field.type)) for field in SIGNALS]
    signals = pa.StructArray.from_arrays(columns, fields=list(SIGNALS))
    words = pa.array(["safe", "risky", "quarantined"])
    reasons = pa.array([None if c == 0 else "below_cut" if c == 1 else "image_missing" for c in code]).dictionary_encode()
    table = pa.table(
        {
            "shard": pa.DictionaryArray.from_arrays(pa.array(np.zeros(SHARD_ROWS, np.int32)), pa.array([name])),
            "index": pa.array(np.arange(SHARD_ROWS, dtype=np.int32)),
            "key": pa.array([f"{i:06d}" for i in range(SHARD_ROWS)]),
            "uid": pa.array([rng.bytes(16) for _ in range(SHARD_ROWS)], pa.binary(16)),
            "caption": captions,
            "cosine": pa.array(cosine, mask=code == 2),
            "p_safe": pa.array(np.clip(cosine * 2, 0, 1)),
            "rank": pa.array(rng.random(SHARD_ROWS, np.float32)),
            "label": pa.DictionaryArray.from_arrays(pa.array(code), words),
            "reason": reasons,
            "detail": pa.nulls(SHARD_ROWS, pa.string()),
            "signals": signals,
            "voice": pa.nulls(SHARD_ROWS, MANIFEST.field("voice").type),
            "since": pa.array(np.ones(SHARD_ROWS, np.int32)),
            "sits_out": pa.array(np.zeros(SHARD_ROWS, bool)),
            "source": pa.nulls(SHARD_ROWS, SOURCE),
        }
    )
    return table, {str(word): int((code == i).sum()) for i, word in enumerate(words.to_pylist())}


def _seal(parts: list[dict[str, object]], totals: dict[str, int]) -> dict[str, object]:
    plan = {"round": 1, "scores": {"model": {"architecture": "synthetic", "state_sha256": "0" * 64}}}
    rows = sum(totals.values())
    reasons = {"below_cut": totals["risky"], "image_missing": totals["quarantined"]}
    return {
        **{
            "schema_version": SCHEMA_VERSION,
            "fingerprint": fingerprint(plan),
            "plan": plan,
            "parts": parts,
            "rule": "min-cosine",
        },
        **{"counts": {"rows": rows, "scored": rows - totals["quarantined"], "labels": totals, "reasons": reasons}},
        **{"cut": CUT, "safe_share": totals["safe"] / rows, "limits": [], "doubts": [], "mixture": None, "overruled": {}},
    }


def timed(what: str, act: Callable[[], object], bare: float) -> None:
    """Print how long an act took, first and again, and its ratio to a bare count."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - start)
    print(f"{what:<44}{seconds[0]:>8.2f} s first{seconds[1]:>8.2f} s again   x {seconds[0] / bare:.1f}", flush=True)


class Page:
    """A reviewer's page over a round, asked as its browser asks it; prints how long answers take, beside a bare count.

    Attributes:
        manifest: The round.
        thumbnails: Of its images.
        client: What stands for the browser.
    """

    def __init__(self, folder: Path) -> None:
        """Open the round."""
        seal = json.loads((folder / "run/rounds/0001/manifest.json").read_text())
        self.manifest = Manifest(open_store(folder / "run"), 1, seal)
        dataset = open_dataset([str(folder / "data")])
        originals = Originals(dataset.store, dataset.shards, ReadSettings(), places_of(self.manifest))
        self.thumbnails = Thumbnails(originals, ReadSettings())
        files, start = self.manifest.files(), time.perf_counter()
        duckdb.sql(f"SELECT count(cosine), max(label) FROM read_parquet({files})").fetchall()
        self._bare = time.perf_counter() - start
        print(f"bare count(cosine) and max(label): {self._bare:.2f} s; {self.manifest.num_rows:,} rows in {len(files)} parts")
        start = time.perf_counter()
        app = make_app(Reviewer(Gallery(self.manifest), self.thumbnails, "x"), "t", 80)
        print(f"opening the gallery: {time.perf_counter() - start:.2f} s")
        self.client = TestClient(app, base_url="http://127.0.0.1:80", headers={"host": "127.0.0.1:80"})

    def send(self, name: str, **body: object) -> Any:
        """Return the answer to a request, which must be one."""
        return self.client.post(f"/t/{name}", json=body).raise_for_status()

    def ask(self, name: str, page: int = 0, **given: object) -> Any:
        """Return what the page says of a filter; a page must have pairs."""
        found = self.send(name, filter=given, page=page).json()
        assert name == "count" or found["pairs"], f"page {page} of {given} is empty"
        return found

    def timed(self, what: str, act: Callable[[], object]) -> None:
        """Print how long an act took, first and again, and its ratio to the bare count."""
        timed(what, act, self._bare)


def by_filters(page: Page) -> None:
    """Time what filters find, how many there are, and histograms."""
    filters: dict[str, dict[str, object]] = {
        "first page: risky, lowest cosine": {"label": "risky"},
        "cosine 0.20 to 0.21": {"of": "cosine", "low": 0.2, "high": 0.21},
        "reason image_missing": {"reason": "image_missing"},
        "caption contains 'flag'": {"caption": "flag"},
        "shard 0004*": {"shard": "0004*"},
        "signals.image_cluster_size > 2": {"where": "signals.image_cluster_size > 2"},
    }
    for what, given in filters.items():
        page.timed(what + ", page", partial(page.ask, "pairs", **given))
        page.timed(what + ", count", partial(page.ask, "count", **given))
    for of in ("cosine", "signals.outlier"):
        page.timed(f"histogram of {of}", partial(page.send, "histogram", of=of))


def by_vectors(page: Page) -> None:
    """Time what is found by likeness, and the map."""
    like = iter([f"pair:{pair['shard']}:{pair['index']}" for pair in page.ask("pairs", label="risky")["pairs"][:2]])
    page.timed("first page of images like a pair's", lambda: page.ask("pairs", like=next(like), sort="-similarity"))
    page.timed("map, laid out and drawn", partial(page.send, "map"))
    page.timed("map, of the risky", partial(page.send, "map", filter={"label": "risky"}))
    page.timed("an area of the map, page", partial(page.ask, "pairs", area="0.4,0.4,0.5,0.5"))


def by_pages(page: Page, report_at: Path) -> None:
    """Time pages far down, thumbnails, and the report."""
    for what, number in (("page 99 of all pairs", 99), ("page 100, of the next query", 100), ("page 1,000 at once", 1000)):
        page.timed(what, partial(page.ask, "pairs", number, sort="-cosine"))
    pairs = page.ask("pairs", label="risky")["pairs"]
    first = {"shard": pairs[0]["shard"], "index": pairs[0]["index"]}
    page.timed("one thumbnail", partial(page.client.get, "/t/image", params=first))
    page.timed("60 thumbnails of 60 shards", lambda: [page.thumbnails.of(p["shard"], [p["index"]], 160) for p in pairs])
    page.timed("report", partial(report.write, page.manifest, page.thumbnails, report_at))
    print(f"report: {report_at.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    """Build the round, then time what a reviewer waits for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/pairsan-review-speed"))
    parser.add_argument("--width", type=int, default=0)
    args = parser.parse_args()
    build(args.folder, args.rows // SHARD_ROWS, args.width)
    header("speed.review")
    page = Page(args.folder)
    by_filters(page)
    if args.width:
        by_vectors(page)
    by_pages(page, args.folder / "report.html")


if __name__ == "__main__":
    main()
