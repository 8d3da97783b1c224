import base64
import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import DataError
from manifests.labels import Reason
from manifests.store import open_store
from stages.pair import Pair, Shard
from stages.read.formats.delimited import read_text
from stages.read.formats.tables import TableReader
from stages.read.shards import open_dataset, read_shard
from stages.settings import ReadSettings

# words as crawls have them: quotes, commas, breaks inside; no tab, which in TSV ends a field
FIELD = st.from_regex(r'[a-z]( ?[a-z"\',;\u00e9]|\n[a-z]){0,12}', fullmatch=True)


def pairs_of(path: Path, **options: object) -> list[Pair]:
    dataset = open_dataset([str(path)])
    return [pair for shard in dataset.shards for pair in read_shard(dataset.store, shard, ReadSettings(**options))]


def outcomes(path: Path, **options: object) -> list[tuple[str, Reason | None]]:
    return [(pair.key, pair.reason) for pair in pairs_of(path, **options)]


def test_img2dataset_parquet_with_failed_downloads(tmp_path: Path, png: bytes) -> None:
    table = {
        "key": ["000000000", "000000001", "000000002"],
        "caption": ["a dog", "a cat", None],
        "status": ["success", "failed_to_download", "success"],
        "jpg": [png, None, png],
    }
    pq.write_table(pa.table(table), tmp_path / "00000.parquet")
    assert outcomes(tmp_path / "00000.parquet") == [
        ("000000000", None),
        ("000000001", Reason.IMAGE_MISSING),
        ("000000002", Reason.CAPTION_MISSING),
    ]


def test_hugging_face_structs_of_bytes_or_path(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "two.png").write_bytes(png)
    images = [{"bytes": png, "path": None}, {"bytes": None, "path": "two.png"}, {"bytes": None, "path": None}, None]
    pq.write_table(pa.table({"image": images, "text": ["one", "two", "three", "four"]}), tmp_path / "a.parquet")
    pairs = pairs_of(tmp_path / "a.parquet")
    assert [p.reason for p in pairs] == [None, None, Reason.IMAGE_MISSING, Reason.IMAGE_MISSING]
    assert [p.image for p in pairs[:2]] == [png, png]
    assert [p.key for p in pairs[:2]] == ["000000000", "000000001"]


def test_open_clip_tsv_of_paths(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(png)
    text = f"filepath\ttitle\nimages/1.png\ta dog\nimages/none.png\ta cat\n{tmp_path}/images/1.png\ta bird\n"
    (tmp_path / "pairs.tsv").write_text(text)
    assert outcomes(tmp_path / "pairs.tsv") == [
        ("000000000", None),
        ("000000001", Reason.IMAGE_MISSING),
        ("000000002", None),
    ]


def test_csv_with_quotes_commas_and_own_column_names(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "1.png").write_bytes(png)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "where", "alt"], ["x7", "1.png", 'a "big", red\ndog'], ["x8", "1.png", ""]])
    options = {"image_column": "where", "caption_column": "alt"}
    first, second = pairs_of(tmp_path / "pairs.csv", **options)
    assert (first.key, first.caption, first.reason) == ("x7", 'a "big", red dog', None)
    assert second.reason is Reason.CAPTION_EMPTY


def test_a_ragged_line_costs_one_row(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "1.png").write_bytes(png)
    (tmp_path / "pairs.tsv").write_bytes(
        b"filepath\ttitle\n1.png\ta dog\n1.png\n1.png\tna\xc3\xafve\xff \x00dog of ours\n\n1.png\tx\ty\n"
    )
    pairs = pairs_of(tmp_path / "pairs.tsv")
    assert [p.reason for p in pairs] == [None, Reason.ROW_MALFORMED, None, Reason.ROW_MALFORMED]
    assert pairs[2].caption == "naïve\ufffd dog of ours"
    assert pairs[1].detail == "1 fields where the header has 2"


def test_a_200_kb_field_does_not_end_the_shard(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "1.png").write_bytes(png)
    (tmp_path / "pairs.tsv").write_text("filepath\ttitle\n1.png\t" + "word " * 40_000 + "\n1.png\ta dog\n")
    pairs = pairs_of(tmp_path / "pairs.tsv")
    assert [p.reason for p in pairs] == [None, None]
    assert "cut at 8192 of" in (pairs[0].detail or "")


