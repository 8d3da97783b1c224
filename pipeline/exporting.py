"""Export chosen pairs of a sealed round: plan the files, write each whole or not at all, say last what is there."""

import dataclasses
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from manifests.errors import ConfigError, RunError
from manifests.layout import require_same_plan
from manifests.parts import write_file, write_json
from manifests.reading import Manifest
from manifests.store import Store, open_store
from pipeline.config.catalogue import ExecutorSettings
from pipeline.queries.inspection import sealed_off
from pipeline.steps.plan import read_run
from pipeline.workers.connect import connected, make_executor
from pipeline.workers.run_stage import run_stage
from stages.export.target import Choice, Exported, ExportTarget, Format, Piece
from stages.export.write_pairs import Export, digest_of, join
from stages.pair import Shard

PLAN: Final = "export-plan.json"
DONE: Final = "export.json"
FORMATS: Final[tuple[Format, ...]] = ("webdataset", "openclip-tsv", "datacomp-npy", "parquet", "hf", "keys", "urls")
_ENDINGS: Final = {"webdataset": "tar", "openclip-tsv": "tsv", "keys": "txt"} | dict.fromkeys(
    ("parquet", "hf", "urls"), "parquet"
)
_WEIGHTED: Final = ("webdataset", "openclip-tsv", "parquet", "hf")
_BATCH_ROWS: Final = 1 << 20
Report = dict[str, Any]


@dataclass(frozen=True)
class ExportOptions:
    """What is asked of an export; see `pairsan export --help`."""

    form: Format
    choice: Choice
    rows_per_file: int = 10_000
    inject: bool = False
    weights: str | None = None
    multiplicities: bool = False

    def __post_init__(self) -> None:
        """Refuse what a format cannot hold."""
        if self.weights and self.form not in _WEIGHTED:
            raise ConfigError(f"--format {self.form} has no place for weights; use {', '.join(_WEIGHTED)}")
        if self.inject and self.form != "webdataset":
            raise ConfigError(f"--inject writes into the JSON of a webdataset; --format {self.form} has none")
        if self.multiplicities and self.form != "datacomp-npy":
            raise ConfigError("--multiplicities is of --format datacomp-npy alone")


