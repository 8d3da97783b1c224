"""Witnesses that a pair fits: each by its formula, all together against exchanged captions, with and without a reference."""

import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from click.testing import Result
from conftest import CLEAN, EMOJI, make_tar, table
from safetensors.torch import save_file
from scipy.stats import chi2
from sklearn.metrics import roc_auc_score

from manifests.errors import CheckpointError, ConfigError, RunError, UnsafeCheckpoint
from manifests.labels import Reason
from manifests.layout import read_plan
from manifests.reading import open_round
from manifests.schema import manifest_schema, scores_schema
from manifests.store import open_store
from pipeline.steps.plan import Round, read_run
from pipeline.steps.signals.asked import signal_parts
from pipeline.steps.signals.take import _check_memory
from stages.histogram import Histogram, count
from stages.label.decide import decide
from stages.label.settings import SplitSettings
from stages.read.shards import open_dataset
from stages.score.decode import Decode
from stages.settings import ReadSettings
from stages.signals.repeats import Commonness, Repeats
from stages.signals.sample import Reference
from stages.signals.witnesses.accord import Accord, Rows, agreement, neg_clip_loss
from stages.signals.witnesses.witness_tower import load_tower, resolve_tower
from stages.signals.witnesses.words import Words
from stages.vectors import unit, vectors_of

Pairsan = Callable[..., Result]
TOWER = "test_byobnet"  # timm's smallest


def sample_of(num: int, seed: int = 0) -> tuple[Reference, np.random.Generator]:
    rng = np.random.default_rng(seed)
    v, t = (unit(rng.normal(size=(num, 12)).astype(np.float32)) for _ in range(2))
    return Reference(np.arange(num), v, t), rng


def test_neg_clip_loss_is_its_formula() -> None:
    sample, _ = sample_of(60)
    got = neg_clip_loss(sample, sample.images[:9], sample.texts[:9], sample.hashes[:9])
    scores = sample.images @ sample.texts.T / 0.01  # the sample is the batch, the row itself is in it
    for row in range(9):
        explained = sum(np.log(np.exp(s - s.max()).sum()) + s.max() for s in (scores[row], scores[:, row]))
        assert got[row] == pytest.approx(0.01 * (scores[row, row] - explained / 2), abs=1e-5)


def test_agreement_asks_the_first_that_are_other_pictures() -> None:
    sample, rng = sample_of(50)
    places = np.stack([rng.permutation(50)[:20] for _ in range(6)])
    hashes = places[:, 2].copy()  # each row's own picture is the third of its places
    v = sample.images[hashes]
    known = rng.random(places.shape) < 0.8
    got = agreement(v, hashes, sample.images, sample.hashes, places, 5, 0.9, known)
    for row in range(6):
        similar = [float(sample.images[p] @ v[row]) for p, ok in zip(places[row], known[row], strict=True) if ok]
        asked = [s for s in similar if s < 0.9][:5]
        assert got[row] == pytest.approx(np.mean(asked), abs=1e-5)
    nobody = agreement(v, hashes, sample.images, sample.hashes, places, 5, 0.9, np.zeros_like(known))
    assert nobody.tolist() == [0.0] * 6


def test_words_find_what_the_vectors_of_all_captions_find() -> None:
    captions = ["a red dog", "the red dog runs", "a cat", "blue cat on a mat", "", "12 34", "眼鏡", "dog"]
    words = Words(captions)
    similar, places = words.nearest(["red dog", "CAT!", "zebra", ""], 3)
    assert places[0, 0] == 0
    assert set(places[0]) == {0, 1, 7}
    assert places[1, 0] == 2
    assert (np.diff(similar, axis=1) <= 0).all()
    assert (similar[2:] == 0).all()
    assert words.nearest([], 3)[0].shape == (0, 3)
    assert Words(["12", ""]).nearest(["a dog"], 5)[0].tolist() == [[0.0, 0.0]]


def test_ranks_are_combined_by_fishers_method_and_ordinary_rows_are_spread() -> None:
    sample = sample_of(2000)[0]
    accord = Accord(sample, 4, None)
    said = accord(Rows(sample.images, sample.texts, sample.hashes))
    assert said.reference_agreement is None
    ranks = [(1 + np.searchsorted(np.sort(x), x, "right")) / 2001 for x in (said.neg_clip_loss, said.image_agreement)]
    assert said.accord == pytest.approx(chi2.sf(-2 * sum(map(np.log, ranks)), 4), abs=2e-6)
    assert np.histogram(said.accord, 4, (0, 1))[0].min() > 300  # independent noise: uniform
    with_one = Accord(Reference(sample.hashes[:1], sample.images[:1], sample.texts[:1]), 8, None)
    assert with_one(Rows(sample.images[:3], sample.texts[:3], sample.hashes[:3])).accord.shape == (3,)


