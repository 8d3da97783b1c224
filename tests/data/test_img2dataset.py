"""The real crawler against a small web of real images and broken answers, and pairsan on what it wrote."""

import csv
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import Result
from conftest import ROOT

from manifests import open_round

NUM_PAIRS = 40  # of the bundled set; then 3 x 404, 3 x HTML, 3 x truncated


@pytest.fixture(scope="session")
def img2dataset() -> Path:
    """The real tool in an environment of its own, since it pins older libraries than ours."""
    folder = ROOT / ".venv-img2dataset"
    tool = folder / "bin" / "img2dataset"
    if not tool.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", "img2dataset==1.47.0"], check=True)
    return tool


@pytest.fixture
def web(emoji_members: list[tuple[str, bytes]]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server on the loopback, and the (path, caption) list of what it serves."""
    images = [data for name, data in emoji_members if name.endswith(".webp")]
    captions = [data.decode() for name, data in emoji_members if name.endswith(".txt")]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, _, number = self.path.strip("/").partition("/")
            image = images[int(number.removesuffix(".webp"))]
            body = {"ok": image, "html": b"<!DOCTYPE html><p>login", "cut": image[: len(image) // 3], "gone": b""}[kind]
            self.send_response(404 if kind == "gone" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    listed = [(f"ok/{i}.webp", captions[i]) for i in range(NUM_PAIRS)]
    listed += [(f"{kind}/{i}.webp", captions[i]) for kind in ("gone", "html", "cut") for i in range(3)]
    yield f"http://127.0.0.1:{server.server_address[1]}", listed
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_what_img2dataset_wrote_is_cleaned(
    img2dataset: Path,
    web: tuple[str, list[tuple[str, str]]],
    form: str,
    tmp_path: Path,
    tiny: str,
    pairsan: Callable[..., Result],
) -> None:
    address, listed = web
    with (tmp_path / "urls.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["url", "caption"])
        writer.writerows([f"{address}/{path}", caption] for path, caption in listed)
    crawled = tmp_path / "crawled"
    options = {"url_list": tmp_path / "urls.tsv", "input_format": "tsv", "url_col": "url", "caption_col": "caption"}
    options |= {"output_format": form, "output_folder": crawled, "image_size": 64, "number_sample_per_shard": 20}
    options |= {
        "processes_count": 1,
        "thread_count": 4,
        "retries": 0,
        "timeout": 5,
        "encode_format": "png",
        "encode_quality": 6,
    }
    command = [str(img2dataset), *(f"--{key}={value}" for key, value in options.items())]
    subprocess.run(command, check=True, capture_output=True, timeout=240)

    pairsan("clean", crawled, "--checkpoint", tiny, "--out", tmp_path / "run", "--executor", "local", "--keep-share", 0.5)
    manifest = open_round(tmp_path / "run")
    labels = manifest.seal["counts"]["labels"]
    assert len(manifest.shards) == 3
    sources = [row for shard in manifest.shards for row in manifest.table(shard)["source"].to_pylist()]
    assert all(row["domain"] == "127.0.0.1" and len(row["sha256"]) == 64 and row["width"] for row in sources if row["sha256"])
    assert sum(bool(row["sha256"]) for row in sources) == NUM_PAIRS
    if form == "webdataset":  # failed downloads never reach its tars
        assert labels == {"safe": NUM_PAIRS // 2, "risky": NUM_PAIRS // 2, "quarantined": 0}
        lost = manifest.seal["not_downloaded"]
        assert sum(lost.values()) == 9
        assert any("404" in word for word in lost)
    else:  # and stand as rows without an image in its tables
        assert labels == {"safe": NUM_PAIRS // 2, "risky": NUM_PAIRS // 2, "quarantined": 9}
        assert manifest.seal["counts"]["reasons"]["image_missing"] == 9
    kept = {caption for caption in manifest.to_pandas(["caption"]).caption if caption}
    assert kept <= {caption for _, caption in listed}
    assert "all as sealed" in pairsan("verify", tmp_path / "run").output
