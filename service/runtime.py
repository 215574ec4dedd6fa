"""What a worker holds while it serves: what answers, and how that changes; the store, the sink of events."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from feature_store.absent import AbsentStore
from feature_store.reading.settings import reading_settings
from feature_store.redis.url import redact
from feature_store.schema import RecordSchema, default_schema
from feature_store.store import FeatureStore, StoreError
from model.artifact.formula import Formula
from service.doors.door import Door
from service.doors.ring import KeyRing
from service.engines import Loaded, Models, Served, batch_tiles, executors
from service.entrance import Entrance
from service.lifecycle.failure import one_line
from service.lifecycle.orders import static_order
from service.lifecycle.pulses import Busy
from service.lifecycle.serving import Serving, ServingSet
from service.lifecycle.settings import LifecycleSettings
from service.lifecycle.shelf import Shelf
from service.lifecycle.source import Source, SourceKeeper
from service.lifecycle.stage import Cast, Stage
from service.scoring.scorer import Scorer
from service.settings import Settings
from service.tasks import EngineProcesses, Order

__all__ = ["Runtime", "StartError", "load_runtime", "one_line"]

Check = Callable[[Served, Formula], None]


class StartError(Exception):
    """The service cannot start; one line for whoever starts it."""


@dataclass
class Runtime:
    """One worker's.  `ready` while it takes traffic."""

    settings: Settings
    stage: Stage
    sources: SourceKeeper
    entrance: Entrance
    door: Door
    pool: ThreadPoolExecutor  # parses events
    lifecycle: LifecycleSettings = field(default_factory=LifecycleSettings)
    ready: bool = True

    @property
    def source(self) -> Source:
        """What is read: each request asks once."""
        return self.sources.current

    @property
    def store(self) -> FeatureStore | AbsentStore:
        return self.sources.current.store

    @property
    def unready(self) -> str:
        """Why it takes no traffic; empty when it does."""
        return self.sources.unfit if self.ready else "the service is being stopped"

    @property
    def serving(self) -> ServingSet:
        """What answers: each request asks once."""
        return self.stage.serving

    @property
    def model(self) -> Served:
        """Of most users."""
        return self.serving.current().model

    @property
    def scorer(self) -> Scorer:
        return self.serving.current().scorer

    @property
    def formula(self) -> Formula:
        return self.serving.current().formula

    def busy_s(self) -> float:
        """How long the batch that has run longest has been running; 0 when none runs, or none can be told."""
        scorers = [serving.scorer for serving in self.serving.all()]
        return max([scorer.busy_s() for scorer in scorers if isinstance(scorer, Busy)], default=0.0)

    @property
    def wedged(self) -> bool:
        """A batch that never ends: this process must be replaced."""
        return self.busy_s() > self.lifecycle.wedged_s

    async def close(self) -> None:
        """After the last answer."""
        await self.stage.close()
        self.pool.shutdown()
        await self.sources.close()


def load_runtime(
    settings: Settings,
    engines: EngineProcesses | None = None,
    order: Order | None = None,
    lifecycle: LifecycleSettings | None = None,
    on_switch: Callable[[list[Serving]], None] = lambda replaced: None,
) -> Runtime:
    """Models checked by checksum and golden outputs, store checked against what they read.

    engines: that run the towers; None: this process does.  order: what serves; None: what the settings name.
    on_switch: called with what was replaced.
    Call it in the process that will serve.  StartError says in one line what is wrong.
    """
    lifecycle = lifecycle or LifecycleSettings()
    try:
        order = order or static_order(settings)
        models = Models(settings, engines)
        loaded = {model.version: models.open(model) for model in order.models.values()}
        assumed = RecordSchema.load(settings.record_schema) if settings.record_schema else default_schema()
        sources = SourceKeeper(settings.store, reading_settings(), assumed)
        door = Door(KeyRing(settings.api_keys_file, settings.api_keys.get_secret_value()))
        check = _fits(settings, sources)
        cast_ = Cast.of(order, loaded.__getitem__, check)
    except Exception as error:  # whatever it is, whoever starts the service gets one line
        raise StartError(one_line(error)) from error
    shelf = Shelf(models.open_beside, _close, loaded)
    stage = Stage(cast_, shelf, check, lifecycle.keep_previous, on_switch)
    pool = ThreadPoolExecutor(max(1, settings.executor_count), "events")
    tiles = batch_tiles(settings, settings.providers[0])
    entrance = Entrance(settings, stage.serving.current().scorer.costs, tiles, executors(settings))
    sources.follow(partial(_require_all, settings, stage))
    return Runtime(settings, stage, sources, entrance, door, pool, lifecycle)


def _fits(settings: Settings, sources: SourceKeeper) -> Check:
    def check(model: Served, formula: Formula) -> None:
        formula.check(model.tasks, model.calibration.hash)
        if not isinstance(store := sources.current.store, AbsentStore):
            _require(settings, store, model)

    return check


def _require_all(settings: Settings, stage: Stage, store: FeatureStore) -> None:
    """StoreError when a model that serves reads what a store does not have."""
    for serving in stage.serving.all():
        _require(settings, store, serving.model)


def _require(settings: Settings, store: FeatureStore, model: Served) -> None:
    """StoreError when a model reads what a store does not have."""
    missing = model.view.missing_from(store.schema)
    if missing:
        raise StoreError(f"store {redact(settings.store)} lacks {', '.join(missing)}, which the model reads")


async def _close(loaded: Loaded) -> None:
    await loaded.scorer.close()
