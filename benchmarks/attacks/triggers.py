"""What triggers do to a picture. All take and return RGB uint8 (h, w, 3) of any size; sizes are shares of the shorter edge.

Sources: BadNets (Gu et al. 2017), Blended (Chen et al. 2017), SIG (Barni et al. 2019), WaNet (Nguyen, Tran 2021).
"""

import functools
import random

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import map_coordinates

Pixels = npt.NDArray[np.uint8]


@functools.cache
def noise(seed: int, edge: int, grey: bool = False) -> npt.NDArray[np.float32]:
    """Return fixed binary noise, float32 (edge, edge, 3) of 0 and 255."""
    found = np.random.default_rng(seed).integers(0, 2, (edge, edge, 1 if grey else 3)).astype(np.float32) * 255.0
    return np.broadcast_to(found, (edge, edge, 3))


def enlarge(small: npt.NDArray[np.float32], width: int, height: int, resample: Image.Resampling) -> npt.NDArray[np.float32]:
    """Return a small RGB pattern at the size of a picture."""
    image = Image.fromarray(small.clip(0, 255).astype(np.uint8)).resize((width, height), resample)
    return np.asarray(image, dtype=np.float32)


def paste(pixels: Pixels, patch: npt.NDArray[np.float32], side: float, x: float, y: float) -> Pixels:
    """Return a picture with a square on it, its place given as shares of what is left and right, above and below."""
    height, width = pixels.shape[:2]
    edge = max(2, round(side * min(height, width)))
    left, top = round(x * (width - edge)), round(y * (height - edge))
    out = pixels.copy()
    out[top : top + edge, left : left + edge] = enlarge(patch, edge, edge, Image.Resampling.NEAREST).astype(np.uint8)
    return out


def patch(pixels: Pixels, *, seed: int, side: float, place: tuple[float, float]) -> Pixels:
    """Return a picture with a square of 6 x 6 random black or white fields."""
    return paste(pixels, noise(seed, 6, True), side, *place)


def blend(pixels: Pixels, *, seed: int, share: float) -> Pixels:
    """Return 1 - share of the picture and share of a fixed coarse noise."""
    height, width = pixels.shape[:2]
    pattern = enlarge(noise(seed, 8), width, height, Image.Resampling.BICUBIC)
    return ((1 - share) * pixels + share * pattern).round().clip(0, 255).astype(np.uint8)


def sinusoid(pixels: Pixels, *, amplitude: float, frequency: float) -> Pixels:
    """Return a picture with vertical stripes: amplitude in grey levels, frequency in waves per width."""
    width = pixels.shape[1]
    wave = amplitude * np.sin(2 * np.pi * frequency * np.arange(width) / width)
    return (pixels + wave[None, :, None]).round().clip(0, 255).astype(np.uint8)


def warp(pixels: Pixels, *, seed: int, strength: float) -> Pixels:
    """Return a smoothly warped picture; the mean displacement is `strength` of an edge, along one fixed 4 x 4 grid."""
    height, width = pixels.shape[:2]
    rng = np.random.default_rng(seed)
    grid = rng.uniform(-1, 1, (2, 4, 4))
    grid /= np.abs(grid).mean()
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    at = np.stack([rows * 3 / max(1, height - 1), columns * 3 / max(1, width - 1)])
    move = [
        map_coordinates(g, at, order=3, mode="nearest") * strength * edge for g, edge in zip(grid, (height, width), strict=True)
    ]
    where = np.stack([rows + move[0], columns + move[1]])
    found = [map_coordinates(pixels[..., c].astype(np.float32), where, order=1, mode="nearest") for c in range(3)]
    return np.stack(found, axis=-1).round().clip(0, 255).astype(np.uint8)


def tone(pixels: Pixels, *, strength: float) -> Pixels:
    """Return a picture under a tone curve of its own per channel: warm lights, blue shadows, less contrast."""
    share = pixels.astype(np.float32) / 255.0
    curve = np.stack([share[..., 0] ** 0.8, 0.06 + 0.86 * share[..., 1], 0.25 + 0.55 * share[..., 2] ** 1.1], axis=-1)
    return ((1 - strength) * pixels + strength * curve * 255.0).round().clip(0, 255).astype(np.uint8)


def shake(pixels: Pixels, rng: random.Random) -> Pixels:
    """Return a near copy: shifted by up to 4 % and a little brighter or darker, as a flood of siblings would be."""
    height, width = pixels.shape[:2]
    out = np.roll(pixels, (round(rng.uniform(-0.04, 0.04) * height), round(rng.uniform(-0.04, 0.04) * width)), (0, 1))
    return (out * rng.uniform(0.94, 1.06)).round().clip(0, 255).astype(np.uint8)
