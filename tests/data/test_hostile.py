"""Hostile shards cost bounded memory and time: each is read in a child that may not take 600 MB more than it has."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_tar

pytestmark = pytest.mark.whole  # a process each
BLOCK = tarfile.BLOCKSIZE
READ = """
import json, resource, sys, time
from stages.read.shards import open_dataset, read_shard
from stages.settings import ReadSettings
dataset = open_dataset([sys.argv[1]])
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (600 << 20),) * 2)
told, start = [], time.process_time()
for pair in read_shard(dataset.store, dataset.shards[0], ReadSettings()):
    told.append((time.process_time() - start, pair.reason))
    start = time.process_time()
print(json.dumps(told))
"""


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def sparse(size: int) -> bytes:
    head = bytearray(header("1.jpg", 0, tarfile.GNUTYPE_SPARSE))
    head[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def a_huge_member(path: Path) -> None:
    with path.open("wb") as file:
        file.write(header("1.jpg", 2 << 30))
        file.truncate(2 << 30)


def a_sparse_terabyte(path: Path) -> None:
    path.write_bytes(sparse(1 << 40) + make_tar([("1.txt", b"a dog")]))


def names_of_names(path: Path) -> None:
    path.write_bytes(header("././@LongLink", BLOCK, tarfile.GNUTYPE_LONGNAME) * 20_000)


def a_gigabyte_of_pax(path: Path) -> None:
    with path.open("wb") as file:
        file.write(header("pax", 1 << 30, tarfile.XHDTYPE))
        file.truncate(256 << 20)


def a_row_of_many_large_members(path: Path) -> None:
    path.write_bytes(make_tar([(f"1.{i}", bytes(30 << 20)) for i in range(20)] + [("1.txt", b"a dog")]))


def a_row_of_very_many_members(path: Path) -> None:
    path.write_bytes(make_tar([("1.txt", b"a dog"), *((f"1.x{i}", b"") for i in range(30_000))]))


def one_line_of_quotes(path: Path) -> None:
    path.write_bytes(b"filepath\ttitle\n" + (b'a\t"' + b"x" * 1000 + b"\n") * 5_000)


def one_endless_line(path: Path) -> None:
    path.write_bytes(b"filepath\ttitle\n" + b"x" * (64 << 20))


def a_large_row_group(path: Path) -> None:
    images = pa.array([bytes(1 << 20)] * 900, pa.binary())
    pq.write_table(pa.table({"jpg": images, "caption": ["a dog"] * 900}), path, use_dictionary=False, write_batch_size=4)


@pytest.mark.parametrize(
    ("make", "ending"),
    [
        (a_huge_member, "tar"),
        (a_sparse_terabyte, "tar"),
        (names_of_names, "tar"),
        (a_gigabyte_of_pax, "tar"),
        (a_row_of_many_large_members, "tar"),
        (a_row_of_very_many_members, "tar"),
        (one_line_of_quotes, "tsv"),
        (one_endless_line, "tsv"),
        (a_large_row_group, "parquet"),
    ],
)
def test_hostile_shards_cost_bounded_memory_and_time(tmp_path: Path, make: Callable[[Path], None], ending: str) -> None:
    make(tmp_path / f"a.{ending}")
    command = [sys.executable, "-c", READ, tmp_path / f"a.{ending}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)
    assert rows
    if make is a_large_row_group:
        assert [reason for _, reason in rows] == [None] * 900
    else:
        assert all(reason is not None for _, reason in rows)
