"""The model of a worker: in its own process, or in the engine processes that all workers ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from feature_store.view import ModelView
from model.artifact.calibration import Calibration
from model.artifact.engine import Engine, EngineOptions
from model.artifact.manifest import CALIBRATION, Artifact, ArtifactError, Manifest
from service.lifecycle.quiet import quietly
from service.lifecycle.shapes import RecordedEngine, Shapes, rehearse
from service.scoring.remote import RemoteScorer
from service.scoring.scorer import LocalScorer, Scorer
from service.scoring.wire import Layout
from service.settings import Settings, usable_cores
from service.tasks import EngineProcesses, LocalModel

_MIB = 1 << 20
_LANES = 2  # of a GPU: one is computed while the other's inputs and outputs are copied
_BATCH_TILES = {"cpu": 64}  # on a CPU big batches are no cheaper and hold up small requests
_GPU_BATCH_TILES = 512


def executors(settings: Settings) -> int:
    """That run batches for one worker: its own, or, with engine processes, those of all engines, which all share."""
    if settings.engine_processes:
        return (settings.executors or _LANES) * settings.engine_processes
    return max(1, settings.executor_count)


def batch_tiles(settings: Settings, provider: str) -> int:
    """Greatest cost of a batch."""
    return settings.batch_tiles or _BATCH_TILES.get(provider, _GPU_BATCH_TILES)


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


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model at work."""

    model: Served
    scorer: Scorer
    engine: Engine | None = None  # None: in an engine process


class Engines:
    """Opens models for a worker, or for an engine process, as its settings say.

    What `Engine.load` and `rehearse` raise tells why a model cannot serve here.
    """

    def __init__(self, settings: Settings, device: int | None = None) -> None:
        """device: place in settings.devices, of an engine process, which computes for all workers; None: a worker."""
        self._settings, self._shapes = settings, Shapes()
        if device is None:
            self._gpu, self._threads = settings.gpus[0], settings.executor_count
            self._lanes, sharers = max(1, settings.executor_count), settings.workers
        else:
            self._gpu, self._threads = settings.gpus[device], settings.executors or 0
            self._lanes, sharers = settings.executors or _LANES, len(settings.gpus)
            if not self._threads:
                self._threads = _LANES if settings.providers[0] != "cpu" else usable_cores()
        self._cache_bytes = settings.state_cache_mb * _MIB // sharers

    def open(self, model: LocalModel) -> tuple[Engine, LocalScorer]:
        """Checked, not warm: before anybody is served."""
        engine = self._load(model)
        return engine, self._scorer(engine)

    async def open_beside(self, model: LocalModel) -> tuple[Engine, LocalScorer]:
        """Checked and warm, while others are served."""
        shapes = self._shapes.latest()

        def load() -> RecordedEngine:
            engine = self._load(model)
            rehearse(engine, shapes)
            return engine

        engine = await self._beside(load)
        scorer = self._scorer(engine)  # here: its threads have the priority of the thread that starts them
        if engine.provider != "cpu":  # its graphs are those of the scorer's threads
            await scorer.warm_up()
        return engine, scorer

    async def _beside(self, load: Callable[[], RecordedEngine]) -> RecordedEngine:
        """Threads that a session starts keep the priority of who made it, so then it has to be the usual one."""
        alone = self._settings.engine_threads == 1 and self._settings.providers == ("cpu",)
        return await quietly(load, lower=alone)

    def _load(self, model: LocalModel) -> RecordedEngine:
        settings = self._settings
        options = EngineOptions(
            tile=settings.tile,
            device_id=self._gpu,
            streams=self._lanes,
            cuda_graphs=settings.cuda_graphs,
            trt_cache=settings.trt_cache,
        )
        engine = RecordedEngine.load(model.path, settings.providers, settings.engine_threads, options=options)
        assert isinstance(engine, RecordedEngine)
        _require(model, engine.version)
        engine.shapes = self._shapes
        return engine

    def _scorer(self, engine: Engine) -> LocalScorer:
        settings = self._settings
        tiles = batch_tiles(settings, engine.provider)
        return LocalScorer(engine, self._threads, settings.tile, tiles, self._cache_bytes)


class Models:
    """Opens models for a worker."""

    def __init__(self, settings: Settings, processes: EngineProcesses | None) -> None:
        """processes: that run the towers; None: this one does."""
        self._engines, self._processes = Engines(settings), processes

    def open(self, model: LocalModel) -> Loaded:
        """Checked, not warm: before anybody is served."""
        return self._remote(model) if self._processes else _loaded(*self._engines.open(model))

    async def open_beside(self, model: LocalModel) -> Loaded:
        """Checked and warm, while others are served."""
        if not self._processes:
            return _loaded(*await self._engines.open_beside(model))
        loaded = await quietly(lambda: self._remote(model))
        await loaded.scorer.warm_up()
        return loaded

    def _remote(self, model: LocalModel) -> Loaded:
        """ArtifactError for an artifact that is spoilt."""
        assert self._processes is not None
        artifact = Artifact.open(model.path)
        _require(model, artifact.version)
        calibration = Calibration.load(artifact.path / CALIBRATION, artifact.manifest.view.tasks)
        served = Served(artifact.version, artifact.manifest, self._processes.provider, calibration)
        sockets = self._processes.sockets(model.version)
        return Loaded(served, RemoteScorer(sockets, Layout(served.view), served.version))


def _loaded(engine: Engine, scorer: LocalScorer) -> Loaded:
    served = Served(engine.version, engine.manifest, engine.provider, engine.calibration)
    return Loaded(served, scorer, engine)


def _require(model: LocalModel, version: str) -> None:
    if model.version not in ("", version):
        raise ArtifactError(f"{model.path}: holds model {version}, not {model.version}")
