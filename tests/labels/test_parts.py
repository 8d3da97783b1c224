import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.parts import sweep_drafts, write_json, write_part
from manifests.schema import FINGERPRINT_KEY, ROW_GROUP_ROWS, SCHEMA_VERSION, VERSION_KEY
from manifests.store import open_store

SCHEMA = pa.schema([("n", pa.int64()), ("label", pa.dictionary(pa.int32(), pa.string()))])


def batches(*sizes: int) -> Iterator[pa.RecordBatch]:
    start = 0
    for size in sizes:
        numbers = pa.array(range(start, start + size), pa.int64())
        yield pa.record_batch([numbers, pa.array(["safe"] * size).dictionary_encode()], schema=SCHEMA)
        start += size


def test_a_part_has_its_rows_in_order_in_row_groups_with_footer_and_hash(tmp_path: Path) -> None:
    part = write_part(open_store(tmp_path), "a/b.parquet", SCHEMA, batches(10_000, 30_000, 1, 20_000), fingerprint="f00")
    path = tmp_path / "a" / "b.parquet"
    with pq.ParquetFile(path) as file:
        assert file.read()["n"].to_pylist() == list(range(60_001))
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        assert [group.num_rows for group in groups] == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 60_001 - 2 * ROW_GROUP_ROWS]
        assert groups[0].column(0).has_column_index
        assert groups[0].column(0).compression == "ZSTD"
        assert file.schema_arrow.metadata[FINGERPRINT_KEY] == b"f00"
        assert file.schema_arrow.metadata[VERSION_KEY] == str(SCHEMA_VERSION).encode()
        assert file.schema_arrow.equals(SCHEMA)
    data = path.read_bytes()
    assert (part.num_rows, part.size_bytes, part.sha256) == (60_001, len(data), hashlib.sha256(data).hexdigest())


def test_an_empty_part_is_still_a_part(tmp_path: Path) -> None:
    part = write_part(open_store(tmp_path), "e.parquet", SCHEMA, [], fingerprint="f")
    assert part.num_rows == 0
    assert pq.read_table(tmp_path / "e.parquet").schema.equals(SCHEMA)


@pytest.mark.parametrize("uri", ["{}", "memory://parts-test"])
def test_a_part_whose_rows_fail_is_absent_and_leaves_no_draft(tmp_path: Path, uri: str) -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield from batches(30_000)
        raise ValueError("in the middle")

    store = open_store(uri.format(tmp_path))
    with pytest.raises(ValueError, match="in the middle"):
        write_part(store, "a.parquet", SCHEMA, failing(), fingerprint="f")
    assert store.names("") == set()


def test_drafts_of_killed_writers_are_swept(tmp_path: Path) -> None:
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds" / ".a.parquet.0123abcd.draft").write_bytes(b"half")
    (tmp_path / "rounds" / "a.parquet").write_bytes(b"whole")
    assert sweep_drafts(open_store(tmp_path), "rounds") == 1
    assert [p.name for p in (tmp_path / "rounds").iterdir()] == ["a.parquet"]


def test_equal_documents_give_equal_bytes(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write_json(store, "a.json", {"b": 1, "a": [1.5, None]})
    write_json(store, "b.json", {"a": [1.5, None], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(store, "c.json", {"a": float("nan")})
    assert not (tmp_path / "c.json").exists()
