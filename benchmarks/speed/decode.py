"""How long the dearest image of each format takes that the limits let through: noise, and one colour.

    python -m benchmarks.speed.decode [--pixels 20000000]

One image of each is made and decoded; CPU-seconds are scaled to as many pixels, and bytes, as one row may have.
"""

import argparse
import io
import time
from typing import Any, Final

import numpy as np
from PIL import Image

from benchmarks.common import header
from stages.read.images import UndecodableImage, decode_image
from stages.settings import ReadSettings

KINDS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("JPEG", {"quality": 95}),
    ("JPEG", {"quality": 95, "progressive": True}),
    ("PNG", {"compress_level": 1}),
    ("WEBP", {"quality": 80}),
    ("WEBP", {"lossless": True, "method": 0}),
    ("AVIF", {"speed": 10}),
    ("JPEG2000", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("GIF", {}),
    ("BMP", {}),
)


def least_limit(data: bytes, num_pixels: int) -> float:
    """Return the lowest `max_image_pixels`, as a multiple of an image's own pixels, under which it is decoded."""
    for times in (1, 2, 4, 8, 16, 32):
        try:
            decode_image(data, lambda image: image.resize((8, 8)), size_px=8, max_pixels=num_pixels * times)
        except UndecodableImage:
            continue
        return times
    raise SystemExit("an image of the benchmark's own is refused")


def main() -> None:
    """Print a line for each format and content."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=20_000_000)
    num = parser.parse_args().pixels
    header("speed.decode")
    limits, edge = ReadSettings(), int(num**0.5)
    noise = np.random.default_rng(0).integers(0, 256, (edge, edge, 3), np.uint8)
    print(f"{'format':<10}{'options':<38}{'content':<9}{'pixels/CPU-s':>13}{'dearest row, s':>16}")
    for form, options in KINDS:
        for content, image in (("noise", Image.fromarray(noise)), ("flat", Image.new("RGB", (edge, edge), (3, 4, 5)))):
            out = io.BytesIO()
            image.save(out, form, **options)
            data, pixels = out.getvalue(), edge * edge
            times = least_limit(data, pixels)
            start = time.process_time()
            decode_image(data, lambda shown: shown.resize((8, 8)), size_px=8, max_pixels=times * pixels)
            took = time.process_time() - start
            most = min(limits.max_image_pixels / times / pixels, limits.max_image_bytes / len(data))
            print(f"{form:<10}{options!s:<38}{content:<9}{pixels / took:>13,.0f}{took * most:>16.1f}")


if __name__ == "__main__":
    main()
