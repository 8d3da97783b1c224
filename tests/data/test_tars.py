import gzip
import io
import random
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from conftest import make_tar
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip_train.data import group_by_keys_nothrow
from webdataset.tariterators import group_by_keys, tar_file_expander

from manifests.labels import Reason
from stages.pair import TRUNCATED_KEY, Pair, Shard, make_uid
from stages.read.formats.tar_stream import BLOCK, Gap, Member, read_members
from stages.read.formats.webdataset import Run, read_rows, read_tar
from stages.settings import ReadSettings

SHARD = Shard("00000.tar", "/x/00000.tar", "tar", 0)


def pairs_of(data: bytes, **options: object) -> list[Pair]:
    return list(read_tar(io.BytesIO(data), SHARD, ReadSettings(**options)))


def outcomes(data: bytes, **options: object) -> list[tuple[str, Reason | None]]:
    return [(pair.key, pair.reason) for pair in pairs_of(data, **options)]


def special(name: str, kind: bytes, target: str = "elsewhere") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_a_row_is_a_run_of_members_with_one_key(png: bytes) -> None:
    data = make_tar([("b/1.png", png), ("b/1.txt", b"a dog"), ("b/2.txt", b"a cat"), ("b/2.JPG", png), ("b/2.json", b"{}")])
    pairs = pairs_of(data)
    assert [(p.index, p.key, p.caption, p.image, p.reason) for p in pairs] == [
        (0, "b/1", "a dog", png, None),
        (1, "b/2", "a cat", png, None),
    ]
    assert pairs[0].uid == make_uid("00000.tar", "b/1")


def test_rows_keep_the_positions_that_webdataset_loaders_count(png: bytes) -> None:
    data = make_tar([("README", b"x"), ("._1.jpg", b"x"), ("d/", b""), ("1.jpg", png), ("1.txt", b"a dog"), ("odd.bin", b"")])
    assert outcomes(data) == [("1", None), ("odd", Reason.IMAGE_MISSING)]


def test_members_without_partner(png: bytes) -> None:
    data = make_tar([("1.txt", b"a dog"), ("2.jpg", png), ("3.jpg", png), ("3.txt", b" ")])
    assert outcomes(data) == [
        ("1", Reason.IMAGE_MISSING),
        ("2", Reason.CAPTION_MISSING),
        ("3", Reason.CAPTION_EMPTY),
    ]


def test_wrong_extensions_are_named_in_the_detail(png: bytes) -> None:
    (pair,) = pairs_of(make_tar([("1.jpeg2", png), ("1.txt", b"a dog")]))
    assert (pair.reason, pair.detail) == (Reason.IMAGE_MISSING, "members: jpeg2, txt")
    assert outcomes(make_tar([("1.jpeg2", png), ("1.txt", b"a dog")]), image_column="jpeg2") == [("1", None)]


def test_repeated_keys_stand_once_and_are_quarantined_after(png: bytes) -> None:
    row = [("1.jpg", png), ("1.txt", b"a dog")]
    data = make_tar([*row, *row, ("2.jpg", png), ("2.txt", b"x y"), *row])
    pairs = pairs_of(data, allow_ambiguous=True)
    assert [p.reason for p in pairs] == [None, Reason.DUPLICATE_KEY, None, Reason.DUPLICATE_KEY]
    assert len({p.uid for p in pairs}) == 4
    # the webdataset library takes the second row for the first, open_clip's reader counts it: which row comes next?
    assert [p.reason for p in pairs_of(make_tar([("0.jpg", png), ("0.txt", b"x y")]) + data)] == [None, *[Reason.AMBIGUOUS] * 4]


