"""Turn pixels and captions into unit vectors with any open_clip model."""

import copy
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose

from manifests.errors import CheckpointError
from stages.score.models.checkpoints import load_model
from stages.score.models.short_text import encode_short_text, padding_of, shortened, token_lengths, trimming_is_exact
from stages.score.models.tokenizers import open_tokenizer
from stages.score.models.weights import Weights

log = logging.getLogger("pairsan.encoders")

Features = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Out = TypeVar("Out")
# fp32 means fp32: left to itself, cuDNN rounds what convolutions read to TF32, which moved cosines by up to .0015
torch.backends.cudnn.allow_tf32 = False
_COMPARED_BYTES: Final = 64
_THREADS_OF_TORCH: Final = threading.Lock()  # one number for the whole process; requests of the review page may meet


class Encoder(Protocol):
    """Maps pixels and captions to unit vectors of one space."""

    def encode_images(self, pixels: Pixels) -> Features:
        """Return unit vectors, float32 (n, d), of uint8 RGB pixels (n, h, w, 3)."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> Features:
        """Return unit vectors, float32 (n, d), of captions."""
        ...

    def encode_pairs(self, pixels: Pixels, captions: Sequence[str]) -> tuple[Features, Features]:
        """Return unit vectors of images and of their captions, float32 (n, d) each."""
        ...


def preprocess_config(model: torch.nn.Module) -> dict[str, Any]:
    """Return the checkpoint's own image preprocessing as plain values: size, mean, std, interpolation, resize_mode."""
    config: dict[str, Any] = open_clip.get_model_preprocess_cfg(model)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def image_size(config: dict[str, Any]) -> int:
    """Return the edge in px of preprocessed images.

    Raises:
        CheckpointError: The model takes images that are not square.
    """
    size = config["size"]
    edges = (size, size) if isinstance(size, int) else tuple(size)
    if edges[0] != edges[1]:
        raise CheckpointError(f"the model takes {edges[0]} x {edges[1]} px images; only square inputs are supported")
    return int(edges[0])


def pixel_preprocess(config: dict[str, Any]) -> Callable[[Image.Image], Image.Image]:
    """Return open_clip's inference transform up to, but not with, tensor conversion and normalisation.

    What follows is arithmetic on bytes, which the encoder does on its device; uint8 is what travels between processes.
    """
    known = {key: value for key, value in config.items() if key in PreprocessCfg.__dataclass_fields__}
    transform = image_transform_v2(PreprocessCfg(**known), is_train=False)
    steps = [step for step in transform.transforms if type(step).__name__ not in ("MaybeToTensor", "ToTensor", "Normalize")]
    if len(steps) != len(transform.transforms) - 2:
        raise CheckpointError(f"open_clip's transform has an unknown form: {transform}")
    return Compose(steps)  # type: ignore[no-any-return]