def export(
    manifest: Manifest, out: str, options: ExportOptions, executor: ExecutorSettings, *, verbose: bool = False
) -> Report:
    """Write an export, or go on with one; a finished one is left as it is.

    Args:
        manifest: The sealed round.
        out: Folder or URI.
        options: What to write.
        executor: Where it runs.
        verbose: Whether to let Ray speak.

    Returns:
        What `export.json` says: format, fingerprint of the seal, number of pairs, files with rows and sha256.

    Raises:
        PlanMismatch: The folder holds another export.
        RunError: No pair is chosen.
        DataError: The data have changed, or the format cannot hold them.
    """
    store = open_store(out)
    plan = _plan(manifest, options)
    if store.exists(PLAN):
        require_same_plan(store.read_json(PLAN), plan, where=out, hint="Give another --out for another export.")
        if store.exists(DONE):
            done: Report = store.read_json(DONE)
            return done
    elif store.names(""):
        raise ConfigError(f"--out {out} holds something else already; give an empty folder")
    write_json(store, PLAN, plan)
    if options.form == "datacomp-npy":
        files = [_datacomp(manifest, store, options)]
    else:
        files = _files(manifest, store, options, executor, verbose=verbose)
    report = {**plan, "rows": sum(f.rows for f in files), "missing": sum(f.missing for f in files), "sha256": digest_of(files)}
    report["files"] = [{"name": f.name, "rows": f.rows, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in files]
    _companions(store, options, files)
    write_json(store, DONE, report)
    return report


def _plan(manifest: Manifest, options: ExportOptions) -> Report:
    return {
        "run": manifest.run.uri,
        "round": manifest.number,
        "fingerprint": manifest.seal["fingerprint"],
        "format": options.form,
        "labels": list(options.choice.labels),
        "reasons": list(options.choice.reasons),
        "rows_per_file": options.rows_per_file,
        "inject": options.inject,
        "weights": options.weights,
        "multiplicities": options.multiplicities,
    }


def _files(
    manifest: Manifest, store: Store, options: ExportOptions, executor_options: ExecutorSettings, *, verbose: bool
) -> list[Exported]:
    """Write all files that are not there yet, and join those of formats that are one file."""
    facts = read_run(manifest.run)
    dataset = facts.open_data()
    if dataset.fingerprint != manifest.seal["plan"]["scores"]["dataset"]["fingerprint"]:
        raise RunError(f"the data of {manifest.run.uri} have changed since round {manifest.number} was scored; export nothing")
    pieces = _pieces(manifest, dataset.shards, options)
    if not pieces:
        raise RunError(
            f"round {manifest.number} has no pair with labels {options.choice.labels}, reasons {options.choice.reasons}"
        )
    target = ExportTarget(
        store, manifest, options.choice, options.form, dataset.store, facts.config.data, pieces, options.inject, options.weights
    )
    units = [Shard(name, "", "tar", sum(piece.num for piece in mine)) for name, mine in pieces.items()]
    notes = f"{PLAN}.files"
    known = {f["name"]: Exported(**f) for f in (store.read_json(notes) if store.exists(notes) else [])}
    done = {name: found for name, found in known.items() if store.exists(name)}

    def collect(unit: Shard, exported: Exported) -> tuple[int, int]:
        done[unit.name] = exported
        write_json(store, notes, [dataclasses.asdict(found) for found in done.values()])
        return exported.rows, exported.missing

    todo = [unit for unit in units if unit.name not in done]
    with connected(executor_options, verbose=verbose):
        executor = make_executor(executor_options, use_gpus=False)
        run_stage(
            executor, Export(target), todo, what="export", folder=(store, None), collect=collect,
            num_done_before=len(units) - len(todo),
        )  # fmt: skip
    files = [done[unit.name] for unit in units]
    if options.form in ("openclip-tsv", "keys"):
        files = [_joined(store, options, files)]
    store.delete(notes)
    return files


def _pieces(manifest: Manifest, shards: Sequence[Shard], options: ExportOptions) -> dict[str, list[Piece]]:
    """Return what goes into each file: tars of equal size, else a file for each input shard."""
    if options.choice.reasons:
        counts = {shard.name: len(options.choice.rows(manifest, shard.name)) for shard in shards}
    else:
        labels = {part["shard"]: part["labels"] for part in manifest.seal["parts"]}
        counts = {name: sum(labels[name][label] for label in options.choice.labels or labels[name]) for name in labels}
    ending = _ENDINGS[options.form]
    if options.form != "webdataset":
        folder = "parts/" if options.form in ("openclip-tsv", "keys") else ""
        names = {shard.name: f"{folder}{shard.name}.{ending}" for shard in shards}
        return {names[shard.name]: [Piece(shard, 0, counts[shard.name])] for shard in shards if counts[shard.name]}
    files: list[list[Piece]] = []
    room = 0
    for shard in shards:
        skip, left = 0, counts[shard.name]
        while left:
            if room == 0:
                files.append([])
                room = options.rows_per_file
            num = min(left, room)
            files[-1].append(Piece(shard, skip, num))
            skip, left, room = skip + num, left - num, room - num
    return {f"{number:05d}.tar": mine for number, mine in enumerate(files)}


def _joined(store: Store, options: ExportOptions, files: Sequence[Exported]) -> Exported:
    """Make one file of the parts."""
    head = b""
    if options.form == "openclip-tsv":
        head = "\t".join(["filepath", "title", *(["weight"] if options.weights else [])]).encode() + b"\n"
    name = f"pairs.{_ENDINGS[options.form]}"
    size, digest = join(store, name, [f.name for f in files], head)
    for f in files:
        store.delete(f.name)
    return Exported(name, sum(f.rows for f in files), size, digest, sum(f.missing for f in files))


def _companions(store: Store, options: ExportOptions, files: Sequence[Exported]) -> None:
    """Write what readers of webdataset folders look for: `sizes.json`, and img2dataset's `_stats.json` of every tar."""
    if options.form != "webdataset":
        return
    write_json(store, "sizes.json", {f.name: f.rows for f in files})
    for f in files:
        stats = {"count": f.rows, "successes": f.rows, "failed_to_download": 0, "failed_to_resize": 0}
        write_json(store, f"{posixpath.splitext(f.name)[0]}_stats.json", stats)


def _datacomp(manifest: Manifest, store: Store, options: ExportOptions) -> Exported:
    """Write DataComp's subset file: sorted uids as pairs of 64-bit numbers. DuckDB sorts them, out of core where it must."""
    words = {"label": options.choice.labels, "reason": options.choice.reasons}
    tests = [f"list_contains(?::VARCHAR[], {name})" for name, some in words.items() if some]
    values = [list(some) for some in words.values() if some]
    what = "uid" if options.multiplicities else "DISTINCT uid"
    query = f"SELECT {what} FROM pairs WHERE {' AND '.join(['TRUE', *tests])} ORDER BY uid"  # noqa: S608
    with sealed_off(manifest) as connection:
        num = connection.execute(f"SELECT count(*) FROM ({query})", values).fetchall()[0][0]  # noqa: S608
        if not num:
            raise RunError(f"round {manifest.number} has no pair with labels {options.choice.labels}")
        reader = connection.sql(query, params=values).to_arrow_reader(_BATCH_ROWS)
        size, digest = write_file(store, "subset.npy", lambda file: _write_npy(file, reader, num))
    return Exported("subset.npy", num, size, digest)


def _write_npy(file: Any, reader: Any, num: int) -> None:
    kind = np.dtype("u8,u8")
    np.lib.format.write_array_header_1_0(file, {"descr": kind.descr, "fortran_order": False, "shape": (num,)})
    last = b""
    for batch in reader:
        uids = batch.column(0).to_pylist()
        if uids and (uids != sorted(uids) or uids[0] < last):
            raise RunError("uids came unsorted out of DuckDB; nothing was written")
        last = uids[-1] if uids else last
        file.write(np.frombuffer(b"".join(uids), ">u8").astype("<u8").tobytes())


def as_text(report: Report, out: str) -> str:
    """Return an export for a terminal."""
    why = "no address of theirs is known" if report["format"] == "urls" else "their image cannot be read"
    missing = f", {report['missing']:,} left out since {why}" if report["missing"] else ""
    files = report["files"]
    some = f"{len(files)} files" if len(files) > 1 else files[0]["name"]
    return f"{report['rows']:,} pairs of round {report['round']} in {some} of {out}{missing}"
