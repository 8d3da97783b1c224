"""Train a CLIP model over the batches of one pass; the state lives in one file, so that a killed pass goes on exactly.

Everything random is drawn from (seed, step), and batches follow from (seed, pass), so the position is one number: a pass that
is killed and started again reaches the same weights as an uncut one.
"""

import json
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import open_clip
import torch
from safetensors import safe_open
from safetensors.torch import save

from manifests.errors import CheckpointError, TrainingFailed
from manifests.parts import write_bytes
from manifests.schema import Label
from manifests.store import Store
from stages.augment import augment_caption, augment_images
from stages.checkpoints import quiet_open_clip
from stages.encoders import encode_short_text, padding_of, preprocess_config, token_lengths, trimming_is_exact
from stages.losses import NeighbourPool, clip_loss, unimodal_loss
from stages.options import TrainOptions
from stages.round_rows import Batch

MAX_LOGIT_SCALE: Final = math.log(100.0)
_PROGRESS_KEY: Final = "pairsan.progress"


@dataclass(frozen=True, slots=True)
class PassResult:
    """What one pass did.

    Attributes:
        num_steps: Optimizer steps in all, counted over passes.
        clip_loss: Mean CLIP loss over the pass, NaN where there was none.
        unimodal_loss: Mean unimodal loss, NaN where there was none.
    """

    num_steps: int
    clip_loss: float
    unimodal_loss: float


class Learner:
    """A model, its optimizer and its two pools.

    Attributes:
        model: The open_clip model.
        step: Optimizer steps taken so far, over all passes.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: Callable[[list[str]], torch.Tensor], options: TrainOptions) -> None:
        """Set up the optimizer and empty pools for a model."""
        self.model, self._tokenizer, self._options = model.to(memory_format=torch.channels_last), tokenizer, options
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        plain = [p for p in model.parameters() if p.ndim < 2]  # norms, biases, logit scale
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.999), eps=1e-8)
        self._trims, self._pad = trimming_is_exact(model.eval(), tokenizer), padding_of(tokenizer)
        with torch.inference_mode():
            dim = model.encode_text(tokenizer(["a"])).shape[1]  # type: ignore[operator]
        self.pools = {name: NeighbourPool(options.pool_size, dim) for name in ("image", "text")}
        config = preprocess_config(model)
        self._mean, self._std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.step = 0

    def learn(
        self,
        batches: Iterable[Batch],
        learning_rate: Callable[[int], float],
        *,
        locked_image: bool = False,
        every: tuple[int, Callable[[], None]] | None = None,
    ) -> PassResult:
        """Take one step per batch: CLIP loss on safe rows, unimodal loss on risky ones.

        Args:
            batches: Of one pass, from where it was left.
            learning_rate: Of a step.
            locked_image: Whether the image tower stays as it is, in eval mode.
            every: After so many steps, call this (to save).

        Raises:
            TrainingFailed: The loss is not finite; names step, learning rate and the batch's uids.
        """
        self.model.train()
        if locked_image:
            self.model.get_submodule("visual").eval()
        losses: dict[Label, list[float]] = {Label.SAFE: [], Label.RISKY: []}
        for batch in batches:
            lr = learning_rate(self.step)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            loss = self._loss(batch, locked_image)
            if not torch.isfinite(loss):
                uids = ", ".join(uid.hex() for uid in batch.uids[:4])
                raise TrainingFailed(
                    f"the loss of step {self.step} is {loss.item()} at learning rate {lr:.2e}, on {len(batch.uids)} "
                    f"{batch.label} rows (uids {uids}, ...); the last checkpoint is kept. Lower learning_rate."
                )
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            with torch.no_grad():
                self.model.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)  # type: ignore[operator]
            losses[batch.label].append(loss.item())
            self.step += 1
            if every is not None and self.step % every[0] == 0:
                every[1]()
        means = [float(np.mean(found)) if found else math.nan for found in losses.values()]
        return PassResult(self.step, *means)

    def _loss(self, batch: Batch, locked_image: bool) -> torch.Tensor:
        seed = self._options.seed * 1_000_003 + self.step
        generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)  # noqa: S311
        pixels = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2)
        scale = self.model.logit_scale.exp()  # type: ignore[operator]
        options = self._options
        if batch.label == Label.SAFE:
            captions = [augment_caption(c, rng) if rng.random() < options.p_caption_change else c for c in batch.captions]
            images = self._images(pixels, generator, locked_image)
            return options.clip_weight * clip_loss(images, self._texts(captions), scale)
        views = [self._images(pixels, generator, locked_image) for _ in range(2)]
        texts = [self._texts(batch.captions), self._texts([augment_caption(c, rng) for c in batch.captions])]
        image = unimodal_loss(views[0], views[1], self.pools["image"], scale)
        text = unimodal_loss(texts[0], texts[1], self.pools["text"], scale)
        return options.unimodal_weight * (image + text) / 2

    def _images(self, pixels: torch.Tensor, generator: torch.Generator, locked: bool) -> torch.Tensor:
        view = augment_images(pixels, generator, least_scale=self._options.least_crop)
        normal = ((view - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(not locked):
            features = self.model.encode_image(normal)  # type: ignore[operator]
        return torch.nn.functional.normalize(features, dim=-1)

    def _texts(self, captions: list[str]) -> torch.Tensor:
        tokens = self._tokenizer(captions)
        if not self._trims:
            return torch.nn.functional.normalize(self.model.encode_text(tokens), dim=-1)  # type: ignore[operator]
        length = int(token_lengths(tokens.numpy(), self._pad).max())
        return torch.nn.functional.normalize(encode_short_text(self.model, tokens[:, :length]), dim=-1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return model, optimizer and pools as one flat mapping, ready for safetensors."""
        found = {f"model/{key}": value for key, value in self.model.state_dict().items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            found |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
        for name, pool in self.pools.items():
            found |= {f"pool/{name}/{key}": value for key, value in pool.state_dict().items()}
        return {key: value.detach().contiguous().clone() for key, value in found.items()}

    def restore(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Take up what `tensors` returned at some step."""

        def under(prefix: str) -> dict[str, torch.Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        self.model.load_state_dict(under("model/"))
        for name, pool in self.pools.items():
            pool.load_state_dict(under(f"pool/{name}/"))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in under("optimizer/").items():
            index, _, what = key.partition("/")
            state.setdefault(int(index), {})[what] = value
        self._optimizer.load_state_dict({"state": state, "param_groups": self._optimizer.state_dict()["param_groups"]})
        self.step = step

    def save(self, run: Store, name: str, progress: dict[str, Any]) -> None:
        """Write everything into one file, whole or not at all, with the position in its header."""
        metadata = {_PROGRESS_KEY: json.dumps({**progress, "step": self.step}, sort_keys=True)}
        write_bytes(run, name, save(self.tensors(), metadata))

    def save_model(self, run: Store, name: str) -> None:
        """Write the model alone, as open_clip loads it."""
        model = {key.removeprefix("model/"): value for key, value in self.tensors().items() if key.startswith("model/")}
        write_bytes(run, name, save(model))


def read_progress(path: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return (progress, tensors) of a file that `Learner.save` wrote.

    Raises:
        CheckpointError: It is something else.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if _PROGRESS_KEY not in metadata:
            raise CheckpointError(f"{path} holds no training state")
        return json.loads(metadata[_PROGRESS_KEY]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def new_model(architecture: str, seed: int) -> torch.nn.Module:
    """Return an open_clip model with random weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]), quiet_open_clip():
        torch.manual_seed(seed)
        model: torch.nn.Module = open_clip.create_model(architecture, load_weights=False, pretrained_text=False)
    return model
