"""Devices and precision, and one batch shared by several processes with the result of a single one.

Every process encodes its share of a batch, the bulk of the work. The features are then gathered, and each
process computes the batch norm and the losses over identities for the whole batch, so that the identity memories and
the running statistics stay equal without being sent. Data parallelism averages the gradients of the processes: those
of the heads are all equal, and `gathered` scales those of the encoder so that their average is the sum over the shares.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor

from reid.config import RunConfig
from shared.errors import ConfigError, DgreidError

Item = TypeVar("Item")
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


def make_fabric(device: str, precision: Precision, devices: int = 1, *, tf32: bool = False) -> Fabric:
    """Devices of one kind ("auto", "cpu", "cuda", "mps") with a precision; several are a process each.

    Args:
        precision: "auto" is bf16-mixed on a GPU that computes in bfloat16, float32 elsewhere.
        tf32: let GPUs round the factors of float32 products to 10 bits; this is a setting of the whole process. False
            keeps results independent of the device.

    Raises ConfigError when they are unavailable on this machine.
    """

    nodes = 1
    if (started := started_processes()) is not None:
        nodes, devices = started

    # buffers are equal in all processes already, see above
    def strategy() -> DDPStrategy | str:
        return DDPStrategy(broadcast_buffers=False) if nodes * devices > 1 else "auto"

    try:
        kind = Fabric(accelerator=device, devices=devices, num_nodes=nodes, strategy=strategy()).device.type
    except (RuntimeError, ValueError) as err:  # Fabric's MisconfigurationException and torch's own are RuntimeErrors
        reason = str(err).splitlines()[0]
        raise ConfigError(
            f"device={device} devices={devices} cannot be used: {reason}",
            fix="set device=auto or device=cpu, devices=1",
        ) from err
    if precision == "16-mixed" and kind == "cpu":  # Fabric would take another precision and only warn
        raise ConfigError("precision 16-mixed needs a GPU", fix="set precision=32-true, or precision=bf16-mixed")
    if precision == "auto":
        precision = "bf16-mixed" if kind == "cuda" and torch.cuda.is_bf16_supported(False) else "32-true"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    return Fabric(accelerator=device, devices=devices, num_nodes=nodes, strategy=strategy(), precision=precision)


def started_processes() -> tuple[int, int] | None:
    """How many machines and processes on each `torchrun` or Slurm has started; None: this process is alone so far.

    What they started is what is used, whatever the configuration says.
    """
    if TorchElasticEnvironment.detect():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return int(os.environ["WORLD_SIZE"]) // here, here
    if SLURMEnvironment.detect() and (tasks := int(os.environ["SLURM_NTASKS"])) > 1:
        nodes = int(os.environ.get("SLURM_NNODES") or 1)
        return nodes, tasks // nodes
    return None


def joined(config: RunConfig) -> Fabric:
    """The devices of a configuration; with several this starts the other processes and joins them, once.

    One of them logs. Raises as `make_fabric`.
    """
    fabric = make_fabric(config.device, config.precision, config.devices, tf32=config.tf32)
    fabric.launch()
    if not fabric.is_global_zero:
        logging.disable(logging.WARNING)
    return fabric


@contextmanager
def told_when_another_stops() -> Iterator[None]:
    """Errors of communication as one sentence: some other process has stopped and has said why."""
    try:
        yield
    except RuntimeError as err:
        text = str(err)
        if processes() == 1 or not (isinstance(err, dist.DistError) or "gloo" in text or "NCCL" in text):
            raise
        raise DgreidError(
            f"another process of this training has stopped ({text.splitlines()[0][:120]})",
            fix="see what that process said; the same command continues where it stopped",
        ) from err


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
