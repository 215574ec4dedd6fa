"""The batches of an epoch: shared out to ranks, made in advance."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from training import make_tiny, same, trained

from model.datasets.prepared import Prepared
from model.datasets.samples import shuffled_batches
from model.train import RunError
from model.train.prefetch import prefetch


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def test_ranks_share_an_epoch_out(tiny: Prepared) -> None:
    rows = tiny.rows("train")

    def drawn(**shard: int) -> list[tuple[bytes, int]]:
        source = shuffled_batches(tiny, rows, 32, np.random.default_rng(0), **shard)
        return [(batch.candidates.tobytes(), len(batch.labels)) for batch in source]

    whole = drawn()
    shards = [drawn(rank=rank, ranks=3) for rank in range(3)]
    assert [shards[i % 3][i // 3] for i in range(len(whole))] == whole
    assert sum(size for shard in shards for _, size in shard) == len(rows)
    assert drawn(rank=1, ranks=3, skip=2) == shards[1][2:]


def test_batches_made_in_advance_come_in_order() -> None:
    assert list(prefetch(iter(range(100)), ahead=3)) == list(range(100))


def test_errors_of_the_source_are_raised() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise RunError("row 7")

    source = prefetch(failing())
    assert next(source) == 1
    with pytest.raises(RunError, match="row 7"):
        next(source)


def test_a_source_that_is_left_is_stopped() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(threading.get_ident())
            yield len(made)

    source = prefetch(endless(), ahead=2)
    assert next(source) == 1
    source.close()  # type: ignore[attr-defined]
    assert len(made) <= 5
    assert made[0] not in {thread.ident for thread in threading.enumerate()}


def test_prefetching_changes_nothing(tiny: Prepared, tmp_path: Path) -> None:
    """Two runs of many threads' timing are one run."""
    a, b = (trained(tiny, tmp_path / name, epochs=1, batch_size=16) for name in "ab")
    assert same(a, b)
