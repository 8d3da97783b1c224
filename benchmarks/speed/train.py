"""The trainer's input against open_clip's own WebDataset loader, its step against a bare loop, and the memory of its pools.

    python -m benchmarks.speed.train [--rows 2048] [--size 224]

Input: the bundled drawings as 256 px JPEGs in four tars, as img2dataset leaves them; both loaders make randomly cropped,
mirrored, normalised images and tokens of the same pairs, with two workers (two processes there, two decoding threads here).
Ours also joins the labels of a sealed round; where half of the rows are risky it reads the shards twice and cuts two views of
each risky row. Runs alternate; ratios are medians.
"""

import argparse
import functools
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import open_clip_train.data
import psutil
import torch
from open_clip.loss import ClipLoss
from open_clip_train.data import get_wds_dataset
from PIL import Image
from webdataset.tariterators import tar_file_expander

from benchmarks.common import ROOT, header
from manifests import Label, Manifest, open_round
from stages.read.crops import Crops
from stages.read.shards import Dataset, open_dataset, read_shard
from stages.score.decode import Decode
from stages.score.models.encoders import preprocess_config
from stages.settings import ReadSettings
from stages.train.augment import Draws, change_colours
from stages.train.batches import Batch, PassRows, pass_batches
from stages.train.group import Group
from stages.train.learner import ClipLearner, new_model
from stages.train.losses import NeighbourPool
from stages.train.settings import TrainSettings
from stages.train.sharing import plan_steps
from stages.train.views import Views

EMOJI = ROOT / "examples" / "emoji"
BATCH = 64
TURNS = 5
LEAST_CROP = 0.9  # of open_clip's own default augmentation


def write_shards(folder: Path, num_rows: int) -> None:
    """Write the first bundled pairs as 256 px JPEGs into four tars."""
    dataset = open_dataset([str(EMOJI / "train")])
    pairs = (pair for shard in dataset.shards for pair in read_shard(dataset.store, shard, ReadSettings()))
    rows = [pair for pair, _ in zip(pairs, range(num_rows), strict=False)]
    for shard in range(4):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number, pair in enumerate(rows[shard::4]):
                jpeg = io.BytesIO()
                Image.open(io.BytesIO(pair.image or b"")).convert("RGB").resize((256, 256)).save(jpeg, "JPEG", quality=90)
                for suffix, data in (("jpg", jpeg.getvalue()), ("txt", (pair.caption or "").encode())):
                    info = tarfile.TarInfo(f"{shard:02d}{number:06d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def theirs(folder: Path, num_rows: int, size: int, tokenizer: Any) -> Any:
    """Return open_clip's training loader over the shards."""
    # webdataset marks the end of every shard by an empty sample since 1.0, which open_clip 3.3's own reader does not know
    open_clip_train.data.tar_file_expander = functools.partial(tar_file_expander, eof_value=None)
    preprocess = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(size=size), is_train=True)
    args = SimpleNamespace(
        train_data=str(folder / "{00000..00003}.tar"),
        train_num_samples=num_rows,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=BATCH,
        workers=2,
        world_size=1,
    )
    return get_wds_dataset(args, preprocess, is_train=True, tokenizer=tokenizer)


def rate_of(sizes: Iterator[int]) -> float:
    """Return rows per second of an iteration that yields the rows of each batch."""
    start = time.perf_counter()
    return sum(sizes) / (time.perf_counter() - start)


