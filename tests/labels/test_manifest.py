"""A sealed round as a trainer, a reviewer and an attacker with a hex editor see it."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from manifests import MANIFEST, NotSealed, open_round, open_store
from manifests.errors import PlanMismatch, RunError, SchemaError
from manifests.layout import differences, fingerprint, require_same_plan
from manifests.schema import MEANINGS, SCHEMA_VERSION, VERSION_KEY
from manifests.verify import problems


@pytest.fixture
def run(crawl: Path, tmp_path: Path, tiny: str, pairsan: Callable[..., object]) -> Path:
    """A sealed run over 40 real pairs: 20 safe or so, 2 quarantined."""
    out = tmp_path / "run"
    pairsan("clean", crawl, "--checkpoint", tiny, "--out", out, "--executor", "local", "--keep-share", "0.5")
    return out


def test_rows_mirror_the_input_shard_by_shard(run: Path) -> None:
    manifest = open_round(run)
    assert manifest.shards == ["00000.tar", "00001.tar", "00002.tar"]
    tables = {shard: manifest.table(shard) for shard in manifest.shards}
    assert [table.num_rows for table in tables.values()] == [16, 16, 8]
    for shard, table in tables.items():
        assert table.schema.equals(MANIFEST)
        assert table["index"].to_pylist() == list(range(table.num_rows))
        assert set(table["shard"].to_pylist()) == {shard}
    last = tables["00002.tar"]
    assert last["reason"].to_pylist().count("image_undecodable") == 1
    assert last["reason"].to_pylist().count("caption_empty") == 1


def test_masks_are_numpy_and_add_up(run: Path) -> None:
    manifest = open_round(run)
    for shard, safe in manifest.masks():
        assert safe.dtype == np.bool_
        total = safe.astype(int) + manifest.mask(shard, "risky") + manifest.mask(shard, "quarantined")
        assert (total == 1).all()
    safe = sum(int(mask.sum()) for _, mask in manifest.masks())
    assert safe == manifest.seal["counts"]["labels"]["safe"] == 19  # half of the 38 that have a cosine


def test_the_best_cosines_are_the_safe_ones(run: Path) -> None:
    frame = open_round(run).to_pandas(["label", "cosine", "rank", "p_safe"])
    safe, risky = frame[frame.label == "safe"], frame[frame.label == "risky"]
    assert safe.cosine.min() > risky.cosine.max()
    assert safe["rank"].max() < risky["rank"].min()
    scored = frame.dropna(subset=["cosine"])
    expected = [(scored.cosine > value).mean() for value in scored.cosine]
    assert scored["rank"].to_numpy() == pytest.approx(expected, abs=1e-7)
    assert (frame[frame.label == "quarantined"].p_safe == 0).all()


def test_pandas_and_arrow_filters(run: Path) -> None:
    manifest = open_round(run)
    flagged = manifest.to_pandas(["key", "reason"], where=pads.field("label") == "quarantined")
    assert sorted(flagged.reason) == ["caption_empty", "image_undecodable"]
    assert manifest.dataset().count_rows() == manifest.num_rows == 40


def test_a_trainer_needs_neither_torch_nor_ray(run: Path) -> None:
    code = (
        "import sys;"
        "heavy = ('torch', 'ray', 'sklearn', 'pydantic', 'duckdb', 'fsspec', 'stages', 'pipeline');"
        "sys.modules.update(dict.fromkeys(heavy));"  # importing any of them now fails (pyarrow itself looks for pandas)
        "from manifests import open_round;"
        "print(sum(int(mask.sum()) for _, mask in open_round(sys.argv[1]).masks()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout == "19\n"


def test_a_sealed_round_verifies_and_an_unsealed_one_is_refused(run: Path) -> None:
    assert list(problems(open_round(run))) == []
    (run / "rounds/0001/manifest.json").rename(run / "seal-away")
    with pytest.raises(NotSealed, match="no sealed round"):
        open_round(run)
    with pytest.raises(NotSealed, match="no seal on round 1"):
        open_round(run, 1)
    with pytest.raises(NotSealed, match="is no run folder"):
        open_round(run / "nowhere")


@pytest.mark.parametrize("kind", ["manifest", "scores"])
def test_one_changed_byte_is_found(run: Path, kind: str) -> None:
    path = run / f"rounds/0001/{kind}/00001.tar.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert [p for p in problems(open_round(run)) if f"{kind}/00001.tar.parquet: sha256 differs" in p]


def rewrite(run: Path, shard: str, column: str, change: Callable[[list[object]], list[object]]) -> None:
    """Change a column of a manifest part and fix its hash in the seal, as a careful forger would."""
    import hashlib

    path = run / f"rounds/0001/manifest/{shard}.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    values = change(table[column].to_pylist())
    import pyarrow as pa

    array = pa.array(values, pa.string()).dictionary_encode() if column in ("label", "reason") else pa.array(values)
    pq.write_table(table.set_column(place, table.schema.field(column), array.cast(table.schema.field(column).type)), path)
    seal_path = run / "rounds/0001/manifest.json"
    seal = json.loads(seal_path.read_text())
    for part in seal["parts"]:
        if part["shard"] == shard:
            part["manifest"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    seal_path.write_text(json.dumps(seal))


def test_labels_that_do_not_follow_from_the_cosines_are_found(run: Path) -> None:
    rewrite(run, "00002.tar", "label", lambda labels: ["safe"] * len(labels))
    found = list(problems(open_round(run)))
    assert any("a row without a cosine is not quarantined" in p for p in found)
    assert any("a safe row lies below the cut" in p for p in found)
    assert any(p.startswith("safe: ") and "the seal says" in p for p in found)


def test_reordered_and_foreign_rows_are_found(run: Path) -> None:
    rewrite(run, "00000.tar", "index", lambda values: values[::-1])
    rewrite(run, "00001.tar", "key", lambda values: ["forged", *values[1:]])
    found = list(problems(open_round(run)))
    assert any("`index` does not count" in p for p in found)
    assert any("`key` differs from the scores part" in p for p in found)


def test_missing_parts_are_found(run: Path) -> None:
    (run / "rounds/0001/manifest/00000.tar.parquet").unlink()
    assert any(p.endswith("00000.tar.parquet: missing") for p in problems(open_round(run)))


def test_an_altered_plan_is_found(run: Path) -> None:
    path = run / "rounds/0001/plan.json"
    path.write_text(path.read_text().replace('"threshold": 0.9', '"threshold": 0.8'))
    assert list(problems(open_round(run))) == ["plan.json differs from the plan inside the seal"]


def test_parts_of_a_newer_schema_are_refused(run: Path) -> None:
    path = run / "rounds/0001/manifest/00000.tar.parquet"
    table = pq.read_table(path)
    newer = {**table.schema.metadata, VERSION_KEY: str(SCHEMA_VERSION + 1).encode()}
    pq.write_table(table.replace_schema_metadata(newer), path)
    with pytest.raises(SchemaError, match=f"written under manifest schema {SCHEMA_VERSION + 1}"):
        open_round(run).table("00000.tar")
    with pytest.raises(RunError, match="has no shard 'x.tar'"):
        open_round(run).table("x.tar")


def test_parts_carry_the_fingerprint_of_their_plan(run: Path) -> None:
    seal = open_round(run).seal
    stamps = {
        kind: pq.read_schema(run / f"rounds/0001/{kind}/00000.tar.parquet").metadata[b"pairsan.fingerprint"].decode()
        for kind in ("scores", "manifest")
    }
    assert stamps == {"scores": seal["scores_fingerprint"], "manifest": seal["fingerprint"]}
    assert seal["fingerprint"] == fingerprint(seal["plan"])


def test_every_column_has_a_meaning() -> None:
    assert list(MEANINGS) == MANIFEST.names


def test_plans_are_compared_field_by_field() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert differences(old, new) == ["a.c: 2 -> 4", "d: 3 -> None", "e: None -> 5"]
    assert fingerprint({"x": 1, "y": 2}) == fingerprint({"y": 2, "x": 1})
    with pytest.raises(PlanMismatch, match=r"a\.c: 2 -> 4"):
        require_same_plan(old, new, where="here", hint="")
    require_same_plan(old, dict(old), where="here", hint="")


def test_uids_are_16_bytes_and_unique(run: Path) -> None:
    uids = open_round(run).dataset().to_table(columns=["uid"])["uid"]
    assert pc.count_distinct(uids).as_py() == 40
    assert open_store(run).exists("run.json")


def test_a_notebook_shows_a_round_and_nothing_that_a_crawl_has_written(run: Path) -> None:
    manifest = open_round(run)
    doubted = replace(manifest, seal={**manifest.seal, "doubts": ["<script>alert(1)</script>"]})
    shown = doubted._repr_html_()
    labels = manifest.seal["counts"]["labels"]
    assert f"<td>safe</td><td>{labels['safe']:,}</td>" in shown
    assert f"rule {manifest.seal['rule']}" in shown
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