def test_uris_in_rows_are_never_followed(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("filepath\ttitle\nhttp://127.0.0.1:9/x.png\ta dog\nfile:///etc/hostname\ta cat\n")
    pairs = pairs_of(tmp_path / "pairs.tsv")
    assert [p.reason for p in pairs] == [Reason.IMAGE_MISSING] * 2
    assert all("not fetched" in (p.detail or "") for p in pairs)


def test_missing_columns_are_named_with_what_there_is(tmp_path: Path, png: bytes) -> None:
    pq.write_table(pa.table({"picture": [png], "words": ["a dog"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"none of the usual image columns.*\['picture', 'words'\].*--image-column"):
        pairs_of(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'nope'"):
        pairs_of(tmp_path / "a.parquet", image_column="nope")
    assert outcomes(tmp_path / "a.parquet", image_column="picture", caption_column="words") == [("000000000", None)]


def test_repeated_keys_in_a_table(tmp_path: Path, png: bytes) -> None:
    pq.write_table(pa.table({"jpg": [png, png], "caption": ["a", "b"], "key": ["k", "k"]}), tmp_path / "a.parquet")
    pairs = pairs_of(tmp_path / "a.parquet")
    assert [p.reason for p in pairs] == [None, Reason.DUPLICATE_KEY]
    assert pairs[0].uid != pairs[1].uid


def test_a_damaged_row_group_costs_its_own_rows_only(tmp_path: Path, png: bytes) -> None:
    table = pa.table({"jpg": [png] * 6, "caption": [f"picture {i}" for i in range(6)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=2, compression="zstd", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xee" * column.total_compressed_size
    path.write_bytes(bytes(data))
    assert [p.reason for p in pairs_of(path)] == [None, None, *[Reason.SHARD_UNREADABLE] * 2, None, None]


@pytest.mark.parametrize(("name", "body"), [("a.parquet", b"PAR1 not really"), ("a.parquet", b""), ("a.tsv", b"")])
def test_a_file_that_is_no_table_gives_one_row(tmp_path: Path, name: str, body: bytes) -> None:
    (tmp_path / name).write_bytes(body)
    assert [p.reason for p in pairs_of(tmp_path / name)] == [Reason.SHARD_UNREADABLE]


def test_gzipped_csv(tmp_path: Path, png: bytes) -> None:
    import gzip

    (tmp_path / "1.png").write_bytes(png)
    (tmp_path / "pairs.csv.gz").write_bytes(gzip.compress(b"path,caption\n1.png,a dog\n"))
    assert outcomes(tmp_path / "pairs.csv.gz") == [("000000000", None)]


def test_image_cells_over_the_byte_cap(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"jpg": [bytes(100), bytes(10)], "caption": ["a", "b"]}), buffer)
    (tmp_path / "a.parquet").write_bytes(buffer.getvalue())
    pairs = pairs_of(tmp_path / "a.parquet", max_image_bytes=50)
    assert [p.reason for p in pairs] == [Reason.IMAGE_TOO_LARGE, None]


def test_quotes_never_swallow_lines(tmp_path: Path, png: bytes) -> None:
    for name in "abcdef":
        (tmp_path / f"{name}.png").write_bytes(png)
    lines = [
        "filepath\ttitle",
        'a.png\t"Best day',
        "b.png\ta dog",
        'c.png\tsaid "hello" twice',
        'd.png\tgreat"',
        'e.png\t"two\nlines"',
        "f.png\tx",
    ]
    (tmp_path / "crawl.tsv").write_text("\n".join(lines) + "\n")
    pairs = pairs_of(tmp_path / "crawl.tsv")
    assert [p.caption for p in pairs] == ['"Best day', "a dog", 'said "hello" twice', 'great"', "two lines", "x"]
    lines = [
        "filepath,title",
        'a.png,"Hello,\nworld, ""all""\n"',
        'b.png,"never closed',
        "c.png,a dog",
        'd.png,5" nails',
        'e.png,"a"b',
    ]
    (tmp_path / "sheet.csv").write_text("\r\n".join(lines))
    pairs = pairs_of(tmp_path / "sheet.csv")
    assert [p.caption for p in pairs] == ['Hello, world, "all"', '"never closed', "a dog", '5" nails', '"a"b']


def test_tables_of_other_programs(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "my images").mkdir()
    (tmp_path / "my images" / "1.png").write_bytes(png)
    bodies = {
        "utf16.csv": 'filepath,title\r\nmy images/1.png,"a caf\u00e9, dog"\r\n'.encode("utf-16"),
        "semicolon.csv": '\ufefffilepath;title\r\nmy images/1.png;"a caf\u00e9, dog"\r\n'.encode(),
        "backslash.csv": 'filepath,title\r\nmy images\\1.png,"a caf\u00e9, dog"\r\n'.encode(),
        "encoded.csv": 'filepath,title\nmy%20images/1.png,"a caf\u00e9, dog"\n'.encode(),
        "padded.csv": 'filepath, title\r\nmy images/1.png, "a caf\u00e9, dog"\r\n'.encode(),
        "LAION.tsv": "PATH\tTEXT\nmy images/1.png\ta caf\u00e9, dog\n".encode(),
        "mac.tsv": "filepath\ttitle\rmy images/1.png\ta caf\u00e9, dog\r".encode(),
    }
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
        assert [(p.reason, p.caption) for p in pairs_of(tmp_path / name)] == [(None, "a caf\u00e9, dog")], name


def test_encodings_are_named_not_guessed(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "1.png").write_bytes(png)
    texts = {"cp1252": "caf\u00e9 \u201cna\u00efve\u201d", "gb18030": "\u4e00\u53ea\u72d7", "koi8-r": "\u043a\u043e\u0442"}
    for encoding, text in texts.items():
        (tmp_path / "a.csv").write_bytes(f"filepath,title\r\n1.png,{text}\r\n".encode(encoding))
        (unread,) = pairs_of(tmp_path / "a.csv")
        assert unread.reason is Reason.CAPTION_UNDECODABLE
        assert "--encoding names another one" in unread.detail
        assert [(p.reason, p.caption) for p in pairs_of(tmp_path / "a.csv", encoding=encoding)] == [(None, text)]
    (tmp_path / "a.csv").write_bytes(b"filepath,title\n1.png,a dog of very many long words\x9d\n")  # a byte that cp1252 lacks
    pair = pairs_of(tmp_path / "a.csv", encoding="cp1252")[0]
    assert (pair.reason, pair.caption) == (None, "a dog of very many long words\ufffd")
    (tmp_path / "a.csv").write_bytes(b"filepath,title\n1.png,x\n1.png,\xff\xff\n")  # no such thing in utf-16 of an odd length
    assert pairs_of(tmp_path / "a.csv", encoding="utf-16")[-1].reason is Reason.SHARD_UNREADABLE


def test_gzip_members_are_read_to_their_end_and_damage_is_told(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "1.png").write_bytes(png)
    head, rows = b"filepath\ttitle\n", [f"1.png\tdog {i}\n".encode() for i in range(3000)]
    whole = gzip.compress(head + b"".join(rows))
    files = {
        "members.tsv.gz": gzip.compress(head + rows[0]) + gzip.compress(rows[1]),
        "plain.tsv.gz": head + rows[0] + rows[1],
        "UPPER.TSV.GZ": gzip.compress(head + rows[0] + rows[1]),
        "cut.tsv.gz": whole[: len(whole) * 2 // 3],
        "crc.tsv.gz": whole[:-8] + bytes(8),
    }
    for name, body in files.items():
        (tmp_path / name).write_bytes(body)
        pairs = pairs_of(tmp_path / name)
        if name in ("cut.tsv.gz", "crc.tsv.gz"):
            assert len(pairs) > 1000
            assert [p.caption for p in pairs[:-1]] == [f"dog {i}" for i in range(len(pairs) - 1)]
            assert (pairs[-1].reason, pairs[-1].index) == (Reason.SHARD_UNREADABLE, len(pairs) - 1)
            assert pairs[-1].place is not None
        else:
            assert [p.caption for p in pairs] == ["dog 0", "dog 1"], name


def test_images_inside_cells(tmp_path: Path, png: bytes) -> None:
    coded = base64.urlsafe_b64encode(png + bytes(300)).decode()
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    (tmp_path / "a.tsv").write_text(f"image\tcaption\n{coded}\ta\n{coded.rstrip('=')}\tb\n{url}\tc\n")
    assert [p.image for p in pairs_of(tmp_path / "a.tsv")] == [png + bytes(300), png + bytes(300), png]
    columns = {
        "numbers": pa.array([list(png)], pa.list_(pa.uint8())),
        "structs": pa.array([[{"bytes": png, "path": None}, {"bytes": b"x", "path": None}]]),
        "blobs": pa.array([[png]], pa.list_(pa.binary())),
    }
    for name, column in columns.items():
        pq.write_table(pa.table({"image": column, "text": [["one", "two"]]}), tmp_path / f"{name}.parquet")
        (pair,) = pairs_of(tmp_path / f"{name}.parquet")
        assert (pair.image, pair.caption) == (png, "one")
        assert "caption 1 of 2" in (pair.detail or "")
        assert ("first of 2 images" in (pair.detail or "")) == (name == "structs")


@pytest.mark.parametrize("packer", ["", ".gz", ".zst"])
def test_json_lines_one_object_a_row(tmp_path: Path, png: bytes, packer: str) -> None:
    (tmp_path / "1.png").write_bytes(png)
    coded = base64.b64encode(png + bytes(300)).decode()
    rows = [
        {"file_name": "1.png", "text": "a dog"},
        {"file_name": "1.png", "text": ["a cat", "another cat"], "more": 1},
        "[1, 2]",
        '{"file_name": "1.png", "text": "cut he',
        {"file_name": coded, "text": "inside"},
        {"text": "no image"},
        {"file_name": "../1.png", "text": "outside"},
    ]
    body = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()
    packed = {"": bytes, ".gz": gzip.compress, ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)}[packer](body)
    (tmp_path / f"metadata.jsonl{packer}").write_bytes(packed)
    bad, outside = Reason.ROW_MALFORMED, Reason.OUTSIDE_ROOT
    assert [(p.caption, p.reason) for p in pairs_of(tmp_path / f"metadata.jsonl{packer}")] == [
        ("a dog", None),
        ("a cat", None),
        (None, bad),
        (None, bad),
        ("inside", None),
        ("no image", Reason.IMAGE_MISSING),
        ("outside", outside),
    ]


def test_a_row_has_several_captions(tmp_path: Path, png: bytes) -> None:
    texts = [["a dog", "b dog", "c dog"], ["a cat", "b cat"], ["one"], [], None]
    columns = {"key": list("vwxyz"), "jpg": [png, png, png, png, None], "caption": texts}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    told = [{"key": key, "image": base64.b64encode(png + bytes(300)).decode()} for key in "vwxy"]
    lines = [json.dumps({**row, "caption": text}) for row, text in zip(told, texts, strict=False)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for name in ("a.parquet", "a.jsonl"):
        path, missing = tmp_path / name, [None] * (2 if name == "a.parquet" else 1)
        assert [p.caption for p in pairs_of(path)] == ["a dog", "a cat", "one", *missing]
        assert [p.caption for p in pairs_of(path, caption="join")] == ["a dog b dog c dog", "a cat b cat", "one", *missing]
        drawn = [p.caption for p in pairs_of(path, caption="random")]
        assert drawn[0] in texts[0]
        assert drawn[1] in texts[1]
        assert drawn[2:] == ["one", *missing]
        rows = pairs_of(path, caption="all")
        assert [p.caption for p in rows] == ["a dog", "b dog", "c dog", "a cat", "b cat", "one", *missing]
        assert [p.index for p in rows] == list(range(len(rows)))
        assert [p.key for p in rows][:5] == ["v", "v#1", "v#2", "w", "w#1"]
        assert len({p.uid for p in rows}) == len(rows)
        assert [p.uid for p in rows if "#" not in p.key] == [p.uid for p in pairs_of(path)]
        assert all(p.image is not None and p.image.startswith(png) for p in rows[:6])


def test_a_list_as_text_is_a_list(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "1.png").write_bytes(png)
    (tmp_path / "a.tsv").write_text('filepath\ttitle\n1.png\t["a dog", "b dog"]\n1.png\t["a dog]"]"]\n')
    assert [p.caption for p in pairs_of(tmp_path / "a.tsv", caption="join")] == ["a dog b dog", '["a dog]"]"]']


def test_one_bad_cell_costs_one_row(tmp_path: Path, png: bytes) -> None:
    raw = pa.array([b"a dog", b"caf\xe9 " * 9, b"a cat", None], pa.binary())
    text = pa.StringArray.from_buffers(4, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])  # not validated
    odd = pa.array([2**62, 1, 2**62, 3], pa.int64()).cast(pa.timestamp("us"), safe=False)  # years beyond 9999
    for name, key in (("text", None), ("time", odd)):
        table = {"caption": text, "jpg": [png] * 4, **({"key": key} if key is not None else {})}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
        pairs = pairs_of(tmp_path / f"{name}.parquet")
        assert [p.reason for p in pairs] == [None, Reason.CAPTION_UNDECODABLE, None, Reason.CAPTION_MISSING], name
    pq.write_table(pa.table({"caption": odd, "jpg": [png] * 4}), tmp_path / "captions.parquet")
    reasons = [p.reason for p in pairs_of(tmp_path / "captions.parquet")]
    assert reasons == [Reason.ROW_MALFORMED, Reason.CAPTION_MISSING, Reason.ROW_MALFORMED, Reason.CAPTION_MISSING]


class Unforeseen:
    def __str__(self) -> str:
        raise ValueError("no text of this")


def test_what_nobody_foresaw_costs_one_row(tmp_path: Path, png: bytes) -> None:
    images = pa.array([[300, 1], list(png)], pa.list_(pa.int32()))  # no byte is 300
    pq.write_table(pa.table({"image": images, "text": ["a dog", "a cat"]}), tmp_path / "a.parquet")
    assert [p.reason for p in pairs_of(tmp_path / "a.parquet")] == [Reason.IMAGE_UNDECODABLE, None]
    shard = Shard("a.tsv", str(tmp_path / "a.tsv"), "text", 1)
    reader = TableReader(open_store(str(tmp_path)), shard, ["key", "text", "jpg"], ReadSettings())
    (pair,) = reader.pairs(7, {"key": Unforeseen(), "text": "a dog", "jpg": png})
    assert (pair.index, pair.reason, pair.detail) == (7, Reason.READER_ERROR, "ValueError: no text of this")


def test_a_uid_with_blanks_is_none(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "1.png").write_bytes(png)
    odd = "0 " * 16
    (tmp_path / "a.tsv").write_text(f"filepath\ttitle\tuid\n1.png\ta dog\t{odd}\n1.png\ta cat\t{'0f' * 16}\n")
    assert [len(p.uid) for p in pairs_of(tmp_path / "a.tsv")] == [16, 16]
    assert pairs_of(tmp_path / "a.tsv")[1].uid.hex() == "0f" * 16


@settings(max_examples=80, deadline=None)
@given(body=st.binary(max_size=2000), name=st.sampled_from(["a.tsv", "a.csv"]), packed=st.booleans())
def test_garbage_after_a_header_never_ends_a_shard(body: bytes, name: str, packed: bool) -> None:
    data = b"filepath,title\n".replace(b",", b"\t" if name == "a.tsv" else b",") + body
    stream = io.BytesIO(gzip.compress(data)[: -1 - len(body) % 5] if packed else data)
    pairs = list(read_text(open_store("/nowhere"), stream, Shard(name, f"/nowhere/{name}", "text", len(data)), ReadSettings()))
    assert [p.index for p in pairs] == list(range(len(pairs)))
    assert all(p.reason is not None for p in pairs)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(FIELD.map(lambda text: text.replace("\n", " ")), FIELD), min_size=1, max_size=12),
    name=st.sampled_from(["a.tsv", "a.csv"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_rows_are_those_of_pythons_csv(rows: list[tuple[str, str]], name: str, end: str) -> None:
    out, separator = io.StringIO(), "\t" if name == "a.tsv" else ","
    csv.writer(out, delimiter=separator, lineterminator=end).writerows([("filepath", "title"), *rows])
    shard = Shard(name, f"/nowhere/{name}", "text", 1)
    pairs = list(read_text(open_store("/nowhere"), io.BytesIO(out.getvalue().encode()), shard, ReadSettings()))
    told = [" ".join(caption.split()) for _, caption in rows]
    assert [p.caption for p in pairs] == told


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 4000), flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), max_size=6))
def test_damaged_parquet_gives_rows_or_one_marker_never_an_exception(cut: int, flips: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        pq.write_table(
            pa.table({"jpg": [bytes(range(200))] * 9, "caption": [f"dog {i}" for i in range(9)]}), path, row_group_size=3
        )
        data = bytearray(path.read_bytes())
        for place, mask in flips:
            data[place % len(data)] ^= mask
        path.write_bytes(bytes(data[: cut or None]))
        try:
            pairs = pairs_of(path)
        except DataError:
            return  # the columns are gone: named
        assert [p.index for p in pairs] == list(range(len(pairs)))