def test_keys_that_are_not_adjacent_lose_only_their_own_rows(png: bytes) -> None:
    data = make_tar([("1.jpg", png), ("2.jpg", png), ("2.txt", b"a cat"), ("1.txt", b"a dog")])
    assert outcomes(data) == [("1", Reason.CAPTION_MISSING), ("2", None), ("1", Reason.DUPLICATE_KEY)]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_never_followed_and_make_no_row(png: bytes, kind: bytes) -> None:
    alone, beside = special("0.jpg", kind, "/etc/passwd"), special("1.jpg", kind, "/etc/passwd")
    data = make_tar([alone, ("1.txt", b"a dog"), beside, ("2.jpg", png), ("2.txt", b"a cat")])
    pairs = pairs_of(data)
    assert [(p.key, p.reason) for p in pairs] == [("1", Reason.IMAGE_MISSING), ("2", None)]
    assert "; jpg: " in (pairs[0].detail or "")


def test_a_member_over_the_byte_cap_is_skipped_unread(png: bytes) -> None:
    data = make_tar([("1.jpg", bytes(5000)), ("1.txt", b"a dog"), ("2.jpg", png), ("2.txt", b"a cat")])
    pairs = pairs_of(data, max_image_bytes=4000)
    assert [p.reason for p in pairs] == [Reason.IMAGE_TOO_LARGE, None]
    assert pairs[0].detail == "5000 bytes, allowed are 4000 (max_image_bytes)"


def test_the_uid_of_the_source_is_kept(png: bytes) -> None:
    uid = "00ff" * 8
    data = make_tar([("1.jpg", png), ("1.txt", b"x y"), ("1.json", b'{"uid": "%s"}' % uid.encode())])
    assert pairs_of(data)[0].uid.hex() == uid
    odd = make_tar([("1.jpg", png), ("1.txt", b"x y"), ("1.json", b'{"uid": "no hex", "caption": 3}')])
    assert pairs_of(odd)[0].uid == make_uid("00000.tar", "1")


