"""What a model is shown of a batch: random views of its images and captions, the same for any number of workers."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from stages.score.models.encoders import preprocess_config
from stages.score.models.short_text import encode_short_text, padding_of, shortened, token_lengths, trimming_is_exact
from stages.train.augment import Draws, augment_caption, change_colours
from stages.train.group import Group
from stages.train.settings import TrainSettings

Tokenizer = Callable[[list[str]], torch.Tensor]


class Views:
    """Turns pixels and captions into tensors on a device, with all randomness drawn from (seed, step, row).

    Attributes:
        trims: Whether captions are cut to the longest of the batch before the text tower (see `stages.score.models.encoders`).
        wide: Whether images get the wide colours of the warm-up.
    """

    wide = False

    def __init__(
        self, model: torch.nn.Module, tokenizer: Tokenizer, options: TrainSettings, device: torch.device, group: Group
    ) -> None:
        """Learn from the model how it wants its inputs."""
        self._tokenizer, self._options, self._device, self._group = tokenizer, options, device, group
        self.trims, self._pad = trimming_is_exact(model, tokenizer), padding_of(tokenizer)
        config = preprocess_config(model)
        mean, std = (torch.tensor(config[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std"))
        self._factor, self._shift = 1.0 / std, mean / std
        self.begin(0)

    def begin(self, step: int) -> None:
        """Take up the draws of a step."""
        self._seed = self._options.seed * 1_000_003 + step
        self._generator = torch.Generator().manual_seed(self._seed)

    def images(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Return uint8 RGB crops (n, h, w, 3) in random colours, normalised, float32 (n, 3, h, w), channels_last."""
        num = len(pixels)
        rows = slice(self._group.rank * num, (self._group.rank + 1) * num)
        draws = Draws(self._generator, num * self._group.size, rows, self._device)
        images = torch.from_numpy(pixels).to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        strength = 1.0 if self.wide else self._options.colour_strength
        if strength:
            scaled = change_colours(images, draws, strength=strength, wide=self.wide) * self._factor
        else:
            scaled = images * (self._factor / 255.0)
        return scaled.sub_(self._shift).contiguous(memory_format=torch.channels_last)

    def changed(self, captions: Sequence[str], p: float = 1.0) -> list[str]:
        """Return captions of which a share `p` is changed, each by draws of its own."""
        found = []
        for place, caption in enumerate(captions, self._group.rank * len(captions)):
            rng = random.Random(self._seed * 1_000_003 + place)  # noqa: S311
            found.append(augment_caption(caption, rng) if rng.random() < p else caption)
        return found

    def tokens(self, captions: list[str]) -> torch.Tensor:
        """Return the tokens of captions, int64 (n, length)."""
        tokens = self._tokenizer(shortened(captions, self._tokenizer))
        if self.trims:
            tokens = tokens[:, : int(token_lengths(tokens.numpy(), self._pad).max())]
        return tokens.to(self._device)

    def encode_text(self, model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """Return unit vectors, float32 (n, d), of what `tokens` returned."""
        features = encode_short_text(model, tokens) if self.trims else model.encode_text(tokens)  # type: ignore[operator]
        return torch.nn.functional.normalize(features.float(), dim=-1)


def encode_image(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return unit vectors, float32 (n, d), of normalised images (n, 3, h, w)."""
    features = model.encode_image(images)  # type: ignore[operator]
    return torch.nn.functional.normalize(features.float(), dim=-1)
