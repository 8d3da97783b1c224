"""Whole runs in this process: what is written, and what it must not depend on."""

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import EMOJI, make_tar, parts_of
from safetensors.torch import load_file, save_file

from manifests import open_round

Pairsan = Callable[..., Result]


def clean(pairsan: Pairsan, data: object, out: Path, tiny: str, *options: object, code: int = 0) -> Result:
    args = ("clean", data, "--checkpoint", tiny, "--out", out, "--executor", "local", *options)
    return pairsan(*args, code=code)


def frame(run: Path, *columns: str) -> pd.DataFrame:
    return open_round(run).to_pandas(["shard", "index", *columns])


def test_every_row_gets_one_row_and_the_counts_add_up(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    output = clean(pairsan, crawl, tmp_path / "run", tiny, "--keep-share", 0.5).output
    run = tmp_path / "run"
    assert output.endswith(
        f"next:\npairsan report {run} --out report.html\npairsan review {run}\n"
        f"pairsan export {run} --format webdataset --out safe-pairs\n"
    )
    assert ", weights tiny-clip, " in pairsan("status", run).output
    seal = open_round(tmp_path / "run").seal
    assert seal["counts"]["labels"] == {"safe": 19, "risky": 19, "quarantined": 2}
    assert seal["counts"]["reasons"] == {"below_cut": 19, "image_undecodable": 1, "caption_empty": 1}
    assert seal["counts"]["rows"] == 40
    for fact in (
        "40 pairs in 3 shards",
        "below_cut",
        "keep-share",
        "cosine >=",
        str(tmp_path / "run" / "rounds/0001/manifest"),
    ):
        assert fact in output


def test_labels_do_not_depend_on_batch_size_or_shard_order(tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    data, reordered = tmp_path / "data", tmp_path / "reordered"  # the same shards, met in the opposite order
    with tarfile.open(EMOJI / "eval" / "00002.tar.gz") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    for folder, order in ((data, (0, 1, 2)), (reordered, (2, 1, 0))):
        folder.mkdir()
        for shard, part in enumerate(order):
            (folder / f"{shard}.tar").write_bytes(make_tar(members[390 * part : 390 * (part + 1)]))  # of 130 pairs each
    runs = {64: tmp_path / "a", 7: tmp_path / "b"}
    for batch_size, run in runs.items():
        clean(pairsan, data, run, tiny, "--batch-size", batch_size, "--keep-share", 0.3)
    clean(pairsan, reordered, tmp_path / "r", tiny, "--keep-share", 0.3)
    base, found = (frame(run, "key", "cosine", "label") for run in (runs[64], runs[7]))
    assert np.abs(found.cosine - base.cosine).max() <= 1e-5
    assert (found.label.astype(str) == base.label.astype(str)).all()
    turned = frame(tmp_path / "r", "key", "cosine", "label").set_index("key").loc[base.key]
    assert turned.cosine.to_numpy() == pytest.approx(base.cosine.to_numpy(), abs=0)
    assert (turned.label.astype(str).to_numpy() == base.label.astype(str).to_numpy()).all()


def test_an_interrupted_run_goes_on_and_ends_byte_for_byte_the_same(
    crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    clean(pairsan, crawl, tmp_path / "whole", tiny, "--keep-share", 0.5, "--keep-embeddings")
    clean(pairsan, crawl, tmp_path / "cut", tiny, "--keep-share", 0.5, "--keep-embeddings")
    cut = tmp_path / "cut" / "rounds" / "0001"
    for name in ("manifest.json", "manifest/00000.tar.parquet", "scores/00001.tar.parquet"):
        (cut / name).unlink()
    (cut / "scores" / ".00001.tar.parquet.abc.draft").write_bytes(b"half a part")
    untouched = (cut / "scores/00000.tar.parquet").stat().st_mtime_ns
    result = clean(pairsan, crawl, tmp_path / "cut", tiny, "--keep-share", 0.5, "--keep-embeddings")
    assert "2 done before" in result.stderr
    assert (cut / "scores/00000.tar.parquet").stat().st_mtime_ns == untouched
    assert parts_of(tmp_path / "cut") == parts_of(tmp_path / "whole")


def test_a_sealed_run_is_left_as_it_is(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    clean(pairsan, crawl, tmp_path / "run", tiny, "--keep-share", 0.5)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    clean(pairsan, crawl, tmp_path / "run", tiny, "--keep-share", 0.5)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_weights_may_be_renamed_between_two_sittings(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    for name in ("first.safetensors", "second.safetensors"):
        shutil.copy(f"{tiny}/open_clip_model.safetensors", tmp_path / name)
        pairsan("embed", crawl, "--model", tiny, "--checkpoint", tmp_path / name, "--out", run, "--executor", "local")
        (run / "rounds/0001/scores/00001.tar.parquet").unlink()
    assert json.loads((run / "rounds/0001/plan.json").read_text())["weights"] == "first.safetensors"


def test_a_resume_under_another_plan_names_the_field(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    clean(pairsan, crawl, run, tiny, "--keep-share", 0.5)
    result = clean(pairsan, crawl, run, tiny, "--keep-share", 0.6, code=5)
    assert "split.keep_share: 0.5 -> 0.6" in result.stderr
    assert "pairsan split" in result.stderr
    result = clean(pairsan, crawl, run, tiny, "--keep-share", 0.5, "--set", "max_caption_bytes=100", code=5)
    assert "scores.read.max_caption_bytes: 8192 -> 100" in result.stderr
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    state = load_file(other / "open_clip_model.safetensors")
    save_file({**state, "logit_scale": state["logit_scale"] * 2}, other / "open_clip_model.safetensors")
    result = clean(pairsan, crawl, run, str(other), "--keep-share", 0.5, code=5)
    assert "scores.model.state_sha256" in result.stderr


def test_a_run_without_a_sealed_round_may_be_begun_anew(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    """The slip of a crawl's first evening: one setting of how rows are read, seen after a full pass."""
    out = tmp_path / "run"
    clean(pairsan, crawl, out, tiny, "--max-quarantined-share", 0.0, "--set", "max_caption_bytes=9", code=3)
    refused = clean(pairsan, crawl, out, tiny, code=5)
    assert "scores.read.max_caption_bytes: 9 -> 8192" in refused.stderr
    assert "Nothing of it is sealed or trained yet: --restart of `clean` and `embed` deletes what is there" in refused.stderr
    (out / "checkpoints").mkdir()  # of a training run: neither offered nor done
    assert "--restart" not in clean(pairsan, crawl, out, tiny, code=5).stderr
    assert "holds checkpoints, which --restart does not delete" in clean(pairsan, crawl, out, tiny, "--restart", code=5).stderr
    (out / "checkpoints").rmdir()
    wrong = clean(pairsan, crawl, out, tiny, "--restart", "--checkpoint", tmp_path / "no.pt", code=4)
    assert "PlanMismatch" not in wrong.stderr
    assert list(out.glob("rounds/0001/scores/*")), "what is wrong in the new command costs nothing of the old"
    clean(pairsan, crawl, out, tiny, "--restart", "--keep-share", 0.5)
    clean(pairsan, crawl, tmp_path / "fresh", tiny, "--keep-share", 0.5)
    assert parts_of(out) == parts_of(tmp_path / "fresh")
    kept = clean(pairsan, crawl, out, tiny, "--restart", code=5)
    assert "holds sealed rounds (1), which --restart does not delete; give another --out" in kept.stderr
    assert open_round(out).number == 1
    other = clean(pairsan, EMOJI / "eval", out, tiny, code=5)
    assert "--restart" not in other.stderr


def test_split_makes_a_new_sealed_round_without_embedding(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    clean(pairsan, crawl, run, tiny, "--keep-share", 0.5)
    shutil.rmtree(crawl)  # neither data nor model are needed any more
    result = pairsan("split", run, "--keep-share", 0.25, "--executor", "local")
    assert "embed" not in result.stderr
    assert open_round(run).number == 2
    assert open_round(run).seal["counts"]["labels"]["safe"] == 10
    assert open_round(run, 1).seal["counts"]["labels"]["safe"] == 19
    result = pairsan("split", run, "--min-cosine", 0.9, "--executor", "local", "--if-unseparable", "fail", code=7)
    assert "would be safe, believed are" in result.stderr
    assert not (run / "rounds" / "0003").exists()
    pairsan("split", run, "--min-cosine", 0.2, "--executor", "local")
    assert open_round(run).seal["cut"] == 0.2
    assert "all as sealed" in pairsan("verify", run, "--round", 3).output


def test_embed_alone_leaves_scores_that_split_can_seal(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    args = ("--checkpoint", tiny, "--out", run, "--executor", "local", "--keep-embeddings", "--no-keep-captions")
    assert "next:\npairsan split" in pairsan("embed", crawl, *args).output
    assert "round 1  scored" in pairsan("status", run).output
    pairsan("split", run, "--keep-share", 0.5, "--executor", "local")
    scores = pq.read_table(run / "rounds/0001/scores/00002.tar.parquet")
    assert scores["caption"].null_count == scores.num_rows == 8
    vectors = pq.read_table(run / "rounds/0001/embeddings/00002.tar.parquet")
    image, text = (np.frombuffer(b"".join(vectors[n].to_pylist()), np.float16).reshape(8, 128) for n in ("image", "text"))
    cosines = np.array([np.nan if c is None else c for c in scores["cosine"].to_pylist()])
    known = np.isfinite(cosines)
    dots = (image.astype(np.float32) * text.astype(np.float32)).sum(1)
    assert dots[known] == pytest.approx(cosines[known], abs=1e-3)
    assert (image[~known] == 0).all()
    assert "embeddings" in open_round(run).seal["parts"][0]
    (run / "rounds/0001/embeddings/00002.tar.parquet").write_bytes(b"other vectors")
    assert "embeddings/00002.tar.parquet: sha256 differs" in pairsan("verify", run, code=1).output


def test_too_much_quarantine_fails_before_the_seal(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    result = clean(pairsan, crawl, run, tiny, "--keep-share", 0.5, "--max-quarantined-share", 0.04, code=3)
    assert "2 of 40 rows could not be scored, allowed are 4.0%" in result.stderr
    assert "image_undecodable 1" in result.stderr
    assert "00002.tar: 2 of 8" in result.stderr
    assert not (run / "rounds/0001/manifest.json").exists()
    assert "unsealed" in pairsan("status", run).output
    pairsan("split", run, "--max-quarantined-share", 0.05, "--executor", "local")
    assert open_round(run).number == 2


def test_all_rows_failing_is_fatal_whatever_is_allowed(tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "0.tar").write_bytes(make_tar([("1.jpg", b"<html>"), ("1.txt", b"a dog")]))
    result = clean(pairsan, tmp_path / "d", tmp_path / "run", tiny, "--max-quarantined-share", 1, code=3)
    assert "1 of 1 rows could not be scored, some must be scored" in result.stderr


def test_weights_with_nan_quarantine_their_rows(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    state = load_file(broken / "open_clip_model.safetensors")
    state["text_projection"][:] = float("nan")
    save_file(state, broken / "open_clip_model.safetensors")
    result = clean(pairsan, crawl, tmp_path / "run", str(broken), code=3)
    assert "not_finite 38" in result.stderr


def test_a_split_that_is_not_believed_leaves_the_round_unsealed(
    tmp_path: Path, tiny: str, pairsan: Pairsan, crawl: Path
) -> None:
    result = clean(pairsan, crawl, tmp_path / "run", tiny, "--rule", "monotone", "--min-separation", 50, code=7)
    assert "Ashman's D" in result.stderr
    assert not (tmp_path / "run/rounds/0001/manifest.json").exists()
    fallback = ("--if-unseparable", "quantile", "--fallback-share", 0.3, "--executor", "local")
    result = pairsan("split", tmp_path / "run", *fallback)
    assert "quantile (fallback; monotone was not believed)" in result.output
    assert open_round(tmp_path / "run").seal["rule"] == "quantile"


def test_a_failing_shard_is_named_and_the_others_are_kept(tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    for name, columns in (("a", {"jpg": [b"?"], "caption": ["x"]}), ("b", {"wrong": [1]})):
        pq.write_table(pa.table(columns), tables / f"{name}.parquet")
    result = clean(pairsan, tables, tmp_path / "run", tiny, code=6)
    assert "1 of 2 shards failed to embed" in result.stderr
    assert "b.parquet: DataError: b.parquet has none of the usual image columns" in result.stderr
    assert (tmp_path / "run/rounds/0001/scores/a.parquet.parquet").exists()
    status = pairsan("status", tmp_path / "run").output
    assert "failed" in status
    assert "b.parquet: DataError" in status
    report = json.loads(pairsan("status", tmp_path / "run", "--json").output)
    assert report["rounds"][0]["failed"][0]["shard"] == "b.parquet"
    assert "Traceback" in report["rounds"][0]["failed"][0]["trace"]


def test_the_published_rule_runs_for_parity(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    clean(pairsan, crawl, tmp_path / "run", tiny, "--rule", "published")
    seal = open_round(tmp_path / "run").seal
    assert (seal["rule"], seal["cut"], seal["min_posterior"]) == ("published", None, 0.9)
    assert "all as sealed" in pairsan("verify", tmp_path / "run").output


def test_demo_data_is_separable_and_planted_pairs_are_flagged(tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    command = [sys.executable, str(EMOJI / "plant.py"), str(tmp_path / "data"), "--data", str(EMOJI / "eval"), "--share", "0.2"]
    subprocess.run(command, check=True, capture_output=True)
    clean(pairsan, tmp_path / "data" / "shards", tmp_path / "run", tiny, "--keep-share", 0.5)
    planted = {tuple(place) for place in json.loads((tmp_path / "data" / "planted.json").read_text())}
    rows = open_round(tmp_path / "run").to_pandas(["shard", "key", "label"])
    is_planted = np.array([place in planted for place in zip(rows.shard, rows.key, strict=True)])
    assert is_planted.sum() == len(planted) > 250
    leaked = (rows.label[is_planted] == "safe").mean()
    assert leaked < 0.15  # a vendor that the model has never seen; half of all pairs are kept
