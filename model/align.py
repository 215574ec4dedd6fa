"""Cross-domain preference align module (section 3.3.1; Eq. 12-14).

Letters: B samples, U users, L events, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.embedding import masked_mean


class Preferences(NamedTuple):
    """What Eq. 14 compares."""

    video: Tensor  # h_video [U, align_width]
    live: Tensor  # h_live [U, align_width]
    takes_part: Tensor  # [U] bool: the model read events in both domains


class Preference(nn.Module):
    """h = MLP(Mean(V_hat)) (Eq. 13).  [U, L, D], [U, L] -> [U, align_width]"""

    def __init__(self, width: int, align_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, align_width), nn.ReLU(), nn.Linear(align_width, align_width))

    def forward(self, events: Tensor, valid: Tensor) -> Tensor:
        h: Tensor = self.mlp(masked_mean(events, valid))
        return h


def align_loss(
    h_live: Tensor, h_video: Tensor, users: Tensor, takes_part: Tensor, temperature: float, normalise: bool = True
) -> Tensor:
    """Contrastive loss of Eq. 14 over a batch, in float32: h_live is the anchor, h_video of other users the negatives.

    h_live, h_video [B, D]; users [B], an id per row: another row of the same user is no negative; takes_part [B] bool:
    rows with events in both domains.  0 when fewer than two rows take part.
    """
    live, video = h_live.float(), h_video.float()
    if normalise:
        live, video = functional.normalize(live, dim=-1), functional.normalize(video, dim=-1)
    logits = live @ video.T / temperature  # [B, B]
    same_user = users[:, None] == users[None, :]
    same_user.fill_diagonal_(False)
    logits = logits.masked_fill(same_user | ~takes_part[None, :], torch.finfo(logits.dtype).min)
    targets = torch.arange(len(logits), device=logits.device)
    losses = functional.cross_entropy(logits, targets, reduction="none")  # [B]
    weight = takes_part.to(losses.dtype)
    total = weight.sum()
    return torch.where(total > 1, (losses * weight).sum() / total.clamp(min=1.0), 0.0)
