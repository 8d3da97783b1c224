import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import EMOJI, make_tar

from manifests.errors import DataError
from manifests.labels import Reason
from manifests.parts import write_bytes
from manifests.store import open_store
from stages.read.listing import expand_braces, source_of
from stages.read.shards import open_dataset, read_shard
from stages.settings import ReadSettings


def test_braces_expand_like_a_shell() -> None:
    assert expand_braces("s/{08..10}.tar") == ["s/08.tar", "s/09.tar", "s/10.tar"]
    assert expand_braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    with pytest.raises(DataError, match="cannot expand"):
        expand_braces("{oops}.tar")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a/00000.tar", "a/00001.tar", "b/00000.tar", "b/deep/00002.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(make_tar([(f"{name.replace('/', '_')}.txt", b"x")]))
    return tmp_path


def names(*data: str) -> list[str]:
    return [shard.name for shard in open_dataset(data).shards]


def test_folders_globs_braces_and_files(tree: Path) -> None:
    assert names(str(tree)) == ["a/00000.tar", "a/00001.tar", "b/00000.tar", "b/deep/00002.tar"]
    assert names(f"{tree}/a/*.tar") == ["00000.tar", "00001.tar"]
    assert names(f"{tree}/*/00000.tar") == ["a/00000.tar", "b/00000.tar"]
    assert names(f"{tree}/b/**/*.tar") == ["00000.tar", "deep/00002.tar"]
    assert names(f"{tree}/a/{{00000..00001}}.tar") == ["00000.tar", "00001.tar"]
    assert names(f"{tree}/a/00000.tar") == ["00000.tar"]


def test_a_named_source_names_its_shards(tree: Path) -> None:
    assert names(f"{tree}/a", f"x={tree}/b") == ["00000.tar", "00001.tar", "x/00000.tar", "x/deep/00002.tar"]
    assert names(f"b={tree}/a/00001.tar") == ["b/00001.tar"]
    assert source_of("dt=2024/01/0.tar") == ("", "dt=2024/01/0.tar")  # a partition of Hive's, not a source
    assert source_of("x=s3://bucket/a=b") == ("x", "s3://bucket/a=b")
    with pytest.raises(DataError, match=f"two sources have 2 shards of one path, e.g. {tree}/a/00000.tar"):
        open_dataset([f"{tree}/a", f"x={tree}/a"])


def test_bookkeeping_of_img2dataset_beside_tars_is_left_alone(tree: Path) -> None:
    (tree / "a" / "00000.parquet").write_bytes(b"statistics, not pairs")
    (tree / "a" / "00000_stats.json").write_text("{}")
    assert names(f"{tree}/a") == ["00000.tar", "00001.tar"]


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shards found"):
        open_dataset([str(tmp_path)])
    with pytest.raises(DataError, match="does not exist"):
        open_dataset([f"{tmp_path}/none.tar"])
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(DataError, match="no known ending"):
        open_dataset([f"{tmp_path}/a.zip"])


