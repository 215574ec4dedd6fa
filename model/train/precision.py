"""Device and precision of training.  Weights, gradients, losses and ids keep their types: autocast is for products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from model.config import TrainConfig
from model.train.run import RunError


def choose_device(config: TrainConfig, local_rank: int = 0) -> torch.device:
    """The device of this process.  RunError for CUDA that is not there, and for tf32 without CUDA."""
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise RunError("device=cuda: torch finds no CUDA here; set device=cpu or auto")
    if config.device == "cpu" or not there:
        if config.precision == "tf32":
            raise RunError("precision=tf32: is of CUDA alone; set precision=fp32 or bf16 on a CPU")
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


@contextmanager
def float32_products(config: TrainConfig) -> Iterator[None]:
    """tf32: products of float32 matrices keep 10 bits of the mantissa, on CUDA.  Else all of them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Around the towers, not the losses."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
