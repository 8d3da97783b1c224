import gzip
import struct
import zlib

import numpy as np
import pytest
from conftest import encode
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from manifests.labels import Reason
from stages.read.images import UndecodableImage, decode_image

SIZE = 16


def squash(image: Image.Image) -> Image.Image:
    return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def decode(data: bytes, max_pixels: int = 100_000_000) -> np.ndarray:
    return decode_image(data, squash, size_px=SIZE, max_pixels=max_pixels)[0]


def reason_of(data: bytes, max_pixels: int = 100_000_000) -> UndecodableImage:
    with pytest.raises(UndecodableImage) as caught:
        decode(data, max_pixels)
    return caught.value


PICTURE = Image.merge("RGB", [Image.linear_gradient("L").rotate(angle).resize((40, 30)) for angle in (0, 90, 180)])


@pytest.mark.parametrize(
    ("form", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("PNG", "LA")]
    + [("WEBP", "RGB"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "CMYK")],
)
def test_every_usual_mode_becomes_rgb_bytes(form: str, mode: str) -> None:
    pixels = decode(encode(PICTURE.convert(mode), form))
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    assert np.ptp(pixels) > 50  # there is a picture in it


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(30, 40)
    pixels = decode(encode(Image.fromarray(ramp), "PNG"))
    assert 100 < pixels.mean() < 155
    assert (pixels == 255).mean() < 0.1


def test_numbers_that_are_none_are_black_in_float_images() -> None:
    ramp = np.linspace(0, 1, 40 * 30, dtype=np.float32).reshape(30, 40)
    ramp[:15, :20], ramp[15:, :20] = np.nan, np.inf
    pixels = decode(encode(Image.fromarray(ramp), "TIFF"))
    assert pixels[:, :7].max() <= 8
    assert pixels[:, 9:].max() > 240


def test_what_is_no_image_on_purpose() -> None:
    jpeg = encode(PICTURE, "JPEG")
    text = PngInfo()
    text.add_text("a", "x" * (2 << 20), zip=True)
    odd = {
        "heic": b"\0\0\0$ftypheic" + bytes(500),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "dds": b"DDS |\0\0\0" + bytes(500),
        "gzip": gzip.compress(jpeg),
        "no end": jpeg[:-5],
        "a line break before": b"\r\n" + jpeg,
        "megabytes of text": encode(PICTURE, "PNG", pnginfo=text),
    }
    assert {name: reason_of(data).reason for name, data in odd.items()} == dict.fromkeys(odd, Reason.IMAGE_UNDECODABLE)


def test_palette_with_transparency_decodes_without_a_warning() -> None:
    assert decode(encode(PICTURE.convert("P"), "PNG", transparency=b"\x00\x80\xff")).shape == (SIZE, SIZE, 3)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    pixels = decode(encode(red, "GIF", save_all=True, append_images=[blue]))
    assert pixels[8, 8].tolist() == [255, 0, 0]


def test_0_bytes() -> None:
    error = reason_of(b"")
    assert (error.reason, error.detail) == (Reason.IMAGE_UNDECODABLE, "0 bytes")


def test_html_saved_as_jpg_is_named_as_such() -> None:
    error = reason_of(b"<!DOCTYPE html><title>404</title>")
    assert error.reason is Reason.IMAGE_UNDECODABLE
    assert error.detail.startswith("HTML or XML")


def test_postscript_is_never_opened() -> None:
    assert reason_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n").reason is Reason.IMAGE_UNDECODABLE


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_truncated_images_are_undecodable(form: str) -> None:
    data = encode(PICTURE.resize((200, 200)), form)
    assert reason_of(data[: len(data) // 2]).reason is Reason.IMAGE_UNDECODABLE


def test_a_bomb_is_refused_by_its_header_alone() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)  # 3.6 gigapixels, and no pixel data at all
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    idat = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    error = reason_of(b"\x89PNG\r\n\x1a\n" + chunk + idat)
    assert error.reason is Reason.IMAGE_TOO_LARGE
    assert "60000 x 60000 px" in error.detail


def test_the_pixel_limit_is_a_setting() -> None:
    data = encode(PICTURE, "PNG")
    assert reason_of(data, max_pixels=1199).reason is Reason.IMAGE_TOO_LARGE
    assert decode(data, max_pixels=1200).shape == (SIZE, SIZE, 3)


def test_a_line_of_pixels_that_would_explode_when_resized_is_refused() -> None:
    line = encode(Image.new("L", (60_000, 1)), "PNG")
    assert "long side would be" in reason_of(line, max_pixels=1_000_000).detail


def test_bytes_of_any_kind_end_in_a_reason() -> None:
    good = encode(PICTURE, "JPEG")
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(good)
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(0, 256)
        try:
            assert decode(bytes(data)).dtype == np.uint8
        except UndecodableImage as error:
            assert error.reason in (Reason.IMAGE_UNDECODABLE, Reason.IMAGE_TOO_LARGE)


@pytest.mark.parametrize(("form", "slower"), [("PNG", 1), ("JPEG", 1), ("WEBP", 4), ("AVIF", 4), ("JPEG2000", 16)])
def test_fewer_pixels_are_allowed_of_what_decodes_slowly(form: str, slower: int) -> None:
    data = encode(PICTURE, form)
    assert decode(data, 40 * 30 * slower).shape == (SIZE, SIZE, 3)
    found = reason_of(data, 40 * 30 * slower - 1)
    assert found.reason is Reason.IMAGE_TOO_LARGE
    assert ("of this kind" in found.detail) == (slower > 1)


def test_scans_count_as_pixels() -> None:
    data = encode(PICTURE, "JPEG", progressive=True)
    scans = data.count(b"\xff\xda")
    more = data[:-2] + data[data.index(b"\xff\xda") : -2] * 3 + data[-2:]  # scans again, after the last one
    assert decode(data, 1200 * max(1, scans // 10)).shape == (SIZE, SIZE, 3)
    assert more.count(b"\xff\xda") == 4 * scans
    assert reason_of(more, 1200 * 4 * scans // 10 - 10).reason is Reason.IMAGE_TOO_LARGE
    assert decode(more, 1200 * 4 * scans // 10 + 10).shape == (SIZE, SIZE, 3)


def test_a_jpeg_of_very_many_scans_is_not_decoded() -> None:
    picture = encode(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG", progressive=True)
    assert decode_image(picture, lambda image: image, size_px=8, max_pixels=10_000)[0].shape == (64, 64, 3)
    last = picture.rindex(b"\xff\xda")
    many = picture[:-2] + picture[last:-2] * 200 + picture[-2:]
    with pytest.raises(UndecodableImage, match="scans, allowed are 100") as found:
        decode_image(many, lambda image: image, size_px=8, max_pixels=10_000)
    assert found.value.reason is Reason.IMAGE_TOO_LARGE
