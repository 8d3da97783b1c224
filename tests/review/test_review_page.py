"""The review page: its routes, what they refuse, and the page itself in a real browser."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from benchmarks.speed.review import build
from manifests.errors import CheckpointError, ConfigError
from manifests.reading import open_round
from manifests.reviews import newest, read_all
from manifests.store import open_store
from pipeline.pages.gallery import Gallery, Wanted
from pipeline.pages.review import Reviewer, make_app
from pipeline.pages.thumbnails import Thumbnails
from pipeline.queries.inspection import Query
from stages.export.single_images import Originals
from stages.settings import ReadSettings
from stages.vectors import vectors_of

Pairsan = Callable[..., Result]


@pytest.fixture
def run(review_run: Path) -> Path:
    return review_run


@pytest.fixture
def client(run: Path) -> Iterator[TestClient]:
    reviewer = Reviewer(Gallery(open_round(run)), Thumbnails.of_round(open_round(run)), "ann")
    with TestClient(make_app(reviewer, "token", 80), base_url="http://127.0.0.1:80") as made:
        made.headers["host"] = "127.0.0.1:80"
        yield made


def test_the_routes_answer(client: TestClient, run: Path) -> None:
    about = client.get("/token/about").json()
    assert about["counts"]["rows"] == 40
    found = client.post("/token/pairs", json={"filter": {"label": "risky", "sort": "-cosine"}}).json()["pairs"]
    cosines = [pair["cosine"] for pair in found]
    assert len(found) == client.post("/token/count", json={"filter": {"label": "risky"}}).json()["count"] == 24
    assert cosines == sorted(cosines, reverse=True)
    one = client.post("/token/pair", json={"shard": found[0]["shard"], "index": found[0]["index"]}).json()
    assert one["history"] == [{k: found[0][k] for k in ("label", "reason", "cosine", "p_safe", "rank")} | {"round": 1}]
    assert len(one["neighbours"]) == 8
    assert one["alike"] == []
    image = client.get("/token/image", params={"shard": found[0]["shard"], "index": found[0]["index"], "size": 64})
    assert image.headers["content-type"] == "image/webp"
    assert image.content[8:12] == b"WEBP"
    assert "default-src 'none'" in image.headers["content-security-policy"]
    assert client.get("/token/image", params={"shard": "../run.json", "index": 0}).status_code == 404
    assert client.get("/token/").text.startswith("<!doctype html>")


def test_verdicts_are_given_undone_and_filtered(client: TestClient, run: Path) -> None:
    found = client.post("/token/pairs", json={"filter": {"label": "risky"}}).json()["pairs"]
    place = [found[0]["shard"], found[0]["index"]]
    client.post("/token/verdict", json={"places": [place], "verdict": "safe", "note": "fine"})
    assert client.post("/token/pairs", json={"filter": {"verdict": "safe"}}).json()["pairs"][0]["review"]["note"] == "fine"
    assert client.post("/token/count", json={"filter": {"verdict": "none"}}).json()["count"] == 39
    body = {"filter": {"label": "risky"}, "verdict": "drop", "count": 23}
    refused = client.post("/token/verdict-all", json=body)
    assert refused.status_code == 400
    assert "finds 24 pairs, confirmed were 23; nothing was done" in refused.json()["error"]
    act = client.post("/token/verdict-all", json={**body, "count": 24}).json()
    assert act["num"] == 24
    assert client.post("/token/count", json={"filter": {"verdict": "drop"}}).json()["count"] == 24
    assert client.get("/token/about").json()["undoable"] == 2  # a page that is loaded again can undo both
    assert client.post("/token/undo", json={}).json() == {"num": 24, "left": 1}
    verdicts = newest(read_all(open_store(run)))
    assert verdicts["verdict"].to_pylist() == ["safe"]
    assert verdicts["who"].to_pylist() == ["ann"]


def test_images_are_sought_by_words_by_an_image_and_by_a_pair(
    client: TestClient, run: Path, emoji_members: list[tuple[str, bytes]]
) -> None:
    vectors = {}
    for part in open_round(run).seal["parts"]:
        stored = pq.read_table(run / part["embeddings"]["name"])
        for row, (image, text) in enumerate(zip(*(vectors_of(stored[name]) for name in ("image", "text")), strict=True)):
            vectors[(part["shard"], row)] = image.astype(np.float32), text.astype(np.float32)
    assert client.get("/token/about").json()["has_vectors"]

    def sought(like: str, **more: object) -> list[dict[str, Any]]:
        body = {"filter": {"like": like, "sort": "-similarity", **more}}
        found = client.post("/token/pairs", json=body).json()["pairs"]
        assert client.post("/token/count", json=body).json()["count"] == len(found)
        assert [pair["similarity"] for pair in found] == sorted((pair["similarity"] for pair in found), reverse=True)
        return list(found)

    pair = client.post("/token/pairs", json={"filter": {"sort": "-cosine"}}).json()["pairs"][0]
    place = pair["shard"], pair["index"]
    for like, which in ((f"pair:{place[0]}:{place[1]}", 0), (pair["caption"], 1)):
        found = sought(like)
        assert len(found) == 40
        for other in found:
            true = float(vectors[place][which] @ vectors[(other["shard"], other["index"])][0])
            assert other["similarity"] == pytest.approx(true, abs=2e-3)
    assert (found[0]["shard"], found[0]["index"]) == place  # of all images, by the words of its caption
    assert len(sought(like, of="similarity", low=found[10]["similarity"])) == 11
    assert len(sought(like, label="safe")) == 16
    bins = client.post("/token/histogram", json={"of": "similarity", "filter": {"like": like}}).json()["histogram"]["bins"]
    assert sum(sum(bin_.values()) for bin_ in bins) == 40
    image = next(data for name, data in emoji_members if name == f"{pair['key']}.webp")
    sent = client.post("/token/like", json={"image": base64.b64encode(image).decode()}).json()["like"]
    same = sought(sent)[0]
    assert (same["shard"], same["index"]) == place
    assert same["similarity"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("route", "body", "said"),
    [
        ("like", {"image": "no base64!"}, "an image is sent as base64"),
        ("like", {"image": base64.b64encode(b"no image").decode()}, "no image: "),
        ("like", {"image": "A" * (28 << 20)}, "larger than 20 MiB"),
        ("pairs", {"filter": {"like": "image:0123"}}, "send it again"),
        ("pairs", {"filter": {"like": "pair:a.tar:999"}}, "a.tar has no row 999"),
        ("pairs", {"filter": {"like": "pair:../run.json:0"}}, "there is no shard '../run.json'"),
        ("pairs", {"filter": {"sort": "-similarity"}}, "no column 'similarity'"),
    ],
)
def test_what_cannot_be_compared_is_told(client: TestClient, route: str, body: dict[str, Any], said: str) -> None:
    refused = client.post(f"/token/{route}", json=body)
    assert refused.status_code == 400
    assert said in refused.json()["error"]


def test_words_are_sought_by_the_weights_that_scored_the_round(run: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    other = tmp_path / "other.safetensors"
    state = load_file(Path(tiny) / "open_clip_model.safetensors")
    save_file({**state, "logit_scale": state["logit_scale"] * 2}, other)
    pairsan("rescore", run, "--checkpoint", other, "--model", tiny, "--keep-share", 0.4)
    manifest, about_cats = open_round(run), Wanted(Query(), like="a cat")
    with pytest.raises(CheckpointError, match="other.safetensors scored this round.*--checkpoint FILE"):
        Gallery(manifest).count(about_cats)
    assert Gallery(manifest, checkpoint=str(other)).count(about_cats) == 40


def test_the_map_lies_on_the_principal_axes_and_knows_what_a_filter_finds(client: TestClient, run: Path) -> None:
    manifest = open_round(run)
    rows = manifest.to_pandas(["shard", "index", "label"])
    places = [(str(shard), index) for shard, index in zip(rows["shard"], rows["index"], strict=True)]
    parts = [part["embeddings"]["name"] for part in manifest.seal["parts"]]
    vectors = np.concatenate([vectors_of(pq.read_table(manifest.run.path(part))["image"]) for part in parts]).astype(np.float64)
    there = vectors.any(axis=1)
    answer = client.post("/token/map", json={"filter": {"label": "safe"}}).content
    num = int.from_bytes(answer[:4], "little")
    assert num == there.sum() == 40
    assert len(answer) == 4 + 6 * num
    x, y = (np.frombuffer(answer, "<u2", num, 4 + 2 * num * axis) for axis in (0, 1))
    labels, found = (np.frombuffer(answer, np.uint8, num, (4 + axis) * num + 4) for axis in (0, 1))
    assert [("safe", "risky", "quarantined")[code] for code in labels] == rows["label"][there].astype(str).tolist()
    assert found.tolist() == (rows["label"][there] == "safe").astype(int).tolist()
    centred = vectors[there] - vectors[there].mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    for drawn, axis in ((x, axes[0]), (y, axes[1])):
        inside = (drawn > 0) & (drawn < 65_535)
        assert abs(np.corrcoef(drawn[inside], (centred @ axis)[inside])[0, 1]) > 0.9999
    mapped = [place for place, known in zip(places, there, strict=True) if known]
    left = {place for place, at in zip(mapped, x, strict=True) if at < 32_000}
    pairs = client.post("/token/pairs", json={"filter": {"area": f"-9,-9,{32_000 / 65_535},9"}}).json()["pairs"]
    assert {(pair["shard"], pair["index"]) for pair in pairs} == left
    one = client.post("/token/pair", json={"shard": pairs[0]["shard"], "index": pairs[0]["index"]}).json()
    assert 0 <= one["on_map"][0] <= 32_000 / 65_535
    assert "is no area of the map" in client.post("/token/map", json={"filter": {"area": "1,2"}}).json()["error"]
    assert client.post("/token/count", json={"filter": {"area": "1,2"}}).status_code == 400


def test_a_page_to_show_takes_no_verdicts(run: Path) -> None:
    reviewer = Reviewer(Gallery(open_round(run)), Thumbnails.of_round(open_round(run)), "ann", read_only=True)
    app = make_app(reviewer, "token", 80)
    with TestClient(app, base_url="http://127.0.0.1:80", headers={"host": "127.0.0.1:80"}) as client:
        assert client.get("/token/about").json()["read_only"]
        pair = client.post("/token/pairs", json={"filter": {}}).json()["pairs"][0]
        said = {"places": [[pair["shard"], pair["index"]]], "verdict": "drop", "filter": {}, "count": 40}
        for route in ("verdict", "verdict-all", "undo"):
            assert client.post(f"/token/{route}", json=said).status_code == 404
    assert read_all(open_store(run)).num_rows == 0


def test_what_does_not_come_from_the_page_is_refused(client: TestClient) -> None:
    assert client.get("/other/about").status_code == 404
    assert client.get("/token/about", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/token/about", headers={"origin": "http://evil.example"}).status_code == 403
    form = client.post("/token/verdict", content=b"{}", headers={"content-type": "text/plain"})
    assert form.status_code == 403
    assert client.post("/token/verdict", json={}).status_code == 400
    assert "no label 'x'" in client.post("/token/count", json={"filter": {"label": "x"}}).json()["error"]


@pytest.mark.parametrize(
    "where",
    [
        "TRUE); DROP VIEW pairs; --",
        "TRUE; COPY pairs TO '/tmp/out.csv'",
        "(SELECT count(*) FROM read_text('/etc/hostname')) > 0",
        "(SELECT count(*) FROM glob('/**')) > 0",
        "getenv('HOME') IS NOT NULL",
        "no_such_column = 1",
    ],
)
def test_an_expression_can_read_nothing_but_the_round(run: Path, where: str) -> None:
    gallery = Gallery(open_round(run))
    with pytest.raises(ConfigError, match=r"not understood|without a semicolon"):
        gallery.count(Wanted(Query(), where=where))
    assert gallery.count(Wanted(Query(), where="length(caption) > 0 AND signals.image_cluster_size = 1")) == 40


def test_any_column_or_signal_sorts_filters_and_has_a_histogram(client: TestClient, run: Path) -> None:
    about = client.get("/token/about").json()
    assert {"cosine", "p_safe", "signals.exact_copies"} <= set(about["numbers"]) <= set(about["columns"])
    assert "signals.image_cluster" not in about["numbers"]  # an id, not an amount
    rows = open_round(str(run)).to_pandas(["cosine", "label", "signals"])
    wanted = {"filter": {"of": "cosine", "low": str(rows["cosine"].median()), "sort": "-signals.caption_cluster_size"}}
    found = client.post("/token/pairs", json=wanted).json()["pairs"]
    sizes = [pair["signals"]["caption_cluster_size"] for pair in found]
    assert len(found) == (rows["cosine"] >= rows["cosine"].median()).sum()
    assert sizes == sorted(sizes, reverse=True)
    bins = client.post("/token/histogram", json={"of": "cosine"}).json()["histogram"]
    counts = {label: sum(one.get(label, 0) for one in bins["bins"]) for label in ("safe", "risky")}
    assert counts == {"safe": 16, "risky": 24}
    assert rows["cosine"].min() <= bins["low"] < bins["high"] <= rows["cosine"].max()
    edge = bins["low"] + (bins["high"] - bins["low"]) / 40
    assert sum(bins["bins"][0].values()) == (rows["cosine"] < edge).sum()
    assert client.post("/token/histogram", json={"of": "signals.accord"}).json()["histogram"] is None  # nobody looked
    for wrong in ("signals.nonsense", "cosine; DROP TABLE verdicts", 'cosine"'):
        assert client.post("/token/histogram", json={"of": wrong}).status_code == 400
        assert client.post("/token/pairs", json={"filter": {"sort": wrong}}).status_code == 400
        assert client.post("/token/count", json={"filter": {"of": wrong, "low": "0"}}).status_code == 400


def test_pages_go_on_to_the_last_pair_whatever_they_are_sorted_by(tmp_path: Path) -> None:
    build(tmp_path, 1)  # 10,000 rows, 20 of which have no cosine
    gallery = Gallery(open_round(tmp_path / "run"))
    for sort in ("cosine", "-cosine", "label", "-key", "uid"):
        wanted = Wanted(Query(sort=sort))
        rows = [row for number in (0, 99, 100, 101, 166) for row in gallery.page(wanted, number)]
        assert [len(gallery.page(wanted, number)) for number in (99, 100, 166, 167, 400)] == [60, 60, 40, 0, 0]
        assert len({(row["shard"], row["index"]) for row in rows}) == 4 * 60 + 40
        whole = gallery.places(wanted, 10_000)
        places = [whole[number * 60 : number * 60 + 60] for number in (0, 99, 100, 101, 166)]
        assert [(row["shard"], row["index"]) for row in rows] == [place for page in places for place in page]


def test_ids_of_64_bits_reach_the_page_whole(tmp_path: Path) -> None:
    build(tmp_path, 1)
    manifest = open_round(tmp_path / "run")
    images = Thumbnails(Originals(manifest.run, (), ReadSettings(), {}), ReadSettings())  # none is asked for
    app = make_app(Reviewer(Gallery(manifest), images, "ann"), "token", 80)
    with TestClient(app, base_url="http://127.0.0.1:80", headers={"host": "127.0.0.1:80"}) as client:
        rows = client.post("/token/pairs", json={"filter": {}}).json()["pairs"]
    wanted = manifest.table("00000.tar")["signals"].to_pylist()
    assert all(row["signals"]["exact_copy_cluster"] == str(wanted[row["index"]]["exact_copy_cluster"]) for row in rows)
