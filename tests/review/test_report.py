"""The report and the comparison of rounds."""

import csv
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import make_tar

from manifests.reading import Manifest, open_round
from manifests.store import open_store
from pipeline.pages.figures import unusual_shards

pytestmark = pytest.mark.whole

Pairsan = Callable[..., Result]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ATTACK = "<script>alert(1)</script><b onmouseover=x>caption"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_is_read_on_a_telephone_and_by_everybody(run: Path, scheme: str, tmp_path: Path, pairsan: Pairsan) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    pairsan("report", run, "--out", tmp_path / "r.html")
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        page.goto((tmp_path / "r.html").as_uri())
        assert [(one["id"], one["impact"]) for one in Axe().run(page).response["violations"]] == []
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        seen = page.evaluate("[...document.querySelectorAll('.tile, code')].map((e) => e.getBoundingClientRect().bottom)")
        assert max(seen) < 844, "how many, and what to do now, stand on the first screen"
        browser.close()


def test_shards_are_listed_only_where_they_stand_out(tmp_path: Path) -> None:
    def sealed(not_safe: list[int]) -> Manifest:
        parts = [
            {"shard": f"{i}.tar", "rows": 1000, "labels": {"safe": 1000 - num, "risky": num, "quarantined": 0}}
            for i, num in enumerate(not_safe)
        ]
        labels = {word: sum(part["labels"][word] for part in parts) for word in ("safe", "risky", "quarantined")}  # type: ignore[index]
        return Manifest(open_store(tmp_path), 1, {"counts": {"labels": labels}, "parts": parts})

    alike = np.random.default_rng(0).binomial(1000, 0.1, 50).tolist()
    assert unusual_shards(sealed(alike)) == []
    (found,) = unusual_shards(sealed([*alike, 160]))
    assert (found["shard"], found["not_safe_share"]) == ("50.tar", 0.16)
    assert found["z"] > 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tars of 16, 16 and 8 rows, two rounds; one caption is HTML, one image broken, two rows show one image."""
    import tarfile

    from click.testing import CliRunner
    from conftest import EMOJI, TINY

    from pipeline.cli.main import main

    folder = tmp_path_factory.mktemp("report")
    with tarfile.open(EMOJI / "eval" / "00000.tar.gz") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m, _ in zip(tar, range(120), strict=False)]
    members[1] = (members[1][0], ATTACK.encode())
    members[3] = (members[3][0], members[0][1])
    members[6] = (members[6][0], members[6][1][:40])
    for place, caption in ((31, b"IMG_001.jpg"), (34, b"Img-002.JPG"), (52, b"img 2003 jpg")):
        members[place] = (members[place][0], caption)
    (folder / "data").mkdir()
    for shard, (start, stop) in enumerate([(0, 48), (48, 96), (96, 120)]):
        (folder / "data" / f"{shard}.tar").write_bytes(make_tar(members[start:stop]))
    out = str(folder / "run")
    args = [
        "clean",
        str(folder / "data"),
        "--out",
        out,
        "--checkpoint",
        str(TINY),
        "--executor",
        "local",
        "--keep-share",
        "0.6",
    ]
    for command in (args, ["split", out, "--keep-share", "0.3"]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    return Path(out)


def test_a_report_is_one_page_without_network_and_its_figures_add_up(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    told = json.loads(pairsan("report", run, "--out", tmp_path / "r.html", "--json").output)
    page, figures = Path(told["report"]).read_text(), json.loads(Path(told["json"]).read_text())
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r"(src|href)\s*=\s*['\"](?!data:|#)", page)
    assert not re.search(r"url\((?!#)|@import", page)
    assert page.count("<svg") == 2
    assert "profile none (defaults and what was given)" in page
    assert page.count('src="data:image/webp;base64,') > 30
    counted = {label: sum(b[label] for b in figures["histogram"]) for label in ("safe", "risky", "quarantined")}
    labels = figures["counts"]["labels"]
    assert counted == {**labels, "quarantined": 0}
    assert labels["quarantined"] == 1
    assert [line["round"] for line in figures["rounds"]] == [1, 2]
    assert figures["rounds"][1]["changed"] == 12
    worst = [pair["cosine"] for pair in figures["pairs"]["Lowest cosine"]]
    assert worst == sorted(worst)
    above = figures["pairs"]["Just above the cut"][0]
    assert above["cosine"] == figures["cut"]
    assert figures["image_groups"][0]["num_rows"] == 2
    rows = open_round(run, 2).to_pandas(["caption", "label"])
    safe = int((rows[rows["caption"].str.startswith(("IMG", "Img", "img "))]["label"] == "safe").sum())
    group = {"caption": "IMG_001.jpg", "num_rows": 3, "num_captions": 3, "num_safe": safe}
    assert figures["caption_groups"][0] == group  # one wording but for its numbers
    assert figures["pairs"]["Quarantined"][0]["reason"] == "image_undecodable"
    again = tmp_path / "again.html"
    pairsan("report", run, "--out", again)
    assert again.read_bytes() == Path(told["report"]).read_bytes()
    assert "ends in .html" in pairsan("report", run, "--out", tmp_path / "r.txt", code=2).stderr


def test_a_report_of_data_that_are_gone_goes_without_images(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    pairsan("report", run, "--round", 1, "--out", tmp_path / "r.html", "--no-images", "--pairs", 3)
    page = (tmp_path / "r.html").read_text()
    assert "data:image" not in page
    assert "no image" in page
    assert "<h2>Rounds</h2>" not in page


def test_two_rounds_are_compared_row_by_row(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    flipped = tmp_path / "flipped.csv"
    found = json.loads(pairsan("diff", run, "--from", 1, "--flipped", flipped, "--json").output)
    old, new = (open_round(run, number).to_pandas(["label", "key", "cosine"]) for number in (1, 2))
    moved = old["label"].astype(str) != new["label"].astype(str)
    assert found["flipped"] == moved.sum() == 12
    assert found["matrix"]["safe"]["risky"] == 12
    assert sum(sum(line.values()) for line in found["matrix"].values()) == 40
    assert found["drift"]["rows"] == 39
    assert found["drift"]["mean"] == 0
    assert sum(shard["flipped"] for shard in found["shards"]) == 12
    assert [line for line in found["plan"] if "keep_share" in line] == ["split.keep_share: 0.6 -> 0.3"]
    with flipped.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["key"] for row in rows} == set(old.loc[moved, "key"])
    assert {row["label_to"] for row in rows} == {"risky"}
    pairsan("diff", run, "--from", 2, "--to", 1, "--flipped", tmp_path / "f.parquet")
    assert set(pd.read_parquet(tmp_path / "f.parquet")["key"]) == set(old.loc[moved, "key"])
    text = pairsan("diff", run, "--from", 1, "--to", 2).output
    assert "12 labels differ" in text
    assert "split.keep_share: 0.6 -> 0.3" in text
    assert "written as .csv or .parquet" in pairsan("diff", run, "--from", 1, "--flipped", "x.txt", code=2).stderr


def test_rounds_of_other_data_are_not_compared(run: Path, crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    other = tmp_path / "other"
    pairsan("clean", crawl, "--out", other, "--checkpoint", tiny, "--executor", "local", "--keep-share", 0.5)
    assert "the rounds are of other data" in pairsan("diff", run, "--from", 1, "--other", other, code=5).stderr


def test_drift_of_another_checkpoint_is_measured(run: Path, tmp_path: Path, pairsan: Pairsan) -> None:
    frames = [open_round(run, 2).to_pandas(["cosine"])["cosine"]]
    from conftest import TINY
    from safetensors.torch import load_file, save_file

    state = load_file(TINY / "open_clip_model.safetensors")
    state["text_projection"] = state["text_projection"] + 0.05 * state["text_projection"].flip(0)
    save_file(state, tmp_path / "other.safetensors")
    pairsan("rescore", run, "--checkpoint", tmp_path / "other.safetensors", "--keep-share", 0.3)
    frames.append(open_round(run, 3).to_pandas(["cosine"])["cosine"])
    change = (frames[1] - frames[0]).dropna()
    found = json.loads(pairsan("diff", run, "--from", 2, "--to", 3, "--json").output)["drift"]
    assert found["mean"] == pytest.approx(change.mean(), abs=1e-6)
    assert found["std"] == pytest.approx(change.std(ddof=0), abs=1e-6)
    assert found["q50"] == pytest.approx(change.median(), abs=0.02)


def test_one_liners_name_the_round(run: Path, pairsan: Pairsan) -> None:
    import subprocess
    import sys

    lines = json.loads(pairsan("open", run, "--json").output)
    assert set(lines) == {"DuckDB", "pandas", "polars", "Spotlight", "Hugging Face", "the page of pairsan"}
    done = subprocess.run(
        [sys.executable, "-c", lines["pandas"] + "; print(len(df))"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "40"
    import duckdb

    query = shlex.split(lines["DuckDB"])[-1]
    assert sum(row[2] for row in duckdb.sql(query).fetchall()) == 40


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str, pairsan: Pairsan) -> None:
    assert "_PAIRSAN_COMPLETE" in pairsan("completion", shell).output


def test_a_report_of_damaged_parquet_files_shows_what_there_is(
    tmp_path: Path, tiny: str, emoji_members: list[tuple[str, bytes]], pairsan: Pairsan
) -> None:
    images = [data for name, data in emoji_members if name.endswith(".webp")]
    captions = [data.decode() for name, data in emoji_members if name.endswith(".txt")]
    (tmp_path / "data").mkdir()
    for name, hole in (("whole", 0), ("footer", -150), ("rows", 3000)):
        out = io.BytesIO()
        pq.write_table(pa.table({"caption": captions, "image": images}), out, row_group_size=20)
        data = bytearray(out.getvalue())
        if hole:
            data[hole : hole + 50] = bytes(50)
        (tmp_path / "data" / f"{name}.parquet").write_bytes(data)
    limits = ("--max-quarantined-share", 1, "--max-unread-share", 1, "--keep-share", 0.5)
    pairsan("clean", tmp_path / "data", "--checkpoint", tiny, "--out", tmp_path / "run", "--executor", "local", *limits)
    assert "shard_unreadable" in open_round(tmp_path / "run").seal["counts"]["reasons"]
    pairsan("report", tmp_path / "run", "--out", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count('src="data:image/webp;base64,') > 20
    assert "no image" in page
