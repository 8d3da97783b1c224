"""The review page: its routes, what they refuse, and the page itself in a real browser."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import make_tar
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from benchmarks.speed.review import build
from manifests.errors import CheckpointError, ConfigError
from manifests.reading import open_round
from manifests.reviews import newest, read_all
from manifests.store import open_store
from pipeline.pages.gallery import Gallery, Wanted
from pipeline.pages.likeness import Likeness
from pipeline.pages.review import Reviewer, make_app
from pipeline.pages.thumbnails import Thumbnails
from pipeline.queries.inspection import Query
from stages.export.single_images import Originals
from stages.settings import ReadSettings
from stages.vectors import vectors_of

Pairsan = Callable[..., Result]
ATTACK = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)> evil drawing"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def run(tmp_path: Path, emoji_members: list[tuple[str, bytes]], tiny: str, pairsan: Pairsan) -> Path:
    """40 pairs in two tars, one with a caption that is HTML; all embeddings kept."""
    data, members = tmp_path / "data", list(emoji_members)
    data.mkdir()
    members[1] = (members[1][0], ATTACK.encode())
    for row in (5, 8):
        members[row] = (members[row][0], json.dumps({"url": f"http://i.a'b.example/{ATTACK}"}).encode())
    (data / "a.tar").write_bytes(make_tar(members[:60]))
    (data / "b.tar").write_bytes(make_tar(members[60:]))
    out = tmp_path / "run"
    args = ("--checkpoint", tiny, "--executor", "local", "--keep-share", 0.4, "--keep-embeddings")
    pairsan("clean", data, "--out", out, *args)
    return out


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
    manifest = open_round(run)
    with pytest.raises(CheckpointError, match="other.safetensors scored this round.*--checkpoint FILE"):
        Likeness(manifest).table("a cat")
    assert Likeness(manifest, str(other)).table("a cat").num_rows == 40


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


@contextmanager
def served(run: Path, *options: str) -> Iterator[tuple[Any, str]]:
    """Yield a browser, and the address of the page of a run."""
    from playwright.sync_api import sync_playwright

    command = [str(Path(sys.executable).parent / "pairsan"), "review", str(run), "--who", "ann", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as browsers:
        assert server.stdout is not None
        address = next(found[0] for line in server.stdout if (found := re.fullmatch(r"http://127\.0\.0\.1:\d+/\S+/\n", line)))
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser, address.strip()
        finally:
            browser.close()
            server.terminate()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_the_page_in_a_browser(run: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    with served(run) as (browser, address):
        page, errors = browser.new_page(viewport={"width": 1400, "height": 900}), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        expect(page.locator("#count")).to_have_text("24 pairs")
        page.select_option("select[name=label]", "")
        expect(page.locator("#count")).to_have_text("40 pairs")
        page.fill("#caption", "evil")
        page.keyboard.press("Enter")
        expect(page.locator("#count")).to_have_text("1 pair")
        expect(page.locator("#gallery .caption")).to_have_text(ATTACK)  # as text
        expect(page.locator("#words")).to_have_text(ATTACK)
        assert page.title() == "pairsan review"
        page.click("#gallery button")
        page.keyboard.press("d")
        expect(page.locator("#gallery .tag.said")).to_have_text("drop")
        page.keyboard.press("u")
        expect(page.locator("#gallery .tag.said")).to_have_count(0)
        page.click("button[type=reset]")
        expect(page.locator("#count")).to_have_text("24 pairs")  # the filter that one begins with
        page.select_option("select[name=label]", "")
        expect(page.locator("#count")).to_have_text("40 pairs")
        other = browser.new_page()
        other.goto(address)
        expect(other.locator("#count")).to_have_text("24 pairs")
        for tab, key in ((page, "s"), (other, "r")):  # two tabs, one after the other on different rows
            tab.locator("#gallery button").nth(3 if tab is page else 5).click()
            tab.keyboard.press(key)
            expect(tab.locator("#said")).to_contain_text("1 pair")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
        page.fill("#like", "a cat")
        page.keyboard.press("Enter")
        expect(page.locator("#gallery .facts").first).to_contain_text("similarity 0.", timeout=60_000)
        page.click("text=Of all shards")
        expect(page.locator("#gallery .facts").first).to_contain_text("similarity 1.000")
        expect(page.locator("#histogram figcaption")).to_contain_text("similarity: ")
        page.click("button[type=reset]")
        page.select_option("select[name=label]", "")
        expect(page.locator("#count")).to_have_text("40 pairs")
        page.check("#whole")
        page.click("button[data-verdict=risky]")
        expect(page.locator("#question")).to_contain_text("all 40 pairs")
        page.click("#yes")
        expect(page.locator("#said")).to_have_text("risky: 40 pairs")
        unnamed = "e => !e.labels?.length && !e.ariaLabel && !e.innerText.trim()"
        assert page.evaluate(f"[...document.querySelectorAll('input, select, button')].filter({unnamed}).length") == 0
        page.screenshot(path=tmp_path / "page.png")
    assert errors == []
    assert (tmp_path / "page.png").stat().st_size > 20_000
    acts = read_all(open_store(run))
    assert sorted(acts["verdict"].to_pylist()[:4], key=str) == [None, "drop", "risky", "safe"]
    assert newest(acts).num_rows == 40


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_the_address_holds_the_view_and_mistakes_say_what_is_wrong(run: Path) -> None:
    from playwright.sync_api import expect

    with served(run) as (browser, address):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        expect(page.locator("#count")).to_have_text("24 pairs")
        page.select_option("select[name=label]", "safe")
        expect(page.locator("#count")).to_have_text("16 pairs")
        page.keyboard.press("Escape")
        page.locator("#gallery button").nth(4).click()
        chosen = page.locator("#gallery button[aria-pressed=true] .caption").inner_text()
        assert page.url.endswith("?label=safe&of=cosine&sort=cosine&at=5")
        page.keyboard.press("r")
        expect(page.locator("#said")).to_have_text("risky: 1 pair")
        page.locator("#gallery button").nth(4).click()
        page.reload()
        expect(page.locator("#count")).to_have_text("16 pairs")
        expect(page.locator("#gallery button[aria-pressed=true] .caption")).to_have_text(chosen)
        page.click("#undo")  # what was done before the reload
        expect(page.locator("#said")).to_have_text("undone on 1 pair")
        expect(page.locator("#undo")).to_be_disabled()
        page.go_back()
        expect(page.locator("#count")).to_have_text("24 pairs")
        assert page.input_value("select[name=label]") == "risky"
        page.go_forward()
        expect(page.locator("#count")).to_have_text("16 pairs")
        page.fill("input[name=low]", "0.5")
        page.fill("input[name=high]", "0.2")
        page.click("button[type=submit]")
        for place in ("#said", "#detail"):
            expect(page.locator(place)).to_contain_text("cosine from 0.5 to 0.2 is no range")
        page.goto(f"{address}?where=nonsense+%3D+1&sort=cosine")
        expect(page.locator("#detail")).to_contain_text("the filter is not understood")
        expect(page.locator("#count")).to_have_text("not counted")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
@pytest.mark.parametrize("width", [1280, 640, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_the_page(run: Path, width: int, scheme: str, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import expect

    with served(run) as (browser, address):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.goto(address)
        expect(page.locator("#words")).to_be_in_viewport()  # the chosen pair is in sight, on a narrow screen too
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"][:120]) for one in found if one["impact"] in ("serious", "critical")] == []
        assert [one["id"] for one in found if one["id"] in ("heading-order", "region", "landmark-one-main")] == []
        stops = "e => e.tabIndex >= 0 && !e.disabled && e.offsetParent !== null"
        assert (
            page.evaluate(f"[...document.querySelectorAll('a, input, select, button, [tabindex]')].filter({stops}).length")
            <= 32
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off at the side"
        page.screenshot(path=f"{tmp_path}/{width}-{scheme}.png")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_a_pair_says_where_it_comes_from(run: Path) -> None:
    from playwright.sync_api import expect

    with served(run) as (browser, address):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{address}?where=source.url+IS+NOT+NULL&sort=cosine")
        expect(page.locator("#count")).to_have_text("2 pairs")
        expect(page.locator("#detail")).to_contain_text("http://i.a'b.example/<script>")
        page.goto(f"{address}?where=index+%3D+1&sort=cosine")
        expect(page.locator("#count")).to_have_text("2 pairs")  # of two shards
        page.goto(f"{address}?where=index+%3D+1+AND+shard+%3D+%27a.tar%27&sort=cosine")
        expect(page.locator("#count")).to_have_text("1 pair")
        page.get_by_role("button", name="Show its domain").click()
        expect(page.locator("#count")).to_have_text("2 pairs")
        assert page.input_value("[name=where]") == "source.domain = 'a''b.example'"
        assert page.title() != "taken"


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


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_several_pairs_neighbours_reasons_and_a_range_by_the_mouse(run: Path) -> None:
    from playwright.sync_api import expect

    with served(run) as (browser, address):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        expect(page.locator("#why")).to_contain_text("This pair has a cosine below the cut")
        page.locator("#gallery button").nth(1).click()
        page.locator("#gallery button").nth(3).click(modifiers=["Shift"])
        page.locator("#gallery button").nth(6).click(modifiers=["Control"])
        expect(page.locator("#gallery .picked")).to_have_count(4)
        page.keyboard.press("d")
        expect(page.locator("#said")).to_have_text("drop: 4 pairs")
        assert newest(read_all(open_store(run))).num_rows == 4
        chosen = page.locator("#words").inner_text()
        neighbour = page.locator("#detail .strip button").first
        caption = neighbour.inner_text()
        neighbour.click()
        expect(page.locator("#detail > button")).to_have_text("Back to the chosen pair")
        assert caption.endswith(page.locator("#words").inner_text())
        page.keyboard.press("s")  # on the neighbour that is shown
        expect(page.locator("#said")).to_have_text("safe: 1 pair")
        assert newest(read_all(open_store(run))).num_rows == 5
        expect(page.locator("#words")).to_have_text(chosen)
        page.evaluate("scrollTo(0, 0)")
        box = page.locator("#histogram svg").bounding_box()
        page.mouse.move(box["x"] + 1, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20)
        page.mouse.up()
        expect(page.locator("#count")).not_to_have_text("24 pairs")
        low, high = (float(page.input_value(f"input[name={end}]")) for end in ("low", "high"))
        rows = open_round(str(run)).to_pandas(["cosine", "label"])
        inside = ((rows["label"] == "risky") & rows["cosine"].between(low, high)).sum()
        assert 0 < inside < 24
        expect(page.locator("#count")).to_have_text(f"{inside} pairs")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_a_sample_is_judged_in_a_browser_without_its_labels(run: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    with served(run, "--sample", "6") as (browser, address):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        expect(page.locator("#count")).to_have_text("0 of 6 sampled pairs judged by you")
        expect(page.locator("#gallery button")).to_have_count(6)
        expect(page.locator("#filter")).to_be_hidden()
        expect(page.locator("#whole")).to_be_hidden()
        assert not re.search(r"\b(safe|risky|cosine|below_cut)\b", page.inner_text("main"))
        page.screenshot(path=tmp_path / "sample.png")
        for done, key in enumerate("rrsdss", 1):
            page.keyboard.press(key)
            expect(page.locator("#gallery .tag.said")).to_have_count(done)
        expect(page.locator("#count")).to_contain_text("6 of 6 sampled pairs of round 1 judged: ")
        expect(page.locator("#gallery .tag:not(.said)")).to_have_count(6)  # and now the labels are there


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
