"""Bring the benchmark reports into the site, so that links that work in the repository work there too."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPORTS = Path(__file__).parent.parent / "benchmarks" / "reports"


def on_files(files: Files, config: Any) -> Files:
    """Add every report as a page of its own."""
    for path in sorted(REPORTS.glob("*.md")):
        text = re.sub(r"\]\(\.\./\.\./docs/", "](../", path.read_text())
        files.append(File.generated(config, f"reports/{path.name}", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links at reports to their pages."""
    return markdown.replace("](../benchmarks/reports/", "](reports/").replace("](benchmarks/reports/", "](reports/")
