"""Random colours of images and words of captions; new draws every time. Crops are cut at decoding (`stages.read.crops`).

Source: SAFECLIP's strengths (colour jitter .5 .5 .5 .1 at p .8; grey at p .2; blur); captions by EDA
(Wei, Zou 2019), alpha 0.1.
"""

import math
import random
from typing import Final

import torch
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import gaussian_blur

JITTER: Final = (0.5, 0.5, 0.5, 0.1)
WIDE_JITTER: Final = (0.5, 0.5, 0.5, 0.5)  # hues all around the circle
P_JITTER, P_GREY, P_BLUR = 0.8, 0.2, 0.5
P_WIDE_GREY, P_CURVES, P_PATTERN = 0.4, 0.7, 0.6
EDA_ALPHA: Final = 0.1
_GREY: Final = (0.299, 0.587, 0.114)


class Draws:
    """Random numbers for some rows of a batch: the same ones whichever workers hold the other rows."""

    def __init__(self, generator: torch.Generator, num_total: int, rows: slice, device: torch.device) -> None:
        """Draw for `num_total` rows and hand out those of `rows`."""
        self._generator, self._num_total, self._rows, self._device = generator, num_total, rows, device

    def uniform(self, low: float, high: float) -> torch.Tensor:
        """Return one number per row in [low, high)."""
        drawn = low + (high - low) * torch.rand(self._num_total, generator=self._generator)
        return drawn[self._rows].to(self._device)

    def chance(self, p: float) -> torch.Tensor:
        """Return one bool per row, (n, 1, 1, 1)."""
        return (self.uniform(0.0, 1.0) < p).view(-1, 1, 1, 1)

    def one(self) -> float:
        """Return one number in [0, 1) for the whole batch."""
        return float(torch.rand((), generator=self._generator))

    def grids(self, cells: int) -> torch.Tensor:
        """Return a coarse picture of random colours per row, float32 (n, 3, cells, cells) in [0, 1)."""
        return torch.rand(self._num_total, 3, cells, cells, generator=self._generator)[self._rows].to(self._device)


def change_colours(pixels: torch.Tensor, draws: Draws, *, strength: float = 1.0, wide: bool = False) -> torch.Tensor:
    """Return each image with colours of its own: jittered, grey or blurred, by chance.

    Args:
        pixels: uint8 (n, 3, h, w).
        draws: Source of all randomness, for these n rows.
        strength: Share of the chances of jitter, grey and blur; 0 leaves all as they are.
        wide: Whether hues go all around the circle, and tone curves and coarse patterns come on top: whatever a tower has
            seen vary, it cannot offer to a text tower as the mark of a class.

    Returns:
        float32 (n, 3, h, w) in [0, 1].
    """
    images = pixels * (1.0 / 255.0)
    jittered = _jitter(images, draws, WIDE_JITTER if wide else JITTER)
    images = torch.where(draws.chance(P_JITTER * strength), jittered, images)
    grey = (images * images.new_tensor(_GREY).view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(images)
    images = torch.where(draws.chance((P_WIDE_GREY if wide else P_GREY) * strength), grey, images)
    sigma = 0.1 + 1.9 * draws.one()
    images = torch.where(draws.chance(P_BLUR * strength), gaussian_blur(images, [5, 5], [sigma, sigma]), images)
    if wide:
        images = torch.where(draws.chance(P_CURVES * strength), _tone_curves(images, draws), images)
        images = torch.where(draws.chance(P_PATTERN * strength), _with_pattern(images, draws), images)
    return images


def _tone_curves(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Give each channel of each image a gamma of 0.4 to 2.5, a black of 0 to 0.3 and a white of 0.7 to 1."""
    gamma, black, white = (
        torch.stack([draws.uniform(low, high) for _ in range(3)], 1)[:, :, None, None]
        for low, high in ((-0.9, 0.9), (0.0, 0.3), (0.7, 1.0))
    )
    return black + (white - black) * images.clamp(1e-4, 1.0) ** gamma.exp()


def _with_pattern(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Blend each image with up to 40 % of a random coarse picture of its own, 2 to 15 cells wide."""
    pattern = draws.grids(2 + int(draws.one() * 14))
    if draws.one() < 0.5:
        pattern = pattern.round()  # cells of full colours
    pattern = interpolate(pattern, images.shape[-2:], mode="bicubic").clamp(0.0, 1.0)
    share = draws.uniform(0.0, 0.4).view(-1, 1, 1, 1)
    return images * (1.0 - share) + pattern * share


def _jitter(images: torch.Tensor, draws: Draws, strengths: tuple[float, ...] = JITTER) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue of each image by its own factors."""
    bright, contrast, colour = (draws.uniform(1 - s, 1 + s).view(-1, 1, 1, 1) for s in strengths[:3])
    weights = images.new_tensor(_GREY).view(1, 3, 1, 1)
    changed = (images * bright).clamp(0, 1)
    mean = (changed * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    changed = (mean + (changed - mean) * contrast).clamp(0, 1)
    grey = (changed * weights).sum(1, keepdim=True)
    changed = (grey + (changed - grey) * colour).clamp(0, 1)
    return _rotate_hue(changed, draws.uniform(-strengths[3], strengths[3]))


def _rotate_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the colours of each image around the grey axis by a share of the full circle."""
    angle = 2 * math.pi * turns
    cos, sin = angle.cos().view(-1, 1, 1, 1), angle.sin().view(-1, 1, 1, 1)
    grey = images.mean(1, keepdim=True)
    cross = torch.roll(images, 1, 1) - torch.roll(images, -1, 1)  # (1, 1, 1) x colour
    return (grey + (images - grey) * cos + cross * sin / math.sqrt(3.0)).clamp(0, 1)


def augment_caption(caption: str, rng: random.Random) -> str:
    """Return a caption changed by a random swap of words or by random deletion (EDA without its synonyms, alpha 0.1)."""
    words = caption.split()
    if len(words) < 2:
        return caption
    if rng.randrange(4) in (0, 2):
        for _ in range(max(1, round(EDA_ALPHA * len(words)))):
            i, j = rng.sample(range(len(words)), 2)
            words[i], words[j] = words[j], words[i]
        return " ".join(words)
    kept = [word for word in words if rng.random() > EDA_ALPHA]
    return " ".join(kept or [rng.choice(words)])
