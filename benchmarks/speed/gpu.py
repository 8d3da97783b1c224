"""What one GPU does with the stages: speed of scoring and its parts, precision, labels, decoding, neighbours, OOM, training.

    python -m benchmarks.speed.gpu [--pairs 8192] [--json FILE]

Needs no network and no data: photographs are smooth noise with edges, JPEG 85 at 512 x 384, weights of ViT-B-32 and ViT-L-14
are random (speed does not depend on them), and what depends on trained weights is measured with the bundled tiny-clip on the
bundled pairs. Stages run in this process, one worker with all CPUs as decoding threads, as a Ray worker beside one GPU has.
`busy` is the time that the forward pass alone takes on resident tensors through the time of the whole stage.
"""

import argparse
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.common import ROOT, header
from manifests.layout import SCORES, part_name
from manifests.store import open_store
from stages.histogram import Histogram, count
from stages.label.decide import decide
from stages.label.settings import SplitSettings
from stages.read.shards import Dataset, open_dataset
from stages.score.decode import Decode
from stages.score.embed import Embed, EmbedTarget
from stages.score.models.checkpoints import load_model
from stages.score.models.cross_fit import make_encoder
from stages.score.models.encoders import image_size, pixel_preprocess, preprocess_config
from stages.score.models.weights import Weights, file_sha256, resolve_weights
from stages.settings import ModelSettings, ReadSettings
from stages.signals.nearest import Nearest
from stages.vectors import read_columns, unit

SHARDS, BATCH, THREADS = 8, 256, os.cpu_count() or 1
Facts = dict[str, Any]


def photograph(rng: np.random.Generator) -> bytes:
    """Return a JPEG of about the size and detail of a crawl's."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((512, 384), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, np.int16) + rng.normal(0, 6, (384, 512, 1)).astype(np.int16)
    out = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()


def write_data(folder: Path, num: int) -> list[bytes]:
    """Write tars of photographs with captions, and return the photographs."""
    rng = np.random.default_rng(0)
    shown = [photograph(rng) for _ in range(256)]
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(num // SHARDS):
                words = " ".join(f"word{n}" for n in rng.integers(0, 5000, 10))
                for end, data in (("jpg", shown[row % len(shown)]), ("txt", words.encode())):
                    info = tarfile.TarInfo(f"{shard}-{row}.{end}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return shown


def random_weights(name: str, folder: Path) -> Weights:
    """Write random weights of an architecture, and return them as a run would resolve them."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, load_weights=False)
    path = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return Weights(name, str(path), None, file_sha256(path))


def stage_of(weights: Weights, data: Dataset, run: Path, device: str, precision: str) -> Embed:
    """Return the scoring stage as `pairsan clean` makes it."""
    preprocess = preprocess_config(load_model(weights))
    decode = Decode(data.store, ReadSettings(), preprocess, num_threads=THREADS, prefetch=device == "cuda")
    target = EmbedTarget(decode, weights, open_store(run), 1, "x", device, precision, BATCH, THREADS, False, True)
    return Embed(target)


def score(stage: Embed, data: Dataset) -> float:
    """Score all shards after the first, which warms up; return seconds a pair."""
    stage.open()
    stage.run(data.shards[0])
    start = time.perf_counter()
    rows = sum(stage.run(shard).num_rows for shard in data.shards[1:])
    return (time.perf_counter() - start) / rows


def per_item(work: Callable[[], object], num: int, repeat: int = 5) -> float:
    """Return the median seconds an item of a piece of work on the GPU."""
    work()
    spent = []
    for _ in range(repeat):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    return float(np.median(spent)) / num


