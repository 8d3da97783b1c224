import random

import numpy as np
import open_clip
import pytest
import torch
from conftest import EMOJI

from stages.score.models.encoders import preprocess_config
from stages.train import augment
from stages.train.augment import Draws, augment_caption, change_colours
from stages.train.group import Group
from stages.train.learner import new_model
from stages.train.settings import TrainSettings
from stages.train.views import Views


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(seed: int, num: int, rows: slice | None = None) -> Draws:
    return Draws(generator(seed), num, rows or slice(0, num), torch.device("cpu"))


def test_views_keep_shape_and_range_and_follow_the_seed() -> None:
    pixels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=generator(0))
    view = change_colours(pixels, draws(1, 16))
    assert view.shape == pixels.shape
    assert view.dtype == torch.float32
    assert 0.0 <= float(view.min()) <= float(view.max()) <= 1.0
    assert torch.equal(view, change_colours(pixels, draws(1, 16)))
    assert not torch.equal(view, change_colours(pixels, draws(2, 16)))


def test_every_image_has_draws_of_its_own() -> None:
    one = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=generator(0))
    views = change_colours(one.repeat(12, 1, 1, 1), draws(3, 12))
    assert len({tuple(view.flatten().tolist()) for view in views}) > 8  # some stay as they are, by chance


def test_rows_get_the_same_draws_whoever_holds_the_others() -> None:
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator(0))
    whole = change_colours(pixels, draws(4, 8))
    halves = [change_colours(pixels[rows], draws(4, 8, rows)) for rows in (slice(0, 4), slice(4, 8))]
    assert torch.equal(torch.cat(halves), whole)


def test_without_strength_images_stay_as_they_are() -> None:
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator(0))
    assert torch.allclose(change_colours(images, draws(1, 6), strength=0.0), images / 255)


def test_colour_changes_leave_grey_images_grey() -> None:
    grey = torch.rand(8, 1, 16, 16, generator=generator(0)).expand(8, 3, 16, 16)
    changed = augment._jitter(grey, draws(1, 8))
    assert torch.allclose(changed[:, 0], changed[:, 1], atol=1e-5)
    assert not torch.allclose(changed, grey)


def test_wide_colours_hide_a_tone_curve_that_usual_ones_leave_visible() -> None:
    images = torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8, generator=generator(0))
    toned = (images * torch.tensor([1.0, 0.9, 0.5]).view(1, 3, 1, 1) + torch.tensor([0.0, 0.0, 120.0]).view(1, 3, 1, 1)).byte()

    def auroc(*, wide: bool) -> float:
        """Return how well blueness tells both kinds of images apart."""
        kinds = [change_colours(x, draws(seed, 200), wide=wide) for seed, x in ((1, images), (2, toned))]
        assert all(0.0 <= float(x.min()) <= float(x.max()) <= 1.0 for x in kinds)
        plain, changed = ((x[:, 2] - x.mean(1)).mean((1, 2)) for x in kinds)
        return float((changed[:, None] > plain[None]).float().mean())

    assert auroc(wide=False) > 0.7
    assert auroc(wide=True) < auroc(wide=False) - 0.1


def test_images_get_wide_colours_only_where_they_are_asked_for() -> None:
    name = f"local-dir:{EMOJI / 'demo-model'}"
    model, tokenizer = new_model(name, 0), open_clip.get_tokenizer(name)
    views = Views(model, tokenizer, TrainSettings(colour_strength=0.0), torch.device("cpu"), Group())
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    mean, std = (torch.tensor(preprocess_config(model)[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    plain = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    assert torch.allclose(views.images(pixels), plain, atol=1e-5)
    views.wide = True
    assert float((views.images(pixels) - plain).abs().mean()) > 0.2


def test_a_third_of_a_turn_of_hue_moves_red_to_green() -> None:
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1.0
    turned = augment._rotate_hue(red, torch.tensor([1 / 3]))
    assert turned[0, :, 0, 0].tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-5)


def test_a_changed_caption_keeps_to_its_own_words() -> None:
    rng = random.Random(0)
    caption = "a small brown dog runs over the wet grass"
    views = [augment_caption(caption, rng) for _ in range(200)]
    assert all(set(view.split()) <= set(caption.split()) and view for view in views)
    assert len(set(views)) > 20
    assert any(len(view.split()) < 9 for view in views)  # deletions
    assert any(sorted(view.split()) == sorted(caption.split()) and view != caption for view in views)  # swaps
    assert augment_caption("dog", rng) == "dog"
