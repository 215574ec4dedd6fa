"""The cache of user states: its key, its bound, its clock; and that a hit is the miss, bit for bit."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from feature_store.matrices import UserInputs, user_inputs
from model.artifact.engine import Engine
from model.artifact.golden import load_golden
from model.artifact.manifest import GOLDEN
from service.scoring.cache import StateCache
from service.scoring.scorer import LocalScorer

QUANTUM_MS = 60_000
NOON = 1_700_000_000_000 // QUANTUM_MS * QUANTUM_MS


def some_users(now_ms: int = NOON) -> UserInputs:
    return UserInputs(
        video=np.arange(12, dtype=np.int64).reshape(1, 4, 3),
        video_length=np.array([2]),
        live=np.arange(8, dtype=np.int64).reshape(1, 4, 2),
        live_length=np.array([4]),
        user=np.array([[7, 1]]),
        now=np.array([now_ms]),
    )


def cache_of(states: float, version: str = "v1") -> tuple[StateCache, list[float]]:
    """A cache for so many states of 100 bytes, and its clock."""
    clock = [0.0]
    return StateCache(version, QUANTUM_MS // 1000, 100, int(100 * states), lambda: clock[0]), clock


def state(value: float) -> dict[str, np.ndarray]:
    return {"x": np.array([value])}


def test_the_key_is_everything_that_is_read() -> None:
    cache, _ = cache_of(10)
    users = some_users()
    key = cache.key(users)
    assert key is not None
    assert len(key) == 16
    assert cache.key(some_users()) == key
    for name, values in users.feeds().items():
        for place in np.ndindex(values.shape):
            changed = values.copy()
            changed[place] += QUANTUM_MS if name == "now" else 1
            assert cache.key(replace(users, **{name: changed})) != key, (name, place)
    assert cache_of(10, "v2")[0].key(users) != key


def test_now_counts_in_quanta() -> None:
    cache, _ = cache_of(10)
    for start in (NOON, 0, -QUANTUM_MS):
        keys = [cache.key(some_users(start + ms)) for ms in (0, 1, QUANTUM_MS - 1)]
        assert len(set(keys)) == 1
        assert cache.key(some_users(start - 1)) not in keys
        assert cache.key(some_users(start + QUANTUM_MS)) not in keys


def test_the_least_recently_used_is_let_go() -> None:
    cache, _ = cache_of(3.9)
    for name in (b"a", b"b", b"c"):
        cache.put(name, state(1))
    assert cache.size_bytes == 300
    assert cache.get(b"a") is not None
    cache.put(b"c", state(2))  # a state that is there is the same: it stays, and is not used by this
    cache.put(b"d", state(3))
    assert [name for name in (b"a", b"b", b"c", b"d") if cache.get(name)] == [b"a", b"c", b"d"]
    assert cache.size_bytes == 300
    cache.clear()
    assert (cache.size_bytes, cache.get(b"a")) == (0, None)


def test_age() -> None:
    cache, clock = cache_of(1)
    clock[0] = 100.0
    cache.put(b"a", state(1))
    clock[0] = 107.5
    cache.put(b"a", state(1))
    kept = cache.get(b"a")
    assert kept is not None
    assert cache.age_s(kept) == 7.5


@pytest.mark.parametrize("states", [0, 0.99])
def test_less_than_one_state_is_off(states: float) -> None:
    cache, _ = cache_of(states)
    assert cache.key(some_users()) is None
    cache.put(None, state(1))
    assert (cache.get(None), cache.size_bytes) == (None, 0)


def test_many_threads() -> None:
    cache, _ = cache_of(5)
    wrong: list[object] = []

    def hammer(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 12, 3000).tolist():
            kept = cache.get(bytes([number]))
            if kept is not None and kept.state["x"][0] != number:
                wrong.append(kept)
            cache.put(bytes([number]), state(number))

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, cache.size_bytes) == ([], 500)


@pytest.fixture(scope="module")
def engine(artifact: Path) -> Engine:
    return Engine.load(artifact, check=False)


@pytest.fixture(scope="module")
def users(engine: Engine) -> list[UserInputs]:
    """Users of the golden cases, one by one."""
    cases = load_golden(engine.artifact.path / GOLDEN)
    return [
        UserInputs(**{name: values[row : row + 1] for name, values in case.users.feeds().items()})
        for case in cases
        for row in range(len(case.users.now))
    ]


@pytest.fixture(scope="module")
def candidates(engine: Engine) -> np.ndarray:
    cases = load_golden(engine.artifact.path / GOLDEN)
    return np.concatenate([case.candidates.reshape(-1, case.candidates.shape[-1]) for case in cases])


def bits(values: dict[str, np.ndarray]) -> list[bytes]:
    return [values[name].tobytes() for name in sorted(values)]


def test_the_graph_reads_now_in_the_same_quanta(engine: Engine, users: list[UserInputs]) -> None:
    quantum_ms = 1000 * engine.view.lag_quantum_s
    longest = max(users, key=lambda one: int(one.video_length[0] + one.live_length[0]))
    start = longest.now // quantum_ms * quantum_ms
    states = [bits(engine.user_state(replace(longest, now=start + ms))) for ms in (0, quantum_ms - 1, 3_600_000)]
    assert states[0] == states[1] != states[2]


def test_a_hit_is_the_miss_bit_for_bit(engine: Engine, users: list[UserInputs], candidates: np.ndarray) -> None:
    async def check() -> None:
        fresh, kept = LocalScorer(engine), LocalScorer(engine, executors=1, cache_bytes=100 * engine.state_bytes)
        rows = [candidates[np.arange(60) * (user + 1) % len(candidates)] for user in range(len(users))]
        misses = [await fresh.score(one, matrix) for one, matrix in zip(users, rows, strict=True)]
        pairs = list(zip(users, rows, strict=True))
        together = await asyncio.gather(*(kept.score(one, matrix[:7]) for one, matrix in pairs))  # in batches
        hits = [await kept.score(one, matrix) for one, matrix in pairs]
        assert not any(score.kept for score in (*misses, *together))
        assert all(score.kept for score in hits)
        for miss, hit in zip(misses, hits, strict=True):
            assert miss.probabilities.tobytes() == hit.probabilities.tobytes()
        await fresh.close()
        await kept.close()

    asyncio.run(check())


def test_metrics(engine: Engine, users: list[UserInputs], candidates: np.ndarray) -> None:
    def values() -> list[float]:
        lookups = [_sample("requests_total", result=result) for result in ("hit", "miss")]
        return [*lookups, _sample("age_seconds_count")]

    async def check() -> None:
        scorer = LocalScorer(engine, cache_bytes=2 * engine.state_bytes)
        before = values()
        for one in (0, 0, 1, 0, 2, 1):  # 1 is let go for 2
            await scorer.score(users[one], candidates[:3])
        assert np.subtract(values(), before).tolist() == [2, 4, 2]
        assert _sample("bytes") == 2 * engine.state_bytes
        await scorer.close()
        off = LocalScorer(engine)
        await off.score(users[0], candidates[:3])
        await off.close()
        assert np.subtract(values(), before).tolist() == [2, 4, 2]

    asyncio.run(check())


def _sample(name: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(f"farm_state_cache_{name}", labels)
    assert value is not None
    return value


def test_a_model_is_freed_with_its_scorer_without_the_collector(artifact: Path) -> None:
    """Which does not look at what was loaded before the first request: all that is frozen."""
    kept = "farm_state_cache_bytes"

    async def serve() -> weakref.ref[Engine]:
        engine = Engine.load(artifact, check=False)
        scorer = LocalScorer(engine, 1, cache_bytes=10 * engine.state_bytes)
        before = REGISTRY.get_sample_value(kept) or 0.0
        users = [user_inputs(engine.view, None, number, {}, NOON) for number in range(3)]
        for one in users:
            await scorer.score(one, np.full((2, len(engine.view.columns("candidate"))), -1))
        assert REGISTRY.get_sample_value(kept) == before + 3 * engine.state_bytes
        await scorer.close()
        await scorer.close()  # twice does no harm
        assert REGISTRY.get_sample_value(kept) == before
        return weakref.ref(engine)

    gc.disable()
    try:
        assert asyncio.run(serve())() is None
    finally:
        gc.enable()
