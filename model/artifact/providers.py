"""Sessions of ONNX Runtime on the provider that was asked for, and on no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import onnxruntime as ort

from model.artifact.batch import EngineError, EngineOptions, Provider

NAMES: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


def order_of(provider: str | Sequence[str]) -> tuple[Provider, ...]:
    """The order of fallback: one provider, several by comma, or a sequence.  EngineError names what is none."""
    names = [name.strip() for name in provider.split(",")] if isinstance(provider, str) else list(provider)
    known: dict[str, Provider] = {name: name for name in get_args(Provider)}
    for name in names:
        if name not in known:
            raise EngineError(f"provider {name!r}: must be one of {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise EngineError(f"provider {','.join(names)!r}: give each provider once, in order of fallback")
    return tuple(known[name] for name in names)


def require(provider: Provider) -> None:
    """EngineError unless this ONNX Runtime was built with the provider."""
    available = ort.get_available_providers()
    if NAMES[provider] not in available:
        raise EngineError(f"provider {provider}: this ONNX Runtime has only {', '.join(available)}")
    if provider != "cpu":
        ort.preload_dlls()  # CUDA and cuDNN of NVIDIA's wheels, which are on no search path


def session_options(threads: int) -> ort.SessionOptions:
    """For runs of `threads` threads; a run of one is the calling thread's alone.

    Threads that wait for work sleep: awake they cost five times the CPU of the work (docs/decisions.md).
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def device_options(fixed: Mapping[str, int]) -> ort.SessionOptions:
    """For a GPU: one thread prepares the runs, and it is recorded which provider each node went to.

    fixed: sizes of open axes that are the same in every run
    """
    options = session_options(threads=1)
    for axis, size in fixed.items():
        options.add_free_dimension_override_by_name(axis, size)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.enable_mem_pattern = False  # no memory may be asked for while a CUDA graph is captured
    return options


def device_settings(
    provider: Provider, options: EngineOptions, cuda_graphs: bool, profiles: Mapping[str, str] | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """ONNX Runtime's providers with their options, in its order: what TensorRT cannot run goes to CUDA.

    profiles: TensorRT's shape profiles, from `shape_profiles`.
    """
    if provider == "cpu":
        return [(NAMES["cpu"], {})]
    device = {"device_id": str(options.device_id)}
    cuda = {
        **device,
        "enable_cuda_graph": str(int(cuda_graphs)),
        "use_tf32": str(int(options.tf32)),
        "arena_extend_strategy": "kSameAsRequested",
    }
    settings = [(NAMES["cuda"], cuda), (NAMES["cpu"], {})]
    if provider == "tensorrt":
        cache = {"trt_engine_cache_enable": "0"}
        if options.trt_cache is not None:
            path = str(options.trt_cache)
            cache = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": path}
            cache |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": path}
        settings.insert(0, (NAMES["tensorrt"], {**device, **cache, **(profiles or {})}))
    return settings


def shape_profiles(inputs: Sequence[ort.NodeArg], shapes: Sequence[Mapping[str, int]]) -> dict[str, str]:
    """TensorRT's profiles: the least, the middle and the greatest shape of every input.

    inputs: with names for open axes;  shapes: sizes of the open axes of each run, rising
    """
    chosen = {"min": shapes[0], "opt": shapes[len(shapes) // 2], "max": shapes[-1]}
    profiles = {}
    for kind, sizes in chosen.items():
        texts = []
        for node in inputs:
            axes = [sizes[axis] if isinstance(axis, str) else axis for axis in node.shape]
            texts.append(f"{node.name}:{'x'.join(map(str, axes))}")
        profiles[f"trt_profile_{kind}_shapes"] = ",".join(texts)
    return profiles


def plain_session(graph: Path) -> ort.InferenceSession:
    """A session on the CPU that is not run: it knows the inputs and outputs, and lends its bindings."""
    options = session_options(threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return open_session(graph, "cpu", options)


def open_session(
    path: Path,
    provider: Provider,
    options: ort.SessionOptions,
    settings: Sequence[tuple[str, dict[str, Any]]] = ((NAMES["cpu"], {}),),
) -> ort.InferenceSession:
    """A session on `settings`, ONNX Runtime's providers with their options, the first of which must be in use.

    ONNX Runtime leaves out a provider that does not start, and goes on with the next: that is an EngineError.
    """
    try:
        session = ort.InferenceSession(str(path), options, providers=list(settings), enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own errors share no base class
        raise EngineError(f"provider {provider}: {path.name}: {error}") from error
    session.disable_fallback()
    if session.get_providers()[0] != NAMES[provider]:
        raise EngineError(f"provider {provider}: ONNX Runtime fell back to {session.get_providers()[0]}")
    return session
