"""The training bench runs, and its shares are shares."""

from __future__ import annotations

import pytest

from loadtest.bench import train
from model.datasets.prepared import Prepared


def test_the_train_bench_measures_every_precision(prepared: Prepared) -> None:
    report = train.run(prepared.path, batch_size=256, device="cpu", precisions=["fp32", "bf16"], steps=3, quick=True)
    rows = report["results"]["precisions"]
    assert [row["precision"] for row in rows] == ["fp32", "bf16"]
    for row in rows:
        assert 0 <= row["wait_share"] < 1
        assert 0 < row["products_share"] < 1
        assert row["wait_ms"] < row["step_ms"]
        assert row["samples_per_s"] > 0
    assert report["results"]["pipeline_ms"] > 0
    assert report["settings"]["source"] == prepared.info.source
    assert report["claims"] == []  # they are about batches of 5000


@pytest.mark.parametrize(("share", "holds"), [(0.1, True), (0.11, False)])
def test_the_claim_is_about_big_batches(share: float, holds: bool) -> None:
    rows = [{"precision": "fp32", "wait_share": share}]
    claims = train._claims(rows, train.CLAIMED_BATCH)
    assert [claim["holds"] for claim in claims] == [holds]
    assert train._claims(rows, 512) == []
