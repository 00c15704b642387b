"""One batch shared by several processes, with the same result as in one.

Every process encodes its share of a batch, which is where the time goes. The features are then put together, and each
process computes the batch norm and the losses over identities for the whole batch; the identity memories and the
running statistics thereby stay the same everywhere without being sent. Data parallelism averages the gradients of the
processes: those of the heads are all the same, and `gathered` scales those of the encoder so that their average is
the sum over the shares.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor

Item = TypeVar("Item")


def processes() -> int:
    """How many processes train together; 1 without data parallelism."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share_of(batch: Sequence[Item], fabric: Fabric) -> Sequence[Item]:
    """This process's equal share of a batch, whose length the number of processes divides; shares are in order."""
    size = len(batch) // fabric.world_size
    return batch[fabric.global_rank * size : (fabric.global_rank + 1) * size]


def padded_share(count: int, fabric: Fabric) -> list[int]:
    """This process's share of all indices below `count`, the last index repeated so that shares are equally long."""
    size = -(-count // fabric.world_size)
    start = fabric.global_rank * size
    return [min(index, count - 1) for index in range(start, start + size)] if count else []


def gathered(rows: Tensor) -> Tensor:
    """The rows [b, ...] of all processes in their order, [processes * b, ...], with a gradient to one's own rows.

    The gradient is multiplied by the number of processes, see above. All processes must have equally many rows.
    """
    if processes() == 1:
        return rows
    gathered_rows: Tensor = _Gather.apply(rows)
    return gathered_rows


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of the processes' values, without gradient."""
    values = values.detach().clone()
    if processes() > 1:
        dist.all_reduce(values)
        values /= processes()
    return values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        everyones = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, rows.contiguous())
        ctx.size = len(rows)
        return torch.cat(everyones)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        start = dist.get_rank() * ctx.size
        return gradients[0][start : start + ctx.size] * dist.get_world_size()