@pytest.mark.parametrize("facts", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_broken_json_beside_a_pair_does_no_harm(png: bytes, facts: bytes) -> None:
    assert outcomes(make_tar([("1.jpg", png), ("1.txt", b"x y"), ("1.json", facts)])) == [("1", None)]


def test_captions_can_come_from_json_or_another_member(png: bytes) -> None:
    data = make_tar([("1.jpg", png), ("1.alt", b"from alt"), ("1.json", b'{"caption": "from json", "title": "a title"}')])
    assert pairs_of(data)[0].caption == "from json"
    assert pairs_of(data, caption_column="alt")[0].caption == "from alt"
    assert pairs_of(data, caption_column="json:title")[0].caption == "a title"


def test_captions_as_a_list_in_json_or_under_other_endings(png: bytes) -> None:
    lists = make_tar([("a.png", png), ("a.json", b'{"caption": ["a dog", "b dog"]}'), ("b.png", png), ("b.cap", b"a cat")])
    assert [p.caption for p in pairs_of(lists)] == ["a dog", "a cat"]
    rows = pairs_of(lists, caption="all")
    assert [(p.index, p.key, p.caption) for p in rows] == [(0, "a", "a dog"), (1, "a#1", "b dog"), (2, "b", "a cat")]
    assert all(p.image == png for p in rows)


def test_zstandard_is_recognised_by_its_bytes_and_may_break_off_too(emoji_members: list[tuple[str, bytes]]) -> None:
    whole = make_tar(emoji_members[:60])
    plain = [(p.key, p.caption, p.image) for p in pairs_of(whole)]
    packed = pa.compress(whole, "zstd", asbytes=True)
    frames = pa.compress(whole[:20480], "zstd", asbytes=True) + pa.compress(whole[20480:], "zstd", asbytes=True)
    for data in (packed, frames):
        assert [(p.key, p.caption, p.image) for p in pairs_of(data)] == plain
    cut = pairs_of(frames[:-500])
    assert len(cut) > 1
    assert cut[-1].reason is Reason.TAR_TRUNCATED
    assert [p.caption for p in cut[:-1]] == [caption for _, caption, _ in plain[: len(cut) - 1]]


def test_a_cut_archive_keeps_the_rows_before_the_cut(png: bytes) -> None:
    data = make_tar([(f"{i}.{ext}", body) for i in range(3) for ext, body in (("jpg", png), ("txt", b"a dog"))])
    inside_last_image = data.index(b"2.jpg") + BLOCK + 10
    assert outcomes(data[:inside_last_image]) == [("0", None), ("1", None), (TRUNCATED_KEY, Reason.TAR_TRUNCATED)]
    inside_last_caption = data.index(b"2.txt") + BLOCK + 2
    assert outcomes(data[:inside_last_caption]) == [("0", None), ("1", None), ("2", Reason.TAR_TRUNCATED)]


def test_a_cut_between_rows_leaves_a_marker(png: bytes) -> None:
    data = make_tar([("1.jpg", png), ("1.txt", b"a dog")]).rstrip(b"\0")
    whole = data + bytes(-len(data) % BLOCK)
    pairs = pairs_of(whole)
    assert [(p.key, p.reason) for p in pairs] == [("1", None), (TRUNCATED_KEY, Reason.TAR_TRUNCATED)]
    assert "end-of-archive" in (pairs[-1].detail or "")


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(png: bytes) -> None:
    data = bytearray(make_tar([("1.jpg", png), ("1.txt", b"a dog"), ("2.jpg", png), ("2.txt", b"a cat")]))
    second = data.index(b"2.jpg")
    data[second : second + 100] = b"\xaa" * 100
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        assert len(tar.getmembers()) == 2  # Python's own reader stops without a word
    pairs = pairs_of(bytes(data))
    assert [p.reason for p in pairs] == [None, Reason.SHARD_UNREADABLE, Reason.IMAGE_MISSING]  # 2.txt is read again
    assert pairs[1].place == (second, BLOCK + -(-len(png) // BLOCK) * BLOCK)


def test_concatenated_tars_are_read_to_their_end(png: bytes) -> None:
    first, second = (make_tar([(f"{key}.jpg", png), (f"{key}.txt", b"a dog")]) for key in "12")
    for data in (first + second, gzip.compress(first) + gzip.compress(second)):
        assert outcomes(data) == [("1", None), ("2", None)]


def test_a_zeroed_header_costs_its_own_member(png: bytes) -> None:
    data = bytearray(make_tar([(f"{key}.{end}", body) for key in "123" for end, body in (("jpg", png), ("txt", b"a dog"))]))
    second = data.index(b"2.jpg")
    data[second : second + BLOCK] = bytes(BLOCK)
    pairs = pairs_of(bytes(data))
    assert [p.reason for p in pairs] == [None, Reason.SHARD_UNREADABLE, Reason.IMAGE_MISSING, None]
    assert pairs[1].place == (second + BLOCK, -(-len(png) // BLOCK) * BLOCK)


def test_zeros_beyond_the_last_record_are_told(png: bytes) -> None:
    data = make_tar([(f"{key}.{end}", body) for key in "12" for end, body in (("jpg", png), ("txt", b"a dog"))])
    assert outcomes(data + make_tar([("3.jpg", png), ("3.txt", b"a dog")]))[-1] == ("3", None)
    assert outcomes(data + bytes(-len(data) % 65536))[-1] == ("2", None)  # as `tar --blocking-factor 128` writes
    pairs = pairs_of(data[: data.index(b"2.jpg")] + bytes(30 * 512))
    assert [(p.key, p.reason) for p in pairs] == [("1", None), (TRUNCATED_KEY, Reason.TAR_TRUNCATED)]
    assert "zeros" in (pairs[1].detail or "")


@pytest.mark.parametrize("size", [b"\xff" + b"\xff" * 10 + b"\x80", None])
def test_a_size_that_is_none_costs_its_own_row(png: bytes, size: bytes | None) -> None:
    row, odd = [("1.jpg", png), ("1.txt", b"a dog")], tarfile.TarInfo("2.jpg")
    odd.size = len(png)
    if size is None:
        odd.pax_headers = {"size": "\u00b2"}
    head = bytearray(odd.tobuf(tarfile.PAX_FORMAT))
    if size is not None:
        head[124:136] = size
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
    first, last = make_tar(row).rstrip(b"\0"), make_tar([("2.txt", b"a cat"), ("3.jpg", png), ("3.txt", b"a cow")])
    pairs = pairs_of(first + bytes(-len(first) % BLOCK) + bytes(head) + png + bytes(-len(png) % BLOCK) + last)
    assert [(p.key, p.reason) for p in pairs[:3]] == [("1", None), ("2", Reason.IMAGE_MISSING), ("3", None)]
    assert "a size of" in (pairs[1].detail or "")
    # where no header follows, more than one row may be lost: the bytes are told
    lost = bytes(head) + b"x" * 4000 * BLOCK
    assert pairs_of(first + bytes(-len(first) % BLOCK) + lost)[-1].reason is Reason.TAR_TRUNCATED
    assert (pairs_of(first + bytes(-len(first) % BLOCK) + lost)[-1].place or (0, 0))[1] >= 4000 * BLOCK


def test_a_header_that_is_too_long_leaves_no_row_after_it_certain(png: bytes) -> None:
    row = [("1.jpg", png), ("1.txt", b"a dog")]
    long = tarfile.TarInfo("2.jpg")
    long.pax_headers = {"comment": "x" * 300_000}
    data = make_tar([*row, long, ("3.jpg", png), ("3.txt", b"a cat")], tarfile.PAX_FORMAT)
    pairs = pairs_of(data)
    assert [p.reason for p in pairs][:2] == [None, Reason.SHARD_UNREADABLE]
    assert {p.reason for p in pairs[2:]} == {Reason.AMBIGUOUS}
    digits = tarfile.TarInfo("2.jpg")
    digits.pax_headers = {"comment": "1" * 200_000}  # would take old Pythons minutes
    assert Reason.AMBIGUOUS in {p.reason for p in pairs_of(make_tar([digits, *row], tarfile.PAX_FORMAT))}


@pytest.mark.parametrize("data", [b"", b"<html>404 not found</html>", bytes(100), b"\x1f\x8b\x08\x00garbage"])
def test_what_is_no_tar_gives_one_row(data: bytes) -> None:
    assert outcomes(data) == [(TRUNCATED_KEY, Reason.TAR_TRUNCATED)]


def test_an_empty_tar_has_no_rows() -> None:
    assert outcomes(make_tar([])) == []


def test_gzip_is_recognised_by_its_bytes_and_may_break_off_too(emoji_members: list[tuple[str, bytes]]) -> None:
    whole = gzip.compress(make_tar(emoji_members))
    assert [p.reason for p in pairs_of(whole)] == [None] * 40
    cut = pairs_of(whole[: len(whole) // 2])
    assert cut[-1].reason is Reason.TAR_TRUNCATED
    assert 10 < len(cut) < 40


@pytest.mark.parametrize("fmt", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(png: bytes, fmt: int) -> None:
    key = "ordner/" + "ä" * 90 + "/" + "x" * 120
    assert outcomes(make_tar([(f"{key}.jpg", png), (f"{key}.txt", b"a dog")], fmt)) == [(key, None)]


@settings(max_examples=60, deadline=None)
@given(
    bodies=st.lists(st.binary(max_size=1500), min_size=1, max_size=6),
    fmt=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    keep=st.floats(0, 1),
)
def test_members_agree_with_tarfile_and_any_prefix_gives_a_prefix(bodies: list[bytes], fmt: int, keep: float) -> None:
    data = make_tar([(f"{i}.bin", body) for i, body in enumerate(bodies)], fmt)
    whole = list(read_members(io.BytesIO(data), 10_000))
    assert [(m.name, m.data) for m in whole if isinstance(m, Member)] == [(f"{i}.bin", body) for i, body in enumerate(bodies)]
    found = list(read_members(io.BytesIO(data[: int(keep * len(data))]), 10_000))
    if isinstance(found[-1] if found else None, Gap):
        found.pop()
    else:
        assert found == whole  # it may only end in peace when nothing was lost
    assert found == whole[: len(found)]


def rows_of_the_library(data: bytes, group: Callable[..., Iterator[dict[str, Any]]]) -> list[tuple[str, dict[str, bytes]]]:
    files = tar_file_expander([{"url": "x", "stream": io.BytesIO(data)}], handler=lambda _: True)
    rows = group(files, handler=lambda _: True)
    return [(row["__key__"], {end: body for end, body in row.items() if not end.startswith("__")}) for row in rows]


def random_tar(rng: random.Random) -> bytes:
    """Return a tar of names, kinds and formats that crawls and attackers write."""
    stems = [
        "1",
        "2",
        "a/1",
        "a/.1",
        ".1",
        "a.b/1",
        "x y",
        "\u00e4",
        "./3",
        "/4",
        "__5__",
        "__m__/6",
        "n" * 120,
        "\udcff",
        "7\n",
    ]
    ends = [".jpg", ".JPG", ".txt", ".json", ".cls.txt", ".", "", ".__key__" if rng.random() < 0.02 else ".png"]
    kinds = [tarfile.REGTYPE] * 12 + [tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE]
    kinds += [tarfile.FIFOTYPE, tarfile.CHRTYPE, b"Z"]
    fmt = rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    out, stem = io.BytesIO(), "1"
    with tarfile.open(fileobj=out, mode="w", format=fmt, errors="surrogateescape") as tar:
        for number in range(rng.randrange(1, 14)):
            stem = rng.choice(stems) if rng.random() < 0.5 else f"{number}" if rng.random() < 0.5 else stem
            info = tarfile.TarInfo(stem + rng.choice(ends))
            info.type = rng.choice(kinds)
            body = rng.randbytes(rng.choice([0, 3, 511, 512, 700])) if info.isreg() or info.type == b"Z" else b""
            info.size, info.linkname = len(body), "1.jpg"
            if fmt == tarfile.PAX_FORMAT and rng.random() < 0.1:
                info.pax_headers = {"path": f"pax/{number}.txt"} if rng.random() < 0.5 else {"comment": "\u00e4" * 300}
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


def test_rows_are_those_of_webdataset_and_open_clip_or_ambiguous() -> None:
    num_ambiguous = 0
    for seed in range(2000):
        data = random_tar(random.Random(seed))
        theirs = [rows_of_the_library(data, group) for group in (group_by_keys, group_by_keys_nothrow)]
        ours = list(read_rows(io.BytesIO(data), ReadSettings()))
        assert all(isinstance(run, Run) for run in ours)
        certain = [(run.key, {end: m.data for end, m in run.members.items()}) for run in ours if not run.ambiguous]
        for rows in theirs:
            assert rows[: len(certain)] == certain, seed
        if theirs[0] == theirs[1]:
            assert len(certain) == len(theirs[0]), seed
        else:
            num_ambiguous += 1
            assert ours[-1].ambiguous, seed
    assert 50 < num_ambiguous < 1000  # both kinds were met


def test_a_sparse_file_is_read_with_its_holes(png: bytes) -> None:
    info = tarfile.TarInfo("1.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, len(png)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = tarfile.itn(512, 12, tarfile.GNU_FORMAT) + tarfile.itn(len(png), 12, tarfile.GNU_FORMAT)
    header[483:495] = tarfile.itn(2000, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = bytes(header) + png + bytes(-len(png) % BLOCK) + make_tar([("1.txt", b"a dog")])[: 4 * BLOCK]
    ((key, members),) = rows_of_the_library(data, group_by_keys)
    (pair,) = pairs_of(data)
    assert (pair.key, pair.image) == (key, members["jpg"])
    assert members["jpg"][512 : 512 + len(png)] == png


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000))
def test_garbage_never_raises_anything_else(data: bytes) -> None:
    for pair in read_tar(io.BytesIO(data), SHARD, ReadSettings()):
        assert pair.reason is not None
