"""Both towers on a GPU: fixed shapes at fixed addresses, replayed as CUDA graphs, user states that stay on the device.

A lane is one stream: two sessions, their bound buffers and one thread, because ONNX Runtime keeps captured graphs for
the thread that captured them.  All lanes share the tables and the pool of states.
Letters: U users, T tiles, K candidates of a tile, Fc candidate columns, S slots.
"""

from __future__ import annotations

import logging
import queue
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime as ort

from feature_store.matrices import UserInputs
from feature_store.schema import MISSING
from model.artifact.batch import BatchCost, Clock, EngineError, EngineOptions, Piece, Provider, Scored, UserState
from model.artifact.buckets import bucket_of, check_buckets, portions
from model.artifact.device import CaptureGate, Device
from model.artifact.manifest import CANDIDATE_TOWER, USER_TOWER, Artifact
from model.artifact.pool import Slot, StatePool
from model.artifact.providers import device_options, device_settings, open_session, plain_session, shape_profiles
from model.artifact.tables import SharedTables
from model.artifact.tiles import Tiles, pack

_RUNS_TO_CAPTURE = 3  # two for ONNX Runtime to allocate what it needs, one that is captured
_DTYPES = {
    "tensor(int64)": "i8",
    "tensor(float)": "f4",
    "tensor(float16)": "f2",
    "tensor(bool)": "?",
}
_gate = CaptureGate()
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class DeviceTowers:
    """The towers on the device of a provider.  Thread safe: calls beyond the number of lanes wait for one."""

    def __init__(self, artifact: Artifact, provider: Provider, options: EngineOptions, kind: str = "cuda") -> None:
        """kind: "cpu" runs all of this on the host's memory, with the provider "cpu", for tests."""
        check_buckets("graph_users", options.graph_users)
        check_buckets("graph_tiles", options.graph_tiles)
        device = Device(kind, options.device_id, plain_session(artifact.path / CANDIDATE_TOWER))
        with _gate.running():
            self._pool = StatePool(device, artifact.manifest.state, options.state_slots)
            tables = SharedTables(artifact.path, device.place)
            self._lanes = [
                _Lane(artifact, provider, options, device, tables, self._pool) for _ in range(options.streams)
            ]
        self._tables = tables
        self.nodes = self._lanes[0].nodes
        self.cuda_graphs = all(lane.cuda_graphs for lane in self._lanes)
        self._idle: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        for lane in self._lanes:
            lane.capture()
            self._idle.put(lane)
        _log.info("engine: %s, nodes by provider %s, CUDA graphs %s", provider, dict(self.nodes), self.cuda_graphs)

    def user_state(self, users: UserInputs) -> UserState:
        """Slots of U users, in order."""
        return {"slot": self._on_a_lane(lambda lane: lane.new_states([users]))}

    def score(self, state: UserState, candidates: np.ndarray, tile_user: np.ndarray) -> np.ndarray:
        """candidates [T, K, Fc], tile_user [T] -> probabilities [T, K, tasks], by tiles of the configured size"""
        slots = [state["slot"][user] for user in tile_user]
        scored = self._on_a_lane(lambda lane: lane.score(list(candidates), slots))[1]
        return np.stack(scored)

    def run(self, pieces: Sequence[Piece]) -> tuple[list[Scored], BatchCost]:
        """States of those without one; then all candidates."""
        return self._on_a_lane(lambda lane: lane.run(pieces))

    def _on_a_lane(self, work: Callable[[_Lane], _T]) -> _T:
        lane = self._idle.get()
        try:
            return lane.thread.submit(_while_running, work, lane).result()
        finally:
            self._idle.put(lane)


