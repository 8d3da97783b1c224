"""Check a sealed round against its seal: hashes, counts, schema, order, labels."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.labels import Label, Reason
from manifests.layout import PLAN, fingerprint, round_folder
from manifests.reading import Manifest, check_version
from manifests.schema import FINGERPRINT_KEY, manifest_schema, scores_schema


def problems(manifest: Manifest) -> Iterator[str]:
    """Yield a sentence for everything in a sealed round that does not agree with its seal.

    Reads every byte of every part once; memory is that of one part.
    """
    seal, run = manifest.seal, manifest.run
    if seal["fingerprint"] != fingerprint(seal["plan"]):
        yield "manifest.json: the fingerprint is not that of the plan inside the seal"
    if run.read_json(f"{round_folder(manifest.number)}/{PLAN}") != seal["plan"]:
        yield "plan.json differs from the plan inside the seal"
    totals: dict[str, int] = {}
    for part in seal["parts"]:
        yield from _part_problems(manifest, part, totals)
    yield from _count_problems(seal, totals)


def _part_problems(manifest: Manifest, part: dict[str, Any], totals: dict[str, int]) -> Iterator[str]:
    if "embeddings" in part and manifest.run.exists(part["embeddings"]["name"]):  # a watcher deletes old ones
        yield from _file_problems(manifest, part["embeddings"])
    if "signals" in part:
        yield from _file_problems(manifest, part["signals"])
    scores = _read(manifest, part["scores"], scores_schema, manifest.seal["scores_fingerprint"])
    labels = _read(manifest, part["manifest"], manifest_schema, manifest.seal["fingerprint"])
    if isinstance(scores, str) or isinstance(labels, str):
        yield from (text for text in (scores, labels) if isinstance(text, str))
        return
    name = part["manifest"]["name"]
    if not scores.num_rows == labels.num_rows == part["rows"]:
        yield f"{name}: {labels.num_rows} rows, its scores {scores.num_rows}, the seal {part['rows']}"
        return
    if not labels["index"].equals(pa.chunked_array([pa.array(range(part["rows"]), pa.int32())])):
        yield f"{name}: `index` does not count 0, 1, 2, ..."
    for column in ("uid", "key", "cosine"):
        if not labels[column].combine_chunks().equals(scores[column].combine_chunks()):
            yield f"{name}: `{column}` differs from the scores part"
    yield from _label_problems(name, labels, manifest.seal)
    for entry in pc.value_counts(labels["label"].cast(pa.string())).to_pylist():
        totals[entry["values"]] = totals.get(entry["values"], 0) + entry["counts"]


def _label_problems(name: str, labels: pa.Table, seal: dict[str, Any]) -> Iterator[str]:
    """Check that labels follow from the columns beside them: nothing unscored is safe, nothing below the cut either."""
    label = labels["label"].cast(pa.string())
    unscored = pc.is_null(labels["cosine"])
    is_safe = pc.equal(label, Label.SAFE)
    if pc.any(pc.and_(unscored, pc.not_equal(label, Label.QUARANTINED))).as_py():
        yield f"{name}: a row without a cosine is not quarantined"
    reviewed = pc.fill_null(pc.equal(labels["reason"].cast(pa.string()), Reason.REVIEW), False)
    by_rule = pc.and_(is_safe, pc.invert(reviewed))
    if seal["cut"] is not None and pc.any(pc.and_(by_rule, pc.less(labels["cosine"], seal["cut"]))).as_py():
        yield f"{name}: a safe row lies below the cut {seal['cut']}"
    if pc.any(pc.xor(by_rule, pc.is_null(labels["reason"]))).as_py():
        yield f"{name}: a reason is missing on a row that is not safe, or stands on one that is"


def _count_problems(seal: dict[str, Any], totals: dict[str, int]) -> Iterator[str]:
    counts = seal["counts"]
    for label in Label:
        if totals.get(label, 0) != counts["labels"][label]:
            yield f"{label}: {totals.get(label, 0)} rows, the seal says {counts['labels'][label]}"
    if sum(counts["labels"].values()) != counts["rows"]:
        yield f"counts do not add up: {counts['labels']} against {counts['rows']} rows"


def _file_problems(manifest: Manifest, entry: dict[str, Any]) -> Iterator[str]:
    name = entry["name"]
    if not manifest.run.exists(name):
        yield f"{name}: missing"
        return
    with manifest.run.fs.open_input_file(manifest.run.path(name)) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            yield f"{name}: sha256 differs from the seal ({file.size()} bytes, sealed {entry['size_bytes']})"


def _read(manifest: Manifest, entry: dict[str, Any], schema: Callable[[int], pa.Schema], stamp: str) -> pa.Table | str:
    """Return a part as a table, or a sentence on why it cannot be trusted; `schema` knows the columns of every version."""
    name = entry["name"]
    for problem in _file_problems(manifest, entry):
        return problem
    with manifest.run.fs.open_input_file(manifest.run.path(name)) as file:
        table = pq.read_table(file)
    version = check_version(table.schema, name)
    if not table.schema.equals(schema(version)):
        return f"{name}: columns differ from the schema: {table.schema.names}"
    if (table.schema.metadata or {}).get(FINGERPRINT_KEY, b"").decode() != stamp:
        return f"{name}: was written under another plan than the seal's"
    return table
