"""Many processes, as `torchrun` starts them: who this one is, and the mean of their gradients.

The gradients are averaged by hand, in one flat all-reduce, and not by DistributedDataParallel: a ranker is called by
two methods and not by `forward`, big tables have sparse gradients, and the mean is to be weighted by samples.
Letters: R processes (ranks), N entries of a sparse gradient, D width of a table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one model."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # on its machine: the number of its GPU

    @property
    def first(self) -> bool:
        """The one that writes and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank."""
        values: list[Any] = [value]
        if self.world > 1:
            values = [None] * self.world
            dist.all_gather_object(values, value)
        return values


def ranks_of_environment() -> Ranks:
    """What torchrun says in the environment; one process when it says nothing."""
    names = {"rank": "RANK", "world": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
    return Ranks(**{field: int(os.environ[name]) for field, name in names.items() if name in os.environ})


@contextmanager
def process_group(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Connect the ranks for the time of a training: nccl on CUDA, gloo on CPU."""
    if ranks.world == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def average_gradients(
    dense: Sequence[nn.Parameter], sparse: Sequence[nn.Parameter], samples: int, ranks: Ranks
) -> None:
    """Give every rank the mean of all gradients, weighted by the ranks' numbers of samples; same bits on all of them.

    A rank without samples takes part with no gradients.  A parameter that no rank has a gradient for gets none.
    """
    if ranks.world == 1:
        return
    total = torch.tensor(float(samples), device=dense[0].device)
    dist.all_reduce(total)
    share = float(samples / total)
    _average_dense(dense, share)
    for parameter in sparse:
        _average_sparse(parameter, share, ranks)


def _average_dense(parameters: Sequence[nn.Parameter], share: float) -> None:
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad * share for p in parameters]
    flat = torch.cat([has, *(part.reshape(-1) for part in parts)])
    dist.all_reduce(flat)
    sizes = [len(has), *(p.numel() for p in parameters)]
    anywhere, *means = torch.split(flat, sizes)
    for parameter, there, mean in zip(parameters, anywhere.tolist(), means, strict=True):
        parameter.grad = mean.view_as(parameter) if there else None


def _average_sparse(parameter: nn.Parameter, share: float, ranks: Ranks) -> None:
    """Entries of all ranks, one after another: ranks have different numbers of them, so they are padded to the most."""
    width = parameter.shape[1]
    rows = torch.zeros(0, dtype=torch.int64, device=parameter.device)
    values = torch.zeros(0, width, device=parameter.device)
    if parameter.grad is not None:
        own = parameter.grad.coalesce()
        rows, values = own.indices()[0], own.values() * share  # [N], [N, D]
    counts = [int(count) for count in _all_gather(torch.tensor([len(rows)], device=rows.device), ranks)]
    most = max(counts)
    if most == 0:
        return
    every_rows = _all_gather(_pad(rows, most), ranks)
    every_values = _all_gather(_pad(values, most), ranks)
    rows = torch.cat([part[:count] for part, count in zip(every_rows, counts, strict=True)])
    values = torch.cat([part[:count] for part, count in zip(every_values, counts, strict=True)])
    parameter.grad = torch.sparse_coo_tensor(rows[None], values, parameter.shape).coalesce()


def _pad(x: Tensor, length: int) -> Tensor:
    """Zeros after the entries: [N, ...] -> [length, ...]"""
    return torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])])


def _all_gather(x: Tensor, ranks: Ranks) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(ranks.world)]
    dist.all_gather(parts, x.contiguous())
    return parts
