"""The model of a worker: in its own process, or in the engine processes that all workers ask."""

from __future__ import annotations

from dataclasses import dataclass

from feature_store.view import ModelView
from model.artifact.calibration import Calibration
from model.artifact.engine import Engine, EngineOptions
from model.artifact.manifest import CALIBRATION, Artifact, Manifest
from service.scoring.remote import RemoteScorer
from service.scoring.scorer import LocalScorer, Scorer
from service.scoring.wire import Layout
from service.settings import Settings, usable_cores
from service.tasks import EngineProcesses

_MIB = 1 << 20
_LANES = 2  # of a GPU: one is computed while the other's inputs and outputs are copied
_BATCH_TILES = {"cpu": 64}  # on a CPU big batches are no cheaper and hold up small requests
_GPU_BATCH_TILES = 512


@dataclass(frozen=True)
class Served:
    """What a worker knows of the model that answers, wherever its towers run."""

    version: str
    manifest: Manifest
    provider: str  # in use
    calibration: Calibration

    @property
    def view(self) -> ModelView:
        return self.manifest.view

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.manifest.view.tasks


def local_model(settings: Settings) -> tuple[Served, Scorer]:
    """In this process, which is a worker.  What `Engine.load` raises."""
    options = EngineOptions(
        tile=settings.tile,
        device_id=settings.gpus[0],
        streams=max(1, settings.executor_count),
        cuda_graphs=settings.cuda_graphs,
        trt_cache=settings.trt_cache,
    )
    engine = Engine.load(settings.artifact, settings.providers, settings.engine_threads, options=options)
    share = settings.state_cache_mb * _MIB // settings.workers
    return _served(engine), _scorer(engine, settings, settings.executor_count, share)


def process_model(settings: Settings, device: int) -> tuple[Engine, LocalScorer]:
    """Of an engine process, which computes for all workers.  What `Engine.load` raises."""
    lanes = settings.executors or _LANES
    options = EngineOptions(
        tile=settings.tile,
        device_id=settings.gpus[device],
        streams=lanes,
        cuda_graphs=settings.cuda_graphs,
        trt_cache=settings.trt_cache,
    )
    engine = Engine.load(settings.artifact, settings.providers, settings.engine_threads, options=options)
    threads = lanes if engine.provider != "cpu" else settings.executors or usable_cores()
    return engine, _scorer(engine, settings, threads, settings.state_cache_mb * _MIB // len(settings.gpus))


def remote_model(settings: Settings, processes: EngineProcesses) -> tuple[Served, Scorer]:
    """Of a worker that asks engine processes.  ArtifactError for an artifact that is spoilt."""
    artifact = Artifact.open(settings.artifact)
    calibration = Calibration.load(artifact.path / CALIBRATION, artifact.manifest.view.tasks)
    served = Served(artifact.version, artifact.manifest, processes.provider, calibration)
    return served, RemoteScorer(processes.sockets, Layout(served.view), served.version)


def _served(engine: Engine) -> Served:
    return Served(engine.version, engine.manifest, engine.provider, engine.calibration)


def _scorer(engine: Engine, settings: Settings, executors: int, cache_bytes: int) -> LocalScorer:
    batch_tiles = settings.batch_tiles or _BATCH_TILES.get(engine.provider, _GPU_BATCH_TILES)
    return LocalScorer(engine, executors, settings.tile, batch_tiles, cache_bytes)
