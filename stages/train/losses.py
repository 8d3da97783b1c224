"""The two losses of SAFECLIP: image against caption on safe pairs, each modality by itself on risky ones.

Both are means over the rows of all workers. Where a worker computes only its own rows' part, the mean over workers of the
parts is the loss, which is what averaging gradients makes of it.

Source: Yang, Gao, Mirzasoleiman, "Better Safe than Sorry", ICML 2024, section 4.1: a unimodal loss with nearest-neighbour
positives, after NNCLR (Dwibedi et al. 2021).
"""

import faiss
import torch
from torch.nn.functional import cross_entropy

from stages.train.group import Group

_ALONE = Group()


class NeighbourPool(torch.nn.Module):
    """The last unit vectors of one modality, first in first out; its buffers go into the checkpoint.

    Attributes:
        rows: float32 (size, dim); only the first `filled` are set.
        filled: How many rows are set, int64 scalar.
        cursor: Where the next row goes, int64 scalar.
    """

    rows: torch.Tensor
    filled: torch.Tensor
    cursor: torch.Tensor

    def __init__(self, size: int, dim: int, faiss_from: int = 65536) -> None:
        """Start empty.

        Args:
            size: Rows that it holds.
            dim: Length of the vectors.
            faiss_from: Rows from which FAISS searches on a CPU: as exact, in blocks, never all products at once.
        """
        super().__init__()
        self._faiss_from = faiss_from
        self.register_buffer("rows", torch.zeros(size, dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def nearest(self, features: torch.Tensor) -> torch.Tensor:
        """Return for each unit vector (n, d) the pool's row of highest cosine, detached; itself while the pool is empty."""
        num = int(self.filled)
        if num == 0:
            return features.detach()
        wanted, pool = features.detach().float(), self.rows[:num]
        if num >= self._faiss_from and pool.device.type == "cpu":
            _, found = faiss.knn(wanted.numpy(), pool.numpy(), 1, metric=faiss.METRIC_INNER_PRODUCT)
            places = torch.from_numpy(found[:, 0])
        else:
            places = (wanted @ pool.T).argmax(dim=1)
        return pool[places].to(features.dtype)

    @torch.no_grad()
    def push(self, features: torch.Tensor) -> None:
        """Put unit vectors (n, d) in, in order; the oldest rows go once the pool is full."""
        size, start = len(self.rows), int(self.cursor)
        kept = features.detach().float()[-size:]
        places = (torch.arange(len(kept), device=kept.device) + start) % size
        self.rows[places] = kept
        self.cursor.fill_((start + len(kept)) % size)
        self.filled.fill_(min(size, int(self.filled) + len(kept)))


def unimodal_loss(
    first: torch.Tensor, second: torch.Tensor, pool: NeighbourPool, scale: torch.Tensor, group: Group = _ALONE
) -> torch.Tensor:
    """Contrast one view of each row with the neighbours of the other view, then put the other view into the pool.

    Args:
        first: Unit vectors of one view, (n, d); what the pool is searched with.
        second: Unit vectors of the other view, (n, d); gradients flow through these.
        pool: Of this modality; every worker's holds the rows of all, in the same order.
        scale: exp of the logit scale, positive scalar.
        group: The workers.

    Returns:
        Mean cross entropy of scale * second . neighbours(first), targets on the diagonal; over this worker's rows, against the
        neighbours of all workers' rows.
    """
    logits = scale * second @ group.gather_constant(pool.nearest(first)).T
    pool.push(group.gather_constant(first))
    return cross_entropy(logits, _own(logits, group))


def clip_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, group: Group = _ALONE, *, local: bool = False
) -> torch.Tensor:
    """Return CLIP's symmetric cross entropy of unit vectors (n, d) of images and their captions.

    Args:
        images: Of this worker's rows.
        texts: Of the same rows.
        scale: exp of the logit scale, positive scalar.
        group: The workers; negatives come from all of them, with gradients.
        local: Whether to compute only this worker's rows of the loss, which takes 1 / group.size of the memory and work; the
            mean over workers, and so the averaged gradient, is the same.
    """
    all_images, all_texts = group.gather(images), group.gather(texts)
    if local:
        targets = _own(images, group)
        by_image, by_text = scale * images @ all_texts.T, scale * texts @ all_images.T
    else:
        by_image = scale * all_images @ all_texts.T
        by_text, targets = by_image.T, torch.arange(len(all_images), device=images.device)
    return (cross_entropy(by_image, targets) + cross_entropy(by_text, targets)) / 2


def _own(rows: torch.Tensor, group: Group) -> torch.Tensor:
    """Return the places of this worker's rows among all."""
    return torch.arange(len(rows), device=rows.device) + group.rank * len(rows)
