"""Counting over parts beyond memory: where it spills, what it holds, what it says where there is no room."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.errors import PlaceError
from manifests.store import Store, open_store
from stages.out_of_core import over_parts, write_counts

ROWS = 1_000_000
SCHEMA = pa.schema([pa.field("uid", pa.binary(16))])
ONCE = "SELECT count(*) FROM (SELECT uid FROM parts GROUP BY 1 HAVING count(*) = 1)"


@pytest.fixture
def run(tmp_path: Path) -> Store:
    """A folder with a part of a million uids, of which two are equal."""
    uids = bytearray(np.random.default_rng(0).bytes(16 * ROWS))
    uids[:16] = uids[-16:]
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), ROWS, [None, pa.py_buffer(bytes(uids))])
    pq.write_table(pa.table([column], schema=SCHEMA), tmp_path / "a.parquet")
    return open_store(tmp_path)


def test_spills_lie_in_the_temporary_folder_until_it_ends(run: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed_in, spills = tmp_path / "typed-in", tmp_path / "spills"
    typed_in.mkdir()
    spills.mkdir()
    monkeypatch.chdir(typed_in)
    monkeypatch.setattr(tempfile, "tempdir", str(spills))
    with over_parts(run, ["a.parquet"], SCHEMA, 32 << 20) as connection:
        assert connection.sql(ONCE).fetchall() == [(ROWS - 2,)]
        assert len(list(spills.iterdir())) == 1
    assert not list(spills.iterdir())
    assert not list(typed_in.iterdir())


@pytest.mark.parametrize("num_values", [0, 5_000_000, 50_000_000])
def test_counts_are_the_same_in_any_number_of_passes(run: Store, num_values: int) -> None:
    numbers = np.random.default_rng(1).zipf(1.5, 20_000) % 5000
    pq.write_table(pa.table({"uid": pa.array([int(n).to_bytes(16, "big") if n else None for n in numbers])}), run.path("b"))
    counts = pa.schema([pa.field("uid", pa.binary()), pa.field("num", pa.int64())])
    limits = {"num_values": num_values, "memory_bytes": 32 << 20, "fewest": 3}
    write_counts(run, "c", counts, "uid", parts=(["b"], pa.schema([("uid", pa.binary())])), **limits, fingerprint="x")
    found, times = np.unique(numbers[numbers > 0], return_counts=True)
    expected = [(int(n).to_bytes(16, "big"), int(num)) for n, num in zip(found, times, strict=True) if num >= 3]
    assert [(row["uid"], row["num"]) for row in pq.read_table(run.path("c")).to_pylist()] == expected


def test_no_room_to_spill_is_one_line(run: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a.parquet"))
    with (
        pytest.raises(PlaceError, match=r"(?s)^counting over 1 parts: [^\n]+ above 32 MiB is spilled to .+; TMPDIR names"),
        over_parts(run, ["a.parquet"], SCHEMA, 32 << 20) as connection,
    ):
        connection.sql(ONCE).fetchall()


def test_a_footer_is_forgotten_when_its_part_is_read(tmp_path: Path) -> None:
    wide = pa.schema([pa.field("uid", pa.binary(16)), *(pa.field(f"other_{i}", pa.int64()) for i in range(40))])
    rows = pa.table([pa.array([bytes(16)], pa.binary(16)), *[pa.array([1])] * 40], schema=wide)
    for i in range(1500):
        pq.write_table(rows, tmp_path / f"{i}.parquet")
    look = (
        "import re, sys, pyarrow as pa; from stages.out_of_core import over_parts; from manifests.store import open_store\n"
        "memory = lambda: int(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "names = [f'{i}.parquet' for i in range(1500)]\n"
        "def count(names):\n"
        "    with over_parts(open_store(sys.argv[1]), names, pa.schema([('uid', pa.binary(16))]), 1 << 28) as connection:\n"
        "        print(connection.sql('SELECT count(*) FROM parts').fetchall()[0][0], memory())\n"
        "count(names[:100]); count(names)"
    )
    found = subprocess.run([sys.executable, "-c", look, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    (_, few), (num, many) = re.findall(r"(\d+) (\d+)", found)
    assert num == "1500"
    assert (int(many) - int(few)) / 1400 < 20, f"{found}: kB a part; a kept footer of 41 columns has more"
