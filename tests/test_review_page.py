"""The review page: its routes, what they refuse, and the page itself in a real browser."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from conftest import make_tar
from starlette.testclient import TestClient

from manifests.errors import ConfigError
from manifests.reading import open_round
from manifests.reviews import newest, read_all
from manifests.store import open_store
from pipeline.pages.gallery import Gallery, Wanted
from pipeline.pages.review import Reviewer, make_app
from pipeline.pages.thumbnails import Thumbnails
from pipeline.queries.inspection import Query

Pairsan = Callable[..., Result]
ATTACK = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)> evil drawing"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def run(tmp_path: Path, emoji_members: list[tuple[str, bytes]], tiny: str, pairsan: Pairsan) -> Path:
    """40 pairs in two tars, one with a caption that is HTML; all embeddings kept."""
    data, members = tmp_path / "data", list(emoji_members)
    data.mkdir()
    members[1] = (members[1][0], ATTACK.encode())
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
    assert client.post("/token/undo", json={"act": act["act"]}).json()["num"] == 24
    verdicts = newest(read_all(open_store(run)))
    assert verdicts["verdict"].to_pylist() == ["safe"]
    assert verdicts["who"].to_pylist() == ["ann"]


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


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_the_page_in_a_browser(run: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    program = str(Path(sys.executable).parent / "pairsan")
    command = [program, "review", str(run), "--who", "ann"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as browsers:
        assert server.stdout is not None
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/\S+/", line)))
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, errors = browser.new_page(viewport={"width": 1400, "height": 900}), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        expect(page.locator("#count")).to_have_text("24 pairs")
        page.select_option("select[name=label]", "")
        expect(page.locator("#count")).to_have_text("40 pairs")
        page.fill("#caption", "evil")
        page.keyboard.press("Enter")
        expect(page.locator("#count")).to_have_text("1 pairs")
        expect(page.locator("#gallery .caption")).to_have_text(ATTACK)  # as text
        expect(page.locator("#words")).to_have_text(ATTACK)
        assert page.title() == "pairsan review"
        page.click("#gallery button")
        page.keyboard.press("d")
        expect(page.locator("#gallery .tag.said")).to_have_text("drop")
        page.keyboard.press("u")
        expect(page.locator("#gallery .tag.said")).to_have_count(0)
        page.click("button[type=reset]")
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
        page.check("#whole")
        page.click("button[data-verdict=risky]")
        expect(page.locator("#question")).to_contain_text("all 40 pairs")
        page.click("#yes")
        expect(page.locator("#said")).to_have_text("risky: 40 pairs")
        unnamed = "e => !e.labels?.length && !e.ariaLabel && !e.innerText.trim()"
        assert page.evaluate(f"[...document.querySelectorAll('input, select, button')].filter({unnamed}).length") == 0
        page.screenshot(path=tmp_path / "page.png")
        browser.close()
        server.terminate()
    assert errors == []
    assert (tmp_path / "page.png").stat().st_size > 20_000
    acts = read_all(open_store(run))
    assert sorted(acts["verdict"].to_pylist()[:4], key=str) == [None, "drop", "risky", "safe"]
    assert newest(acts).num_rows == 40
