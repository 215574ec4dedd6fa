"""What a worker holds while it serves: the model, its scorer, the store, the sink of events, the formula."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from feature_store.events.sink import Sink, open_sink
from feature_store.redis.url import redact
from feature_store.store import FeatureStore, StoreError, open_store
from feature_store.view import ModelView
from model.artifact.formula import Formula
from service.engines import Served, local_model, remote_model
from service.scoring.scorer import Scorer
from service.settings import Settings
from service.tasks import EngineProcesses


class StartError(Exception):
    """The service cannot start; one line for whoever starts it."""


@dataclass
class Runtime:
    """One worker's.  `ready` while it takes traffic."""

    settings: Settings
    model: Served
    scorer: Scorer
    store: FeatureStore
    sink: Sink
    formula: Formula
    pool: ThreadPoolExecutor  # parses events
    ready: bool = True

    async def close(self) -> None:
        """After the last answer."""
        await self.scorer.close()
        self.pool.shutdown()
        await self.store.close()


def load_runtime(settings: Settings, engines: EngineProcesses | None = None) -> Runtime:
    """Model checked by checksum and golden outputs, store checked against what the model reads.

    engines: that run the towers; None: this process does.
    Call it in the process that will serve.  StartError says in one line what is wrong.
    """
    try:
        formula = Formula() if settings.formula is None else Formula.load(settings.formula)
        model, scorer = local_model(settings) if engines is None else remote_model(settings, engines)
        formula.check(model.tasks, model.calibration.hash)
        store = open_store(settings.store)
        sink = open_sink(store)
        _require_fields(settings.store, store, model.view)
    except Exception as error:  # whatever it is, whoever starts the service gets one line
        raise StartError(one_line(error)) from error
    pool = ThreadPoolExecutor(max(1, settings.executor_count), "events")
    return Runtime(settings, model, scorer, store, sink, formula, pool)


def _require_fields(url: str, store: FeatureStore, view: ModelView) -> None:
    missing = view.missing_from(store.schema)
    if missing:
        raise StoreError(f"store {redact(url)} lacks {', '.join(missing)}, which the model reads")


def one_line(error: Exception) -> str:
    """What an error says, with its kind where that is needed to understand it."""
    text = " ".join(str(error).split()) or repr(error)
    return text if isinstance(error, (ValueError, RuntimeError, StoreError)) else f"{type(error).__name__}: {text}"
