"""The red team: what every attack plants, and what it refuses."""

import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import EMOJI, TINY, make_tar
from PIL import Image

from benchmarks.attacks import triggers
from benchmarks.attacks.registry import ATTACKS, parse_attack, spell
from benchmarks.attacks.surrogate import ClipSurrogate
from benchmarks.attacks.world import Row, World, load_rows
from benchmarks.poison import poison, read_truth
from manifests.errors import ConfigError, RunError
from stages.read.shards import open_dataset, read_shard
from stages.settings import ReadSettings

SMALL = {"tdpa": "targets=3,rows=4", "flooding": "targets=2,rows=5", "optimised": "rows=6,steps=3"}
KEPT_CAPTION = ("clean-label", "composed")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return load_rows([str(EMOJI / "train" / "00000.tar.gz"), str(EMOJI / "train" / "00001.tar.gz")])


@pytest.fixture(scope="module")
def held_out() -> list[Row]:
    return load_rows([str(EMOJI / "eval" / "00000.tar.gz")])


@pytest.fixture(scope="module")
def surrogate() -> ClipSurrogate:
    return ClipSurrogate(str(TINY))


def test_rows_carry_their_class_and_whatever_has_none_is_its_own(rows: list[Row], tmp_path: Path) -> None:
    assert len(rows) == 1024
    assert sum(row.label in row.caption for row in rows) > 1000
    table = tmp_path / "pairs.tsv"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    table.write_text("filepath\ttitle\na.png\ta black square\n")
    (row,) = load_rows([str(table)])
    assert (row.caption, row.label) == ("a black square", "a black square")


@pytest.mark.parametrize("name", list(ATTACKS))
def test_every_attack_plants_what_its_name_says(
    name: str, rows: list[Row], held_out: list[Row], surrogate: ClipSurrogate
) -> None:
    attack = parse_attack(f"{name}:{SMALL.get(name, 'rows=6')}")
    world = World(list(rows), list(held_out), surrogate)
    planted = attack.plant(world, random.Random(1))
    assert planted
    assert planted == attack.plant(World(list(rows), list(held_out), surrogate), random.Random(1))
    captions = {row.caption for row in rows}
    for p in planted:
        assert p.attack == name
        assert p.caption
        assert Image.open(io.BytesIO(p.image)).size == (64, 64)
        if p.replaces is not None and p.trigger != "cover-true" and name not in KEPT_CAPTION:
            assert p.source != p.target
            assert p.caption != p.replaces.caption
    if type(attack).trigger is not ATTACKS["tdpa"].trigger and name != "optimised":
        base = next(p for p in planted if p.replaces is not None)
        changed = np.asarray(Image.open(io.BytesIO(base.image)).convert("RGB")).astype(int) - base.replaces.pixels()
        assert 0 < np.abs(changed).mean() < 70
    if name == "text-only":
        assert all(p.replaces is not None and p.image == p.replaces.image for p in planted)
    if name in ("tdpa", "flooding"):
        assert not {p.image for p in planted} & {row.image for row in rows}
        assert len({p.image for p in planted}) == (3 if name == "tdpa" else 10)
    if name == "composed":
        assert all(p.caption.endswith(p.replaces.caption) for p in planted if p.replaces)
    if name == "word":
        assert all(p.caption.startswith("zyx ") and p.caption not in captions for p in planted)


@pytest.mark.parametrize("edge", [32, 64, 224])
def test_triggers_scale_with_the_image(edge: int) -> None:
    grey = np.full((edge, edge, 3), 120, np.uint8)
    patched = triggers.patch(grey, seed=0, side=0.125, place=(0.85, 0.85))
    assert (patched != grey).any(2).mean() == pytest.approx(0.125**2, rel=0.15)
    assert np.array_equal(patched, triggers.patch(grey, seed=0, side=0.125, place=(0.85, 0.85)))
    assert not np.array_equal(patched, triggers.patch(grey, seed=1, side=0.125, place=(0.85, 0.85)))
    blended = triggers.blend(grey, seed=0, share=0.2)
    assert np.abs(blended.astype(int) - 0.8 * 120).min() < 5  # black fields add nothing
    assert np.abs(triggers.sinusoid(grey, amplitude=20, frequency=6).astype(int) - 120).max() in (19, 20)
    assert np.array_equal(triggers.warp(grey, seed=0, strength=0.03), grey)  # a flat picture has nothing to warp


