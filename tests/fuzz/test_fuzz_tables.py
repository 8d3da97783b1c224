import csv
import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import encode
from fuzz.checks import read_twice
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manifests.errors import DataError
from manifests.labels import Reason
from stages.pair import Pair

PNG = encode(Image.linear_gradient("L").resize((24, 24)).convert("RGB"), "PNG")
BESIDE = {"1.png": PNG}
PATHS = [
    "1.png",
    "./1.png",
    "",
    "..",
    "/etc/passwd",
    "/dev/zero",
    "nowhere.png",
    "shards",
    "a\0b",
    "x" * 300,
    "http://x/1.png",
    "1%2epng",
    "\\1.png",
]
WORDS = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates, control characters and all
LINE = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


def plain(names: list[str], rows: list[list[Any]]) -> pa.Table:
    return pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})


@st.composite
def columns(draw: Any) -> dict[str, pa.Array]:
    num = draw(st.integers(0, 12))

    def column(kinds: list[tuple[pa.DataType, Any]]) -> pa.Array:
        kind, values = draw(st.sampled_from(kinds))
        return pa.array(draw(st.lists(st.none() | values, min_size=num, max_size=num)), kind)

    stamp, number = st.integers(-(2**62), 2**62), st.integers(-(2**31), 2**31 - 1)
    text, blob = st.text(max_size=20), st.sampled_from([PNG, b"", b"\xff\xd8\xff", PNG[:40]])
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    structs = st.fixed_dictionaries({"bytes": st.none() | blob, "path": st.none() | st.sampled_from(PATHS[:8])})
    keys = [
        (pa.string(), text),
        (pa.int64(), stamp),
        (pa.timestamp("us"), stamp),
        (pa.date32(), number),
        (pa.binary(), st.binary(max_size=9)),
        (pa.float64(), st.floats()),
    ]
    captions = [
        (pa.string(), text),
        (pa.large_string(), text),
        (pa.binary(), st.binary(max_size=20)),
        (pa.list_(pa.string()), st.lists(text, max_size=3)),
        (pa.dictionary(pa.int8(), pa.string()), text),
        (pa.int64(), number),
        (pa.timestamp("us"), stamp),
    ]
    images = [
        (pa.binary(), blob),
        (pa.large_binary(), blob),
        (struct, structs),
        (pa.list_(struct), st.lists(structs, max_size=2)),
        (pa.list_(pa.uint8()), blob.map(list)),
        (pa.list_(pa.int32()), st.lists(number, max_size=4)),
        (pa.string(), st.sampled_from(PATHS)),
        (pa.timestamp("us"), stamp),
    ]
    return {
        "key": column(keys),
        "caption": column(captions),
        "image": column(images),
        "uid": column([(pa.string(), text), (pa.int64(), stamp)]),
    }


@settings(deadline=5000)
@given(
    columns(),
    st.integers(1, 5),
    st.sampled_from(["snappy", "zstd", "none"]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0), st.integers(1, 255)), max_size=3),
    st.none() | st.integers(0),
)
def test_any_parquet_gives_its_rows(
    found: dict[str, pa.Array], group: int, packer: str, words: bool, flips: list[tuple[int, int]], cut: int | None
) -> None:
    table, out = pa.table(found), io.BytesIO()
    pq.write_table(table, out, row_group_size=group, compression=packer, use_dictionary=words)
    data = bytearray(out.getvalue())
    for place, mask in flips:
        data[place % len(data)] ^= mask
    if cut is not None:
        data = data[: cut % (len(data) + 1)]
    try:
        rows = read_twice("a.parquet", bytes(data), BESIDE)
    except DataError:
        assert flips or cut is not None  # the columns' names are gone
        return
    if not flips and cut is None:
        assert len(rows) == table.num_rows
        repeated = [pair.reason is Reason.DUPLICATE_KEY for pair in rows]
        assert sum(repeated) == len(rows) - len({pair.key for pair in rows})


