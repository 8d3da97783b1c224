"""Train a CLIP model over the batches of one pass; the state lives in one file, so that a killed pass goes on exactly.

Everything random is drawn from (seed, step), and batches follow from (seed, pass), so the position is a few numbers: a pass
that is killed and started again reaches the same weights as an uncut one.
"""

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import open_clip
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch.nn.parallel import DistributedDataParallel

from manifests.errors import CheckpointError, TrainingFailed
from manifests.labels import Label
from manifests.parts import write_bytes
from manifests.store import Store
from stages.score.models.checkpoints import quiet_open_clip
from stages.train.batches import Batch
from stages.train.group import Group
from stages.train.losses import NeighbourPool, clip_loss, unimodal_loss
from stages.train.settings import TrainSettings
from stages.train.views import Tokenizer, Views, encode_image

MAX_LOGIT_SCALE: Final = math.log(100.0)
_PROGRESS_KEY: Final = "pairsan.progress"
Progress = dict[str, Any]


class Learner:
    """Something that takes optimizer steps on batches and can be saved between any two of them.

    Attributes:
        model: All that is saved under `model/`.
        step: Optimizer steps taken so far, over all passes.
        views: Random views of batches.
        losses: Of this pass, by label: sum of the losses and number of steps.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Tokenizer,
        options: TrainSettings,
        *,
        device: torch.device | str = "cpu",
        group: Group | None = None,
    ) -> None:
        """Set up everything that learns and its optimizer.

        Args:
            model: An open_clip model.
            tokenizer: The model's.
            options: Training settings.
            device: Where to train.
            group: The workers; a group of one if unset.
        """
        self.device, self.group, self.options, self.step = torch.device(device), group or Group(), options, 0
        self.losses: dict[Label, list[float]] = {}
        model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.views = Views(model, tokenizer, options, self.device, self.group)
        self.model = model = self.set_up(model)
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        plain = [p for p in model.parameters() if p.ndim < 2]  # norms, biases, logit scale
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def set_up(self, model: torch.nn.Module) -> torch.nn.Module:
        """Make what this learner needs beside an open_clip model, and return all that is trained."""
        raise NotImplementedError

    def loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return this worker's part of the loss of a batch; `network` is `self.network()`, wrapped where there are more."""
        raise NotImplementedError

    def network(self) -> torch.nn.Module:
        """Return the module whose forward makes features of both kinds, set to training."""
        raise NotImplementedError

    def scales(self) -> list[torch.Tensor]:
        """Return the logit scales, to be clamped after every step."""
        raise NotImplementedError

    def learn(
        self,
        batches: Iterable[Batch],
        learning_rate: Callable[[int], float],
        *,
        every: tuple[int, Callable[[Batch], None]] | None = None,
    ) -> None:
        """Take one step per batch.

        Args:
            batches: Of one pass, from where it was left.
            learning_rate: Of a step.
            every: After so many steps, call this with the last batch (to save).

        Raises:
            TrainingFailed: The loss is not finite; names step, learning rate and the batch's uids.
        """
        network = self.network()
        if self.group.size > 1:
            network = DistributedDataParallel(network)
        for batch in batches:
            value = self._take_step(network, batch, learning_rate(self.step))
            total, num = self.losses.get(batch.label, (0.0, 0))
            self.losses[batch.label] = [total + value, num + 1]
            self.step += 1
            if every is not None and self.step % every[0] == 0:
                every[1](batch)

    def _take_step(self, network: torch.nn.Module, batch: Batch, lr: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self.views.begin(self.step)
        loss = self.loss(network, batch)
        value = float(self.group.mean(loss))
        if not math.isfinite(value):
            uids = ", ".join(uid.hex() for uid in batch.uids[:4])
            raise TrainingFailed(
                f"the loss of step {self.step} is {value} at learning rate {lr:.2e}, on {len(batch.uids)} "
                f"{batch.label} rows (uids {uids}, ...); the last checkpoint is kept. Lower learning_rate."
            )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        with torch.no_grad():
            for scale in self.scales():
                scale.clamp_(0.0, MAX_LOGIT_SCALE)
        return value

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        wanted, cuda = self.options.train_precision, self.device.type == "cuda"
        enabled = wanted == "bf16" or (wanted == "auto" and cuda and torch.cuda.is_bf16_supported())
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything that is not a setting as one flat mapping on the CPU, ready for safetensors."""
        found = {f"model/{key}": value for key, value in self.model.state_dict().items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            found |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
        return {key: value.detach().cpu().contiguous().clone() for key, value in found.items()}

    def restore(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Take up what `tensors` returned at some step."""
        self.model.load_state_dict(under(tensors, "model/"))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in under(tensors, "optimizer/").items():
            index, _, what = key.partition("/")
            state.setdefault(int(index), {})[what] = value
        self._optimizer.load_state_dict({"state": state, "param_groups": self._optimizer.state_dict()["param_groups"]})
        for weight, moments in self._optimizer.state.items():
            # the fused kernel pairs weights and moments by memory order, and a file keeps no channels_last
            moments |= {key: _laid_out_as(weight, value) for key, value in moments.items() if value.ndim}
        self.step = step

    def save(self, run: Store, name: str, progress: Progress) -> None:
        """Write everything into one file, whole or not at all, with the position in its header."""
        metadata = {_PROGRESS_KEY: json.dumps({**progress, "step": self.step}, sort_keys=True)}
        write_bytes(run, name, save(self.tensors(), metadata))

    def save_model(self, run: Store, name: str) -> None:
        """Write the weights alone, ready for scoring."""
        write_bytes(run, name, save(under(self.tensors(), "model/")))


class ClipLearner(Learner):
    """A CLIP model and its two pools: CLIP loss on safe rows, unimodal loss on risky ones.

    Attributes:
        pools: Of images and of captions; they live on through all passes.
        locked_image: Whether the image tower stays as it is, in eval mode.
    """

    locked_image = False

    def set_up(self, model: torch.nn.Module) -> torch.nn.Module:
        """Make empty pools of the model's width."""
        size, limit = self.options.pool_size, self.options.faiss_from
        with torch.inference_mode():
            dim = self.views.encode_text(model, self.views.tokens(["a"])).shape[1]
        self.pools = {name: NeighbourPool(size, dim, limit).to(self.device) for name in ("image", "text")}
        return model

    def network(self) -> torch.nn.Module:
        """Return both towers as one module."""
        self.model.train().requires_grad_(True)
        if self.locked_image:
            self.model.get_submodule("visual").eval().requires_grad_(False)
        if isinstance(getattr(self.model, "logit_bias", None), torch.nn.Parameter):
            self.model.logit_bias.requires_grad_(False)  # SigLIP's; neither loss has one
        return _Towers(self.model, self.views)

    def scales(self) -> list[torch.Tensor]:
        """Return the model's logit scale."""
        return [self.model.logit_scale]  # type: ignore[list-item]

    def loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the loss of the batch's label."""
        return self._safe_loss(network, batch) if batch.label == Label.SAFE else self._risky_loss(network, batch)

    def _safe_loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        captions = self.views.changed(batch.captions, self.options.p_caption_change)
        with self.autocast():
            images, texts, scale = network(self.views.images(batch.views[0]), self.views.tokens(captions))
        return self.options.clip_weight * clip_loss(images, texts, scale, self.group, local=self.options.local_loss)

    def _risky_loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        pixels = torch.cat([self.views.images(view) for view in batch.views])
        tokens = self.views.tokens([*batch.captions, *self.views.changed(batch.captions)])
        with self.autocast():
            images, texts, scale = network(pixels, tokens)
        num = len(batch.uids)
        image = unimodal_loss(images[:num], images[num:], self.pools["image"], scale, self.group)
        text = unimodal_loss(texts[:num], texts[num:], self.pools["text"], scale, self.group)
        return self.options.unimodal_weight * (image + text) / 2

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return model, optimizer and pools as one flat mapping on the CPU, ready for safetensors."""
        pools = {f"pool/{n}/{key}": value for n, pool in self.pools.items() for key, value in pool.state_dict().items()}
        return {**super().tensors(), **{key: value.cpu().clone() for key, value in pools.items()}}

    def restore(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Take up what `tensors` returned at some step."""
        super().restore(tensors, step)
        for name, pool in self.pools.items():
            pool.load_state_dict(under(tensors, f"pool/{name}/"))


class _Towers(torch.nn.Module):
    """Both towers in one forward, as DistributedDataParallel needs it."""

    def __init__(self, model: torch.nn.Module, views: Views) -> None:
        super().__init__()
        self.model, self._views = model, views

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scale = self.model.logit_scale.exp()  # type: ignore[operator]
        return encode_image(self.model, images), self._views.encode_text(self.model, tokens), scale


def _laid_out_as(weight: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Return a moment with the strides of its weight."""
    return torch.empty_like(weight, requires_grad=False).copy_(moment)


def under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose name begins with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def read_progress(path: str) -> Progress:
    """Return the position in a file that `Learner.save` wrote.

    Raises:
        CheckpointError: It is something else.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if _PROGRESS_KEY not in metadata:
        raise CheckpointError(f"{path} holds no training state")
    found: Progress = json.loads(metadata[_PROGRESS_KEY])
    return found


def new_model(architecture: str, seed: int) -> torch.nn.Module:
    """Return an open_clip model with random weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]), quiet_open_clip():
        torch.manual_seed(seed)
        model: torch.nn.Module = open_clip.create_model(architecture, load_weights=False, pretrained_text=False)
    return model
