import io

import numpy as np
from conftest import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.read.images import FORMATS, UndecodableImage, decode_image

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "P", "1"),
    "TIFF": ("RGB", "L", "CMYK", "F", "I;16"),
    "ICO": ("RGBA",),
    "PPM": ("RGB", "L"),
    "JPEG2000": ("RGB", "L"),
    "AVIF": ("RGB",),
}
KINDS = [(form, mode) for form, modes in MODES.items() if form in FORMATS for mode in modes]
WHOLE = {
    kind: encode(PICTURE.convert("I").convert(kind[1]) if kind[1] == "I;16" else PICTURE.convert(kind[1]), kind[0])
    for kind in KINDS
}


@settings(deadline=5000)
@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.integers(0), st.binary(min_size=1, max_size=8)), max_size=4),
    st.none() | st.integers(0),
)
def test_any_image_is_pixels_or_a_reason(kind: tuple[str, str], damage: list[tuple[int, bytes]], cut: int | None) -> None:
    data = bytearray(WHOLE[kind])
    for place, new in damage:
        place %= len(data)
        data[place : place + len(new)] = new[: len(data) - place]
    whole = not damage and cut is None
    if cut is not None:
        data = data[: cut % (len(data) + 1)]
    try:
        pixels, edge = decode_image(bytes(data), lambda image: image.resize((16, 16)), size_px=16, max_pixels=1 << 20)
    except UndecodableImage as error:
        assert not whole, error
        assert error.detail
        return
    assert (pixels.shape, pixels.dtype, edge > 0) == ((16, 16, 3), np.uint8, True)
    assert not whole or edge == min(Image.open(io.BytesIO(data)).size)
