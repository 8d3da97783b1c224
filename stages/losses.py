"""The two losses of SAFECLIP: image against caption on safe pairs, each modality by itself on risky ones.

Source: Yang, Gao, Mirzasoleiman, "Better Safe than Sorry", ICML 2024, section 4.1: a unimodal loss with nearest-neighbour
positives, after NNCLR (Dwibedi et al. 2021).
"""

import torch
from torch.nn.functional import cross_entropy


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

    def __init__(self, size: int, dim: int) -> None:
        """Start empty."""
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def nearest(self, features: torch.Tensor) -> torch.Tensor:
        """Return for each unit vector (n, d) the pool's row of highest cosine, detached; itself while the pool is empty."""
        num = int(self.filled)
        if num == 0:
            return features.detach()
        pool = self.rows[:num].to(features.dtype)
        return pool[(features.detach() @ pool.T).argmax(dim=1)]

    @torch.no_grad()
    def push(self, features: torch.Tensor) -> None:
        """Put unit vectors (n, d) in, in order; the oldest rows go once the pool is full."""
        size, start = len(self.rows), int(self.cursor)
        kept = features.detach().float()[-size:]
        places = (torch.arange(len(kept), device=kept.device) + start) % size
        self.rows[places] = kept
        self.cursor.fill_((start + len(kept)) % size)
        self.filled.fill_(min(size, int(self.filled) + len(kept)))


def unimodal_loss(first: torch.Tensor, second: torch.Tensor, pool: NeighbourPool, scale: torch.Tensor) -> torch.Tensor:
    """Contrast one view of each row with the neighbours of the other view, then put the other view into the pool.

    Args:
        first: Unit vectors of one view, (n, d); what the pool is searched with.
        second: Unit vectors of the other view, (n, d); gradients flow through these.
        pool: Of this modality.
        scale: exp of the logit scale, positive scalar.

    Returns:
        Mean cross entropy of scale * second . neighbours(first), targets on the diagonal.
    """
    logits = scale * second @ pool.nearest(first).T
    pool.push(first)
    return cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def clip_loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return CLIP's symmetric cross entropy of unit vectors (n, d) of images and their captions."""
    logits = scale * images @ texts.T
    targets = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
