import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from conftest import EMOJI, ROOT

from manifests import open_round
from manifests.reviews import newest, read_all


def members(part: str) -> list[tuple[str, bytes]]:
    found = []
    for shard in sorted((EMOJI / part).iterdir()):
        with tarfile.open(shard) as tar:
            found += [(member.name, tar.extractfile(member).read()) for member in tar]
    return found


def test_committed_shards_match_their_checksums() -> None:
    lines = (EMOJI / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    present = {
        f"{part}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("train", "eval")
        for path in (EMOJI / part).iterdir()
    }
    assert present == listed
    assert len(present) == 14


@pytest.mark.parametrize(("part", "sets"), [("train", {"noto", "twemoji", "fluent-emoji-flat"}), ("eval", {"emojione"})])
def test_pairs_are_real_captioned_and_licensed(part: str, sets: set[str]) -> None:
    found = members(part)
    facts = [json.loads(data) for name, data in found if name.endswith(".json")]
    captions = [data.decode() for name, data in found if name.endswith(".txt")]
    assert len(facts) == len(captions) == len(found) / 3
    assert {fact["set"] for fact in facts} == sets
    assert {fact["licence"] for fact in facts} <= {"Apache-2.0", "CC-BY-4.0", "MIT"}  # nothing share-alike
    lengths = [len(caption.split()) for caption in captions]
    assert min(lengths) >= 2
    assert max(lengths) <= 12


def test_drawings_of_one_emoji_mostly_have_different_captions() -> None:
    by_label: dict[str, set[str]] = {}
    found = members("train")
    for (_, text), (_, facts) in zip(found[1::3], found[2::3], strict=True):
        by_label.setdefault(json.loads(facts)["label"], set()).add(text.decode())
    several = [captions for captions in by_label.values() if len(captions) > 1]
    assert len(several) > 0.8 * len(by_label)


def test_the_bundle_is_small_and_attributed() -> None:
    size = sum(path.stat().st_size for path in EMOJI.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert size < 20e6
    text = (EMOJI / "LICENSES.md").read_text()
    assert all(name in text for name in ("noto", "twemoji", "fluent-emoji-flat", "emojione", "emojibase-data"))


@pytest.mark.slow
def test_the_build_gives_the_committed_bytes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EMOJI / "build.py", "--out", tmp_path], check=True, capture_output=True)
    assert (tmp_path / "SHA256SUMS").read_text() == (EMOJI / "SHA256SUMS").read_text()


@pytest.mark.slow
def test_the_demo_runs_and_finds_the_planted_pairs(tmp_path: Path) -> None:
    command = [sys.executable, EMOJI / "demo.py", "--out", tmp_path / "demo"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    found = re.search(r"(\d+) of (\d+) safe pairs are planted mismatches", done.stdout)
    assert found is not None
    assert int(found[1]) <= 0.01 * int(found[2])  # asked for: at most 1 %
    assert (tmp_path / "demo" / "report.html").exists()
    assert "all as sealed" in done.stdout
    seals = [open_round(tmp_path / "demo" / "rounds-run", number).seal for number in range(1, 6)]
    assert len({seal["plan"]["scores"]["model"]["state_sha256"] for seal in seals}) == 5  # each round, its own checkpoint
    assert [seal["before"] for seal in seals] == [None, 1, 2, 3, 4]
    assert (tmp_path / "demo" / "rounds.html").exists()
    told = {
        line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if re.match(r"(encoded|replaced) +\d+ ", line)
    }
    assert told["encoded"] == ["0", "70", "0"]
    exact, differs, replaced = map(int, told["replaced"])
    assert (exact, differs + replaced) == (0, 42)
    assert replaced >= 38


@pytest.mark.slow
def test_the_notebook_explores_a_round(
    tmp_path: Path, tiny: str, pairsan: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbclient
    import nbformat

    run = tmp_path / "run"
    pairsan("clean", EMOJI / "eval", "--out", run, "--checkpoint", tiny, "--executor", "local", "--keep-share", 0.8)
    monkeypatch.setenv("RUN", str(run))
    notebook = nbformat.read(ROOT / "examples" / "explore_round.ipynb", as_version=4)
    done = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in printed if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in printed) == 2
    verdicts = newest(read_all(open_round(run).run))
    assert verdicts["verdict"].to_pylist() == ["drop"] * 4 + ["risky"] * 4
    pairsan("split", run, "--keep-share", 0.8, "--executor", "local")
    assert open_round(run).seal["overruled"] == {"risky>quarantined": 4}


@pytest.mark.slow
def test_the_first_hour_goes_by_the_printed_next_commands_alone(tmp_path: Path) -> None:
    page = tmp_path / "walk.md"
    command = [sys.executable, str(EMOJI / "walk.py"), str(tmp_path / "walk"), "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    asked, kept = (re.findall(r"^\$ .*", path.read_text(), re.MULTILINE) for path in (page, ROOT / "docs" / "walk.md"))
    assert asked == kept, "docs/walk.md is of another release; make it anew with examples/emoji/walk.py"
    assert [line.split()[2] for line in asked[:6]] == ["plan", "clean", "report", "review", "split", "export"]
    assert "Train Epoch: 0 [" in page.read_text()
    seal = open_round(tmp_path / "walk" / "run", 2).seal
    assert seal["overruled"] == {"risky>safe": 30}


@pytest.mark.slow
def test_the_wheel_works_without_this_checkout(tmp_path: Path, tiny: str) -> None:
    """What is packed is what runs: pages, templates and all, from another folder, with nothing of the checkout on the path."""
    source, tracked = (
        tmp_path / "source",
        subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True),
    )
    for name in tracked.stdout.splitlines():  # a build leaves its folders beside what it builds
        if name.startswith(("manifests", "pipeline", "stages", "pyproject", "README", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path / "wheel"), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").glob("pairsan-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        packed.extractall(tmp_path / "site")  # our own
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"manifests", "pipeline", "stages"}
    assert {"pipeline/pages/web/review.html", "pipeline/pages/web/report.html", "stages/py.typed"} <= set(names)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    where = f"import pipeline.cli.main as m; assert m.__file__.startswith({str(tmp_path / 'site')!r}), m.__file__; m.main()"

    def call(*args: str) -> str:
        command = [sys.executable, "-P", "-c", where, *args]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("clean", str(EMOJI / "eval"), "--checkpoint", tiny, "--executor", "local", "--out", "run")
    call("report", "run", "--out", "report.html")
    assert "Round 1 of run" in (tmp_path / "report.html").read_text()
    assert "all as sealed" in call("verify", "run")
