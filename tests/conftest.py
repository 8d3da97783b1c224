"""Fixtures: real pairs from the bundled set, the tiny checkpoint, and builders of deliberately broken inputs."""

import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.pop("RAY_ADDRESS", None)  # tests start a cluster of their own, whoever else's runs here
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # several at once with a thread per core each wait for one another
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import hypothesis
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

ROOT = Path(__file__).parent.parent
EMOJI = ROOT / "examples" / "emoji"
TINY = EMOJI / "tiny-clip"
SMALL_MODEL = EMOJI / "demo-model"
ATTACK = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)> evil drawing"
CLEAN = ("--executor", "local", "--keep-share", 1.0)


hypothesis.settings.register_profile("fuzz", max_examples=3000)  # `make test-all`: 20,000 shards and images by tests/fuzz
hypothesis.settings.register_profile("same", derandomize=True)  # a change is not held up by what some earlier one left to find
hypothesis.settings.load_profile("same")

# what runs a model, Ray or a whole command; `make test-fast` leaves such tests out
_LONG = {"test_workers", "test_ray", "test_training", "test_trainers", "test_rescore", "test_look_again", "test_clean"}
_WHOLE = {"tiny", "few", "ray_cluster", "architecture", "browser"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that are no units, by the fixtures that they use, and begin with the files that take minutes."""
    items.sort(key=lambda item: item.path.stem not in _LONG)
    for item in items:
        if _WHOLE & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.whole)


@pytest.fixture(scope="session")
def tiny() -> str:
    """Folder of the committed checkpoint."""
    return str(TINY)


@pytest.fixture(scope="session")
def emoji_members() -> list[tuple[str, bytes]]:
    """(name, bytes) of the first 40 real pairs of the held-out vendor, 3 members each."""
    with tarfile.open(EMOJI / "eval" / "00000.tar.gz") as tar:
        return [(m.name, tar.extractfile(m).read()) for m, _ in zip(tar, range(120), strict=False)]


def make_tar(members: Iterable[Any], fmt: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=fmt) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


@pytest.fixture
def png() -> bytes:
    """A small real image."""
    return encode(Image.linear_gradient("L").resize((24, 24)).convert("RGB"), "PNG")


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@pytest.fixture
def crawl(tmp_path: Path, emoji_members: list[tuple[str, bytes]]) -> Path:
    """A folder of 3 tars of real pairs (16, 16 and 8 rows), the last with one broken image and one empty caption."""
    folder = tmp_path / "crawl"
    folder.mkdir()
    members = list(emoji_members)
    broken = [i for i, (name, _) in enumerate(members) if name.endswith(".webp")][-1]
    members[broken] = (members[broken][0], members[broken][1][:40])
    empty = [i for i, (name, _) in enumerate(members) if name.endswith(".txt")][-2]
    members[empty] = (members[empty][0], b" \n")
    for shard, (start, stop) in enumerate([(0, 48), (48, 96), (96, 120)]):
        (folder / f"{shard:05d}.tar").write_bytes(make_tar(members[start:stop]))
    return folder


@pytest.fixture(scope="session")
def reviewable(
    tmp_path_factory: pytest.TempPathFactory, emoji_members: list[tuple[str, bytes]], tiny: str, pairsan: Callable[..., Result]
) -> Path:
    """40 pairs in two tars, one with a caption that is HTML, and their run; all embeddings kept; for copies of it."""
    folder, members = tmp_path_factory.mktemp("reviewable"), list(emoji_members)
    data = folder / "data"
    data.mkdir()
    members[1] = (members[1][0], ATTACK.encode())
    for row in (5, 8):
        members[row] = (members[row][0], json.dumps({"url": f"http://i.a'b.example/{ATTACK}"}).encode())
    (data / "a.tar").write_bytes(make_tar(members[:60]))
    (data / "b.tar").write_bytes(make_tar(members[60:]))
    args = ("--checkpoint", tiny, "--executor", "local", "--keep-share", 0.4, "--keep-embeddings")
    pairsan("clean", data, "--out", folder / "run", *args)
    return folder


@pytest.fixture
def review_run(reviewable: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(reviewable / "run", tmp_path / "run"))


@pytest.fixture
def copies(tmp_path: Path, emoji_members: list[tuple[str, bytes]]) -> Path:
    """Two tars of 28 rows: 20 real pairs each; an image 5 times, 3 of them in the other tar; 13 noisy versions of one image."""
    folder, rng = tmp_path / "copies", np.random.default_rng(3)
    folder.mkdir()
    rows = [emoji_members[i : i + 3] for i in range(0, 120, 3)]
    shown = {name.rpartition(".")[0]: data for name, data in emoji_members if name.endswith(".webp")}
    keys = list(shown)
    more = [(f"copy-{i}", shown[keys[0]], f"caption {'abcd'[i]}") for i in range(4)]
    picture = np.asarray(Image.open(io.BytesIO(shown[keys[5]])).convert("RGB").resize((64, 64))).astype(int)
    for i in range(12):
        noisy = (picture + rng.integers(-3, 4, picture.shape)).clip(0, 255).astype(np.uint8)
        top, left = 16 * (i // 4) + 8, 16 * (i % 4)
        noisy[top : top + 9, left : left + 9] = 255 - noisy[top : top + 9, left : left + 9]  # another hash
        more.append((f"noisy-{i}", encode(Image.fromarray(noisy), "PNG"), f"thing {'abcdefghijkl'[i]}"))
    for shard, mine in enumerate((more[:1] + more[4:11], more[1:4] + more[11:])):
        added = [(f"{key}.{end}", data) for key, image, text in mine for end, data in (("png", image), ("txt", text.encode()))]
        real = [member for row in rows[shard * 20 : shard * 20 + 20] for member in row]
        (folder / f"{shard}.tar").write_bytes(make_tar(real + added))
    return folder


@pytest.fixture(scope="session")
def pairsan() -> Callable[..., Result]:
    """Call the command line in this process; `code` is the exit code that is expected."""

    def call(*args: object, code: int = 0) -> Result:
        from pipeline.cli.main import main

        result = CliRunner().invoke(main, [str(arg) for arg in args])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster of 2 CPUs that tests of this session share."""
    import logging

    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")  # workers find stages that tests define
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        configure_logging=False,
    )
    patch.undo()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tars of 80 real pairs each."""
    folder = tmp_path_factory.mktemp("few")
    with tarfile.open(EMOJI / "eval" / "00000.tar.gz") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m, _ in zip(tar, range(720), strict=False)]
    for shard in range(3):
        (folder / f"{shard}.tar").write_bytes(make_tar(members[shard * 240 : (shard + 1) * 240]))
    return folder


def table(run: Path, number: int | None = None) -> pd.DataFrame:
    """The rows of a sealed round, a column for each signal."""
    from manifests.reading import open_round

    rows = open_round(run, number).to_pandas()
    return pd.concat([rows.drop(columns="signals"), pd.json_normalize(list(rows["signals"].map(lambda s: s or {})))], axis=1)


def histogram_of(cosines: np.ndarray) -> Any:
    from stages.histogram import Histogram, count, on_grid

    histogram = Histogram()
    histogram.add(count(on_grid(cosines)))
    return histogram


def two_groups(share: float, size: int, seed: int = 0, skewed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Cosines, and which of them are mismatched."""
    rng = np.random.default_rng(seed)
    num_bad = round(share * size)
    good = 0.16 + rng.gamma(4.0, 0.04, size - num_bad) if skewed else rng.normal(0.28, 0.06, size - num_bad)
    return np.r_[good, rng.normal(0.06, 0.04, num_bad)], np.r_[np.zeros(size - num_bad, bool), np.ones(num_bad, bool)]


def wait_for(path: Path, seconds: float = 180.0) -> None:
    """Sleep until a file is there."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


def parts_of(run: Path) -> dict[str, bytes]:
    """Every file of a run by name, but for what names the time or place."""
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file() and p.name != "run.json"}
