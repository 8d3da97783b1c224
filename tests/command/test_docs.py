"""The docs: they build as a site without a warning, keep their limits, and their code runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EMOJI, ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_and_tables_of_a_page_are_not_too_wide(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [number for number, line in enumerate(lines, start=1) if len(line) >= 160] == []
    rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in lines if line.startswith("|")]
    assert max(map(len, rows), default=0) <= 8


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.whole
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # the theme's news about itself, not ours
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "pipeline.rounds.clean" in api


def test_the_code_of_the_api_page_runs(tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    names = {"DATA": str(EMOJI / "eval" / "00000.tar.gz"), "RUN": str(tmp_path / "run"), "CHECKPOINT": tiny}
    exec(code, names)  # our own page
    shown = capsys.readouterr().out
    assert "'safe':" in shown
    assert "00000.tar.gz" in shown