def test_a_budget_of_discord_holds_its_share() -> None:
    rng = np.random.default_rng(2)
    accord, cosines = Histogram(), Histogram()
    values = (np.round(rng.uniform(0, 1, 5000) * 2**19) / 2**19).astype(np.float32)
    accord.add(count(values))
    cosines.add(count(np.linspace(0, 0.5, 5000).round(4).astype(np.float32)))
    options = SplitSettings(rule="keep-share", keep_share=1.0, discord_share=0.08)
    (limit,) = decide(cosines, options, signals={"accord": accord}).limits
    assert limit.reason == Reason.DISCORDANT
    flagged = ~limit.allows({limit.signal: values.astype(np.float64)})
    assert flagged.mean() == pytest.approx(0.08, abs=2e-3)
    assert values[flagged].max() < values[~flagged].min()
    assert decide(cosines, options).limits == ()


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    """Weights of a small tower with a classifier, which is no part of it."""
    torch.manual_seed(0)
    path = tmp_path / "tower.safetensors"
    save_file(timm.create_model(TOWER, pretrained=False).state_dict(), path)
    return path


@pytest.fixture
def swapped(tmp_path: Path) -> Path:
    """Two tars of 150 real pairs each; the captions of 30, `bad-*`, are each another's of them."""
    with tarfile.open(EMOJI / "train" / "00000.tar.gz") as tar:
        rows: dict[str, dict[str, bytes]] = {}
        for member in tar:
            stem, _, end = member.name.rpartition(".")
            rows.setdefault(stem, {})["image" if end in ("webp", "png") else end] = tar.extractfile(member).read()
    pairs = list(rows.values())[:300]
    bad = list(range(5, 300, 10))
    folder = tmp_path / "swapped"
    folder.mkdir()
    for shard in range(2):
        written: list[tuple[str, bytes]] = []
        for i in range(shard * 150, shard * 150 + 150):
            source = pairs[bad[(bad.index(i) + 7) % len(bad)]] if i in bad else pairs[i]
            key = f"{'bad' if i in bad else 'row'}-{i:03d}"
            written += [(f"{key}.webp", pairs[i]["image"]), (f"{key}.txt", source["txt"])]
        (folder / f"{shard}.tar").write_bytes(make_tar(written))
    return folder


