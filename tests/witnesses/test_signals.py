"""Signals: hashes, repeats over shards, neighbours in a reference, and the limits that they set."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import CLEAN, EMOJI, encode, make_tar, parts_of, table
from PIL import Image

from manifests.errors import SplitRefused
from manifests.labels import Reason
from manifests.reading import open_round
from manifests.schema import scores_schema
from stages.histogram import Histogram, count, on_grid
from stages.label.decide import decide
from stages.label.fit.crowds import crowd_cut
from stages.label.limits import DOUBTS_UP_TO, Limit, limits_of
from stages.label.settings import SplitSettings
from stages.score.hashes import caption_hashes, image_hashes, pixel_hashes
from stages.signals.neighbourhood import Neighbourhood
from stages.signals.sample import Reference, Sampled, priorities, share_of
from stages.vectors import unit

Pairsan = Callable[..., Result]


def pixels_of(
    members: list[tuple[str, bytes]], change: Callable[[Image.Image], Image.Image] = lambda image: image
) -> np.ndarray:
    shown = [Image.open(io.BytesIO(data)).convert("RGB") for name, data in members if name.endswith(".webp")]
    return np.stack([np.asarray(change(image).convert("RGB").resize((48, 48), Image.Resampling.BICUBIC)) for image in shown])


def test_copies_share_a_hash_and_other_pictures_do_not(emoji_members: list[tuple[str, bytes]]) -> None:
    def jpeg(image: Image.Image) -> Image.Image:
        return Image.open(io.BytesIO(encode(image.resize((96, 96)), "JPEG", quality=90)))

    own = image_hashes(pixels_of(emoji_members))
    assert own.dtype == np.int64
    assert len(np.unique(own)) == len(own) == 40
    assert (own == image_hashes(pixels_of(emoji_members))).all()
    copied = image_hashes(pixels_of(emoji_members, jpeg))
    assert (own == copied).mean() > 0.5
    assert not set(own) & set(copied[own != copied])
    assert (
        own != image_hashes(pixels_of(emoji_members, lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    ).mean() > 0.5
    assert image_hashes(np.zeros((0, 48, 48, 3), np.uint8)).shape == (0,)


def test_only_the_same_pixels_are_an_exact_copy(emoji_members: list[tuple[str, bytes]]) -> None:
    pixels = pixels_of(emoji_members)
    own = pixel_hashes(pixels)
    assert own.dtype == np.int64
    assert len(np.unique(own)) == 40
    assert (
        own == pixel_hashes(np.ascontiguousarray(pixels.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3))
    ).all()  # not of memory
    pixels[7, 0, 0, 0] ^= 1
    assert np.flatnonzero(own != pixel_hashes(pixels)).tolist() == [7]


def test_look_alikes_need_a_second_witness() -> None:
    limit = Limit(Reason.NEAR_DUPLICATE, "image_cluster_size", most=2.0, witness="accord")
    sizes, accord = np.asarray([1.0, 2.0, 3.0, 3.0, np.nan, 3.0]), np.asarray([0.0, 0.0, 0.5, 0.1, 0.1, np.nan])
    allowed = limit.allows({"image_cluster_size": sizes, "accord": accord})
    assert allowed.tolist() == [True, True, True, False, False, False]


def test_the_colour_of_a_shape_counts() -> None:
    flags = np.zeros((2, 48, 48, 3), np.uint8)
    flags[0, :, :, 0], flags[1, :, :, 2] = 200, 200
    assert len(np.unique(image_hashes(flags))) == 2


def test_captions_are_compared_without_case_digits_and_punctuation() -> None:
    same = caption_hashes(["A photo, no. 17", "a photo no 3!", "A  PHOTO NO"])
    assert len(np.unique(same)) == 1
    assert len(np.unique(caption_hashes(["12", "13", "a", "b"]))) == 4


def test_neighbours_are_what_brute_force_finds_and_copies_are_none() -> None:
    rng = np.random.default_rng(0)
    v, t = (unit(rng.normal(size=(120, 8)).astype(np.float32)) for _ in range(2))
    hashes = np.arange(120)
    v[3], hashes[3] = v[2], hashes[2]  # a copy of row 2, which is in the reference
    reference = Reference(hashes[:60], v[:60], t[:60])
    first = np.unique(hashes[:60], return_index=True)[1]
    reference = Reference(hashes[first], v[first], t[first])
    found = Neighbourhood(reference, 5)(v, t, hashes)
    distance, agreement = found.outlier, found.caption_agreement
    own = Neighbourhood(reference, 5)(reference.images, reference.texts, reference.hashes)
    for row in range(120):
        others = np.flatnonzero(reference.hashes != hashes[row])
        near = others[np.argsort(-(reference.images[others] @ v[row]))[:5]]
        assert found.neighbour_outlier[row] == np.median(own.outlier[near])
        assert found.half_outlier[row] == pytest.approx(1 - reference.images[near[2]] @ v[row], abs=1e-5)
        assert found.neighbour_half_outlier[row] == np.median(own.half_outlier[near[:3]])
        assert distance[row] == pytest.approx(1 - reference.images[near[-1]] @ v[row], abs=1e-5)
        assert agreement[row] == pytest.approx(unit(reference.texts[near].mean(0)[None])[0] @ t[row], abs=1e-5)
    assert distance[3] == distance[2] > 0.01


def test_the_reference_does_not_depend_on_how_rows_lie_in_shards() -> None:
    rng = np.random.default_rng(1)
    uids = [rng.bytes(16) for _ in range(3000)]
    hashes, v = rng.integers(0, 2000, 3000), rng.normal(size=(3000, 4)).astype(np.float16)

    def offered(rows: np.ndarray) -> Sampled:
        drawn = priorities(pa.chunked_array([pa.array([uids[row] for row in rows], pa.binary(16))]), 7)
        few = drawn <= np.uint64(share_of(500, 3000) * 2.0**64)
        return Sampled(drawn[few], hashes[rows][few], v[rows][few], v[rows][few])

    whole = Reference.choose([offered(np.arange(3000))], 500)
    parts = Reference.choose([offered(rows) for rows in np.array_split(rng.permutation(3000), 7)], 500)
    assert whole.hashes.tolist() == parts.hashes.tolist()
    assert np.array_equal(whole.images, parts.images)
    assert len(np.unique(whole.hashes)) == len(whole.hashes)
    assert 380 < len(whole.hashes) <= 500  # 500 rows, copies once
    spread = priorities(pa.chunked_array([pa.array(uids, pa.binary(16))]), 7).astype(np.float64) / 2.0**64
    assert np.histogram(spread, 10, (0, 1))[0].min() > 230
    assert share_of(10**4, 10**9) < 1.1e-5


def test_budgets_become_limits_that_hold_their_share() -> None:
    rng = np.random.default_rng(2)
    cosines = rng.uniform(0.1, 0.5, 4000).astype(np.float32)
    outlier = (np.round(rng.uniform(0, 1, 4000) * 2**19) / 2**19).astype(np.float32)
    histogram, closeness = Histogram(), Histogram()
    histogram.add(count((np.round(cosines * 2**19) / 2**19).astype(np.float32)))
    closeness.add(count((1 - outlier.astype(np.float64)).astype(np.float32)))
    options = SplitSettings(rule="keep-share", keep_share=1.0, crowded_share=0.25, outlier_share=0.1, max_image_repeats=3)
    limits = decide(histogram, options, signals={"outlier": closeness}).limits
    assert [limit.reason for limit in limits] == [Reason.EXACT_DUPLICATE, Reason.CROWDED, Reason.LOCAL_OUTLIER]
    near, crowded, alone = limits
    assert near.allows({near.signal: np.asarray([1.0, 3.0, 4.0, np.nan])}).tolist() == [True, True, False, False]
    for limit, share in ((crowded, 0.25), (alone, 0.1)):
        out = ~limit.allows({"outlier": outlier.astype(np.float64)})
        assert out.mean() == pytest.approx(share, abs=2e-3)
    assert (
        outlier[~crowded.allows({crowded.signal: outlier.astype(np.float64)})].max()
        < outlier[~alone.allows({alone.signal: outlier.astype(np.float64)})].min()
    )
    assert decide(histogram, SplitSettings(rule="keep-share", keep_share=0.5)).limits == ()
    assert Limit(Reason.CROWDED, "outlier").allows({"outlier": np.asarray([0.0, np.nan])}).tolist() == [True, False]


@pytest.mark.parametrize(("num_crowded", "flagged"), [(0, 0.05), (2000, 0.05)])
def test_crowds_are_cut_where_ordinary_rows_end(num_crowded: int, flagged: float) -> None:
    rng = np.random.default_rng(4)
    ordinary = rng.normal(0.33, 0.05, 8000).clip(0.02, 0.6)
    crowd = np.exp(rng.normal(np.log(0.04), 0.5, num_crowded)).clip(0.001, 0.2)
    distance = np.concatenate([ordinary, crowd])
    closeness = Histogram()
    closeness.add(count((np.round((1 - distance) * 2**19) / 2**19).astype(np.float32)))
    cut = crowd_cut(closeness, flagged)
    assert (ordinary < cut).mean() == pytest.approx(flagged, abs=0.02)
    assert (crowd < cut).all()


def test_a_distance_is_that_of_the_vectors_whatever_sums_faiss_makes_on_its_threads() -> None:
    rng = np.random.default_rng(4)
    images, v = (unit(rng.normal(size=(num, 512)).astype(np.float32)) for num in (900, 400))
    found = Neighbourhood(Reference(np.arange(900), images, images), 8)(v, v, np.arange(900, 1300))
    cosines = np.sort(v.astype(np.float64) @ images.T.astype(np.float64), axis=1)
    assert (found.outlier == (1.0 - on_grid(cosines[:, -8])).astype(np.float32)).all()


def test_the_edge_of_a_crowd_is_known_by_its_neighbours() -> None:
    rng = np.random.default_rng(6)
    ordinary, crowd = (unit(rng.normal(size=(num, 24)).astype(np.float32)) for num in (1500, 100))
    crowd[:, 0] = 0.0
    turned = np.concatenate([np.full(90, 0.2), np.full(10, 1.0)]).astype(np.float32)[:, None]  # radians off the centre
    crowd = np.sin(turned) * unit(crowd) + np.cos(turned) * np.eye(24, dtype=np.float32)[0]
    v = np.concatenate([ordinary, crowd])
    hashes, edge, inside = np.arange(1600), slice(-10, None), slice(1500, -10)
    near = Neighbourhood(Reference(hashes, v, v), 40)(v, v, hashes)
    assert near.outlier[edge].min() > 5 * near.outlier[inside].max()
    assert near.neighbour_outlier[edge].max() <= near.outlier[inside].max()
    assert np.median(near.neighbour_outlier[:1500]) > 0.5


def test_a_crowd_of_fewer_than_k_is_seen_at_half_as_many_neighbours() -> None:
    rng = np.random.default_rng(8)
    v = unit(rng.normal(size=(3000, 6)).astype(np.float32))
    v[:22] = unit(v[:1] + 0.01 * rng.normal(size=(22, 6)).astype(np.float32))
    near = Neighbourhood(Reference(np.arange(3000), v, v), 40)(v, v, np.arange(3000))
    inside = {name: getattr(near, name)[:22] for name in ("outlier", "half_outlier")}
    assert inside["outlier"].min() > 100 * inside["half_outlier"].max()  # the 40th neighbour is no member
    assert inside["half_outlier"].max() < np.quantile(near.half_outlier[22:], 0.001)


def test_a_crowd_takes_with_it_what_lies_among_its_members() -> None:
    outlier = np.concatenate([np.random.default_rng(7).normal(0.5, 0.03, 4000), np.full(400, 0.05)])
    outlier = (np.round(outlier * 2**19) / 2**19).astype(np.float32)
    closeness, cosines = Histogram(), Histogram()
    closeness.add(count((1 - outlier.astype(np.float64)).astype(np.float32)))
    cosines.add(count(np.linspace(0, 0.5, 4400).round(4).astype(np.float32)))
    limits = decide(
        cosines, SplitSettings(rule="keep-share", keep_share=1.0, crowded_tail=0.01), signals={"outlier": closeness}
    ).limits
    assert [(limit.reason, limit.signal) for limit in limits] == [
        (Reason.CROWDED, "outlier"),
        (Reason.CROWDED, "neighbour_outlier"),
    ]
    assert limits[0].least == limits[1].least
    assert limits[1].allows({limits[1].signal: np.asarray([0.05, 0.5])}).tolist() == [False, True]


def test_where_looks_are_compared_a_crowd_must_be_doubted_or_very_dense() -> None:
    outlier = (np.round(np.random.default_rng(7).normal(0.5, 0.03, 4000) * 2**19) / 2**19).astype(np.float32)
    closeness = Histogram()
    closeness.add(count((1 - outlier.astype(np.float64)).astype(np.float32)))
    asked = SplitSettings(rule="keep-share", keep_share=1.0, crowded_tail=0.02, look_tail=0.05)
    limits = [limit for limit in limits_of(asked, {"outlier": closeness}) if limit.reason == Reason.CROWDED]
    cut = max(limit.least or 0.0 for limit in limits)
    assert cut == pytest.approx(0.5 - 2.05 * 0.03, abs=0.01)
    seen = {
        "outlier": np.asarray([0.99, 0.99, 0.74, 0.9, 1.1, 0.9]) * cut,
        "neighbour_outlier": np.asarray([1.1, 1.1, 1.1, 0.1, 0.1, 0.1]) * cut,  # others' density needs a doubt, however great
        "look_accord": np.asarray([0.7, 0.71, 1.0, 1.0, 0.6, np.nan]),
    }
    assert np.all([limit.allows(seen) for limit in limits], axis=0).tolist() == [False, True, False, True, False, False]
    untold = limits_of(asked, {"outlier": closeness}, separates=False)  # the looks of an untrained model say nothing
    assert [(limit.signal, limit.least, limit.witness) for limit in untold] == [
        ("outlier", cut, None),
        ("neighbour_outlier", cut, None),
    ]


def test_a_crowd_of_more_than_half_is_refused() -> None:
    rng = np.random.default_rng(5)
    distance = np.concatenate([rng.normal(0.4, 0.01, 4000), rng.uniform(0.05, 0.3, 6000)])
    closeness, cosines = Histogram(), Histogram()
    closeness.add(count((np.round((1 - distance) * 2**19) / 2**19).astype(np.float32)))
    cosines.add(count(np.linspace(0, 0.5, 10_000).round(4).astype(np.float32)))
    with pytest.raises(SplitRefused, match=r"6,0\d\d of 10,000 scored rows would be crowded"):
        decide(cosines, SplitSettings(rule="keep-share", keep_share=1.0, crowded_tail=0.01), signals={"outlier": closeness})


def test_repeats_are_counted_over_shards_and_label(copies: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    pairsan("clean", copies, "--out", run, "--checkpoint", tiny, *CLEAN, "--max-image-repeats", 2)
    rows = table(run)
    five = rows[rows["exact_copies"] == 5]
    assert sorted(five["shard"]) == ["0.tar"] * 2 + ["1.tar"] * 3
    assert five["exact_copy_cluster"].nunique() == five["image_cluster"].nunique() == 1
    assert set(five["reason"]) == {"exact_duplicate"}
    assert (rows.loc[rows["image_cluster_size"] <= 2, "label"] == "safe").all()
    assert rows["caption_cluster_size"].max() == 1
    assert rows["outlier"].isna().all()
    seal = open_round(run).seal
    assert seal["counts"]["reasons"] == {"exact_duplicate": 5}
    assert seal["safe_share"] == pytest.approx(51 / 56)
    assert seal["share_above_cut"] == 1.0
    assert "all as sealed" in pairsan("verify", run).output
    pairsan("split", run, "--keep-share", 1.0)  # the run's own limit is inherited
    assert open_round(run, 2).seal["counts"]["labels"]["safe"] == 51
    pairsan("split", run, "--keep-share", 1.0, "--max-image-repeats", 5)
    assert open_round(run, 3).seal["counts"]["labels"]["safe"] == 56
    broken = run / seal["parts"][0]["signals"]["name"]
    broken.write_bytes(b"other")
    assert "sha256 differs" in pairsan("verify", run, code=1).output


def test_copies_and_look_alikes_are_limited_apart(
    emoji_members: list[tuple[str, bytes]], tmp_path: Path, pairsan: Pairsan
) -> None:
    """A picture four times, shrunk so that its look stays and its pixels do not: under its own caption, and under another's."""
    pairs = [(name[:-5], data) for name, data in emoji_members if name.endswith(".webp")]
    texts = {name[:-4]: data for name, data in emoji_members if name.endswith(".txt")}
    shown = {key: Image.open(io.BytesIO(data)).convert("RGB") for key, data in pairs}
    (kept, again), foreign = (pairs[0][0], pairs[1][0]), texts[pairs[20][0]]
    rows = [(f"{key}.{end}", data) for key, data in pairs for end, data in (("webp", data), ("txt", texts[key]))]
    for key, text in ((kept, texts[kept]), (again, foreign)):
        for i in range(3):
            edge = shown[key].width - i - 1
            rows += [(f"{key}-{i}.png", encode(shown[key].resize((edge, edge), 3), "PNG")), (f"{key}-{i}.txt", text)]
    (tmp_path / "0.tar").write_bytes(make_tar(rows))
    run, demo = tmp_path / "run", str(EMOJI / "tiny-clip")
    pairsan("clean", tmp_path / "0.tar", "--out", run, "--checkpoint", demo, *CLEAN, "--max-image-repeats", 2)
    rows_of = table(run).set_index("key")
    assert (rows_of["label"] == "safe").all()
    assert rows_of["exact_copies"].max() == 1
    alike = rows_of.index[rows_of["image_cluster_size"] > 2]
    assert {key.rpartition("-")[0] or key for key in alike} >= {kept, again}
    args = ("--signals", "all", "--max-look-alikes", 2, "--keep-share", 1.0)
    pairsan("clean", tmp_path / "0.tar", "--out", tmp_path / "near", "--checkpoint", demo, *CLEAN, *args)
    near = table(tmp_path / "near").set_index("key")
    flagged = set(near.index[near["reason"] == "near_duplicate"])
    assert flagged == set(near.index[(near["image_cluster_size"] > 2) & (near["accord"] <= DOUBTS_UP_TO)])
    assert {f"{again}-{i}" for i in range(3)} <= flagged
    assert not {kept, *(f"{kept}-{i}" for i in range(3))} & flagged


