"""What runs on a GPU, on the host's memory: the same code, with another name of the device."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import Exported

from feature_store.matrices import UserInputs
from model.artifact.batch import EngineError, EngineOptions, Piece
from model.artifact.buckets import bucket_of, check_buckets, portions
from model.artifact.cuda import DeviceTowers
from model.artifact.device import CaptureGate, Device
from model.artifact.engine import Engine
from model.artifact.golden import load_golden
from model.artifact.manifest import CANDIDATE_TOWER, GOLDEN, USER_TOWER, TensorSpec
from model.artifact.pool import Slot, StatePool, free_rows, runs
from model.artifact.providers import device_settings, plain_session, shape_profiles
from model.golden import random_candidates, random_users

OPTIONS = EngineOptions(tile=8, graph_users=(4,), graph_tiles=(1, 2, 4), state_slots=24)
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def make_towers(farm: Exported) -> Callable[..., DeviceTowers]:
    def make(options: EngineOptions = OPTIONS) -> DeviceTowers:
        return DeviceTowers(farm.engine.artifact, "cpu", options, kind="cpu")

    return make


@pytest.fixture(scope="module")
def towers(make_towers: Callable[..., DeviceTowers]) -> DeviceTowers:
    return make_towers()


@pytest.fixture
def device(farm: Exported) -> Device:
    return Device("cpu", 0, plain_session(farm.path / CANDIDATE_TOWER))


def pieces_of(engine: Engine, counts: list[int], seed: int = 0) -> list[Piece]:
    users = random_users(engine.view, [(50, 50 - i % 50) for i in range(len(counts))], seed)
    rows = [UserInputs(**{n: a[i : i + 1] for n, a in users.feeds().items()}) for i in range(len(counts))]
    return [
        Piece(row, None, random_candidates(engine.view, (1, c), seed + i)[0])
        for i, (row, c) in enumerate(zip(rows, counts, strict=True))
    ]


# Towers


def test_golden_outputs_are_met(farm: Exported, towers: DeviceTowers) -> None:
    for case in load_golden(farm.path / GOLDEN):
        scored = towers.score(towers.user_state(case.users), case.candidates, case.tile_user)
        np.testing.assert_allclose(scored, case.probabilities, rtol=0, atol=1e-5)


@pytest.mark.parametrize("counts", [[1], [8], [9], [100], [3, 17, 8, 1, 40], [2] * 11, [0], [0, 5]])
def test_a_batch_beyond_every_bucket_is_what_the_cpu_gives(
    farm: Exported, towers: DeviceTowers, counts: list[int]
) -> None:
    pieces = pieces_of(farm.engine, counts)
    scored, cost = towers.run(pieces)
    plain, _ = farm.engine.run(pieces)
    for got, expected in zip(scored, plain, strict=True):
        assert got.probabilities.shape == expected.probabilities.shape
        np.testing.assert_allclose(got.probabilities, expected.probabilities, rtol=0, atol=2e-6)
    tiles = sum(-(-count // 8) for count in counts)
    assert (cost.users, cost.tiles, cost.places, cost.candidates) == (len(counts), tiles, tiles * 8, sum(counts))


def test_a_kept_state_gives_bit_for_bit_what_a_new_one_gives(farm: Exported, towers: DeviceTowers) -> None:
    pieces = pieces_of(farm.engine, [20, 3, 9])
    new, _ = towers.run(pieces)
    kept = [Piece(None, scored.state, piece.candidates) for piece, scored in zip(pieces, new, strict=True)]
    mixed, cost = towers.run([kept[0], pieces[1], kept[2]])
    assert cost.users == 1
    alone = [towers.run([piece])[0][0] for piece in pieces]
    for first, second, third in zip(new, mixed, alone, strict=True):
        assert np.array_equal(first.probabilities, second.probabilities)
        assert np.array_equal(first.probabilities, third.probabilities)


def test_slots_are_taken_while_states_are_held_and_free_afterwards(
    farm: Exported, make_towers: Callable[..., DeviceTowers]
) -> None:
    towers = make_towers()
    pieces = pieces_of(farm.engine, [1] * 12)
    held = [towers.run(pieces)[0], towers.run(pieces)[0]]
    with pytest.raises(EngineError, match="state_slots: 24 of 24 are held and 1 more"):
        towers.run(pieces[:1])
    kept = [Piece(None, scored.state, piece.candidates) for piece, scored in zip(pieces, held[1], strict=True)]
    del held[0]
    fresh, _ = towers.run(pieces)
    again, _ = towers.run(kept)
    for left, right in zip(fresh, again, strict=True):
        assert np.array_equal(left.probabilities, right.probabilities)


def test_lanes_run_at_once_over_one_pool(farm: Exported, make_towers: Callable[..., DeviceTowers]) -> None:
    towers = make_towers(EngineOptions(tile=8, graph_users=(4,), graph_tiles=(2,), state_slots=64, streams=2))
    batches = [pieces_of(farm.engine, counts, seed) for seed, counts in enumerate([[20, 3], [9, 1], [33], [5] * 5])]
    expected = [[s.probabilities for s in towers.run(batch)[0]] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: towers.run(batch)[0], batches * 4))
    for scored, wanted in zip(found, expected * 4, strict=True):
        assert all(np.array_equal(s.probabilities, w) for s, w in zip(scored, wanted, strict=True))


def test_a_piece_without_users_and_without_state_is_refused(farm: Exported, towers: DeviceTowers) -> None:
    with pytest.raises(ValueError, match=r"piece\.users"):
        towers.run([Piece(None, None, random_candidates(farm.engine.view, (1, 2), 0)[0])])


def test_nodes_are_counted_by_provider(towers: DeviceTowers) -> None:
    assert set(towers.nodes) == {"CPUExecutionProvider"}
    assert towers.nodes["CPUExecutionProvider"] > 10
    assert not towers.cuda_graphs


# Buckets


@pytest.mark.parametrize(("count", "bucket"), [(1, 1), (2, 4), (4, 4), (5, 16), (16, 16)])
def test_the_least_bucket_that_takes_all(count: int, bucket: int) -> None:
    assert bucket_of(count, (1, 4, 16)) == bucket


def test_more_than_the_greatest_bucket_is_several_runs() -> None:
    assert portions(0, (1, 4)) == []
    assert portions(4, (1, 4)) == [(0, 4)]
    assert portions(9, (1, 4)) == [(0, 4), (4, 8), (8, 9)]


@pytest.mark.parametrize("sizes", [(), (0, 1), (2, 2), (4, 1)])
def test_buckets_that_do_not_rise_are_refused(make_towers: Callable[..., DeviceTowers], sizes: tuple[int, ...]) -> None:
    check_buckets("graph_tiles", (1,))
    with pytest.raises(EngineError, match="graph_tiles"):
        make_towers(EngineOptions(graph_tiles=sizes))


# Pool


def test_neighbours_are_taken_where_there_are_enough() -> None:
    free = np.array([1, 0, 1, 1, 0, 1, 1, 1], bool)
    assert free_rows(free, 1) == [0]
    assert free_rows(free, 2) == [2, 3]
    assert free_rows(free, 3) == [5, 6, 7]
    assert free_rows(free, 4) == [0, 2, 3, 5]
    assert free_rows(free, 7) == [0, 2, 3, 5, 6, 7]
    assert free_rows(free, 0) == []
    assert runs([0, 2, 3, 5]) == [(0, 0, 1), (1, 2, 2), (3, 5, 1)]
    assert runs([]) == []


@pytest.mark.parametrize("within", [True, False], ids=["within the device", "through the host"])
def test_states_are_copied_to_their_rows(device: Device, within: bool) -> None:
    device._copies_within = within
    specs = (TensorSpec(name="a", dtype="float32", shape=(2, 3)), TensorSpec(name="b", dtype="bool", shape=(5,)))
    pool = StatePool(device, specs, slots=6)
    first = pool.take(3)
    middle = first.pop(1)
    del middle
    slots = [*pool.take(1), *pool.take(2)]
    assert [slot.row for slot in slots] == [1, 3, 4]
    rng = np.random.default_rng(0)
    states = {"a": rng.random((4, 2, 3), np.float32), "b": rng.random((4, 5)) < 0.5}
    pool.store({name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in states.items()}, slots)
    for name, array in states.items():
        rows = pool.tensors[name].numpy()
        assert np.array_equal(rows[[1, 3, 4]], array[:3])
        assert not rows[[0, 2, 5]].any()


def test_a_pool_is_freed_without_the_collector(device: Device) -> None:
    """Which does not look at what was loaded before the first request."""
    gc.disable()
    try:
        pool = StatePool(device, (TensorSpec(name="a", dtype="float32", shape=(2,)),), slots=2)
        pool.store({"a": onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 2), "f4"))}, pool.take(1))
        freed = weakref.ref(pool)
        del pool
        assert freed() is None
    finally:
        gc.enable()


def test_a_slot_is_free_when_nobody_holds_it() -> None:
    free = np.zeros(3, bool)
    holders = [Slot(1, free)] * 2
    holders.pop()
    assert not free.any()
    holders.pop()
    assert free.tolist() == [False, True, False]


def test_a_view_is_the_memory_it_was_made_of(device: Device) -> None:
    tensor = device.empty((4, 3), "f4")
    assert not tensor.numpy().any()
    view = device.view(tensor.data_ptr() + 12, (2, 3), "f4")
    other = device.view(tensor.data_ptr(), (1, 3), "f4")
    view.update_inplace(np.full((2, 3), 7, np.float32))
    other.update_inplace(np.full((1, 3), 1, np.float32))
    assert tensor.numpy()[:, 0].tolist() == [1, 7, 7, 0]


def test_captures_wait_for_runs_and_keep_others_out() -> None:
    gate, order = CaptureGate(), []
    entered, leave = threading.Event(), threading.Event()

    def run(name: str) -> None:
        with gate.running():
            order.append(name)

    def capture() -> None:
        with gate.capturing():
            order.append("capture begins")
            entered.set()
            assert leave.wait(20)
            order.append("capture ends")

    with ThreadPoolExecutor(3) as pool:
        with gate.running():
            with ThreadPoolExecutor(1) as beside:
                beside.submit(run, "beside").result(20)
            capturing = pool.submit(capture)
            assert not entered.wait(0.05)
        assert entered.wait(20)
        late = pool.submit(run, "late")
        leave.set()
        capturing.result(20)
        late.result(20)
    assert order == ["beside", "capture begins", "capture ends", "late"]


# Providers


def test_the_options_of_each_provider(tmp_path: Path) -> None:
    (cuda, cuda_options), (rest, _) = device_settings("cuda", EngineOptions(device_id=3), cuda_graphs=True)
    assert (cuda, rest) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert cuda_options["device_id"] == "3"
    assert cuda_options["enable_cuda_graph"] == "1"
    assert cuda_options["use_tf32"] == "0"
    profiles = {"trt_profile_min_shapes": "x:1"}
    names = [name for name, _ in device_settings("tensorrt", EngineOptions(), False, profiles)]
    assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    kept = device_settings("tensorrt", EngineOptions(trt_cache=tmp_path, tf32=True), False, profiles)
    assert kept[0][1] == {
        "device_id": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
        "trt_profile_min_shapes": "x:1",
    }
    assert kept[1][1]["enable_cuda_graph"] == "0"
    assert kept[1][1]["use_tf32"] == "1"


def test_shape_profiles_of_tensorrt(farm: Exported) -> None:
    inputs = plain_session(farm.path / USER_TOWER).get_inputs()
    profiles = shape_profiles(inputs, [{"users": 1}, {"users": 4}, {"users": 16}])
    assert set(profiles) == {"trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"}
    assert profiles["trt_profile_min_shapes"].startswith("video:1x50x6,video_length:1,live:1x50x7,")
    assert ",live_length:4," in profiles["trt_profile_opt_shapes"]
    assert profiles["trt_profile_max_shapes"].endswith("now:16")


@pytest.mark.skipif(HAS_CUDA, reason="CUDA is here")
def test_the_next_provider_of_the_order_is_used_and_it_is_said(farm: Exported, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, "model.artifact.engine"):
        engine = Engine.load(farm.path, "tensorrt,cuda,cpu")
    assert engine.provider == "cpu"
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "provider tensorrt",
        "provider cuda",
        "engine",
    ]
    assert "engine: provider cpu of tensorrt,cuda,cpu" in caplog.text


@pytest.mark.skipif(HAS_CUDA, reason="CUDA is here")
def test_no_provider_beyond_the_order_is_used(farm: Exported) -> None:
    with pytest.raises(EngineError, match=r"provider tensorrt: .*; provider cuda: "):
        Engine.load(farm.path, ("tensorrt", "cuda"))
