import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result
from conftest import make_tar
from conftest import table as labels_of


def test_bytes_that_could_not_be_read_refuse_the_seal_until_they_are_allowed(
    tmp_path: Path, emoji_members: list[tuple[str, bytes]], tiny: str, pairsan: Callable[..., Result]
) -> None:
    data = bytearray(make_tar(emoji_members[:60]))
    place = data.index(emoji_members[30][0].encode())
    data[place : place + 512] = bytes(512)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.tar").write_bytes(bytes(data))
    (tmp_path / "data" / "1.tar").write_bytes(make_tar(emoji_members[60:]))
    run = tmp_path / "run"
    options = ("--checkpoint", tiny, "--executor", "local", "--keep-share", 1.0)
    refused = pairsan("clean", tmp_path / "data", "--out", run, *options, code=3).stderr
    assert "bytes in 1 shards could not be read" in refused
    assert "\n  0.tar: " in refused
    assert "--max-unread-share" in refused
    told = pairsan("split", run, "--max-unread-share", 1, "--executor", "local").output
    lost = -(-len(emoji_members[30][1]) // 512) * 512
    assert f"{lost:,} bytes of 1 shards could not be read, e.g. of 0.tar" in told
    seal = json.loads(next(run.glob("rounds/*/manifest.json")).read_text())
    assert [part.get("unread_bytes") for part in seal["parts"]] == [lost, None]
    frame = labels_of(run)
    assert list(frame["reason"].dropna()) == ["shard_unreadable", "image_missing"]
    assert len(frame) == 41  # 40 rows, and one for the damage
    pairsan("verify", run)