def test_a_crowd_is_found_and_an_interrupted_run_ends_the_same(
    copies: Path, tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    args = ("--checkpoint", tiny, *CLEAN, "--crowded-share", 0.22, "--neighbours", 8, "--reference-rows", 64)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        pairsan("clean", copies, "--out", run, *args)
    rows = table(whole)
    crowd = rows[rows["reason"] == "crowded"]
    assert 12 <= len(crowd) <= 14
    assert crowd["key"].str.startswith("noisy").sum() >= 11
    assert rows["outlier"].between(0, 2).all()
    assert rows["caption_agreement"].between(-1, 1).all()
    folder = next((cut / "rounds/0001").glob("signals-*"))
    (cut / "rounds/0001/manifest.json").unlink()
    (folder / "1.tar.parquet").unlink()
    (folder / "repeats-caption.parquet").unlink()
    (folder / "reference.parquet").unlink()
    shutil.rmtree(cut / "rounds/0001/manifest")
    pairsan("clean", copies, "--out", cut, *args)
    assert parts_of(whole) == parts_of(cut)


def test_signals_are_asked_for_in_words(copies: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    args = ("clean", copies, "--out", run, "--checkpoint", tiny, *CLEAN)
    refused = pairsan(*args, "--signals", "none", "--max-image-repeats", 2, code=2)
    assert "signals = 'none', but max_image_repeats needs them" in refused.stderr
    pairsan(*args, "--signals", "none")
    assert open_round(run).to_pandas()["signals"].isna().all()
    refused = pairsan("split", run, "--crowded-share", 0.2, "--signals", "all", code=5)
    assert "round 1 of" in refused.stderr
    assert "kept no embeddings" in refused.stderr
    pairsan("split", run, "--signals", "repeats", "--max-image-repeats", 1)
    assert open_round(run, 2).seal["counts"]["reasons"] == {"exact_duplicate": 5}


def test_scores_of_the_first_schema_are_still_split(copies: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    pairsan("embed", copies, "--out", run, "--checkpoint", tiny, "--executor", "local")
    plan = json.loads((run / "rounds/0001/plan.json").read_text())
    (run / "rounds/0001/plan.json").write_text(json.dumps({**plan, "schema_version": 1}))
    for part in (run / "rounds/0001/scores").iterdir():
        old = pq.read_table(part)
        metadata = {**old.schema.metadata, b"pairsan.schema_version": b"1"}
        schema = scores_schema(1)
        columns = {name: old[name] for name in schema.names} | {"signals": pa.nulls(len(old), schema.field("signals").type)}
        pq.write_table(pa.table(columns, schema=schema).replace_schema_metadata(metadata), part)
    refused = pairsan("split", run, "--keep-share", 0.5, "--max-image-repeats", 2, code=5)
    assert "scored by pairsan 0.1.0, without hashes" in refused.stderr
    pairsan("split", run, "--keep-share", 0.5)
    assert open_round(run).to_pandas()["signals"].isna().all()
    assert "all as sealed" in pairsan("verify", run).output


def test_one_picture_in_all_rows_has_no_neighbours(
    emoji_members: list[tuple[str, bytes]], tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    picture = next(data for name, data in emoji_members if name.endswith(".webp"))
    texts = [data for name, data in emoji_members if name.endswith(".txt")]
    rows = [(f"{i}.{end}", data) for i, text in enumerate(texts) for end, data in (("webp", picture), ("txt", text))]
    (tmp_path / "same.tar").write_bytes(make_tar(rows))
    args = ("--checkpoint", tiny, *CLEAN, "--signals", "all", "--near-copy-cosine", 0.95)
    pairsan("clean", tmp_path / "same.tar", "--out", tmp_path / "run", *args, "--discord-share", 0.1)
    found = table(tmp_path / "run")
    assert (found["near_copies"] == len(texts)).all()
    assert (found[["outlier", "neighbour_outlier"]] == 0.0).all(axis=None)
    assert found[["accord", "caption_agreement"]].notna().all(axis=None)
    said = pairsan("split", tmp_path / "run", "--keep-share", 1.0, "--max-near-copies", 4).output
    assert (table(tmp_path / "run")["reason"] == "near_duplicate").all()
    assert f"copies    {len(texts)} rows are risky as copies, more than are safe; where pictures have several captions" in said
    pairsan("split", tmp_path / "run", "--keep-share", 1.0, "--max-near-copies", 10**6, "--crowded-tail", 0.02)
    assert (table(tmp_path / "run")["label"] == "safe").all()  # nothing is nearer than the others