def seal(folder: Path, share: float) -> Manifest:
    """Return a sealed round of the shards in which this share is safe."""
    run = folder / f"run-{share}"
    command = [Path(sys.executable).parent / "pairsan", "clean", folder / "shards", "--checkpoint", EMOJI / "tiny-clip"]
    command += ["--out", run, "--executor", "local", "--keep-share", share, "--if-unseparable", "accept"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return open_round(run)


def input_speed(num_rows: int, size: int) -> None:
    """Print the ratio of the two loaders' rows per second: one view of each row, as theirs; two of every other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shards").mkdir()
        write_shards(folder / "shards", num_rows)
        tokenizer = open_clip.get_tokenizer("ViT-B-32")
        loader = theirs(folder / "shards", num_rows, size, tokenizer).dataloader
        rate_of(len(images) for images, _ in loader)  # their workers start once and stay
        for share, what in ((1.0, "all rows safe: one view each"), (0.5, "half of them risky: two views of each of those")):
            ours = trainer_input(seal(folder, share), open_dataset([str(folder / "shards")]), size)
            found = [(rate_of(ours(turn)), rate_of(len(images) for images, _ in loader)) for turn in range(TURNS)]
            ratios = [mine / other for mine, other in found]
            mine, other = (statistics.median(column) for column in zip(*found, strict=True))
            ratio = statistics.median(ratios)
            print(f"input at {size} px, {what}: {mine:.0f} pairs/s, open_clip's loader {other:.0f}; ratio {ratio:.2f}")
            print(f"  all turns: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def trainer_input(manifest: Manifest, dataset: Dataset, size: int) -> Callable[[int], Iterator[int]]:
    """Return a pass of our own input, which yields the rows of each batch once its tensors are made."""
    model = new_model("ViT-B-32", 0)
    decode = Decode(dataset.store, ReadSettings(), {**preprocess_config(model), "size": (size, size)}, num_threads=2)
    decode.open()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    views = Views(model.eval(), tokenizer, TrainSettings(colour_strength=0.0), torch.device("cpu"), Group())
    counts = manifest.seal["counts"]["labels"]
    labels = plan_steps([{label: counts[label] for label in (Label.SAFE, Label.RISKY)}], BATCH, "interleaved", 0)

    def one_pass(seed: int) -> Iterator[int]:
        rows = PassRows(manifest, dataset.shards, labels, BATCH, seed, 4096, Crops(seed, LEAST_CROP, size))
        for batch in pass_batches(rows, decode):
            views.tokens(batch.captions)
            for view in batch.views:
                views.images(view)
            yield len(batch.uids)

    return one_pass


def step_speed(model_name: str) -> None:
    """Print the ratio of a bare loop's step to ours, both with the same augmentation, CLIP loss on the same batches."""
    options = TrainSettings(train_batch_size=BATCH, p_caption_change=0.0)
    rng = np.random.default_rng(0)
    size = preprocess_config(new_model(model_name, 0))["size"]
    edge = size if isinstance(size, int) else size[0]
    captions = [f"a picture of the {i}th thing, and another" for i in range(BATCH)]
    pixels = rng.integers(0, 256, (BATCH, edge, edge, 3), np.uint8)
    batches = [Batch(Label.SAFE, (pixels,), np.zeros(BATCH, np.int64), captions, [bytes(16)] * BATCH)] * 12
    tokenizer = open_clip.get_tokenizer(model_name)
    learner = ClipLearner(new_model(model_name, 0), tokenizer, options)
    model = new_model(model_name, 0).to(memory_format=torch.channels_last).train()
    optimizer, loss_of = torch.optim.AdamW(model.parameters(), lr=1e-3), ClipLoss()
    mean, std = (torch.tensor(preprocess_config(model)[key]).view(1, 3, 1, 1) for key in ("mean", "std"))

    def bare() -> None:
        for batch in batches:
            draws = Draws(torch.Generator().manual_seed(1), BATCH, slice(0, BATCH), torch.device("cpu"))
            view = change_colours(torch.from_numpy(batch.views[0]).permute(0, 3, 1, 2), draws)
            images = ((view - mean) / std).contiguous(memory_format=torch.channels_last)
            features = model(images, tokenizer(batch.captions))
            loss = loss_of(*features[:3])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def clock(work: Any) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    learner.learn(batches[:2], lambda _: 1e-3)
    ratios = [clock(bare) / clock(lambda: learner.learn(batches, lambda _: 1e-3)) for _ in range(TURNS)]
    print(f"step of {Path(model_name).name}: bare loop / ours {statistics.median(ratios):.2f} (above 1: ours is faster)")
    print(f"  all turns: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def pool_memory(size: int = 131_072, dim: int = 512, num: int = 512) -> None:
    """Print what a pool and one search in it take, by product and by FAISS."""
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(size, dim), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(num, dim), dim=1)
    print(f"pool of {size:,} x {dim}: {size * dim * 4 / 1e6:.0f} MB; a search by {num} rows:")
    for name, limit in (("product", size + 1), ("FAISS", 1)):
        pool = NeighbourPool(size, dim, limit)
        pool.push(rows)
        pool.nearest(queries[:8])
        process = psutil.Process()
        before, start = process.memory_info().rss, time.perf_counter()
        pool.nearest(queries)
        seconds = time.perf_counter() - start
        grown = max(0, process.memory_info().rss - before) / 1e6
        print(f"  {name}: {seconds * 1e3:.0f} ms, resident memory + {grown:.0f} MB after")
    print(f"  (the product itself has {num * size * 4 / 1e6:.0f} MB while it is there)")


def main() -> None:
    """Run all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    header("speed.train")
    torch.manual_seed(0)
    input_speed(args.rows, args.size)
    step_speed(f"local-dir:{EMOJI / 'demo-model'}")
    pool_memory()


if __name__ == "__main__":
    main()
