"""Peers that defend while they train, each a learner with another loss.

Sources: RoCLIP (Yang, Gao, Mirzasoleiman 2023); CleanCLIP (Bansal et al. 2023).
"""

import numpy as np
import torch

from benchmarks.evidence.arms.cell import Cell
from benchmarks.evidence.referee import Line
from benchmarks.evidence.training import Choice, train
from stages.train.batches import Batch
from stages.train.learner import ClipLearner
from stages.train.losses import NeighbourPool, clip_loss


class RoClip(ClipLearner):
    """Every second pass, each caption's embedding is replaced by its image's nearest one in a pool of captions.

    Attributes:
        steps_per_pass: Steps after which the kind of pass changes.
    """

    steps_per_pass = 100

    def _safe_loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        captions = self.views.changed(batch.captions, self.options.p_caption_change)
        images, texts, scale = network(self.views.images(batch.views[0]), self.views.tokens(captions))
        pool: NeighbourPool = self.pools["text"]
        if (self.step // self.steps_per_pass) % 2 == 1 and int(pool.filled) == self.options.pool_size:
            loss = clip_loss(images, pool.nearest(images), scale)
        else:
            loss = clip_loss(images, texts, scale)
        pool.push(texts)
        return loss


class CleanClip(ClipLearner):
    """Fine-tuning: the CLIP loss and, with the same weight, each modality against another view of itself."""

    def _safe_loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        first, second = batch.views[0], batch.views[0][:, :, ::-1].copy()
        tokens = self.views.tokens([*batch.captions, *self.views.changed(batch.captions)])
        pixels = torch.cat([self.views.images(first), self.views.images(second)])
        images, texts, scale = network(pixels, tokens)
        num = len(batch.uids)
        own = clip_loss(images[:num], images[num:], scale) + clip_loss(texts[:num], texts[num:], scale)
        return clip_loss(images[:num], texts[:num], scale) + own / 2


def roclip(cell: Cell) -> list[Line]:
    """Train on everything with RoCLIP's loss."""
    kind = type("RoClipHere", (RoClip,), {"steps_per_pass": max(1, cell.num_steps // cell.setting.passes)})
    train(cell.shards, cell.weights, cell.options, cell.num_steps, make=kind)
    return []


def cleanclip(cell: Cell) -> list[Line]:
    """Fine-tune the undefended model for a tenth of its steps on a random tenth of the clean rows."""
    drawn = np.random.default_rng(cell.seed).random(len(cell.table))
    clean = (cell.table["attack"] == "").to_numpy() & (drawn < 0.1)
    options = cell.options.model_copy(update={"learning_rate": cell.options.learning_rate / 4})
    choice, start = Choice(cell.rows.words(clean)), cell.of("none") / "model.safetensors"
    train(cell.shards, cell.weights, options, max(1, cell.num_steps // 10), choice=choice, make=CleanClip, start=start)
    return []
