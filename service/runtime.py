"""What a worker holds while it serves: the model, the store, the sink of events, the formula, the engine's threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from feature_store.events.sink import Sink, open_sink
from feature_store.redis.url import redact
from feature_store.store import FeatureStore, StoreError, open_store
from feature_store.view import ModelView
from model.artifact.engine import Engine
from model.artifact.formula import Formula
from service.settings import Settings


class StartError(Exception):
    """The service cannot start; one line for whoever starts it."""


@dataclass
class Runtime:
    """One worker's.  `ready` while it takes traffic."""

    settings: Settings
    engine: Engine
    store: FeatureStore
    sink: Sink
    formula: Formula
    pool: ThreadPoolExecutor
    ready: bool = True

    async def close(self) -> None:
        """After the last answer."""
        self.pool.shutdown()
        await self.store.close()


def load_runtime(settings: Settings) -> Runtime:
    """Model checked by checksum and golden outputs, store checked against what the model reads.

    Call it in the process that will serve.  StartError says in one line what is wrong.
    """
    try:
        formula = Formula() if settings.formula is None else Formula.load(settings.formula)
        engine = Engine.load(settings.artifact, settings.provider, settings.engine_threads)
        formula.check(engine.tasks, engine.calibration.hash)
        store = open_store(settings.store)
        sink = open_sink(store)
        _require_fields(settings.store, store, engine.view)
    except Exception as error:  # whatever it is, whoever starts the service gets one line
        raise StartError(one_line(error)) from error
    pool = ThreadPoolExecutor(settings.executor_count, "engine")
    return Runtime(settings, engine, store, sink, formula, pool)


def _require_fields(url: str, store: FeatureStore, view: ModelView) -> None:
    missing = view.missing_from(store.schema)
    if missing:
        raise StoreError(f"store {redact(url)} lacks {', '.join(missing)}, which the model reads")


def one_line(error: Exception) -> str:
    """What an error says, with its kind where that is needed to understand it."""
    text = " ".join(str(error).split()) or repr(error)
    return text if isinstance(error, (ValueError, RuntimeError, StoreError)) else f"{type(error).__name__}: {text}"
