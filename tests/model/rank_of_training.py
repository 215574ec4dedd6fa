"""One of the processes that torchrun starts: `rank_of_training.py PREPARED FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from training import RANKS_SETTINGS

from model.datasets.prepared import Prepared
from model.datasets.samples import gather
from model.tensors import logits, to_tensors
from model.train import loop, train
from model.train.distributed import average_gradients
from model.train.loop import Job
from model.train.loss import combined_loss

PARTS = (slice(0, 40), slice(40, 64))  # the samples of the two ranks


def main(data: str, out: str) -> None:
    torch.set_num_threads(1)
    folder, after_epoch = Path(out), loop._after_epoch

    def observed(job: Job, *others: Any) -> None:
        after_epoch(job, *others)
        torch.save(job.model.state_dict(), folder / f"rank{job.ranks.rank}.pt")
        (folder / f"rank{job.ranks.rank}.json").write_text(json.dumps(averages(job)))

    loop._after_epoch = observed
    train(Prepared.open(data), folder / "run", RANKS_SETTINGS | {"batch_size": 32}, quiet=True)


def averages(job: Job) -> dict[str, float]:
    """How far the average of two parts' gradients is from the gradients of the whole, in evaluation mode."""
    job.model.eval()
    rows = job.data.rows("train")[-64:]
    whole = gradients(job, rows)
    own = rows[PARTS[job.ranks.rank]]
    averaged = gradients(job, own, average=len(own))
    alone = gradients(job, rows if job.ranks.first else rows[:0], average=64 if job.ranks.first else 0)
    return {
        "gradients": len(averaged),
        "sparse": len(job.optimisers.sparse),
        "greatest_difference": greatest_difference(averaged, whole),
        "without_batch": greatest_difference(alone, whole),
    }


def gradients(job: Job, rows: Any, average: int | None = None) -> dict[str, torch.Tensor]:
    """By parameter, of the loss of some rows without the contrastive part, which is over a rank's own batch."""
    job.optimisers.zero_grad()
    if len(rows):
        batch = to_tensors(gather(job.data, rows))
        scores, _ = logits(job.towers, batch)
        combined_loss(job.model.config, batch, scores, None).backward()  # type: ignore[no-untyped-call]
    if average is not None:
        average_gradients(job.optimisers.dense, job.optimisers.sparse, average, job.ranks)
    return {name: p.grad.to_dense() for name, p in job.model.named_parameters() if p.grad is not None}


def greatest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


if __name__ == "__main__":
    main(*sys.argv[1:])
