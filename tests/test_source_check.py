from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CLEAN, make_tar

Pairsan = Callable[..., object]


@pytest.fixture
def rows(emoji_members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return emoji_members[:30]


@pytest.fixture
def run(tmp_path: Path, rows: list[tuple[str, bytes]], tiny: str, pairsan: Pairsan) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.tar").write_bytes(make_tar(rows))
    pairsan("clean", tmp_path / "data", "--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN)
    return tmp_path / "run"


def test_data_that_are_as_they_were_pass(run: Path, pairsan: Pairsan) -> None:
    assert "all as sealed" in pairsan("verify", run, "--data").output  # type: ignore[attr-defined]


def test_the_first_difference_of_each_kind_is_named(run: Path, rows: list[tuple[str, bytes]], pairsan: Pairsan) -> None:
    data = run.parent / "data" / "0.tar"

    def told(members: list[tuple[str, bytes]]) -> str:
        data.write_bytes(make_tar(members))
        return str(pairsan("verify", run, "--data", code=1).output)  # type: ignore[attr-defined]

    moved = told([*rows[:3], *rows[6:9], *rows[3:6], *rows[9:]])  # rows 1 and 2 change places
    assert "0.tar [1]: key is" in moved
    assert moved.count("key is") == 1  # the first of its kind
    assert "0.tar: 9 rows, sealed 10" in told(rows[:27])
    assert "0.tar: 11 rows, sealed 10" in told([*rows, ("z.txt", b"a dog")])
    captions = [index for index, (name, _) in enumerate(rows) if name.endswith("txt")]
    changed = [(name, b"another caption" if index == captions[1] else body) for index, (name, body) in enumerate(rows)]
    assert "0.tar [1]: caption is 'another caption'" in told(changed)
    assert "0.tar [0]: image_missing" in told(
        [row for index, row in enumerate(rows) if index > 2 or not row[0].endswith("webp")]
    )
    (run.parent / "data" / "1.tar").write_bytes(make_tar(rows))
    assert "1 shards are new, e.g. 1.tar" in told(rows)
