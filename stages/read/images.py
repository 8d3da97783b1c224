"""Decode one crawled image safely: known formats only, size checked from the header before any pixel is decoded."""

import io
from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from manifests.labels import Reason

# Only what the web serves as photographs and drawings: no PostScript, no PDF, nothing that calls other programs.
_WANTED: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "ICO", "JPEG2000", "PPM")
Image.init()
FORMATS: Final = tuple(form for form in _WANTED if form in Image.OPEN)  # a lean Pillow may lack some

# Sizes are checked here, against the run's own setting, as soon as the header is read; Pillow's global limit would warn.
Image.MAX_IMAGE_PIXELS = None

# Each scan of a progressive JPEG goes over all its pixels again; encoders write about ten.
_MOST_SCANS: Final = 100
_USUAL_SCANS: Final = 10
_SCAN: Final = b"\xff\xda"  # cannot stand inside compressed data
# So that a row costs a few seconds at most, whatever is in it: `python -m benchmarks.speed.decode` has the rates.
_SLOWER: Final = {"WEBP": 4, "AVIF": 4, "JPEG2000": 16}

Pixels = npt.NDArray[np.uint8]
Preprocess = Callable[[Image.Image], Image.Image]
Draft = Callable[[int, int], tuple[int, int]]
Made = TypeVar("Made")


class UndecodableImage(Exception):
    """An image that cannot be scored, with the reason for its quarantine."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def decode_image(data: bytes, preprocess: Preprocess, *, size_px: int, max_pixels: int) -> tuple[Pixels, int]:
    """Decode, convert to RGB and preprocess one image.

    Args:
        data: Encoded image.
        preprocess: The model's resize and crop, PIL image to PIL image.
        size_px: Edge of what `preprocess` returns; for the check of extreme shapes.
        max_pixels: Limit on pixels by the header, and on the resized canvas of very long images.

    Returns:
        RGB pixels, uint8, shape (size_px, size_px, 3), and the shorter side of the encoded image, px.

    Raises:
        UndecodableImage: With the reason for the quarantine.
    """

    def use(image: Image.Image) -> tuple[Pixels, int]:
        return np.asarray(preprocess(image), dtype=np.uint8), min(image.size)

    return decode(data, use, size_px=size_px, max_pixels=max_pixels)


def decode(
    data: bytes, use: Callable[[Image.Image], Made], *, size_px: int, max_pixels: int, draft: Draft | None = None
) -> Made:
    """Decode one image, convert it to RGB, and return what `use` makes of it.

    The first frame of an animation is taken. Alpha is dropped as open_clip's own loaders do; CMYK and palettes are
    converted; 16-bit and float greys are scaled to 8 bits rather than clipped.

    Args:
        data: Encoded image.
        use: What is wanted of the RGB image; its errors count as damage of the file.
        size_px: Edge that the image will be resized to; for the check of extreme shapes.
        max_pixels: Limit on pixels by the header, and on the resized canvas of very long images.
        draft: Least size that is good enough, from width and height; a JPEG may then be decoded smaller, which is faster.

    Raises:
        UndecodableImage: With the reason for the quarantine.
    """
    if not data:
        raise UndecodableImage(Reason.IMAGE_UNDECODABLE, "0 bytes")
    scans = data.count(_SCAN) if data[:2] == b"\xff\xd8" else 1
    if scans > _MOST_SCANS:
        raise UndecodableImage(Reason.IMAGE_TOO_LARGE, f"a JPEG of {scans} scans, allowed are {_MOST_SCANS}")
    try:
        with _open(data) as image:
            slower = max(_SLOWER.get(image.format or "", 1), scans / _USUAL_SCANS)
            _check_size(image.width, image.height, size_px, max_pixels, slower)
            if draft is not None:
                image.draft(None, draft(image.width, image.height))  # does nothing to other formats
            return use(_to_rgb(image))
    except UndecodableImage:
        raise
    except Exception as error:  # noqa: BLE001  # Pillow raises a dozen unrelated types on damaged files
        detail = f"{type(error).__name__}: {error}; {len(data)} bytes starting with {data[:16]!r}"
        raise UndecodableImage(Reason.IMAGE_UNDECODABLE, detail[:300]) from None


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        head = data[:24].lstrip()
        kind = "HTML or XML" if head.startswith(b"<") else "no known image format"
        raise UndecodableImage(Reason.IMAGE_UNDECODABLE, f"{kind}; {len(data)} bytes starting with {data[:16]!r}") from None


def _check_size(width: int, height: int, size_px: int, max_pixels: int, slower: float) -> None:
    """Refuse an image by its header; where its format decodes so many times more slowly, so many times fewer pixels do."""
    if width < 1 or height < 1:
        raise UndecodableImage(Reason.IMAGE_UNDECODABLE, f"{width} x {height} px")
    if width * height * slower > max_pixels:
        allowed = f"{int(max_pixels / slower)}{' of this kind' if slower > 1 else ''}"
        raise UndecodableImage(
            Reason.IMAGE_TOO_LARGE, f"{width} x {height} px by its header, allowed are {allowed} (max_image_pixels)"
        )
    long, short = max(width, height), min(width, height)
    if size_px * size_px * long > max_pixels * short:
        raise UndecodableImage(
            Reason.IMAGE_TOO_LARGE, f"{width} x {height} px: resized, its long side would be {size_px * long // short} px"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)  # float TIFFs have any number
        top = 65535.0 if image.mode.startswith("I") and grey.max(initial=0) > 255 else max(grey.max(initial=0), 1.0)
        return Image.fromarray((grey.clip(0, top) * (255.0 / top)).round().astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns, and keeps the transparent colour's index
    return image if image.mode == "RGB" else image.convert("RGB")
