"""The tools: how each is installed in an environment of its own, started, and how many rows it says it scored."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torchvision

import manifests
from benchmarks.common import CACHE

# torch first, so that the tools are measured on the same one; the rest is what each needs beside what it names itself
_TORCH: Final = [f"torch=={torch.__version__.partition('+')[0]}", f"torchvision=={torchvision.__version__.partition('+')[0]}"]
_CLIP_RETRIEVAL: Final = ["clip-retrieval==2.44.0", "numpy<2"]
_LAST: Final = [
    "--no-deps",
    "setuptools<70",
]  # clip-anytorch needs its pkg_resources.packaging, torch asks for more and runs without
_DATA_JUICER: Final = ["py-data-juicer==1.6.1", "transformers", "aiohttp"]
_JUICER_CONFIG: Final = """\
project_name: peers
dataset_path: {data}/pairs.jsonl
export_path: {out}/pairs.jsonl
np: 2
open_tracer: false
use_cache: false
keep_stats_in_res_ds: true
process:
  - image_text_similarity_filter:
      hf_clip: {weights}/hf
      min_score: -1.0
      num_proc: 2
"""


@dataclass(frozen=True)
class Tool:
    """One way to score pairs.

    Attributes:
        name: For the table.
        packages: Of its environment; empty for ours.
        command: Data folder, weights folder, output folder to a command.
        scored: Output folder to the cosines, float64 (n,), in any order.
    """

    name: str
    packages: tuple[str, ...]
    command: Callable[[Path, Path, Path], list[object]]
    scored: Callable[[Path], np.ndarray]


def environment(name: str, packages: tuple[str, ...]) -> Path:
    """Make a virtual environment, or take the one that stands; return its `bin`."""
    folder = CACHE / "peers" / name
    ready = folder / "ready.json"
    if ready.exists() and json.loads(ready.read_text()) == list(packages):
        return folder / "bin"
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *_TORCH], check=True)
    subprocess.run([*pip, *_TORCH, *packages], check=True)
    subprocess.run([*pip, *_LAST], check=True)
    ready.write_text(json.dumps(list(packages)))
    return folder / "bin"


def pairsan(precision: str) -> Tool:
    """Return `pairsan clean` as a user starts it, on random weights."""

    def command(data: Path, weights: Path, out: Path) -> list[object]:
        options = [
            "--keep-share",
            "0.9",
            "--if-unseparable",
            "accept",
            "--max-quarantined-share",
            "0.5",
            "--precision",
            precision,
        ]
        program = Path(sys.executable).parent / "pairsan"
        return [program, "clean", data / "tars", "--checkpoint", weights / "open_clip", "--out", out / "run", *options]

    def scored(out: Path) -> np.ndarray:
        return manifests.open_round(str(out / "run")).to_pandas(["cosine"])["cosine"].dropna().to_numpy()

    return Tool(f"pairsan clean, {precision}", (), command, scored)


def bare_loop(*options: str) -> Tool:
    """Return the loop of benchmarks/speed/bare_loop.py."""

    def command(data: Path, weights: Path, out: Path) -> list[object]:
        return [sys.executable, "-m", "benchmarks.speed.bare_loop", data / "tars", weights / "open_clip", *options]

    return Tool(" ".join(["bare loop", *options]), (), command, lambda out: np.zeros(0))


def clip_retrieval() -> Tool:
    """Return clip-retrieval's inference, with as many loader workers as there are shards at least."""

    def command(data: Path, weights: Path, out: Path) -> list[object]:
        program = environment("clip-retrieval", tuple(_CLIP_RETRIEVAL)) / "clip-retrieval"
        last = len(list((data / "tars").iterdir())) - 1
        options = {
            "input_dataset": f"{data}/tars/{{00000..{last:05d}}}.tar",
            "output_folder": out / "embeddings",
            "input_format": "webdataset",
            "output_partition_count": 1,
            "batch_size": 64,
            "num_prepro_workers": 2,
            "use_jit": False,
            "clip_model": f"open_clip:ViT-B-32/{weights}/open_clip/open_clip_model.safetensors",
        }
        return [program, "inference", *(f"--{key}={value}" for key, value in options.items())]

    def scored(out: Path) -> np.ndarray:
        towers = []
        for kind in ("img", "text"):
            parts = sorted((out / "embeddings" / f"{kind}_emb").glob("*.npy"))
            towers.append(np.concatenate([np.load(part) for part in parts]).astype(np.float64) if parts else np.zeros((0, 1)))
        return np.asarray((towers[0] * towers[1]).sum(axis=1))

    return Tool("clip-retrieval 2.44", tuple(_CLIP_RETRIEVAL), command, scored)


def data_juicer() -> Tool:
    """Return Data-Juicer's image-text similarity operator on two processes."""

    def command(data: Path, weights: Path, out: Path) -> list[object]:
        program = environment("data-juicer", tuple(_DATA_JUICER)) / "dj-process"
        with tempfile.NamedTemporaryFile("w", dir=out, suffix=".yaml", delete=False) as config:
            config.write(_JUICER_CONFIG.format(data=data, out=out, weights=weights))
        return [program, "--config", config.name]

    def scored(out: Path) -> np.ndarray:
        scale = float(np.exp(np.log(1 / 0.07))) / 100  # it reports logits / 100; the scale of untrained weights is 1 / .07
        found = []
        for line in (out / "pairs.jsonl").read_text().splitlines():
            found += json.loads(line).get("__dj__stats__", {}).get("image_text_similarity", [])
        return np.asarray(found) / scale

    return Tool("Data-Juicer 1.6.1", tuple(_DATA_JUICER), command, scored)