class _Lane:
    """One stream of a device."""

    def __init__(
        self,
        artifact: Artifact,
        provider: Provider,
        options: EngineOptions,
        device: Device,
        tables: SharedTables,
        pool: StatePool,
    ) -> None:
        self.thread = ThreadPoolExecutor(1, "engine-lane")
        self._options, self._pool, self._tasks = options, pool, len(artifact.manifest.view.tasks)
        user_shapes = [{"users": users} for users in options.graph_users]
        fixed = {"candidates": options.tile, "users": options.state_slots}
        shapes = [{"tiles": tiles, **fixed} for tiles in options.graph_tiles]
        user_tower = _Tower(artifact.path / USER_TOWER, provider, options, device, tables, user_shapes)
        candidate_tower = _Tower(artifact.path / CANDIDATE_TOWER, provider, options, device, tables, shapes)
        self._user_reads = user_tower.reads
        self._user_runs = {shape["users"]: user_tower.bind(shape, {}) for shape in user_shapes}
        self._candidate_runs = {shape["tiles"]: candidate_tower.bind(shape, pool.tensors) for shape in shapes}
        self.cuda_graphs = user_tower.cuda_graphs and candidate_tower.cuda_graphs
        self.nodes = user_tower.nodes + candidate_tower.nodes

    def capture(self) -> None:
        """Run every bucket until its CUDA graph is captured, on the thread that will replay it."""
        bound = [*self._user_runs.values(), *self._candidate_runs.values()]
        with _gate.capturing():
            self.thread.submit(_repeat, bound).result()

    def run(self, pieces: Sequence[Piece]) -> tuple[list[Scored], BatchCost]:
        clock = Clock()
        slots = self._slots_of(pieces)
        clock.lap()
        tiles, probabilities = self.score([piece.candidates for piece in pieces], slots)
        clock.lap()
        return [Scored(p, {"slot": [slot]}) for p, slot in zip(probabilities, slots, strict=True)], clock.cost(
            pieces, tiles
        )

    def _slots_of(self, pieces: Sequence[Piece]) -> list[Slot]:
        missing = [piece.users for piece in pieces if piece.state is None and piece.users is not None]
        fresh = iter(self.new_states(missing))
        found = [next(fresh, None) if piece.state is None else piece.state["slot"][0] for piece in pieces]
        slots = [slot for slot in found if slot is not None]
        if len(slots) < len(pieces):
            raise ValueError("piece.users: must be given where piece.state is not")
        return slots

    def new_states(self, users: Sequence[UserInputs]) -> list[Slot]:
        """Run the user tower; slots of all users, in order."""
        if not users:
            return []
        feeds = {n: np.concatenate([getattr(part, n) for part in users]) for n in self._user_reads}
        count = len(next(iter(feeds.values())))
        slots = self._pool.take(count)
        for start, end in portions(count, self._options.graph_users):
            bound = self._user_runs[bucket_of(end - start, self._options.graph_users)]
            bound.fill({name: rows[start:end] for name, rows in feeds.items()})
            bound()
            self._pool.store(bound.outputs, slots[start:end])
        return slots

    def score(self, candidates: Sequence[np.ndarray], slots: Sequence[Slot]) -> tuple[Tiles, list[np.ndarray]]:
        """Candidates [C, Fc] of the users of the slots -> probabilities [C, tasks] of each."""
        tiles = pack([len(matrix) for matrix in candidates], self._options.tile)
        filled = np.empty((tiles.tiles, tiles.size, candidates[0].shape[1] if candidates else 0), np.int64)
        tiles.fill(candidates, filled)
        rows = tiles.tile_user([slot.row for slot in slots])  # [T]
        out = np.empty((tiles.tiles, tiles.size, self._tasks), np.float32)
        for start, end in portions(tiles.tiles, self._options.graph_tiles):
            bound = self._candidate_runs[bucket_of(end - start, self._options.graph_tiles)]
            bound.fill({"candidates": filled[start:end], "tile_user": rows[start:end]})
            bound()
            out[start:end] = bound.outputs["probabilities"].numpy()[: end - start]
        return tiles, tiles.cut(out)