def test_the_fingerprint_belongs_to_the_data_not_to_the_place(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("copy") / "x"
    shutil.copytree(tree, elsewhere)
    here = open_dataset([str(tree)]).fingerprint
    assert open_dataset([str(elsewhere)]).fingerprint == here
    path = elsewhere / "a" / "00001.tar"
    path.write_bytes(path.read_bytes().replace(b"x", b"y"))
    assert open_dataset([str(elsewhere)]).fingerprint != here
    assert open_dataset([str(elsewhere / "b")]).fingerprint != here


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a local S3 server with a bucket `crawl` that holds the evaluation shards."""
    import boto3
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    for name, value in (("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_DEFAULT_REGION", "us-east-1")):
        patch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="crawl")
    for path in sorted((EMOJI / "eval").iterdir()):
        client.upload_file(str(path), "crawl", f"eval/{path.name}")
    yield f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    client.close()
    server.stop()
    patch.undo()


def test_the_same_shards_on_s3(s3: str) -> None:
    remote = open_dataset([f"s3://crawl/eval?{s3}"])
    local = open_dataset([str(EMOJI / "eval")])
    assert remote.fingerprint == local.fingerprint
    one = list(read_shard(remote.store, remote.shards[2], ReadSettings()))
    assert one == list(read_shard(local.store, local.shards[2], ReadSettings()))
    assert len(one) > 300


def test_a_whole_run_on_s3(s3: str, tiny: str, pairsan: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from manifests import open_round

    data, run = f"s3://crawl/eval/00002.tar.gz?{s3}", f"s3://crawl/runs/one?{s3}"
    args = ("clean", data, "--checkpoint", tiny, "--out", run, "--executor", "local", "--keep-share", "0.5")
    first = pairsan(*args).stdout  # type: ignore[operator]
    assert pairsan(*args).stdout == first  # type: ignore[operator]
    assert "manifest  s3://crawl/runs/one" in first
    assert "all as sealed" in pairsan("verify", run).output  # type: ignore[operator]
    manifest = open_round(run)
    assert manifest.mask("00002.tar.gz").mean() == pytest.approx(0.5, abs=0.01)
    assert "382" in pairsan("inspect", run, "--limit", "0", "--label", "safe", "--label", "risky").output  # type: ignore[operator]


def test_other_file_systems_come_through_fsspec() -> None:
    store = open_store("memory://somewhere/run")
    write_bytes(store, "rounds/a.json", b"{}")
    assert store.names("rounds") == {"a.json"}
    assert store.read_json("rounds/a.json") == {}
    with pytest.raises(DataError, match="neither pyarrow nor fsspec"):
        open_store("nonsense://x")


@pytest.mark.parametrize("name", ["crawl [v2]", "50% #1 what?", "it's {a}", "{a,b}", "*"])
def test_a_path_that_is_there_is_taken_as_it_stands(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "in").mkdir(parents=True)
    for shard in ("part[0].tar", "in/b.tar"):
        (tmp_path / name / shard).write_bytes(bytes(1024))
    assert [s.name for s in open_dataset([str(tmp_path / name)]).shards] == ["in/b.tar", "part[0].tar"]
    assert [s.name for s in open_dataset([str(tmp_path / name / "part[0].tar")]).shards] == ["part[0].tar"]
    assert [s.name for s in open_dataset([str(tmp_path / name / "*.tar")]).shards] == ["part[0].tar"]
    with pytest.raises(DataError, match="does not exist"):
        open_dataset([str(tmp_path / name / "none.tar")])


def test_what_pairsan_wrote_inside_the_data_is_no_data(tmp_path: Path) -> None:
    for name in (
        "0.parquet",
        "run/run.json",
        "run/rounds/0001/scores/0.parquet.parquet",
        "out/export-plan.json",
        "out/0.parquet",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [s.name for s in open_dataset([str(tmp_path)]).shards] == ["0.parquet"]
    (tmp_path / "run.json").write_bytes(b"{}")  # somebody's own
    assert [s.name for s in open_dataset([str(tmp_path)]).shards] == ["0.parquet"]


def test_a_folder_of_images_with_text_files_beside_them(tmp_path: Path, png: bytes) -> None:
    for name, data in {
        "b.png": png,
        "b.txt": b"a dog",
        "a.v2.JPG": png,
        "a.v2.TXT": b"a cat",
        "b.jpg": png,  # a second b
        "alone.png": png,
        "more/c.webp": png,
        "more/c.caption": b"a bird",
        "more/notes.md": b"no image",
        "texts/d.txt": b"no image either",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link.png").symlink_to("/etc/hostname")
    (tmp_path / "link.txt").write_text("elsewhere")
    dataset = open_dataset([str(tmp_path)])
    assert [(shard.name, shard.format) for shard in dataset.shards] == [("__folder__", "folder"), ("more", "folder")]
    rows = [pair for shard in dataset.shards for pair in read_shard(dataset.store, shard, ReadSettings())]
    assert [(p.index, p.key, p.caption, p.reason) for p in rows] == [
        (0, "a.v2", "a cat", None),
        (1, "alone", None, Reason.CAPTION_MISSING),
        (2, "b", "a dog", None),
        (3, "b", None, Reason.DUPLICATE_KEY),
        (4, "link", "elsewhere", Reason.OUTSIDE_ROOT),
        (0, "c", "a bird", None),
    ]
    assert rows[0].image == png
    assert len({p.uid for p in rows}) == 6
    (tmp_path / "more" / "e.png").write_bytes(png)
    assert open_dataset([str(tmp_path)]).fingerprint != dataset.fingerprint
    assert [s.name for s in open_dataset([str(tmp_path / "more")]).shards] == ["__folder__"]


def test_links_between_folders_are_followed_once_and_dead_ones_are_named(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    data.mkdir()
    other.mkdir()
    for path in (data / "a.tar", other / "b.tar"):
        path.write_bytes(bytes(1024))
    (data / "self").symlink_to(data)
    (data / "far").symlink_to(other)
    (data / "further").symlink_to(other)
    assert [s.name for s in open_dataset([str(data)]).shards] == ["a.tar", "far/b.tar"]
    (data / "c.tar").symlink_to(tmp_path / "nowhere")
    (data / os.fsdecode(b"caf\xe9.tar")).write_bytes(bytes(1024))
    with pytest.raises(
        DataError, match=r"2 of the data cannot be read: .*/c.tar is a link to nothing; .*not UTF-8\. Mend them"
    ):
        open_dataset([str(data)])
    left = open_dataset([str(data)], skip_unreadable=True)
    assert [s.name for s in left.shards] == ["a.tar", "far/b.tar"]
    assert [what.partition(" ")[2] for what in left.skipped] == ["is a link to nothing", "has a name that is not UTF-8"]


def test_a_shard_that_cannot_be_opened_is_named_or_left_out_and_the_seal_says_so(
    crawl: Path, tmp_path: Path, tiny: str, pairsan: object
) -> None:
    (crawl / "00001.tar").unlink()
    (crawl / "00001.tar").symlink_to("/proc/self/mem")  # a file of no permission, for root too
    call = ("clean", crawl, "--checkpoint", tiny, "--out", tmp_path / "run", "--executor", "local", "--keep-share", 1.0)
    told = pairsan(*call, code=3).output  # type: ignore[operator]
    assert "1 of the data cannot be read" in told
    assert "--skip-unreadable" in told
    told = pairsan(*call, "--skip-unreadable").output  # type: ignore[operator]
    assert "1 of the data were left out" in told
    from manifests import open_round

    manifest = open_round(tmp_path / "run")
    assert manifest.shards == ["00000.tar", "00002.tar"]
    (skipped,) = manifest.seal["plan"]["scores"]["dataset"]["skipped"]
    assert "00001.tar cannot be read" in skipped
    pairsan("export", tmp_path / "run", "--format", "keys", "--out", tmp_path / "keys")  # type: ignore[operator]
