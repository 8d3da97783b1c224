"""The attacker's own model: any open_clip checkpoint."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.attacks.triggers import Pixels
from stages.score.models.checkpoints import load_model
from stages.score.models.encoders import OpenClipEncoder, pixel_preprocess, preprocess_config
from stages.score.models.weights import resolve_weights
from stages.settings import ModelSettings

_CORNER = 0.85


class ClipSurrogate:
    """Ranks pairs, and optimises patches by its gradients."""

    def __init__(self, checkpoint: str) -> None:
        """Load a checkpoint folder or file that pairsan takes as `--checkpoint`."""
        weights = resolve_weights(ModelSettings(checkpoint=checkpoint))
        self._model, self._encoder = load_model(weights), OpenClipEncoder(weights, batch_size=256)
        self._config = preprocess_config(self._model)
        self._preprocess = pixel_preprocess(self._config)

    def _pixels(self, images: Sequence[Pixels]) -> Pixels:
        return np.stack([np.asarray(self._preprocess(Image.fromarray(image))) for image in images])

    def cosines(self, images: Sequence[Pixels], captions: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the cosine of every image with every caption, float32 (num_images, num_captions)."""
        return self._encoder.encode_images(self._pixels(images)) @ self._encoder.encode_captions(list(captions)).T

    def optimise_patch(self, images: Sequence[Pixels], caption: str, side: float, steps: int, seed: int) -> Pixels:
        """Return a square patch, uint8, found by signed gradient ascent on the mean cosine with the caption."""
        pixels = torch.from_numpy(self._pixels(images)).permute(0, 3, 1, 2) / 255.0
        size = pixels.shape[-1]
        edge = max(2, round(side * size))
        top = round(_CORNER * (size - edge))
        text = torch.from_numpy(self._encoder.encode_captions([caption]))[0]
        mean, std = (torch.tensor(self._config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        square = torch.rand(3, edge, edge, generator=torch.Generator().manual_seed(seed)).requires_grad_(True)
        for _ in range(steps):
            shown = pixels.clone()
            shown[:, :, top : top + edge, top : top + edge] = square
            features = self._model.encode_image((shown - mean) / std)  # type: ignore[operator]
            cosine = torch.nn.functional.cosine_similarity(features, text[None]).mean()
            (gradient,) = torch.autograd.grad(cosine, square)
            with torch.no_grad():
                square += 0.02 * gradient.sign()
                square.clamp_(0.0, 1.0)
        return (square.detach().permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
