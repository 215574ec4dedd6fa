"""A batch as tensors, on the device of the model, and the model's logits for it.

Letters: B samples, U requests, T tasks, F columns, K candidates of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.align import Preferences
from model.datasets.samples import Batch
from model.farm import Ranker, UserState

MOST_PADDING = 1.5  # places per sample, above which slates are too unequal to be computed as tiles


@dataclass(frozen=True)
class TensorBatch:
    """model.datasets.samples.Batch as tensors, and how its slates lie in tiles of like length."""

    users: dict[str, Tensor]  # the arguments of Ranker.user_state
    request: Tensor  # [B] int64
    candidates: Tensor  # [B, Fc] int64
    labels: Tensor  # [B, T] float32
    known: Tensor  # [B, T] bool
    user_rows: Tensor  # [U] int64
    tile: int  # K; 1 when slates are too unequal
    place: Tensor  # [B] int64, of each sample among the U * K places; its own number when K is 1

    def __len__(self) -> int:
        return len(self.request)

    def map(self, change: Callable[[Tensor], Tensor]) -> TensorBatch:
        """The batch with every tensor changed."""
        return TensorBatch(
            users={name: change(value) for name, value in self.users.items()},
            request=change(self.request),
            candidates=change(self.candidates),
            labels=change(self.labels),
            known=change(self.known),
            user_rows=change(self.user_rows),
            tile=self.tile,
            place=change(self.place),
        )

    def to(self, device: torch.device) -> TensorBatch:
        """A copy on the device; from pinned memory it is made while the host goes on."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True)
class Towers:
    """The two calls of a ranker, perhaps compiled."""

    user_state: Callable[..., tuple[UserState, Preferences | None]]
    candidate_logits: Callable[[UserState, Tensor, Tensor], Tensor]

    @classmethod
    def of(cls, model: Ranker, compiled: bool = False) -> Towers:
        if not compiled:
            return cls(model.user_state, model.candidate_logits)
        return cls(
            torch.compile(model.user_state, dynamic=True),  # slates and histories differ from batch to batch
            torch.compile(model.candidate_logits, dynamic=True),
        )


def to_tensors(batch: Batch) -> TensorBatch:
    """The arrays of a batch as tensors of the host."""
    users = {name: torch.from_numpy(values) for name, values in batch.users.feeds().items()}
    request = torch.from_numpy(batch.request)
    tile, place = _tiles(request)
    return TensorBatch(
        users=users,
        request=request,
        candidates=torch.from_numpy(batch.candidates),
        labels=torch.from_numpy(batch.labels),
        known=torch.from_numpy(batch.known),
        user_rows=torch.from_numpy(batch.user_rows),
        tile=tile,
        place=place,
    )


def logits(towers: Towers, batch: TensorBatch) -> tuple[Tensor, Preferences | None]:
    """Logits [B, T], each request's user computed once; and the preferences of the U requests."""
    state, preferences = towers.user_state(**batch.users)
    if batch.tile == 1:
        return towers.candidate_logits(state, batch.candidates[:, None], batch.request)[:, 0], preferences
    users = len(batch.user_rows)
    places = batch.candidates.new_zeros(users * batch.tile, batch.candidates.shape[1])
    tiles = places.index_copy(0, batch.place, batch.candidates).view(users, batch.tile, -1)  # [U, K, Fc]
    scores = towers.candidate_logits(state, tiles, torch.arange(users, device=tiles.device))  # [U, K, T]
    return scores.flatten(0, 1).index_select(0, batch.place), preferences


def _tiles(request: Tensor) -> tuple[int, Tensor]:
    """Candidates per tile, and each sample's place among them [B]: the longest slate if that pads little, else one."""
    counts = torch.bincount(request)
    longest = int(counts.max())
    if longest * len(counts) > MOST_PADDING * len(request):
        return 1, torch.arange(len(request))
    before = torch.cumsum(counts, 0) - counts
    return longest, request * longest + torch.arange(len(request)) - before[request]
