"""What came against what an index promised: told apart on real pairs, and every mistake about an index is one line."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import EMOJI, make_tar
from PIL import Image

from manifests import open_round
from stages.signals.index import join
from stages.signals.index.join import _by_shard
from stages.signals.index.promises import PROMISE, beyond, simulated_aspects
from stages.vectors import vectors_of

Pairsan = Callable[..., Result]
NUM, NUM_ENCODED, NUM_REPLACED = 300, 60, 40


def pictures() -> tuple[list[bytes], list[str]]:
    """Return the images and captions of the first held-out shard."""
    with tarfile.open(EMOJI / "eval" / "00000.tar.gz") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    return [b for n, b in members if n.endswith(".webp")][:NUM], [b.decode() for n, b in members if n.endswith(".txt")][:NUM]


def encoded_anew(image: bytes, way: int) -> bytes:
    """Return a picture as an honest server may serve it years later."""
    picture, out = Image.open(io.BytesIO(image)).convert("RGB"), io.BytesIO()
    if way == 0:
        picture.save(out, "JPEG", quality=70)
    elif way == 1:
        picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)).save(out, "PNG")
    else:
        picture.save(out, "WEBP", quality=75)
    return out.getvalue()


def write(folder: Path, images: list[bytes], captions: list[str]) -> None:
    """Write two tars as img2dataset does, with what it says of each download."""
    folder.mkdir()
    members = []
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        width, height = Image.open(io.BytesIO(image)).size
        facts = {"url": f"http://d{i % 3}.example/{i}", "sha256": hashlib.sha256(image).hexdigest()}
        facts |= {"original_width": width, "original_height": height, "uid": f"{i:032x}"}
        members.append([(f"{i:05d}.webp", image), (f"{i:05d}.txt", caption.encode())])
        members[-1].append((f"{i:05d}.json", json.dumps(facts).encode()))
    for number, rows in enumerate((members[: NUM // 3], members[NUM // 3 :])):
        (folder / f"{number}.tar").write_bytes(make_tar([member for row in rows for member in row]))


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, tiny: str, pairsan: Pairsan) -> tuple[Path, np.ndarray[Any, Any]]:
    """Data of which some rows were encoded anew and some replaced by others of their size; their index; and what each is."""
    folder = tmp_path_factory.mktemp("web")
    images, captions = pictures()
    write(folder / "then", images, captions)
    rng = np.random.default_rng(0)
    what, chosen = np.full(NUM, "exact", object), rng.permutation(NUM)
    what[chosen[:NUM_ENCODED]], what[chosen[NUM_ENCODED : NUM_ENCODED + NUM_REPLACED]] = "encoded", "replaced"
    came = [
        image if kind == "exact" else encoded_anew(image, i % 3) if kind == "encoded" else images[(i + NUM // 2) % NUM]
        for i, (image, kind) in enumerate(zip(images, what, strict=True))
    ]
    write(folder / "now", came, captions)
    options = ("--checkpoint", tiny, "--executor", "local", "--keep-share", 0.9)
    pairsan("clean", folder / "then", "--out", folder / "first", *options, "--keep-embeddings")
    first = open_round(folder / "first")
    table = pa.table(
        {
            "URL": [f"http://d{i % 3}.example/{i}" for i in range(NUM)],
            "uid": [f"{i:032x}" for i in range(NUM)],
            "sha256": [hashlib.sha256(image).hexdigest().upper() for image in images],
            "original_width": [Image.open(io.BytesIO(image)).width for image in images],
            "original_height": [Image.open(io.BytesIO(image)).height for image in images],
            "clip_score": [cosine for shard in first.shards for cosine in first.table(shard)["cosine"].to_pylist()],
        }
    )
    parts = [folder / "first/rounds/0001/embeddings" / f"{shard}.parquet" for shard in first.shards]
    vectors = np.concatenate([vectors_of(pq.read_table(part)["image"]) for part in parts])
    (folder / "index").mkdir()
    np.savez(folder / "index" / "a.npz", b32_img=vectors[:111])
    np.savez(folder / "index" / "b.npz", b32_img=vectors[111:])
    pq.write_table(table.slice(0, 111), folder / "index" / "a.parquet")
    pq.write_table(table.slice(111), folder / "index" / "b.parquet")
    return folder, what


@pytest.fixture(scope="module")
def scored(web: tuple[Path, np.ndarray[Any, Any]], tiny: str, pairsan: Pairsan) -> tuple[Path, str]:
    """A run of what came, made with the index, and what the command said."""
    folder, _ = web
    options = ("--checkpoint", tiny, "--executor", "local", "--keep-share", 0.9, "--index", folder / "index")
    options = (*options, "--keep-embeddings")
    said = pairsan("clean", folder / "now", "--out", folder / "run", *options, "--index-score", "clip_score").output
    return folder / "run", said


def labels(run: Path, what: np.ndarray[Any, Any]) -> pd.DataFrame:
    frame = open_round(run).to_pandas()
    for name in ("promise", "p_reencoded"):
        frame[name] = [(signals or {}).get(name) for signals in frame["signals"]]
    return frame.assign(what=what.astype(str))


def test_replaced_pictures_are_told_from_those_encoded_anew(
    web: tuple[Path, np.ndarray[Any, Any]], scored: tuple[Path, str], tmp_path: Path, pairsan: Pairsan
) -> None:
    (_, what), (run, said) = web, scored
    found = labels(run, what)
    same = found["what"] == "exact"
    assert (found.loc[same, "promise"] == "exact").all()
    assert (found.loc[same, "p_reencoded"] == 1.0).all()
    assert (found.loc[~same, "promise"] == "differs").all()
    assert not (found.loc[found["what"] == "encoded", "reason"] == "replaced").any()
    assert (found.loc[found["what"] == "encoded", "p_reencoded"] > 0.01).all()
    replaced = found[found["what"] == "replaced"]
    assert (replaced["p_reencoded"] < 0.05).mean() > 0.8
    assert not (replaced["reason"] == "replaced").any()  # of 1,500 distances no p-value is below 2 / 1,501
    promises = open_round(run, 1).seal["promises"]
    assert promises["rows"] == {"differs": NUM_ENCODED + NUM_REPLACED, "exact": NUM - NUM_ENCODED - NUM_REPLACED}
    assert promises["judged_by"]["gap"] == 5 * NUM
    assert f"exact {NUM - NUM_ENCODED - NUM_REPLACED}, differs {NUM_ENCODED + NUM_REPLACED}, no_hash 0, unknown 0" in said
    assert "too few to tell at 0.001" in said
    options = ("--executor", "local", "--keep-share", 0.9, "--index", web[0] / "index", "--index-score", "clip_score")
    said = pairsan("split", run, *options, "--replaced-tail", 0.005).output
    found = labels(run, what)
    assert (found.loc[found["reason"] == "replaced", "what"] == "replaced").all()
    assert (found.loc[found["what"] == "replaced", "reason"] == "replaced").mean() > 0.5
    assert f"{(found['reason'] == 'replaced').sum()} replaced, by aspect ratio and cosine (1,500 pictures encoded anew)" in said
    pairsan("report", run, "--out", tmp_path / "report.html")
    domains = json.loads((tmp_path / "report.json").read_text())["domains"]
    assert sum(line["exact"] for line in domains) == same.sum()
    assert sum(line["replaced"] for line in domains) == (found["reason"] == "replaced").sum()


def test_cosines_of_an_index_without_hashes_tell_some(
    web: tuple[Path, np.ndarray[Any, Any]], scored: tuple[Path, str], tmp_path: Path, pairsan: Pairsan
) -> None:
    (folder, what), run = web, tmp_path / "run"
    shutil.copytree(scored[0], run)
    index = pq.read_table(sorted((folder / "index").glob("*.parquet"))).drop_columns(["sha256"])
    pq.write_table(index, tmp_path / "index.parquet")
    options = ("--executor", "local", "--keep-share", 0.9, "--index", tmp_path / "index.parquet", "--replaced-tail", 0.02)
    said = pairsan("split", run, *options, "--index-score", "clip_score").output
    found = labels(run, what)
    assert set(found["promise"]) == {"no_hash"}
    assert (found.loc[found["what"] == "replaced", "reason"] == "replaced").mean() > 0.5
    assert (found.loc[found["what"] == "exact", "reason"] != "replaced").all()  # half of them lie above what is usual
    num = open_round(run).seal["promises"]["judged_by"]["mirrored"]
    assert NUM / 2 <= num < NUM
    assert f"by aspect ratio and cosine ({num} rows whose cosine rose)" in said


@pytest.mark.parametrize("form", ["npz", "column"])
def test_vectors_of_the_index_tell_almost_all(
    web: tuple[Path, np.ndarray[Any, Any]], scored: tuple[Path, str], tmp_path: Path, pairsan: Pairsan, form: str
) -> None:
    (folder, what), index, run = web, web[0] / "index", tmp_path / "run"
    shutil.copytree(scored[0], run)
    if form == "column":
        vectors = np.concatenate([np.load(index / f"{name}.npz")["b32_img"] for name in "ab"])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel().astype(np.float32)), vectors.shape[1])
        index = tmp_path / "index.parquet"
        pq.write_table(pq.read_table(sorted((folder / "index").glob("*.parquet"))).append_column("b32_img", column), index)
    options = ("--executor", "local", "--keep-share", 0.9, "--index", index, "--replaced-tail", 0.005)
    pairsan("split", run, *options, "--index-embeddings", "b32_img")
    found = labels(run, what)
    assert (found.loc[found["what"] == "replaced", "reason"] == "replaced").mean() > 0.9
    assert (found.loc[found["reason"] == "replaced", "what"] == "replaced").all()
    assert not [path for path in run.rglob("*.parquet") if path.parent.name in ("found", "promises")]
    judged = open_round(run).seal["promises"]["judged_by"]
    assert (judged["turn"], judged.get("gap")) == (5 * NUM, None)  # where there are vectors, cosines are not asked
    wrong = pairsan("split", run, *options, "--index-embeddings", "l14_img", code=6)
    assert "neither a column of" in wrong.stderr


def test_any_number_of_passes_finds_the_same(
    web: tuple[Path, np.ndarray[Any, Any]], scored: tuple[Path, str], pairsan: Pairsan, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder, what), (run, _) = web, scored
    monkeypatch.setattr(join, "_ROW_BYTES", (64 << 20) // 70)  # 300 rows of the index: 5 passes
    shutil.rmtree(folder / "again", ignore_errors=True)
    shutil.copytree(run, folder / "again")
    [signals] = (folder / "again" / "rounds" / "0001").glob("signals-*")
    shutil.rmtree(signals)
    options = ("--executor", "local", "--index", folder / "index", "--index-score", "clip_score", "--signals-memory-mb", 64)
    pairsan("split", folder / "again", *options, "--keep-share", 0.8)
    old, new = labels(run, what), labels(folder / "again", what)
    assert list(new["promise"]) == list(old["promise"])
    np.testing.assert_array_equal(new["p_reencoded"], old["p_reencoded"])


def test_a_split_of_older_scores_has_hashes_and_sizes_alone(
    web: tuple[Path, np.ndarray[Any, Any]], tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    folder, what = web
    options = ("--executor", "local", "--keep-share", 0.9)
    pairsan("clean", folder / "now", "--out", tmp_path / "run", "--checkpoint", tiny, *options)
    index = pq.read_table(sorted((folder / "index").glob("*.parquet")))
    index = index.filter(pa.array(np.arange(NUM) != 7))  # not in the index
    doubled = index.slice(0, 1).set_column(2, "sha256", pa.array(["00" * 32]))  # one key, two hashes
    index = pa.concat_tables([index, doubled])
    widths = index["original_width"].to_pylist()
    widths[20] *= 2  # a picture of another shape was promised
    hashes = [None if i == 30 else digest for i, digest in enumerate(index["sha256"].to_pylist())]
    index = index.set_column(3, "original_width", pa.array(widths)).set_column(2, "sha256", pa.array(hashes))
    pq.write_table(index.drop_columns(["uid"]), tmp_path / "index.parquet")
    said = pairsan("split", tmp_path / "run", *options, "--index", tmp_path / "index.parquet").output
    assert "by aspect ratio alone" in said
    found = labels(tmp_path / "run", what)
    assert found.loc[7, "promise"] == "unknown"
    assert np.isnan(found.loc[7, "p_reencoded"])
    assert found.loc[7, "reason"] != "replaced"
    assert found.loc[0, "promise"] == "no_hash"
    assert found.loc[31, "promise"] == "no_hash"
    assert found.loc[21, "promise"] == what[21].replace("encoded", "differs").replace("replaced", "differs")
    if what[21] != "exact":
        assert found.loc[21, "reason"] == "replaced"
    assert pairsan("verify", tmp_path / "run").output.count("all as sealed") == 1


@pytest.mark.parametrize(
    ("change", "options", "code", "message"),
    [
        pytest.param(
            lambda t: t.drop_columns(["URL", "uid"]),
            (),
            3,
            r"none of the columns uid, url, key to find rows by; it has \[",
            id="no column to find rows by",
        ),
        pytest.param(lambda t: t, ("--index-key", "key"), 3, r"no column 'key' \(--index-key\)", id="no such key"),
        pytest.param(lambda t: t, ("--index-score", "similarity"), 2, "no column 'similarity'", id="no such score"),
        pytest.param(
            lambda t: t.set_column(0, "URL", pa.array([f"http://other/{i}" for i in range(len(t))])).drop_columns(["uid"]),
            (),
            3,
            "0 of 300 rows are in it by url; is it the index of these data",
            id="of other data",
        ),
        pytest.param(
            lambda t: t.set_column(2, "sha256", pa.array([hashlib.sha256(str(u).encode()).hexdigest() for u in t["URL"]])),
            (),
            3,
            "300 rows with a hash in both not one has the same; its hashes, or the data's, are of something else",
            id="hashes of addresses",
        ),
        pytest.param(
            lambda t: t.set_column(5, "clip_score", pa.array(np.random.default_rng(0).uniform(-1, 1, len(t)))),
            ("--index-score", "clip_score"),
            3,
            "it is another model's",
            id="another model's scores",
        ),
    ],
)
def test_another_index_is_refused_in_one_line(
    web: tuple[Path, np.ndarray[Any, Any]],
    scored: tuple[Path, str],
    tmp_path: Path,
    pairsan: Pairsan,
    change: Callable[[pa.Table], pa.Table],
    options: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    pq.write_table(change(pq.read_table(sorted((web[0] / "index").glob("*.parquet")))), tmp_path / "index.parquet")
    given = ("--executor", "local", "--keep-share", 0.9, "--index", tmp_path / "index.parquet", *options)
    refused = pairsan("split", scored[0], *given, code=code)
    [line] = [line for line in refused.stderr.splitlines() if line.startswith("pairsan: ")]
    assert re.search(message, line), line


def test_no_index_where_there_is_none(tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    (tmp_path / "index.parquet").write_bytes(b"PAR1 no table")
    write(tmp_path / "now", *pictures())
    given = ("--checkpoint", tiny, "--executor", "local", "--keep-share", 0.9, "--out", tmp_path / "run")
    assert "cannot be read" in pairsan("clean", tmp_path / "now", *given, "--index", tmp_path / "index.parquet", code=3).stderr
    assert "does not exist" in pairsan("clean", tmp_path / "now", *given, "--index", tmp_path / "none", code=3).stderr


def test_a_later_command_finds_the_index_from_another_folder(
    web: tuple[Path, np.ndarray[Any, Any]], tmp_path: Path, tiny: str, pairsan: Pairsan, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, what = web
    (tmp_path / "denied").write_text("d2.example\n")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "index", tmp_path / "meta")
    options = ("--checkpoint", tiny, "--executor", "local", "--keep-share", 0.9, "--max-quarantined-share", 0.5)
    pairsan("clean", folder / "now", "--out", "run", *options, "--index", "meta/*.parquet", "--deny", "denied")
    monkeypatch.chdir(folder)
    pairsan("split", tmp_path / "run", "--keep-share", 0.8, "--executor", "local")
    found = labels(tmp_path / "run", what)
    assert (found["reason"] == "denied").sum() == NUM // 3
    assert set(found["promise"].dropna()) == {"exact", "differs"}


def test_files_of_an_index_must_be_alike(
    web: tuple[Path, np.ndarray[Any, Any]], scored: tuple[Path, str], tmp_path: Path, pairsan: Pairsan
) -> None:
    table = pq.read_table(web[0] / "index" / "a.parquet")
    pq.write_table(table, tmp_path / "a.parquet")
    given = ("--executor", "local", "--keep-share", 0.9, "--index", tmp_path)
    pq.write_table(table.drop_columns(["sha256"]), tmp_path / "b.parquet")
    assert "column 'sha256' is string in" in pairsan("split", scored[0], *given, code=3).stderr
    pq.write_table(table.set_column(3, "original_width", table["original_width"].cast(pa.string())), tmp_path / "b.parquet")
    said = pairsan("split", scored[0], *given, code=3).stderr
    assert "b.parquet: column 'original_width' is int64 in" in said
    assert "here string" in said


def test_p_values_count_honest_distances() -> None:
    honest = np.asarray([0.0, 0.1, 0.2, 0.3], np.float32)
    distances = np.asarray([0.0, 0.15, 0.3, 0.4, np.nan], np.float32)
    np.testing.assert_allclose(beyond(distances, honest), [1.0, 3 / 5, 2 / 5, 1 / 5, np.nan])
    assert np.isnan(beyond(distances, honest[:0])).all()
    assert np.quantile(simulated_aspects(), 0.999) < np.log(1.15)  # a picture of another shape is far beyond


def test_shards_without_rows_have_parts_too() -> None:
    rows = pa.table({"number": pa.array([1, 1, 3], pa.int32()), "promise": ["exact", "differs", "exact"]})
    rows = rows.append_column("aspect", pa.nulls(3, pa.float32())).append_column("gap", pa.nulls(3, pa.float32()))
    rows = (
        rows.append_column("turn", rows["gap"]).append_column("file", rows["number"]).append_column("row", pa.array([0, 1, 2]))
    )
    reader = pa.RecordBatchReader.from_batches(rows.schema, rows.to_batches(max_chunksize=1))
    found = dict(_by_shard(reader, ["a", "b", "c", "d", "e"]))
    assert {shard: len(table) for shard, table in found.items()} == {"a": 0, "b": 2, "c": 0, "d": 1, "e": 0}
    assert all(table.schema == PROMISE for table in found.values())
    assert found["b"]["promise"].to_pylist() == ["exact", "differs"]
