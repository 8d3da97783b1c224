"""Random crops and mirrors, cut out of an image while it is decoded: one resize per view, and none to a size in between.

Source: RandomResizedCrop as CLIP and SAFECLIP train with it: a box of random area and shape, resized to the model's input.
"""

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from stages.read.images import decode

Pixels = npt.NDArray[np.uint8]
Change = Callable[[Pixels], Pixels]
SHAPES: Final = (3 / 4, 4 / 3)
_CHANGED: Final = 8  # edges of a view that the longer side of a picture may have which is changed


@dataclass(frozen=True, slots=True)
class Crop:
    """One random view's box, before the size of the image is known.

    Attributes:
        area: Share of the image's area, in (0, 1].
        shape: Width through height, in px.
        x: Where the box lies between the left and the right edge, in [0, 1].
        y: The same from top to bottom.
        mirror: Whether left and right are exchanged.
    """

    area: float
    shape: float
    x: float
    y: float
    mirror: bool

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, right, bottom in px inside an image of this size; a box that is too long is cut."""
        wide = min(width, max(1, round(math.sqrt(self.area * width * height * self.shape))))
        high = min(height, max(1, round(math.sqrt(self.area * width * height / self.shape))))
        left, top = round(self.x * (width - wide)), round(self.y * (height - high))
        return left, top, left + wide, top + high


@dataclass(frozen=True, slots=True)
class Crops:
    """Draws the crops of every row of a training run, from (seed, step, row) alone.

    Attributes:
        seed: Of the training run.
        least_area: Least share of an image that a crop covers.
        size_px: Edge of the views.
        interpolation: `bicubic` or `bilinear`.
        first_row: Place of this worker's first row in the batch of all workers.
    """

    seed: int
    least_area: float
    size_px: int
    interpolation: str = "bicubic"
    first_row: int = 0

    def draw(self, step: int, row: int, num: int) -> tuple[Crop, ...]:
        """Return the crops of `num` views of a row of a step."""
        rng = random.Random(f"{self.seed}/{step}/{self.first_row + row}")  # noqa: S311  # augmentation, no secret
        low, high = (math.log(shape) for shape in SHAPES)
        return tuple(
            Crop(
                rng.uniform(self.least_area, 1.0),
                math.exp(rng.uniform(low, high)),
                rng.random(),
                rng.random(),
                rng.random() < 0.5,
            )
            for _ in range(num)
        )

    def cut(self, data: bytes, crops: Sequence[Crop], *, max_pixels: int, change: Change | None = None) -> tuple[Pixels, ...]:
        """Decode an image once and return its views, uint8 (size_px, size_px, 3) each.

        A JPEG is decoded at a half, a quarter or an eighth of its size where the smallest box still has `size_px` there.

        Args:
            data: Encoded image.
            crops: One of each view.
            max_pixels: See `stages.read.images.decode`.
            change: What is done to the whole picture before.

        Raises:
            UndecodableImage: With the reason.
        """
        interpolation = _interpolation(self.interpolation)
        views = functools.partial(_views, crops=crops, size_px=self.size_px, interpolation=interpolation, change=change)
        return decode(data, views, size_px=self.size_px, max_pixels=max_pixels, draft=self._draft(crops))

    def _draft(self, crops: Sequence[Crop]) -> Callable[[int, int], tuple[int, int]]:
        def wanted(width: int, height: int) -> tuple[int, int]:
            boxes = [crop.box(width, height) for crop in crops]
            narrow = min((right - left) / width for left, _, right, _ in boxes)
            flat = min((bottom - top) / height for _, top, _, bottom in boxes)
            return math.ceil(self.size_px / narrow), math.ceil(self.size_px / flat)

        return wanted


def _views(
    image: Image.Image, crops: Sequence[Crop], size_px: int, interpolation: InterpolationMode, change: Change | None
) -> tuple[Pixels, ...]:
    if change is None:
        pixels = np.array(image)
    else:
        image.thumbnail((_CHANGED * size_px, _CHANGED * size_px))  # a change works in floats, several bytes a value
        pixels = change(np.array(image))
    found = []
    for crop in crops:
        left, top, right, bottom = crop.box(image.width, image.height)
        # bytes all along: torch resizes them about 2.5 times as fast as Pillow does, and without its threads
        box = torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1)
        view = resize(box, [size_px, size_px], interpolation, antialias=True).permute(1, 2, 0).numpy()
        found.append(view[:, ::-1] if crop.mirror else view)
    return tuple(found)


def _interpolation(name: str) -> InterpolationMode:  # open_clip's "random" is a choice between the two
    return InterpolationMode.BILINEAR if name == "bilinear" else InterpolationMode.BICUBIC
