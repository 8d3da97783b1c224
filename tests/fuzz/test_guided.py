"""A minute of coverage-guided mutation for each kind of shard."""

import subprocess
import sys
from pathlib import Path

import pytest

GUIDED = Path(__file__).with_name("guided.py")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "tsv", "csv", "jsonl"])
def test_no_branch_of_a_reader_breaks_what_holds_of_any_shard(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, GUIDED, kind, "-max_total_time=60"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Done" in done.stderr
