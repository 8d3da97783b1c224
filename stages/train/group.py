"""The workers that train one model together; a group of one costs nothing."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Group:
    """This worker's place among all.

    Attributes:
        rank: From 0.
        size: How many workers there are.
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def of_process() -> "Group":
        """Return the group that torch.distributed has set up in this process, or a group of one."""
        if dist.is_available() and dist.is_initialized():
            return Group(dist.get_rank(), dist.get_world_size())
        return Group()

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all workers in the order of their ranks, (size * n, d); gradients flow to each owner."""
        return rows if self.size == 1 else _Gather.apply(rows, self.rank, self.size)

    def gather_constant(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all workers in the order of their ranks, detached."""
        return rows.detach() if self.size == 1 else _all_rows(rows.detach(), self.size)

    def gather_values(self, value: Any) -> list[Any]:
        """Return one small picklable value of each worker; only ever between workers of one job."""
        found: list[Any] = [value]
        if self.size > 1:
            found = [None] * self.size
            dist.all_gather_object(found, value)
        return found

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a scalar over all workers, detached."""
        total = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total / self.size


def _all_rows(rows: torch.Tensor, size: int) -> torch.Tensor:
    found = [torch.empty_like(rows) for _ in range(size)]
    dist.all_gather(found, rows.contiguous())
    return torch.cat(found)


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums what every worker's loss says about a row; torch's own is deprecated since 2.14."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        ctx.rank, ctx.num = rank, len(rows)
        return _all_rows(rows, size)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.rank * ctx.num : (ctx.rank + 1) * ctx.num], None, None