@settings(deadline=5000)
@given(
    rows=st.lists(st.tuples(st.sampled_from(PATHS), LINE), min_size=1, max_size=10),
    separator=st.sampled_from([",", ";", "|", "\t"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-8"]),
    end=st.sampled_from(["\n", "\r\n"]),
    pack=st.sampled_from([bytes, gzip.compress, lambda data: pa.compress(data, "zstd", asbytes=True)]),
)
def test_what_csv_writes_is_read_row_by_row(
    rows: list[tuple[str, str]], separator: str, encoding: str, end: str, pack: Any
) -> None:
    rows = [(path.replace("\0", "0"), " ".join(text.replace("\0", "0").split())) for path, text in rows]
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator=end).writerows([("filepath", "title"), *rows])
    name = "a.tsv" if separator == "\t" else "a.csv"
    found = read_twice(name, pack(out.getvalue().encode(encoding)), BESIDE)
    assert len(found) == len(rows)
    for (path, text), pair in zip(rows, found, strict=True):
        plain_text = text.removeprefix("\ufeff")  # a byte order mark is no text
        shown = " ".join("".join(c if ord(c) > 31 and not 127 <= ord(c) <= 159 else " " for c in plain_text).split())
        assert (pair.caption or "") == shown
        if path in ("1.png", "./1.png", "1%2epng") and shown:
            assert pair.image == PNG, pair


@settings(deadline=5000)
@given(
    body=st.binary(max_size=600),
    ending=st.sampled_from([".tsv", ".csv", ".jsonl", ".tsv.gz", ".jsonl.zst"]),
    damage=st.lists(st.tuples(st.integers(0), st.integers(1, 255)), max_size=2),
    packed=st.booleans(),
)
def test_any_bytes_under_the_name_of_a_text_table_end_well(
    body: bytes, ending: str, damage: list[tuple[int, int]], packed: bool
) -> None:
    head = b'{"file_name": "1.png", "text": "a dog"}\n' if "json" in ending else b"filepath\ttitle\n1.png\ta dog\n"
    data = head + body
    if packed:
        data = gzip.compress(data) if ending.endswith("gz") else pa.compress(data, "zstd", asbytes=True)
    flipped = bytearray(data)
    for place, mask in damage:
        flipped[place % len(flipped)] ^= mask
    try:
        read_twice(f"a{ending}", bytes(flipped), BESIDE)
    except DataError as error:
        assert damage, error  # the names of the columns are hit


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.sampled_from(PATHS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=6,
)


@settings(deadline=5000)
@given(
    st.lists(st.fixed_dictionaries({"file_name": VALUES, "text": VALUES}, optional={"key": VALUES, "uid": VALUES}), max_size=8),
    st.sampled_from(["first", "random", "join", "all"]),
)
def test_any_json_object_is_a_row(rows: list[dict[str, Any]], caption: str) -> None:
    good = {"file_name": "1.png", "text": "a dog", "key": "good", "uid": None}
    data = "".join(json.dumps(row) + "\n" for row in [good, *rows]).encode()
    found: list[Pair] = read_twice("a.jsonl", data, BESIDE, caption=caption)
    assert len(found) == 1 + len(rows) if caption != "all" else len(found) > len(rows)
    assert (found[0].caption, found[0].image) == ("a dog", PNG)


def test_no_flipped_bit_of_a_footer_brings_a_parquet_file_down() -> None:
    images = pa.array([[1, 2], [3]], pa.list_(pa.int32()))
    table, out = pa.table({"key": ["a", "b"], "caption": ["x", "y"], "image": images, "uid": pa.array([0, 1])}), io.BytesIO()
    pq.write_table(table, out)
    data, reasons = out.getvalue(), set()
    for place in range(len(data) - 8 - int.from_bytes(data[-8:-4], "little"), len(data) - 8):
        flipped = bytearray(data)
        flipped[place] ^= 4
        try:
            reasons |= {pair.detail and pair.detail.partition(":")[0] for pair in read_twice("a.parquet", bytes(flipped))}
        except DataError:  # a column's name
            continue
    assert any("not implemented" in (detail or "") for detail in reasons)  # what once took the shard along