def speed(name: str, data: Dataset, shown: list[bytes], folder: Path) -> Facts:
    """Measure scoring, its forward pass alone, and its decoding alone."""
    weights = random_weights(name, folder)
    encoder = make_encoder(weights, device="cuda", precision="fp32", batch_size=BATCH)
    config = preprocess_config(load_model(weights))
    edge = image_size(config)
    model, inputs = encoder._model, torch.randn(BATCH, 3, edge, edge, device="cuda")  # type: ignore[union-attr]
    inputs = inputs.to(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            model.encode_image(inputs)  # type: ignore[operator]

    alone = per_item(forward, BATCH)
    model.to(torch.bfloat16)
    halves = inputs.to(torch.bfloat16)
    with torch.inference_mode():
        pure = per_item(lambda: model.encode_image(halves), BATCH)  # type: ignore[operator]
    preprocess = pixel_preprocess(config)
    start = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda blob: np.asarray(preprocess(Image.open(io.BytesIO(blob)).convert("RGB"))), shown * 8))
    decoding = (time.perf_counter() - start) / (8 * len(shown))
    whole = score(stage_of(weights, data, folder / name, "cuda", "bf16"), data)
    rates = {"forward": 1 / alone, "pure_bf16_forward": 1 / pure, "decode": 1 / decoding, "clean": 1 / whole}
    return {**{f"{key}_per_s": round(rate, 1) for key, rate in rates.items()}, "busy": round(alone / whole, 3)}


def labels(folder: Path) -> Facts:
    """Compare cosines, and labels by the default rule, of a trained model in three ways of computing them."""
    data, found = open_dataset([str(ROOT / "examples/emoji/eval")]), {}
    weights = resolve_weights(ModelSettings(checkpoint=str(ROOT / "examples/emoji/tiny-clip")))
    for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")):
        run = folder / f"{device}-{precision}"
        stage = stage_of(weights, data, run, device, precision)
        stage.open()
        tables = []
        for shard in data.shards:
            stage.run(shard)
            tables.append(read_columns(open_store(run), part_name(1, SCORES, shard.name), ["cosine", "null_cosines"]))
        cosines = np.concatenate([table["cosine"].drop_null().to_numpy() for table in tables])
        nulls = np.concatenate([table["null_cosines"].combine_chunks().flatten().drop_null().to_numpy() for table in tables])
        pairs, mismatched = Histogram(), Histogram()
        pairs.add(count(cosines))
        mismatched.add(count(nulls))
        decision = decide(pairs, SplitSettings(alpha=0.05), nulls=mismatched)
        found[f"{device} {precision}"] = (cosines, decision.is_safe(cosines), decision.cut)
    base = found.pop("cpu fp32")
    told: Facts = {"rows": len(base[0]), "cut": base[2]}
    for name, (cosines, safe, cut) in found.items():
        moved = np.abs(cosines - base[0])
        told[name] = {
            **{"largest_difference": float(moved.max()), "mean_difference": float(moved.mean()), "cut": cut},
            **{"labels_that_differ": int((safe != base[1]).sum())},
        }
    return told