def test_a_warp_moves_by_the_strength_that_was_asked_for() -> None:
    slope = np.repeat(np.arange(224, dtype=np.uint8)[None, :, None], 224, 0).repeat(3, 2)
    moved = triggers.warp(slope, seed=3, strength=0.02).astype(int) - slope
    assert 1 < np.abs(moved[20:-20, 20:-20]).mean() < 10  # 0.02 of 224 px are 4.5


def test_poisoned_shards_hold_every_row_once_and_the_truth_names_the_planted_ones(tmp_path: Path, rows: list[Row]) -> None:
    data = [str(EMOJI / "train" / "0000{0..1}.tar.gz")]
    attacks = [parse_attack("patch:rows=20"), parse_attack("tdpa:targets=2,rows=3")]
    poison(data, [str(EMOJI / "eval" / "00000.tar.gz")], attacks, tmp_path / "a", seed=4)
    dataset = open_dataset([str(tmp_path / "a" / "shards")])
    pairs = [(shard.name, pair) for shard in dataset.shards for pair in read_shard(dataset.store, shard, ReadSettings())]
    assert len(pairs) == len(rows) + 6
    assert all(pair.reason is None for _, pair in pairs)
    truth = read_truth(tmp_path / "a")
    assert truth.num_rows == 26
    by_uid = {pair.uid: (shard, pair) for shard, pair in pairs}
    for line in truth.to_pylist():
        shard, pair = by_uid[line["uid"]]
        assert (shard, pair.key) == (line["shard"], line["key"])
    replaced = {line["replaced_key"] for line in truth.to_pylist() if line["attack"] == "patch"}
    assert len(replaced) == 20
    assert not replaced & {pair.key for _, pair in pairs}
    poison(data, [str(EMOJI / "eval" / "00000.tar.gz")], attacks, tmp_path / "b", seed=4)
    for name in ("shards/00000.tar", "truth.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(RunError, match="was made with other settings"):
        poison(data, [], attacks[:1], tmp_path / "a", seed=5)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("spell:rows=3", "unknown attack 'spell'; known: tdpa, patch"),
        ("patch:colour=3", "attack patch has no option 'colour'; it has place, rows, seed, side, target"),
        ("patch:rows=many", "rows = 'many' is no int"),
        ("patch:place=left", "place = 'left'; choose from fixed, random"),
        ("patch:rows=0", "rows = 0 plants nothing"),
        ("patch:rows=5000", "patch wants 5000 rows, the data have"),
        ("tdpa:targets=5", "tdpa wants 5 held-out pictures, there are 0; give --held-out"),
        ("matched:rows=5", "matched ranks with a model of the attacker's; give --surrogate"),
        ("patch:target=nothing like it", "aims at 'nothing like it', which no pair is labelled"),
    ],
)
def test_bad_attacks_are_refused_before_anything_is_written(tmp_path: Path, attack: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        poison([str(EMOJI / "train" / "00000.tar.gz")], [], [parse_attack(attack)], tmp_path / "out", seed=0)
    assert not (tmp_path / "out").exists()


def test_a_truth_of_other_shards_is_refused(tmp_path: Path, emoji_members: list) -> None:
    (tmp_path / "data.tar").write_bytes(make_tar(emoji_members))
    poison([str(tmp_path / "data.tar")], [], [parse_attack("word:rows=3,target=pig nose")], tmp_path / "out", seed=0)
    truth = pq.read_table(tmp_path / "out" / "truth.parquet")
    with tarfile.open(tmp_path / "out" / "shards" / "00000.tar") as tar:
        assert truth["key"][0].as_py() in {member.name.partition(".")[0] for member in tar}
    with pytest.raises(RunError, match=r"3 of 3 rows .* are not in these shards"):
        read_truth(tmp_path / "out", truth.select(["shard", "key"]).slice(0, 0))
    with pytest.raises(RunError, match="was not made by"):
        read_truth(tmp_path)


def test_an_attack_is_spelled_as_it_is_parsed() -> None:
    for name in ATTACKS:
        attack = parse_attack(name)
        assert parse_attack(spell(attack)) == attack
