"""What a row says of its source comes through scores and manifest, from tars and tables, whatever it holds."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import CLEAN, make_tar

from manifests import open_round
from manifests.schema import SOURCE
from stages.read.source import SourceReader, registered_domain

Pairsan = Callable[..., Result]
FACTS = {
    "url": "https://img.shop.example.co.uk:8080/a.jpg?x=1",
    "sha256": "ab" * 32,
    "original_width": 640,
    "original_height": 480,
    "license": "CC BY 4.0",
    "photographer": "é <b>",
    "other": "left out",
}
FOUND = {
    "url": FACTS["url"],
    "domain": "example.co.uk",
    "sha256": "ab" * 32,
    "md5": None,
    "width": 640,
    "height": 480,
    "others": '{"license": "CC BY 4.0", "photographer": "é <b>"}',
}


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("http://img.bbc.co.uk/1.jpg", "bbc.co.uk"),
        ("https://user:pw@A.B.Example.COM./x", "example.com"),
        ("https://someone.github.io/x", "github.io"),  # what can expire is what a registrar sells
        ("http://127.0.0.1:80/x", "127.0.0.1"),
        ("http://[2001:db8::1]/x", "2001:db8::1"),
        ("http://localhost/x", "localhost"),
        ("http://[2001:db8::1/x", None),
        ("no address", None),
        ("", None),
    ],
)
def test_the_registered_domain_is_what_can_expire(url: str, domain: str | None) -> None:
    assert registered_domain(url) == domain


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({}, None),
        ({"url": None, "sha256": "  ", "caption": "c"}, None),
        ({"URL": "http://a.example/1", "SHA256": b"\xab\xcd"}, {"url": "http://a.example/1", "sha256": "abcd"}),
        ({"url": "http://a.example/" + "x" * 5000}, None),
        ({"original_width": "640", "original_height": -3}, {"width": 640, "height": None}),
        ({"original_width": float("nan"), "original_height": 1e300, "md5": "q"}, {"width": None, "height": None, "md5": "q"}),
        ({"url": ["http://a"], "md5": {"x": 1}}, {"url": "['http://a']", "md5": "{'x': 1}"}),
        ({"license": "\udcff", "url": "http://b.example"}, {"url": "http://b.example", "others": '{"license": "?"}'}),
    ],
)
def test_odd_facts_never_take_a_row_along(facts: dict[str, object], found: dict[str, object] | None) -> None:
    picked = SourceReader(())(facts)
    if found is None:
        assert picked is None
    else:
        assert picked is not None
        assert {name: picked[name] for name in found} == found
        assert pa.array([picked], SOURCE).to_pylist()[0]["url"] == picked["url"]


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_columns_of_the_source_reach_the_manifest(
    form: str, emoji_members: list[tuple[str, bytes]], tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    members = [(name, body) for name, body in emoji_members[:120] if not name.endswith(".json")]
    first = members[0][0].partition(".")[0]
    if form == "tar":
        members.insert(2, (f"{first}.json", json.dumps(FACTS).encode()))
        (data / "0.tar").write_bytes(make_tar(members))
    else:
        rows = [{"webp": members[i][1], "txt": members[i + 1][1].decode(), "key": members[i][0]} for i in range(0, 80, 2)]
        nothing = dict.fromkeys(FACTS)
        pq.write_table(pa.Table.from_pylist([rows[0] | FACTS, *(row | nothing for row in rows[1:])]), data / "0.parquet")
    pairsan("clean", data, "--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN, "--keep-column", "photographer")
    manifest = open_round(tmp_path / "run")
    [shard] = manifest.shards
    column = manifest.table(shard)["source"].to_pylist()
    assert column[0] == FOUND
    assert set(map(str, column[1:])) == {"None"}
    shown = pairsan("inspect", tmp_path / "run", "--label", "safe", "--label", "risky", "--format", "json", "--limit", 0).output
    assert [row["source"]["domain"] for row in map(json.loads, shown.splitlines()) if row["source"]] == ["example.co.uk"]


def test_rows_of_the_crawl_that_never_came_are_counted(
    emoji_members: list[tuple[str, bytes]], tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    table = pa.table(
        {"key": list("abcd"), "status": ["success", "failed_to_download", "failed_to_download", "failed_to_resize"]}
    )
    table = table.append_column("error_message", pa.array([None, "HTTP Error 404", "HTTP Error 404", "\x1b[31m" + "x" * 99]))
    for shard in ("0", "1"):
        (data / f"{shard}.tar").write_bytes(make_tar(emoji_members[int(shard) * 60 : int(shard) * 60 + 60]))
        pq.write_table(table, data / f"{shard}.parquet")
    (data / "2.tar").write_bytes(make_tar(emoji_members[:0]))
    (data / "2.parquet").write_bytes(b"no table")
    out = pairsan("clean", data, "--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN).output
    assert open_round(tmp_path / "run").seal["not_downloaded"] == {
        "failed_to_download: HTTP Error 404": 4,
        f"failed_to_resize: \x1b[31m{'x' * 35}": 2,
    }
    assert "6 more rows of the crawl never came (failed_to_download: HTTP Error 404 4, " in out
    assert "\x1b" not in out


def test_a_report_names_the_domain_whose_pairs_are_risky(
    emoji_members: list[tuple[str, bytes]], tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    images = 3 * [body for name, body in emoji_members if name.endswith(".webp")]
    captions = 3 * [body.decode() for name, body in emoji_members if name.endswith(".txt")]
    rows, num = [], len(images)
    for i, image in enumerate(images):
        expired = i % 5 == 0
        url = f"http://i{i % 7}.{'expired.co.uk' if expired else 'fine.example'}/{i}<b>.webp"
        rows.append({"webp": image, "txt": captions[(i + 17) % num if expired else i], "url": url})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    options = ("--checkpoint", tiny, "--executor", "local", "--keep-share", "0.8")
    pairsan("clean", tmp_path / "0.parquet", "--out", tmp_path / "run", *options)
    pairsan("report", tmp_path / "run", "--out", tmp_path / "report.html")
    found = json.loads((tmp_path / "report.json").read_text())["domains"]
    assert [(line["domain"], line["rows"], line["stands_out"]) for line in found] == [
        ("expired.co.uk", -(-num // 5), True),
        ("fine.example", num - -(-num // 5), False),
    ]
    assert found[0]["low"] < found[0]["risky_share"] < found[0]["high"]
    assert "<td>expired.co.uk</td>" in (tmp_path / "report.html").read_text()


def test_addresses_of_chosen_rows_are_exported_to_be_fetched_again(
    emoji_members: list[tuple[str, bytes]], tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    images = [body for name, body in emoji_members if name.endswith(".webp")]
    images[3] = images[5] = b"<html>gone"
    rows = [
        {"webp": image, "txt": f"picture {i}", "url": None if i == 5 else f"http://a.example/{i}", "uid": f"{i:032x}"}
        for i, image in enumerate(images)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    pairsan("clean", tmp_path / "0.parquet", "--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN)
    chosen = ("--format", "urls", "--label", "quarantined", "--reason", "image_undecodable", "--executor", "local")
    said = pairsan("export", tmp_path / "run", "--out", tmp_path / "again", *chosen).output
    assert "1 pairs of round 1" in said
    assert "1 left out since no address of theirs is known" in said
    [line] = pq.read_table(tmp_path / "again" / "0.parquet.parquet").to_pylist()
    assert line["url"] == "http://a.example/3"
    assert line["caption"] == "picture 3"
    assert line["uid"] == f"{3:032x}"
    assert line["reason"] == "image_undecodable"


def test_what_is_denied_is_quarantined(
    emoji_members: list[tuple[str, bytes]], tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    images = [body for name, body in emoji_members if name.endswith(".webp")]
    captions = [body.decode() for name, body in emoji_members if name.endswith(".txt")]
    urls = [
        "http://i.Expired.co.uk/1",
        "https://cdn.fine.example/1",
        "http://cdn.other.example/1",
        "http://expired.co.uk.example/1",
    ]
    rows = [
        {"webp": image, "txt": caption, "url": urls[i % 4], "md5": f"{i:032x}", "uid": f"{i + 1000:032x}"}
        for i, (image, caption) in enumerate(zip(images, captions, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    (tmp_path / "domains").write_text("\ufeffexpired.CO.UK  # sold in 2024\n\ncdn.other.example\n")
    (tmp_path / "hashes").write_text(f"{5:032X}\n{1009:032x}\n{hashlib.sha256(images[13]).hexdigest()}\n")
    options = ("--checkpoint", tiny, "--executor", "local", "--keep-share", 0.9, "--max-quarantined-share", 1)
    deny = f"{tmp_path / 'domains'}, {tmp_path / 'hashes'}"
    pairsan("clean", tmp_path / "0.parquet", "--out", tmp_path / "run", *options, "--deny", deny)
    frame = open_round(tmp_path / "run").to_pandas()
    denied = frame[frame["reason"] == "denied"]
    assert set(denied["index"]) == {i for i in range(len(rows)) if i % 4 in (0, 2) or i in (5, 9, 13)}
    assert (denied["label"] == "quarantined").all()
    assert denied["detail"].iloc[0] == "expired.co.uk is denied"
    (tmp_path / "hashes").write_text(f"{6:032x}\n")
    said = pairsan("clean", tmp_path / "0.parquet", "--out", tmp_path / "run", *options, "--deny", deny, code=5).stderr
    assert "denied" in said  # another list is another plan
    (tmp_path / "hashes").write_text("# fine\nhttp://a.example/x\n")
    said = pairsan("clean", tmp_path / "0.parquet", "--out", tmp_path / "other", *options, "--deny", deny, code=3).stderr
    assert "hashes, line 2: 'http://a.example/x' is neither a domain, nor a uid or hash in hex" in said
    said = pairsan("clean", tmp_path / "0.parquet", "--out", tmp_path / "other", *options, "--deny", "nowhere", code=3).stderr
    assert "--deny nowhere: cannot be read" in said


def test_a_column_that_is_not_there_is_said_before_anything_is_scored(
    emoji_members: list[tuple[str, bytes]], tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    rows = [{"webp": emoji_members[i][1], "txt": "c"} for i in range(0, 30) if emoji_members[i][0].endswith(".webp")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    options = ("--out", tmp_path / "run", "--checkpoint", tiny, *CLEAN, "--keep-column", "author, webp")
    said = pairsan("clean", tmp_path / "0.parquet", *options, code=3).stderr
    assert "no column 'author' (--keep-column)" in said