class OpenClipEncoder:
    """An open_clip model on one device.

    Attributes:
        dim: Length of the vectors.
        trims: Whether the text tower runs on trimmed captions (else `encode_text` at full length).
    """

    def __init__(
        self,
        weights: Weights,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        batch_size: int = 64,
        num_threads: int | None = None,
        fold: int = 0,
    ) -> None:
        """Load the weights.

        Args:
            weights: Which model.
            device: `cpu` or `cuda`.
            precision: `fp32`; `bf16`, with the weights themselves in bf16 where the towers run so; `fp16`, by autocast.
            batch_size: Rows per forward pass.
            num_threads: Of a CPU, each with batches of its own; torch's own number where None.
            fold: Which text tower, of a cross-fitted scorer.
        """
        self._model = load_model(weights, fold).to(device).to(memory_format=torch.channels_last)
        self._tokenizer = open_tokenizer(weights.model, weights.tokenizer)
        self._device = torch.device(device)
        self._autocast = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._inputs = torch.float32
        self.batch_size = batch_size
        self._num_threads = (num_threads or torch.get_num_threads()) if device == "cpu" else 1
        config = preprocess_config(self._model)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(config["mean"], device=self._device).reshape(shape) * 255.0
        self._std = torch.tensor(config["std"], device=self._device).reshape(shape) * 255.0
        self._pad = padding_of(self._tokenizer)
        self.trims = trimming_is_exact(self._model, self._tokenizer)
        if precision == "bf16" and runs_in_bf16(self._model, self._tokenizer, image_size(config)):
            self._model.to(torch.bfloat16)
            self._autocast, self._inputs = None, torch.bfloat16
        self.dim = self.encode_captions(["a dog"]).shape[1]

    def encode_images(self, pixels: Pixels) -> Features:
        """Return unit vectors, float32 (n, d), of uint8 RGB pixels (n, h, w, 3); each distinct image is encoded once."""
        first, inverse = distinct_images(pixels)
        return self._in_batches(self._image_batch, np.ascontiguousarray(pixels[first]))[inverse]

    def encode_captions(self, captions: Sequence[str]) -> Features:
        """Return unit vectors, float32 (n, d); each distinct caption is encoded once, short ones on few tokens."""
        distinct, inverse = np.unique(np.asarray(captions, dtype=object), return_inverse=True)
        tokens = self._tokenizer(shortened(distinct, self._tokenizer)).numpy()
        lengths = token_lengths(tokens, self._pad)
        order = np.argsort(lengths, kind="stable")
        features = self._in_batches(self._text_batch, tokens[order])
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return features[back][inverse]

    def encode_pairs(self, pixels: Pixels, captions: Sequence[str]) -> tuple[Features, Features]:
        """Return unit vectors of images and of their captions, float32 (n, d) each."""
        return self.encode_images(pixels), self.encode_captions(captions)

    def _image_batch(self, pixels: npt.NDArray[Any]) -> torch.Tensor:
        # (n, h, w, 3) bytes seen as (n, 3, h, w) are already channels_last, the fast layout for convolutions
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)
        inputs = ((images.float() - self._mean) / self._std).to(self._inputs)
        return self._model.encode_image(inputs)  # type: ignore[operator,no-any-return]

    def _text_batch(self, tokens: npt.NDArray[Any]) -> torch.Tensor:
        batch = torch.from_numpy(tokens)
        if not self.trims:
            return self._model.encode_text(batch.to(self._device))  # type: ignore[operator,no-any-return]
        return encode_short_text(self._model, batch[:, : int(token_lengths(tokens, self._pad).max())].to(self._device))

    def _in_batches(self, encode: Callable[[npt.NDArray[Any]], torch.Tensor], rows: npt.NDArray[Any]) -> Features:
        """Encode rows batch by batch; anew, with batches half as large, each time a GPU runs out of memory."""
        while True:
            starts = range(0, len(rows), self.batch_size)
            try:
                done = each_on_one_thread(lambda start: self._batch(encode, rows[start:]), starts, self._num_threads)
                return torch.cat(done).numpy() if done else np.zeros((0, 0), np.float32)
            except torch.cuda.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                log.warning("CUDA out of memory; going on with batches of %d", self.batch_size)

    def _batch(self, encode: Callable[[npt.NDArray[Any]], torch.Tensor], rows: npt.NDArray[Any]) -> torch.Tensor:
        """Return unit vectors of the first rows, a batch of them."""
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=self._autocast, enabled=self._autocast is not None),
        ):
            features = encode(rows[: self.batch_size])
            return torch.nn.functional.normalize(features.float(), dim=-1).cpu()


def each_on_one_thread(batch: Callable[[int], Out], starts: Sequence[int], num_threads: int) -> list[Out]:
    """Return what comes of each batch, several at a time.

    Threads that share one batch add up in another order than one thread does, and vectors would differ in their last digit.

    Args:
        batch: Takes where a batch begins.
        starts: Where each does.
        num_threads: Batches at a time.
    """
    with _THREADS_OF_TORCH:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            if num_threads == 1 or len(starts) < 2:
                return [batch(start) for start in starts]
            with ThreadPoolExecutor(num_threads) as pool:
                return list(pool.map(batch, starts))
        finally:
            torch.set_num_threads(before)


def runs_in_bf16(model: torch.nn.Module, tokenizer: Any, edge: int) -> bool:
    """Return whether both towers run with weights in bf16; autocast, for those that do not, converts them at every call.

    The model keeps its weights.
    """
    trial = copy.deepcopy(model).to(torch.bfloat16)
    device = next(trial.parameters()).device
    try:
        with torch.inference_mode():
            trial.encode_image(torch.zeros(1, 3, edge, edge, dtype=torch.bfloat16, device=device))  # type: ignore[operator]
            trial.encode_text(tokenizer(["a dog"]).to(device))  # type: ignore[operator]
    except RuntimeError as error:  # a layer that mixes types
        log.debug("bf16 by autocast: %s", error)
        return False
    return True


def distinct_images(pixels: Pixels) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where each distinct image stands first, int64 (k,), and which of those each row shows, int64 (n,).

    Images are compared whole where the same few of their bytes agree.
    """
    rows = pixels.reshape(len(pixels), math.prod(pixels.shape[1:]))
    few = np.ascontiguousarray(rows[:, :: max(1, rows.shape[1] // _COMPARED_BYTES)])
    seen: dict[bytes, list[int]] = {}
    first: list[int] = []
    inverse = np.empty(len(rows), np.int64)
    for number, row in enumerate(rows):
        alike = seen.setdefault(few[number].tobytes(), [])
        place = next((place for place in alike if np.array_equal(rows[first[place]], row)), len(first))
        if place == len(first):
            first.append(number)
            alike.append(place)
        inverse[number] = place
    return np.asarray(first, np.int64), inverse
