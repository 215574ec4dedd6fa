"""The training loss (Eq. 7, 14, 15), in float32 whatever precision the towers are computed in.

Letters: B samples, T tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.align import Preferences, align_loss
from model.config import ModelConfig
from model.datasets.samples import Batch
from model.farm import Ranker
from model.tensors import TensorBatch, Towers, logits, to_tensors


def total_loss(model: Ranker, batch: Batch) -> Tensor:
    """L = L_XTRs + lambda L_cl (Eq. 15).  A label that is not known takes no part in L_XTRs."""
    tensors = to_tensors(batch)
    return combined_loss(model.config, tensors, *logits(Towers.of(model), tensors))


def combined_loss(
    config: ModelConfig,
    batch: TensorBatch,
    scores: Tensor,
    preferences: Preferences | None,
    negative_weight: float = 1.0,
) -> Tensor:
    """Eq. 15 of logits [B, T].  negative_weight: of a sample without a positive label, in L_XTRs alone."""
    weight = None
    if negative_weight != 1:
        weight = torch.where(batch.labels.any(1), 1.0, negative_weight)  # [B]
    loss = xtr_loss(scores, batch.labels, batch.known, weight)
    if preferences is None:
        return loss
    contrast = align_loss(
        preferences.live.detach() if config.align_detach else preferences.live,
        preferences.video,
        batch.user_rows,
        preferences.takes_part,
        config.temperature,
        config.align_normalise,
    )
    return loss + config.align_weight * contrast


def xtr_loss(scores: Tensor, labels: Tensor, known: Tensor, weight: Tensor | None = None) -> Tensor:
    """Negative log-likelihood (Eq. 7): summed over tasks, each the mean over its known labels.

    scores (logits), labels, known [B, T]; weight [B] makes the means weighted.
    """
    counts = known if weight is None else known * weight[:, None]  # [B, T]
    losses = functional.binary_cross_entropy_with_logits(scores.float(), labels, reduction="none") * counts
    return (losses.sum(0) / counts.sum(0).clamp(min=1)).sum()
