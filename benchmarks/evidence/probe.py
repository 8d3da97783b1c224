"""A linear probe on Fashion-MNIST, unlike all in training; Debian ships it (`apt-get install dataset-fashion-mnist`)."""

import functools
import gzip
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
NUM_TRAIN, NUM_TEST = 4000, 2000


def is_there() -> bool:
    """Return whether the Debian package is installed."""
    return (FOLDER / "train-images-idx3-ubyte.gz").exists()


@functools.cache
def pictures(size_px: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the first training and test pictures as RGB, uint8 (n, size, size, 3), and their classes, uint8 (n,)."""
    images, classes = [], []
    for part, num in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
        pixels = _read(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:num]
        images += [np.asarray(Image.fromarray(picture).resize((size_px, size_px)).convert("RGB")) for picture in pixels]
        classes.append(_read(f"{part}-labels-idx1-ubyte.gz", 8)[:num])
    return np.stack(images), np.concatenate(classes)


def _read(name: str, header: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(gzip.decompress((FOLDER / name).read_bytes())[header:], np.uint8)


def hits(features: npt.NDArray[np.float32], classes: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Return how many test pictures a logistic regression on the training ones' features gets right, and of how many."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    probe.fit(features[:NUM_TRAIN], classes[:NUM_TRAIN])
    return int((probe.predict(features[NUM_TRAIN:]) == classes[NUM_TRAIN:]).sum()), NUM_TEST
