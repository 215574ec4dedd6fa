"""The engine on a GPU against the engine on the CPU.  Skipped without CUDA.

As a script, for a machine with a GPU and without PyTorch: checks artifacts (the first fp32) and prints times.

    python tests/model/test_engine_cuda.py ARTIFACT [OTHER_PRECISION ...]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from feature_store.matrices import UserInputs
from model.artifact.engine import Engine, EngineOptions, Piece, Scored
from model.artifact.golden import load_golden
from model.artifact.manifest import GOLDEN

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs CUDA"
)

FP32_TOLERANCE = 1e-4
SMALL = EngineOptions(graph_tiles=(1, 4, 16), state_slots=256)
COUNTS = (1, 31, 32, 33, 200, 500, 2000, 5, 50) * 3


def pieces_of(engine: Engine, counts: tuple[int, ...] = COUNTS) -> list[Piece]:
    """Users and candidates of the golden cases, in any number."""
    cases = load_golden(engine.artifact.path / GOLDEN)
    users = [
        UserInputs(**{name: array[row : row + 1] for name, array in case.users.feeds().items()})
        for case in cases
        for row in range(len(case.users.now))
    ]
    candidates = np.concatenate([case.candidates.reshape(-1, case.candidates.shape[-1]) for case in cases])
    rng = np.random.default_rng(0)
    return [
        Piece(users[i % len(users)], None, candidates[rng.integers(0, len(candidates), count)])
        for i, count in enumerate(counts)
    ]


def greatest_difference(left: list[Scored], right: list[Scored]) -> float:
    return max(float(np.abs(a.probabilities - b.probabilities).max()) for a, b in zip(left, right, strict=True))


def kept(pieces: list[Piece], scored: list[Scored]) -> list[Piece]:
    return [Piece(None, s.state, piece.candidates) for piece, s in zip(pieces, scored, strict=True)]


def check_parity(path: Path, reference: Path, tolerance: float, options: EngineOptions = SMALL) -> float:
    """Golden outputs are met, a mixed batch is what the CPU gives, nodes and CUDA graphs are where they should be."""
    engine, cpu = Engine.load(path, "cuda", options=options), Engine.load(reference)
    assert engine.provider == "cuda"
    assert engine.nodes["CUDAExecutionProvider"] > 10 * engine.nodes.get("CPUExecutionProvider", 0)
    assert engine.cuda_graphs == options.cuda_graphs
    pieces = pieces_of(engine)
    difference = greatest_difference(engine.run(pieces)[0], cpu.run(pieces)[0])
    assert difference <= tolerance
    return difference


def check_graphs_change_nothing(path: Path) -> None:
    pieces = pieces_of(Engine.load(path, check=False))
    runs = []
    for graphs in (True, False):
        engine = Engine.load(path, "cuda", options=replace(SMALL, cuda_graphs=graphs))
        runs += [engine.run(pieces)[0], engine.run(pieces)[0]]
    assert all(greatest_difference(runs[0], run) == 0 for run in runs[1:])


def check_states(path: Path) -> None:
    """A kept state gives bit for bit what a new one gives, and does not depend on the others of the batch."""
    engine = Engine.load(path, "cuda", options=replace(SMALL, streams=2))
    pieces = pieces_of(engine)
    new, _ = engine.run(pieces)
    again, cost = engine.run(kept(pieces, new))
    assert cost.users == 0
    assert greatest_difference(new, again) == 0
    alone = [engine.run([piece])[0][0] for piece in pieces[:9]]
    again, _ = engine.run(kept(pieces[:9], alone))
    assert greatest_difference(new[:9], engine.run(kept(pieces, [*alone, *new[9:]]))[0][:9]) == 0


@pytest.fixture(scope="module")
def fp32(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue("farm").path
    return path


@pytest.fixture(scope="module")
def fp16(fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from model.export.precision import convert

    return convert(fp32, tmp_path_factory.mktemp("fp16") / "artifact", "fp16").path


@pytest.mark.parametrize("graphs", [True, False])
def test_fp32_is_what_the_cpu_gives(fp32: Path, graphs: bool) -> None:
    check_parity(fp32, fp32, FP32_TOLERANCE, replace(SMALL, cuda_graphs=graphs))


def test_fp16_is_within_its_tolerance(fp32: Path, fp16: Path) -> None:
    check_parity(fp16, fp32, Engine.load(fp16, check=False).manifest.golden_tolerance)


def test_cuda_graphs_change_nothing(fp32: Path) -> None:
    check_graphs_change_nothing(fp32)


def test_states_stay_on_the_device_bit_for_bit(fp32: Path) -> None:
    check_states(fp32)


def test_an_engine_starts_while_another_answers(fp32: Path) -> None:
    """A capture would fail if the other called CUDA meanwhile."""
    from concurrent.futures import ThreadPoolExecutor

    engine = Engine.load(fp32, "cuda", options=SMALL)
    pieces = pieces_of(engine, (200, 50))
    expected, _ = engine.run(pieces)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(Engine.load, fp32, "cuda", options=SMALL)
        while not second.done():
            assert greatest_difference(expected, engine.run(pieces)[0]) == 0
        assert greatest_difference(expected, second.result().run(pieces)[0]) == 0


# As a script


def median_ms(call: Callable[[], object], repeats: int = 200) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1000)
    return float(np.median(times))


def time_engine(path: Path) -> None:
    engine = Engine.load(path, "cuda")
    print(f"{path}: {engine.manifest.precision}, nodes {engine.nodes}, CUDA graphs {engine.cuda_graphs}")
    for counts in ((1,), (50,), (200,), (500,), (500,) * 8, (500,) * 32):
        new = pieces_of(engine, counts)
        scored, _ = engine.run(new)
        for name, pieces in (("new users", new), ("kept users", kept(new, scored))):
            ms = median_ms(lambda pieces=pieces: engine.run(pieces))  # type: ignore[misc]
            print(
                f"{len(counts):3} x {counts[0]:4} {name:10} {ms:8.3f} ms {sum(counts) / ms / 1000:8.3f} M candidates/s"
            )


def main(paths: list[Path]) -> None:
    reference = paths[0]
    check_graphs_change_nothing(reference)
    check_states(reference)
    for path in paths:
        tolerance = FP32_TOLERANCE if path == reference else Engine.load(path, check=False).manifest.golden_tolerance
        print(f"{path}: greatest difference from the CPU {check_parity(path, reference, tolerance):.2g}")
        time_engine(path)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
