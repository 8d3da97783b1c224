"""What two crawls hold under one address."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import make_tar
from PIL import Image

Pairsan = Callable[..., Result]
pytestmark = pytest.mark.whole


def encoded(seed: int, form: str) -> bytes:
    """Return a smooth picture, the same for one seed, as PNG, or as JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(out, form, quality=95)
    return out.getvalue()


def crawl_of(folder: Path, rows: dict[int, tuple[int, str]], first: int = 0) -> Path:
    """Write a tar with an image, a caption and an URL a row: by number, the seed of its picture and the form."""
    folder.mkdir()
    members = []
    for number, (seed, form) in rows.items():
        url = f"http://images.{'bought' if number % 2 else 'kept'}.com/{number}"
        key = f"{first + number:05d}"
        facts = {"jpg": encoded(seed, form), "txt": f"thing {number}".encode(), "json": json.dumps({"url": url}).encode()}
        members += [(f"{key}.{end}", data) for end, data in facts.items()]
    (folder / "00000.tar").write_bytes(make_tar(members))
    return folder


@pytest.fixture
def runs(tmp_path: Path, tiny: str, pairsan: Pairsan) -> tuple[Path, Path]:
    """Twelve rows; in the second crawl 1 and 3 show other pictures, 2 is encoded anew, 0 is gone, 12 is new."""
    was = {number: (number, "PNG") for number in range(12)}
    now = {**was, 1: (101, "PNG"), 3: (103, "PNG"), 2: (2, "JPEG"), 12: (12, "PNG")}
    now.pop(0)
    found = []
    for name, rows in (("a", was), ("b", now)):
        data, run = crawl_of(tmp_path / f"data-{name}", rows, first=100 if name == "b" else 0), tmp_path / name
        pairsan(
            "clean",
            data,
            "--out",
            run,
            "--checkpoint",
            tiny,
            "--executor",
            "local",
            "--min-cosine",
            -1,
            "--set",
            "max_safe_share=1",
        )
        found.append(run)
    return found[0], found[1]


def test_two_crawls_are_compared_address_by_address(runs: tuple[Path, Path], tmp_path: Path, pairsan: Pairsan) -> None:
    first, second = runs
    changed = tmp_path / "changed.csv"
    found = json.loads(pairsan("diff", first, "--from", 1, "--other", second, "--changed", changed, "--json").stdout)
    assert "matrix" not in found  # other rows: labels have nothing to be compared with
    counts = {"same": 8, "alike": 1, "other": 2, "only_from": 1, "only_to": 1, "safe": 2}
    assert found["contents"] == {**counts, "domains": [{"domain": "bought.com", "rows": 6, "other": 2}]}
    rows = pd.read_csv(changed).set_index("address")
    assert rows["change"].to_dict() == {
        **{f"http://images.bought.com/{number}": "other" for number in (1, 3)},
        **{
            "http://images.kept.com/2": "alike",
            "http://images.kept.com/0": "only_from",
            "http://images.kept.com/12": "only_to",
        },
    }
    text = pairsan("diff", first, "--from", 1, "--other", second).stdout
    assert "images of 11 addresses in both: 8 the same bytes, 1 encoded anew, 2 another picture (2 of them safe)" in text
    assert "  bought.com: 2 of 6" in text
    assert "needs --other RUN" in pairsan("diff", first, "--from", 1, "--changed", changed, code=2).stderr
    flipped = ("--flipped", tmp_path / "flipped.csv")
    assert "they are of other data" in pairsan("diff", first, "--from", 1, "--other", second, *flipped, code=5).stderr
    shutil.copytree(first, tmp_path / "copy")
    found = json.loads(pairsan("diff", first, "--from", 1, "--other", tmp_path / "copy", "--json").stdout)
    assert found["flipped"] == 0
    assert {word: num for word, num in found["contents"].items() if num and word != "domains"} == {"same": 12}


def test_a_round_without_hashes_of_its_images_is_not_called_empty(runs: tuple[Path, Path], pairsan: Pairsan) -> None:
    first, second = runs
    for part in (first / "rounds/0001/scores").iterdir():  # as schema 6 wrote them
        table = pq.read_table(part)
        pq.write_table(table.drop_columns(["image_sha256"]), part)
    told = pairsan("diff", second, "--from", 1, "--other", first, code=5).stderr
    assert f"round 1 of {first} keeps no sha256 of its images" in told
