"""Bring the benchmark reports into the site, so that links that work in the repository work there too."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
REPORTS = ROOT / "benchmarks" / "reports"
CHANGELOG = '--8<-- "CHANGELOG.md"'


def on_files(files: Files, config: Any) -> Files:
    """Add every report as a page of its own."""
    for path in sorted(REPORTS.glob("*.md")):
        text = re.sub(r"\]\(\.\./\.\./docs/", "](../", path.read_text())
        files.append(File.generated(config, f"reports/{path.name}", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Take in the changelog, and point its links and those at reports to their pages."""
    markdown = markdown.replace(CHANGELOG, (ROOT / "CHANGELOG.md").read_text().replace("](docs/", "]("))
    return markdown.replace("](../benchmarks/reports/", "](reports/").replace("](benchmarks/reports/", "](reports/")
