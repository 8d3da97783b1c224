"""The locked scorer: text towers that learn to match an image tower which never trains across modalities.

An image tower that never met a caption holds no trigger-to-caption shortcut. And a text tower scores only pairs of a fold
that it has not trained on: a wrong pair cannot vouch for itself, nor its copies (`stages.score.models.cross_fit`). Planted
pairs of the bundled set got higher cosines than clean ones when one tower was trained on all pairs (AUROC 0.40), and lower
ones when cross-fitted (0.86; benchmarks/reports/2026-11-24-tdpa.md). Each worker contrasts its own rows only.
"""

import copy

import torch
from safetensors.torch import save

from manifests.parts import write_bytes
from manifests.store import Store
from stages.score.models.weights import FOLD_KEY, FOLDS_METADATA
from stages.train.batches import Batch
from stages.train.learner import Learner, under
from stages.train.losses import clip_loss
from stages.train.views import Views, encode_image


class Scorer(Learner):
    """One frozen image tower and a text tower for each fold."""

    def set_up(self, model: torch.nn.Module) -> torch.nn.Module:
        """Begin every text tower as the model's own, which the unimodal warm-up has left; share and freeze its image tower."""
        visual = model.get_submodule("visual")
        return torch.nn.ModuleList(copy.deepcopy(model, {id(visual): visual}) for _ in range(self.options.scorer_folds))

    def network(self) -> torch.nn.Module:
        """Return all towers as one module, the image tower in eval mode."""
        self.model.train().requires_grad_(True)
        self.model[0].get_submodule("visual").eval().requires_grad_(False)  # type: ignore[index]
        return _Folded(self.model, self.views)

    def scales(self) -> list[torch.Tensor]:
        """Return every text tower's logit scale."""
        return [tower.logit_scale for tower in self.model.children()]  # type: ignore[misc]

    def loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean CLIP loss of the text towers, each on the rows outside its fold."""
        captions = self.views.changed(batch.captions, self.options.p_caption_change)
        num_folds = len(self.scales())
        folds = torch.from_numpy(batch.folds).to(self.device)
        with self.autocast():
            images, texts, scales = network(self.views.images(batch.views[0]), self.views.tokens(captions), folds)
        losses = []
        for fold, (text, scale) in enumerate(zip(texts, scales, strict=True)):
            own = images[outside(folds, fold, num_folds)]
            if len(own) > 1:
                losses.append(clip_loss(own, text, scale))
            elif self.group.size > 1:  # every worker must have a gradient for every tower
                losses.append(0.0 * (text.sum() + scale))
        return torch.stack(losses).mean()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return towers and optimizer as one flat mapping on the CPU; the shared image tower once."""
        return {key: value for key, value in super().tensors().items() if not _is_copy(key.removeprefix("model/"))}

    def restore(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Take up what `tensors` returned at some step."""
        first = under(tensors, "model/0.")
        copies = {key: first[key.partition(".")[2]] for key in self.model.state_dict() if _is_copy(key)}
        super().restore({**tensors, **{f"model/{key}": value for key, value in copies.items()}}, step)

    def save_model(self, run: Store, name: str) -> None:
        """Write one file with all text towers; `--checkpoint` takes it like any other."""
        tensors = under(self.tensors(), "model/")
        if len(self.scales()) == 1:
            write_bytes(run, name, save(under(tensors, "0.")))
            return
        shared = {key: value for key, value in under(tensors, "0.").items() if key.startswith("visual.")}
        for fold in range(len(self.scales())):
            mine = under(tensors, f"{fold}.")
            shared |= {f"{FOLD_KEY}{fold}.{key}": value for key, value in mine.items() if not key.startswith("visual.")}
        write_bytes(run, name, save(shared, {FOLDS_METADATA: str(len(self.scales()))}))


def _is_copy(key: str) -> bool:
    """Return whether a name is that of the image tower as the second or a later fold sees it."""
    fold, _, name = key.partition(".")
    return fold.isdigit() and fold != "0" and name.startswith("visual.")


class _Folded(torch.nn.Module):
    """Every text tower on the rows outside its fold, in one forward."""

    def __init__(self, towers: torch.nn.Module, views: Views) -> None:
        super().__init__()
        self.towers, self._views = towers, views

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, folds: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        towers = list(self.towers)  # type: ignore[call-overload]
        with torch.no_grad():
            features = encode_image(towers[0], images)
        rows = [tokens[outside(folds, fold, len(towers))] for fold in range(len(towers))]
        texts = [self._views.encode_text(tower, own) for tower, own in zip(towers, rows, strict=True)]
        return features, texts, [tower.logit_scale.exp() for tower in towers]


def outside(folds: torch.Tensor, fold: int, num_folds: int) -> torch.Tensor:
    """Return which rows the text tower of a fold may train on, bool (n,); all, where there is one fold."""
    return torch.ones_like(folds, dtype=torch.bool) if num_folds == 1 else folds != fold
