"""Mistakes that people make: each gets one line that says what, where and which option, and its own exit code; no traceback."""

import errno
import io
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pandas as pd
import pytest
from click.testing import Result
from conftest import SMALL_MODEL, parts_of
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from manifests import open_round
from pipeline.cli.mistakes import explained

Pairsan = Callable[..., Result]
LOCAL = ("--executor", "local")


def said(result: Result) -> str:
    """Return what was printed as an error: one line of ours and nothing else."""
    lines = [line for line in result.stderr.splitlines() if " shards, " not in line]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in lines[0]
    return lines[0]


def test_a_file_in_the_way_is_named_with_its_option(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for out in (taken, taken / "run"):
        args = ("clean", crawl, "--checkpoint", tiny, "--out", out, *LOCAL)
        assert f"--out {out}: " in (line := said(pairsan(*args, code=9)))
        assert "a file is in the way of a folder" in line
    assert taken.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, crawl: Path, tiny: str, pairsan: Pairsan) -> None:
    run = tmp_path / "run"
    pairsan("clean", crawl, "--checkpoint", tiny, "--out", run, *LOCAL, "--keep-share", 0.5)
    nowhere = "/proc/no-such"  # where nobody can make a folder, root neither
    for args, place in (
        (("report", run, "--out", f"{nowhere}/r.html"), f"--out {nowhere}/r.html"),
        (("inspect", run, "--format", "csv", "--output", f"{nowhere}.csv"), f"--output {nowhere}.csv"),
        (("diff", run, "--from", 1, "--flipped", f"{nowhere}.csv"), f"--flipped {nowhere}.csv"),
        (("status", run, "--prometheus", f"{nowhere}/p.prom"), f"--prometheus {nowhere}/p.prom"),
        (("reviews", "export", run, f"{nowhere}.csv"), f"FILE {nowhere}.csv"),
        (("clean", crawl, "--checkpoint", tiny, "--out", f"{nowhere}/run", *LOCAL), f"--out {nowhere}/run"),
    ):
        assert place in said(pairsan(*args, code=9))


def test_a_port_that_is_taken(tmp_path: Path, crawl: Path, tiny: str, pairsan: Pairsan) -> None:
    pairsan("clean", crawl, "--checkpoint", tiny, "--out", tmp_path / "run", *LOCAL, "--keep-share", 0.5)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = said(pairsan("review", tmp_path / "run", "--port", port, code=9))
    assert f"--port {port}: the port is taken by another program; --port 0 takes a free one" in line


