"""Intra-domain frequency-aware module (section 3.2; Eq. 1-5, 9, 10).

The DFT's low pass is a real projection of rank c: with the basis B of `fourier_basis`, Low[x] = B (B^T x).
Letters: U users, L slots of a history, n events of it, D width, c basis columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.config import Spectrum
from model.embedding import masked_mean


def fourier_basis(length: int, cutoff: int) -> Tensor:
    """Orthonormal basis of the lowest frequencies of a real signal: the constant and (cutoff - 1) / 2 conjugate pairs.

    Returns float64 [length, min(cutoff, largest odd number <= length)].  B (B^T x) is the inverse DFT of the
    `cutoff` lowest frequencies of the DFT of x (Eq. 1-4).  ValueError when cutoff is even or not positive.

    >>> B = fourier_basis(50, 5)
    >>> torch.allclose(B.T @ B, torch.eye(5, dtype=torch.float64))
    True
    """
    if cutoff < 1 or cutoff % 2 == 0:
        raise ValueError(f"cutoff must be odd and positive, is {cutoff}: frequencies but the constant come in pairs")
    if length < 1:
        raise ValueError(f"length must be positive, is {length}")
    columns = min(cutoff, length if length % 2 else length - 1)
    t = torch.arange(length, dtype=torch.float64)
    basis = [torch.full((length,), 1 / math.sqrt(length), dtype=torch.float64)]
    for m in range(1, (columns - 1) // 2 + 1):
        angle = 2 * math.pi * m / length * t
        basis += [math.sqrt(2 / length) * angle.cos(), math.sqrt(2 / length) * angle.sin()]
    return torch.stack(basis, dim=1)


def cutoff_of(events: int, slots: int, cutoff: int, spectrum: Spectrum) -> int:
    """c of a history of `events` events.  "proportional": the odd number nearest to c n / L (the greater of two), so
    that the cut-off is the same frequency for every history; "count": c itself."""
    if spectrum == "count":
        return cutoff
    return 2 * (cutoff * events // (2 * slots)) + 1


def basis_table(slots: int, cutoff: int, spectrum: Spectrum) -> Tensor:
    """The basis of every history length: float64 [L + 1, L, c], zero in the pads and in columns that are not there."""
    table = torch.zeros(slots + 1, slots, cutoff, dtype=torch.float64)
    for events in range(1, slots + 1):
        length = slots if spectrum == "padded" else events
        basis = fourier_basis(length, cutoff_of(length, slots, cutoff, spectrum))
        table[events, :length, : basis.shape[1]] = basis
    return table


class Gate(nn.Module):
    """Sigmoid(MLP(masked mean)): one number per user (Eq. 10).  [U, L, D], [U, L] -> [U, 1, 1]"""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, mean: Tensor) -> Tensor:
        gate: Tensor = torch.sigmoid(self.mlp(mean))
        return gate[..., None]


class FrequencyModule(nn.Module):
    """F = low_gate Low[V] + high_gate High[V], with High[V] = V - Low[V] (Eq. 9, 10)."""

    table: Tensor

    def __init__(self, width: int, slots: int, cutoff: int, spectrum: Spectrum, gate_hidden: int) -> None:
        super().__init__()
        self.low_gate = Gate(width, gate_hidden)  # alpha, gamma
        self.high_gate = Gate(width, gate_hidden)  # beta, delta
        self.register_buffer("table", basis_table(slots, cutoff, spectrum).float(), persistent=False)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x [U, L, D] with zeros in the pads, valid [U, L] -> [U, L, D], zeros in the pads."""
        low, high = self.gates(x, valid)  # [U, 1, 1] each
        mixed = high * x + (low - high) * self.low_pass(x, valid.sum(1))
        return mixed * valid[..., None]

    def low_pass(self, x: Tensor, length: Tensor) -> Tensor:
        """Low[x] (Eq. 4).  x [U, L, D], length [U] -> [U, L, D]"""
        basis = self.table[length][:, : x.shape[1]]  # [U, L, c]; its rows are zero from n on, or meet zeros of x
        return basis @ (basis.transpose(1, 2) @ x)

    def gates(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        mean = masked_mean(x, valid)  # [U, D]
        return self.low_gate(mean), self.high_gate(mean)
