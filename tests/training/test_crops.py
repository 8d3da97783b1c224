"""Random crops, cut while an image is decoded."""

import io

import numpy as np
import pytest
from conftest import encode
from PIL import Image

from stages.read.crops import Crop, Crops
from stages.read.images import UndecodableImage

CROPS = Crops(seed=3, least_area=0.2, size_px=24)
PICTURE = Image.merge("RGB", [Image.linear_gradient("L").rotate(angle).resize((400, 300)) for angle in (0, 90, 180)])
WHOLE = Crop(area=1.0, shape=4 / 3, x=0.0, y=0.0, mirror=False)


def test_crops_follow_from_seed_step_and_row_alone() -> None:
    drawn = CROPS.draw(7, 2, 2)
    assert drawn == CROPS.draw(7, 2, 2)
    assert drawn[0] != drawn[1]
    others = [CROPS.draw(8, 2, 2), CROPS.draw(7, 3, 2), Crops(4, 0.2, 24).draw(7, 2, 2)]
    assert all(other != drawn for other in others)
    assert Crops(3, 0.2, 24, first_row=2).draw(7, 0, 2) == drawn  # the same row, held by another worker


def test_boxes_lie_inside_the_image_and_cover_the_area_that_was_asked_for() -> None:
    for step in range(300):
        (crop,) = CROPS.draw(step, 0, 1)
        left, top, right, bottom = crop.box(400, 300)
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        if right - left < 400 and bottom - top < 300:
            assert (right - left) * (bottom - top) == pytest.approx(crop.area * 120_000, rel=0.02)
            assert (right - left) / (bottom - top) == pytest.approx(crop.shape, rel=0.02)
    assert Crop(0.001, 1.0, 1.0, 1.0, False).box(1, 500) == (0, 499, 1, 500)  # at least one pixel


def test_a_view_shows_its_box_and_a_mirrored_one_its_mirror_image() -> None:
    left_half = Crop(area=0.5, shape=2 / 3, x=0.0, y=0.0, mirror=False)
    mirrored = Crop(area=0.5, shape=2 / 3, x=0.0, y=0.0, mirror=True)
    whole, half, turned = CROPS.cut(encode(PICTURE, "PNG"), [WHOLE, left_half, mirrored], max_pixels=10**6)
    expected = np.asarray(PICTURE.resize((24, 24), Image.Resampling.BICUBIC))
    assert np.abs(whole.astype(int) - expected).max() <= 2
    expected = np.asarray(PICTURE.crop((0, 0, 200, 300)).resize((24, 24), Image.Resampling.BICUBIC))
    assert np.abs(half.astype(int) - expected).max() <= 3
    assert np.array_equal(turned, half[:, ::-1])


def test_a_jpeg_decoded_small_gives_nearly_the_same_view() -> None:
    jpeg = encode(PICTURE.resize((1600, 1200)), "JPEG", quality=95)
    small = Crop(area=0.25, shape=4 / 3, x=0.3, y=0.7, mirror=False)
    views = CROPS.cut(jpeg, [WHOLE, small], max_pixels=10**7)
    for view, crop in zip(views, (WHOLE, small), strict=True):
        full = Image.open(io.BytesIO(jpeg)).resize((24, 24), Image.Resampling.BICUBIC, crop.box(1600, 1200))
        assert np.abs(view.astype(int) - np.asarray(full)).mean() < 2


def test_damage_and_size_are_refused_as_in_scoring() -> None:
    with pytest.raises(UndecodableImage, match="0 bytes"):
        CROPS.cut(b"", [WHOLE], max_pixels=10**6)
    with pytest.raises(UndecodableImage, match=r"400 x 300 px by its header, allowed are 1000"):
        CROPS.cut(encode(PICTURE, "PNG"), [WHOLE], max_pixels=1000)
    with pytest.raises(UndecodableImage, match="OSError"):
        CROPS.cut(encode(PICTURE, "JPEG")[:2000], [WHOLE], max_pixels=10**6)