@pytest.mark.slow
def test_a_bucket_that_does_not_answer(crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # and nobody listens
        uri = f"s3://bucket/x?endpoint_override=127.0.0.1:{listener.getsockname()[1]}&scheme=http"
        args = ("--checkpoint", tiny, *LOCAL)
        assert f"DATA {uri} cannot be reached" in said(pairsan("clean", uri, *args, "--out", tmp_path / "run", code=9))
        assert f"--out {uri} cannot be reached" in said(pairsan("clean", crawl, *args, "--out", uri, code=9))
        web = f"http://127.0.0.1:{listener.getsockname()[1]}/00000.tar"
        line = said(pairsan("clean", web, *args, "--out", tmp_path / "run", code=3))
    assert f"{web} cannot be reached: " in line
    assert "does not exist" not in line


class Full(MemoryFileSystem):
    """A disk of so many bytes."""

    protocol = "full"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    room = 1 << 40

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> MemoryFile:
        file = super()._open(path, mode, **kwargs)
        if "w" in mode:
            plain = file.write

            def write(data: bytes) -> int:
                used = sum(len(other.getbuffer()) for other in self.store.values()) + file.tell()
                if used + len(data) > Full.room:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return int(plain(data))

            file.write = write
        return file


@pytest.fixture
def disk() -> Iterator[type[Full]]:
    fsspec.register_implementation("full", Full, clobber=True)
    yield Full
    Full.store.clear()
    Full.room = 1 << 40


def test_a_disk_that_fills_leaves_whole_parts_and_a_run_that_goes_on(
    disk: type[Full], crawl: Path, tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    args = ("clean", crawl, "--checkpoint", tiny, *LOCAL, "--keep-share", 0.5, "--out")
    pairsan(*args, tmp_path / "whole")
    size = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    for share in (0.1, 0.4, 0.7, 0.95):
        disk.room = int(share * size)
        assert "--out full://run: no space left; what was finished is whole" in said(pairsan(*args, "full://run", code=9))
        for name, file in disk.store.items():
            if name.endswith(".parquet"):
                pd.read_parquet(io.BytesIO(file.getvalue()))  # whole
    disk.room = 1 << 40
    pairsan(*args, "full://run")
    assert open_round("full://run").seal["counts"] == open_round(tmp_path / "whole").seal["counts"]
    there = {name.removeprefix("full://run/"): file.getvalue() for name, file in disk.store.items()}
    for name, data in parts_of(tmp_path / "whole").items():
        assert there[name] == data or not name.endswith(".parquet"), name


def test_a_missing_package_is_named_with_its_extra() -> None:
    assert "pip install 'pairsan[s3]'" in str(explained(ModuleNotFoundError("No module", name="s3fs.core"), {}))
    assert "pip install 'polars'" in str(explained(ModuleNotFoundError("No module", name="polars"), {}))
    assert explained(ImportError("ours", name="pipeline.rounds"), {}) is None
    assert explained(BrokenPipeError(errno.EPIPE, "Broken pipe"), {"run": "s3://bucket/run"}) is None  # of `| head`
    assert explained(ValueError("ours"), {"out": "run"}) is None
    assert explained(OSError("of no kind that is known"), {"out": "run"}) is None


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--checkpoint", "nope.pt"), "no checkpoint at nope.pt"),
        (("--model", "ViT-B-33", "--checkpoint", "nope.pt"), "no checkpoint at nope.pt"),
        (("--model", "ViT-B-33", "--pretrained", "openai"), "no architecture 'ViT-B-33'; did you mean 'ViT-B-32'"),
        (("--model", "ViT-B-32", "--pretrained", "opnai"), "no weights 'opnai' for 'ViT-B-32'; did you mean 'openai'"),
        (("--model", "ViT-B-32", "--checkpoint", "table.csv"), "table.csv holds no weights: it begins with b'url,caption"),
    ],
)
def test_weights_that_are_none(
    args: tuple[str, ...], told: str, crawl: Path, tmp_path: Path, pairsan: Pairsan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("url,caption\n")
    assert told in said(pairsan("clean", crawl, *args, "--out", "run", *LOCAL, code=4))
    assert not Path("run").exists()


@pytest.mark.parametrize(("name", "form"), [("index.parquet", "parquet"), ("index.csv", "csv"), ("index.tsv.gz", "tsv.gz")])
def test_an_index_of_addresses_is_told_how_to_fetch_them(
    name: str, form: str, tmp_path: Path, tiny: str, pairsan: Pairsan
) -> None:
    index = pd.DataFrame({"URL": [f"https://example.org/{i}.jpg" for i in range(9)], "TEXT": ["words"] * 9})
    path = tmp_path / name
    index.to_parquet(path) if form == "parquet" else index.to_csv(path, index=False, sep="\t" if "tsv" in form else ",")
    if name.endswith(".csv"):
        index.rename(columns={"TEXT": "odd"}).to_csv(path, index=False)
    line = said(pairsan("clean", path, "--checkpoint", tiny, "--out", tmp_path / "run", *LOCAL, code=3))
    caption = "" if name.endswith(".csv") else "--caption_col TEXT "
    assert f"`img2dataset --url_list {path} --input_format {form} --url_col URL {caption}--output_format webdataset" in line


def test_a_folder_that_is_no_run_is_told_so(tmp_path: Path, pairsan: Pairsan) -> None:
    for command in ("review", "report", "inspect", "verify"):
        assert f"{tmp_path}/none is no run folder: it has no run.json" in said(pairsan(command, tmp_path / "none", code=5))


def test_a_tracker_that_is_not_there_is_named_before_anything_is_trained(
    crawl: Path, tmp_path: Path, pairsan: Pairsan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    options = ("--out", tmp_path / "run", "--model", SMALL_MODEL, "--executor", "local")
    refused = pairsan("run", crawl, *options, "--log-to", "wandb", code=9)
    assert "wandb is needed for this and not installed here" in refused.stderr
    assert not (tmp_path / "run/checkpoints/history.json").exists()
    refused = pairsan("run", crawl, *options, "--log-to", "weights", code=2)
    assert "'weights' is none of tensorboard, wandb, mlflow" in refused.stderr