class _Tower:
    """A session and the shapes that it is bound at."""

    def __init__(
        self,
        graph: Path,
        provider: Provider,
        options: EngineOptions,
        device: Device,
        tables: SharedTables,
        shapes: Sequence[Mapping[str, int]],
    ) -> None:
        """shapes: sizes of the axes that the graph leaves open, of every run that there will be"""
        self._device, self._graphs = device, 0
        self.cuda_graphs = options.cuda_graphs and provider == "cuda"
        profiles = shape_profiles(plain_session(graph).get_inputs(), shapes) if provider == "tensorrt" else {}
        self._session_options = device_options(_fixed(shapes))
        if provider != "tensorrt":  # its engines hold copies of their own
            tables.give(self._session_options, graph.name)
        self._session = self._open(graph, provider, options, profiles)
        self.reads = [node.name for node in self._session.get_inputs()]
        self.nodes: Counter[str] = Counter()  # by ONNX Runtime's name of the provider
        for part in self._session.get_provider_graph_assignment_info():
            self.nodes[part.ep_name] += len(part.get_nodes())

    def _open(
        self, graph: Path, provider: Provider, options: EngineOptions, profiles: dict[str, str]
    ) -> ort.InferenceSession:
        """With CUDA graphs where all nodes are on CUDA; otherwise without: it is logged, and `cuda_graphs` says so."""
        settings = device_settings(provider, options, self.cuda_graphs, profiles)
        try:
            return open_session(graph, provider, self._session_options, settings)
        except EngineError as error:
            if not self.cuda_graphs:
                raise
            _log.warning("engine: no CUDA graphs: %s", error)
            self.cuda_graphs = False
            return self._open(graph, provider, options, profiles)

    def bind(self, sizes: Mapping[str, int], given: Mapping[str, ort.OrtValue]) -> _BoundRun:
        """Inputs and outputs at one shape; sizes: of the axes that the graph leaves open;  given: inputs that exist."""
        self._graphs += 1

        def tensor(node: ort.NodeArg) -> ort.OrtValue:
            shape = [sizes[axis] if isinstance(axis, str) else axis for axis in node.shape]
            return self._device.empty(shape, _DTYPES[node.type])

        inputs = {n.name: given[n.name] if n.name in given else tensor(n) for n in self._session.get_inputs()}
        outputs = {node.name: tensor(node) for node in self._session.get_outputs()}
        graph = self._graphs if self.cuda_graphs else None
        return _BoundRun(self._session, inputs, outputs, set(inputs) - set(given), graph)


class _BoundRun:
    """A tower at one shape, its inputs and outputs at fixed addresses."""

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Mapping[str, ort.OrtValue],
        outputs: Mapping[str, ort.OrtValue],
        filled: set[str],
        graph: int | None,
    ) -> None:
        """filled: inputs that `fill` writes;  graph: number of its CUDA graph."""
        self._session, self.outputs = session, dict(outputs)
        self._binding = session.io_binding()
        for name, value in inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._device_side = {name: inputs[name] for name in filled}
        self._host_side = {name: _blank(inputs[name]) for name in filled}
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("gpu_graph_id", "-1" if graph is None else str(graph))

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The first rows of each input; those behind keep what they had, which no row's result depends on."""
        for name, rows in arrays.items():
            host = self._host_side[name]
            host[: len(rows)] = rows
            self._device_side[name].update_inplace(host)

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding, self._run_options)


def _blank(value: ort.OrtValue) -> np.ndarray:
    """What is in a new input: ids that are missing, and the first user."""
    shape = value.shape()
    return np.full(shape, MISSING if len(shape) == 3 else 0, np.int64)


def _fixed(shapes: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The axes that have one size in all shapes: what depends on them alone is computed when the session starts."""
    return {axis: size for axis, size in shapes[0].items() if all(shape[axis] == size for shape in shapes)}


def _repeat(runs: Sequence[_BoundRun]) -> None:
    for run in runs:
        for _ in range(_RUNS_TO_CAPTURE):
            run()


def _while_running(work: Callable[[_Lane], _T], lane: _Lane) -> _T:
    with _gate.running():
        return work(lane)