def decoders(shown: list[bytes]) -> Facts:
    """Compare Pillow with torchvision's decoders, all threads against one card."""
    told: Facts = {}
    tensors = [torch.frombuffer(bytearray(blob), dtype=torch.uint8) for blob in shown]
    with ThreadPoolExecutor(THREADS) as pool:
        start = time.perf_counter()
        pillow = list(pool.map(lambda blob: np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")), shown * 4))
        told["pillow_per_s"] = round(len(pillow) / (time.perf_counter() - start))
        start = time.perf_counter()
        cpu = list(pool.map(lambda one: decode_jpeg(one, ImageReadMode.RGB), tensors * 4))
        told["torchvision_cpu_per_s"] = round(len(cpu) / (time.perf_counter() - start))
    told["torchvision_cpu_largest_difference"] = _apart(pillow, cpu)
    try:
        card: list[torch.Tensor] = decode_jpeg(tensors, ImageReadMode.RGB, device="cuda")
        told["nvjpeg_per_s"] = round(1 / per_item(lambda: decode_jpeg(tensors, ImageReadMode.RGB, device="cuda"), len(tensors)))
        told["nvjpeg_largest_difference"] = _apart(pillow, [one.cpu() for one in card])
    except RuntimeError as error:
        told["nvjpeg"] = str(error).splitlines()[0][:200]
    return told


def _apart(pillow: list[np.ndarray], others: list[torch.Tensor]) -> int:
    pairs = zip(pillow, others, strict=False)
    return max(int(np.abs(a.astype(int) - b.permute(1, 2, 0).numpy().astype(int)).max()) for a, b in pairs)


def neighbours(num: int = 1_000_000, sample: int = 8192, k: int = 64, dim: int = 512) -> Facts:
    """Seek neighbours of many rows in a sample: by `Nearest` as it is here, on a few rows, and by torch on the card, on all."""
    rng = np.random.default_rng(0)
    theirs, mine = (unit(rng.normal(size=(n, dim)).astype(np.float32)) for n in (sample, 20_000))
    nearest = Nearest(theirs, exact=True)
    start = time.perf_counter()
    similar, places = nearest(mine, k)
    ours = len(mine) / (time.perf_counter() - start)
    card = torch.from_numpy(theirs).cuda().T

    def seek(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        values, found = (torch.from_numpy(rows).cuda() @ card).topk(k, dim=1)
        return values.cpu(), found.cpu()

    values, found = seek(mine)
    start = time.perf_counter()
    for _ in range(num // len(mine)):
        seek(mine)
    return {
        "rows": num,
        "nearest_rows_per_s": round(ours),
        "torch_cuda_rows_per_s": round(num / (time.perf_counter() - start)),
        "largest_difference": float(np.abs(similar - values.numpy()).max()),
        "same_places": float((places == found.numpy()).mean()),
    }


def out_of_memory(folder: Path) -> Facts:
    """Fill the card but for 2 GB, ask for a batch that cannot fit, and see that it is halved and the vectors stay the same."""
    weights = random_weights("ViT-B-32", folder)
    encoder = make_encoder(weights, device="cuda", precision="fp32", batch_size=4096)
    pixels = np.random.default_rng(0).integers(0, 256, (4096, 224, 224, 3), np.uint8)
    whole = encoder.encode_images(pixels[:512])
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    ballast = torch.empty(max(0, free - (2 << 30)), dtype=torch.uint8, device="cuda")
    found = encoder.encode_images(pixels)
    del ballast
    torch.cuda.empty_cache()
    return {"batch_after": encoder.batch_size, "largest_difference": float(np.abs(found[:512] - whole).max())}  # type: ignore[union-attr]


def training(folder: Path) -> Facts:
    """Take one unimodal pass of the trainer on the card, kill nothing, and compare its loss with that of the CPU in fp32."""
    from pipeline.config.load import load_config
    from pipeline.training.one_pass import Job, position, take_pass
    from pipeline.training.schedule import passes_of

    data = open_dataset([str(ROOT / "examples/emoji/eval")])
    architecture = f"local-dir:{ROOT / 'examples/emoji/demo-model'}"
    rows = {shard.name: 400 for shard in data.shards}
    told: Facts = {}
    for name, device, precision in (("cpu fp32", "cpu", "fp32"), ("cuda fp32", "cuda", "fp32"), ("cuda bf16", "cuda", "bf16")):
        flags = {"scorer": "model", "rounds": 1, "train_precision": precision, "train_batch_size": 64}
        config, run = load_config(None, flags, command="run"), folder / f"train-{device}-{precision}"
        run.mkdir()
        job = Job(str(run), data, config, architecture, passes_of(config.train)[0], None, rows, last=False)
        start = time.perf_counter()
        take_pass(job, torch.device(device))
        told[name] = {
            "unimodal_loss": round(position(open_store(run))["history"][0]["unimodal_loss"], 4),
            "seconds": round(time.perf_counter() - start, 2),
        }
    return told


def main() -> None:
    """Measure all, print what was found, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8192)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    header("speed.gpu")
    told: Facts = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "threads": THREADS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        shown = write_data(folder / "data", args.pairs)
        data = open_dataset([str(folder / "data")])
        parts: dict[str, Callable[[], Facts]] = {
            "labels": lambda: labels(folder),
            "training": lambda: training(folder),
            "ViT-B-32": lambda: speed("ViT-B-32", data, shown, folder),
            "ViT-L-14": lambda: speed("ViT-L-14", data, shown, folder),
            "decoders": lambda: decoders(shown),
            "neighbours": neighbours,
            "out_of_memory": lambda: out_of_memory(folder),
        }
        for part, measure in parts.items():
            start = time.perf_counter()
            try:
                told[part] = measure()
            except Exception as error:  # noqa: BLE001  # one part that fails must not cost the others; the card is lent
                told[part] = {"failed": f"{type(error).__name__}: {error}"[:1000]}
            print(f"{part} ({time.perf_counter() - start:.0f} s): {json.dumps(told[part])}", flush=True)
            if args.json:
                args.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
