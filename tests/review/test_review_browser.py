"""The review page in a real browser."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import ATTACK

from manifests.reading import open_round
from manifests.reviews import newest, read_all
from manifests.store import open_store

Pairsan = Callable[..., Result]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def run(review_run: Path) -> Path:
    return review_run


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
        expect(page.locator("#count")).not_to_have_text("40 pairs")  # those of before are gone
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
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (640, "dark"), (390, "light"), (1280, "dark")])
def test_everybody_can_use_the_page(run: Path, width: int, scheme: str, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import expect

    with served(run) as (browser, address):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.goto(address)
        expect(page.locator("#words")).to_be_in_viewport()  # the chosen pair is in sight, on a narrow screen too
        if width == 1280:
            page.click("#map summary")
            expect(page.locator("#places")).to_contain_text("principal axes", timeout=20_000)
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"][:120]) for one in found if one["impact"] in ("serious", "critical")] == []
        assert [one["id"] for one in found if one["id"] in ("heading-order", "region", "landmark-one-main")] == []
        page.evaluate("document.querySelector('#map').open = false")  # what is folded away is no stop
        folded = "e.closest('details:not([open]) > :not(summary)')"
        stops = f"e => e.tabIndex >= 0 && !e.disabled && e.offsetParent !== null && !{folded}"
        assert (
            page.evaluate(f"[...document.querySelectorAll('a, input, select, button, [tabindex]')].filter({stops}).length")
            <= 32
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off at the side"
        page.screenshot(path=f"{tmp_path}/{width}-{scheme}.png")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_an_area_of_the_map_is_chosen_by_the_mouse(run: Path) -> None:
    from playwright.sync_api import expect

    with served(run) as (browser, address):
        page, errors = browser.new_page(viewport={"width": 1400, "height": 1000}), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        expect(page.locator("#count")).to_have_text("24 pairs")
        page.click("#map summary")
        expect(page.locator("#places")).to_contain_text("24 of 40 images, by their first two principal axes")
        box = page.locator("#map canvas").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"])
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] + 5, box["y"] + box["height"] + 5)
        page.mouse.up()
        expect(page.locator("#count")).not_to_have_text("24 pairs")
        chosen = page.locator("#count").text_content()
        assert re.search(r"area=0\.[45]\d*%2C-?0\.0", page.url), page.url
        page.reload()
        expect(page.locator("#count")).to_have_text(chosen)
        expect(page.locator("#places")).to_contain_text("24 of 40 images")  # the map is open, since the address has an area
        page.click("button[type=reset]")
        expect(page.locator("#count")).to_have_text("24 pairs")
        assert not errors


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