def test_exchanged_captions_are_in_discord(swapped: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    pairsan("clean", swapped, "--out", run, "--checkpoint", tiny, *CLEAN, "--discord-share", 0.1, "--reference-encoder", tiny)
    rows = table(run)
    bad = rows["key"].str.startswith("bad")
    assert roc_auc_score(bad, -rows["accord"]) > 0.95
    assert (rows["reason"] == "discordant").sum() == 30
    assert (rows.loc[bad, "reason"] == "discordant").sum() >= 20
    for name in ("image_agreement", "reference_agreement"):
        assert rows[name].between(-1.0, 1.0).all()
    assert rows["neg_clip_loss"].between(-3.0, 0.0).all()
    folder = next(run.glob("reference-*"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(before) == ["0.tar.parquet", "1.tar.parquet"]
    pairsan("split", run, "--discord-share", 0.05)  # the encoder is the run's own; its vectors are there
    assert open_round(run, 2).seal["counts"]["reasons"] == {"discordant": 15}
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert "all as sealed" in pairsan("verify", run).output


def test_reference_vectors_are_the_towers_own(crawl: Path, tmp_path: Path, tiny: str, tower: Path, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    encoder = ("--reference-encoder", f"timm:{TOWER}", "--reference-checkpoint", tower, "--set", "reference_image_size=64")
    pairsan("clean", crawl, "--out", run, "--checkpoint", tiny, *CLEAN, "--near-copy-cosine", 0.99, *encoder)
    plan = json.loads((run / "rounds/0001/plan.json").read_text())
    assert plan["signals"]["reference_encoder"]["name"] == f"timm:{TOWER}"
    folder = next(run.glob("reference-*"))
    found = np.concatenate([vectors_of(pq.read_table(path)["image"]) for path in sorted(folder.iterdir())])
    model, config = load_tower(resolve_tower(f"timm:{TOWER}", str(tower), 64))
    decode = Decode(open_store(str(crawl)), ReadSettings(), config, num_threads=1)
    decode.open()
    expected = np.zeros_like(found)
    mean, std = (torch.tensor(config[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    for number, shard in enumerate(open_dataset([str(crawl)]).shards):
        for chunk in decode.run(shard):
            pixels = torch.from_numpy(chunk.pixels).permute(0, 3, 1, 2) / 255.0
            with torch.inference_mode():
                expected[16 * number + chunk.rows] = unit(model((pixels - mean) / std).numpy())
    assert np.abs(expected.astype(np.float32) - found.astype(np.float32)).max() < 2e-3
    assert len(found) == 40
    assert (found == 0).all(axis=1).sum() == 2  # a broken image, and a pair without a caption
    rows = table(run)
    facts = json.loads(next(run.glob("rounds/0001/signals-*/near-copies.json")).read_text())
    assert set(facts) == {"image", "other"}  # links come from both spaces
    assert rows["near_copies"].isna().sum() == 2
    assert rows["accord"].isna().sum() == 2


def test_a_reference_encoder_is_checked_before_work_begins(
    swapped: Path, tmp_path: Path, tiny: str, tower: Path, pairsan: Pairsan
) -> None:
    args = ("clean", swapped, "--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN)
    encoder = ("--reference-encoder", f"timm:{TOWER}")
    assert "needs --reference-checkpoint FILE" in pairsan(*args, *encoder, code=2).stderr
    missing = pairsan(*args, *encoder, "--reference-checkpoint", tmp_path / "none.safetensors", code=4)
    assert "no reference checkpoint at" in missing.stderr
    lonely = pairsan(*args, "--reference-checkpoint", tower, code=2)
    assert "reference_checkpoint needs reference_encoder" in lonely.stderr
    blind = pairsan(*args, *encoder, "--reference-checkpoint", tower, "--no-keep-captions", code=2)
    assert "compares captions by their words" in blind.stderr
    none = pairsan(*args, "--discord-share", 0.1, "--agreement-rows", 0, code=2)
    assert "agreement_rows = 0 leaves it out" in none.stderr
    assert not (tmp_path / "run").exists()


def test_towers_are_loaded_safely(tmp_path: Path, tower: Path, tiny: str) -> None:
    found = resolve_tower(f"timm:{TOWER}", str(tower), 32)
    model, config = load_tower(found)
    assert config["size"] == 32
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 32)).ndim == 2  # features, no classes
    with pytest.raises(CheckpointError, match="does not fit timm's resnet18"):
        load_tower(resolve_tower("timm:resnet18", str(tower), None))
    tower.write_bytes(tower.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match="was it overwritten"):
        load_tower(found)
    evil = tmp_path / "evil.pt"
    evil.write_bytes(pickle.dumps({"weight": print}))
    with pytest.raises(UnsafeCheckpoint):
        load_tower(resolve_tower(f"timm:{TOWER}", str(evil), None))
    clip, config = load_tower(resolve_tower(tiny, None, None))
    with torch.inference_mode():
        assert clip(torch.zeros(2, 3, config["size"], config["size"])).shape[0] == 2
    with pytest.raises(ConfigError, match="needs --reference-checkpoint"):
        resolve_tower(f"timm:{TOWER}", None, None)


@pytest.mark.parametrize("version", [2, 3])
def test_rounds_of_earlier_schemas_are_verified_and_split(
    version: int, swapped: Path, tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    run = tmp_path / "run"
    pairsan("clean", swapped, "--out", run, "--checkpoint", tiny, *CLEAN, "--max-image-repeats", 1)
    shutil.rmtree(next((run / "rounds/0001").glob("signals-*")))  # theirs had another name
    rewritten = []
    for kind, schema in (("scores", scores_schema(version)), ("manifest", manifest_schema(version))):
        for part in (run / "rounds/0001" / kind).iterdir():
            old = pq.read_table(part)
            signals = old["signals"].combine_chunks()
            names = [field.name for field in schema.field("signals").type]
            kept = pa.StructArray.from_arrays(
                [signals.field(name) for name in names], fields=list(schema.field("signals").type), mask=signals.is_null()
            )
            table_ = old.set_column(old.schema.get_field_index("signals"), schema.field("signals"), kept).select(schema.names)
            metadata = {**old.schema.metadata, b"pairsan.schema_version": str(version).encode()}
            pq.write_table(table_.replace_schema_metadata(metadata), part)
            rewritten.append(part)
    assert len(rewritten) == 4
    seen = pairsan("verify", run, code=1).output
    assert "columns differ" not in seen  # only the bytes do, as this test rewrote them
    assert seen.count("sha256 differs") == 4
    plan = json.loads((run / "rounds/0001/plan.json").read_text())
    (run / "rounds/0001/plan.json").write_text(json.dumps({**plan, "schema_version": version}))
    pairsan("split", run, "--signals", "none", "--max-image-repeats", 0, code=2)
    pairsan("split", run, "--keep-share", 0.5)
    rows = table(run, 2)
    above = rows["cosine"] >= rows["cosine"].quantile(0.5)
    assert ((rows["label"] == "safe") == (above & (rows["image_cluster_size"] == 1))).all()
    assert rows["near_copies"].isna().all()
    refused = pairsan("split", run, "--rule", "calibrated", "--null-strata", "image-size", code=6).stderr
    assert "has no image_edge, by which --null-strata image-size groups rows; score again" in refused
    assert "all as sealed" in pairsan("verify", run, "--round", 2).output


def test_fewer_rows_than_neighbours_and_too_small_a_memory(
    tmp_path: Path, emoji_members: list[tuple[str, bytes]], tiny: str, pairsan: Pairsan
) -> None:
    (tmp_path / "few.tar").write_bytes(make_tar(emoji_members[:15]))
    args = ("--checkpoint", tiny, *CLEAN, "--near-copy-cosine", 0.9, "--max-near-copies", 3, "--discord-share", 0.2)
    pairsan("clean", tmp_path / "few.tar", "--out", tmp_path / "few", *args)
    rows = table(tmp_path / "few")
    assert len(rows) == 5
    assert rows[["outlier", "accord", "image_agreement", "neg_clip_loss"]].notna().all(axis=None)
    assert (rows["reason"] == "discordant").sum() == 1


def test_a_sample_larger_than_the_memory_is_refused(swapped: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    args = ("clean", swapped, "--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN, "--signals", "all")
    pairsan(*args, "--agreement-rows", 64)
    round_ = open_round(tmp_path / "run")
    loaded = Round(round_.run, 1, read_plan(round_.run, 1), read_run(round_.run).shards)
    parts = signal_parts(loaded, memory_bytes=64 << 20)
    assert parts is not None
    with pytest.raises(
        RunError, match=r"a sample of 9,000,000 rows takes [\d,]+ MiB in each worker, signals_memory_mb allows 64"
    ):
        _check_memory(parts, 9_000_000)


def test_how_common_it_is_to_occur_so_often() -> None:
    repeats = Repeats(np.asarray([3, 8, 9]), np.asarray([2, 5, 2]), np.asarray([3, 8, 9]))
    found = Commonness(repeats, 20)(np.asarray([1, 3, 8, 9, 77]))
    assert found.tolist() == pytest.approx([1.0, 9 / 20, 5 / 20, 9 / 20, 1.0])
    assert Commonness(Repeats(*np.zeros((3, 0), np.int64)), 0)(np.asarray([5])).tolist() == [1.0]


def test_a_caption_that_occurs_often_is_counted_against_a_pair() -> None:
    sample, _ = sample_of(80)
    accord = Accord(sample, 3, None)
    rows = Rows(sample.images, sample.texts, sample.hashes)
    plain, once = accord(rows), accord(replace(rows, common=np.ones(80)))
    often = accord(replace(rows, common=np.where(np.arange(80) < 5, 0.01, 1.0)))
    assert np.array_equal(np.argsort(plain.accord), np.argsort(once.accord))
    assert (often.accord[:5] < once.accord[:5]).all()
    assert np.array_equal(often.accord[5:], once.accord[5:])
    logs = -chi2.isf(once.accord[:5].astype(np.float64), 6) / 2
    assert often.accord[:5] == pytest.approx(chi2.sf(-2 * (logs + np.log(0.01)), 6), abs=1e-4)


def test_one_caption_under_many_pictures_is_in_discord(
    emoji_members: list[tuple[str, bytes]], tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    members = [(name, b"a picture of a fine thing" if name.endswith(".txt") and i < 36 else data)
               for i, (name, data) in enumerate(emoji_members)]  # fmt: skip
    (tmp_path / "data.tar").write_bytes(make_tar(members))
    args = ("clean", tmp_path / "data.tar", "--checkpoint", tiny, *CLEAN, "--set", "agreement_neighbours=2", "--neighbours", 3)
    pairsan(*args, "--out", tmp_path / "with", "--discord-share", 0.3)
    pairsan(*args, "--out", tmp_path / "without", "--discord-share", 0.3, "--no-common-captions")
    found = {name: table(tmp_path / name) for name in ("with", "without")}
    same = found["with"]["caption"] == "a picture of a fine thing"
    assert same.sum() == 12
    assert (found["with"]["label"] == "risky").sum() == 12
    ranks = {name: rows["accord"].rank()[same] for name, rows in found.items()}
    assert (ranks["with"] <= ranks["without"]).all()
    assert ranks["with"].mean() < ranks["without"].mean()
    plan = read_plan(open_store(tmp_path / "without"), 1)
    assert plan["signals"]["common_captions"] is False
