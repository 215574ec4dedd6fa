"""The models on the admin port: what serves, what there is, activation and rollback."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, Field

from service.errors import PROBLEM_JSON, ServiceError

if TYPE_CHECKING:
    from service.lifecycle.keeper import Keeper


class ChangeRefusedError(ServiceError):
    """What serves was not changed."""

    status = HTTPStatus.CONFLICT
    type = "change-refused"
    title = "Change refused"


class SwitchPendingError(ServiceError):
    """The pointer names another model, which this instance does not serve yet."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "switch-pending"
    title = "Not switched yet"


class Activation(BaseModel):
    """What to activate."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(description="as GET /models lists it")
    by: str = Field(default="admin port", max_length=200, description="who asks for it")


class Rollback(BaseModel):
    """Who asks for it."""

    model_config = ConfigDict(extra="forbid")

    by: str = Field(default="admin port", max_length=200)


class ServingPointer(BaseModel):
    """What serves."""

    number: int
    model: str
    split: str | None
    shadow: str | None
    previous: str | None = Field(description="what a rollback returns to")
    at: str
    by: str


class RefusedPointer(BaseModel):
    """What was activated, but cannot serve here."""

    number: int
    model: str
    reason: str


class ModelsState(BaseModel):
    """Of this instance: all its workers answer with `serving`."""

    store: str
    serving: ServingPointer
    refused: RefusedPointer | None
    watched: bool = Field(description="it has just begun to serve, and goes by itself when it fails")


def add_models(app: FastAPI, keeper: Keeper | None) -> None:
    """keeper: None where one artifact serves for ever."""
    refused: dict[int | str, dict[str, Any]] = {
        409: {"description": "Nothing was changed", "content": {PROBLEM_JSON: {}}}
    }
    pending: dict[int | str, dict[str, Any]] = {
        503: {"description": "The pointer was changed; this instance follows", "content": {PROBLEM_JSON: {}}}
    }

    @app.get("/models", summary="Which model serves?", responses=refused)
    def get_models() -> ModelsState:
        return state(_required(keeper))

    @app.post("/models/activate", summary="Serve another model, everywhere", responses=refused | pending)
    def activate(activation: Activation) -> ModelsState:
        """Answered when no worker of this instance can answer with what served before; other instances follow."""
        return _changed(keeper, lambda keeper: keeper.activate(activation.version, activation.by))

    @app.post("/models/rollback", summary="Return to the model before, everywhere", responses=refused | pending)
    def rollback(asked: Rollback | None = None) -> ModelsState:
        """As an activation."""
        return _changed(keeper, lambda keeper: keeper.rollback((asked or Rollback()).by))


def state(keeper: Keeper) -> ModelsState:
    pointer, refusal = keeper.pointer, keeper.refusal
    return ModelsState(
        store=keeper.store.name,
        serving=ServingPointer(
            number=pointer.number,
            model=pointer.model,
            split=pointer.split.version if pointer.split else None,
            shadow=pointer.shadow.version if pointer.shadow else None,
            previous=pointer.previous.model if pointer.previous else None,
            at=pointer.at.isoformat(),
            by=pointer.by,
        ),
        refused=None
        if refusal is None
        else RefusedPointer(number=refusal.pointer.number, model=refusal.pointer.model, reason=refusal.reason),
        watched=keeper.is_watching,
    )


class ModelsCollector(Collector):
    """Metrics of the changes."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def collect(self) -> Iterable[Metric]:
        tally = self._keeper.tally
        changes = CounterMetricFamily("farm_model_changes_total", "Changes of what serves.", labels=["result"])
        for result, count in vars(tally).items():
            changes.add_metric([result], count)
        number = GaugeMetricFamily("farm_model_pointer", "Number of the pointer that serves.")
        number.add_metric([], self._keeper.pointer.number)
        refused = GaugeMetricFamily("farm_model_pointer_refused", "1 while the newest pointer cannot be served here.")
        refused.add_metric([], self._keeper.refusal is not None)
        return changes, number, refused


def _changed(keeper: Keeper | None, change: Callable[[Keeper], None]) -> ModelsState:
    from service.lifecycle.fleet import ChangeError
    from service.lifecycle.keeper import PublishedError

    keeper = _required(keeper)
    try:
        change(keeper)
    except PublishedError as error:
        raise SwitchPendingError(
            f"the pointer was changed and this instance follows it; GET /models says when: {error}"
        ) from error
    except (ChangeError, ValueError, OSError) as error:  # of the store, or of the artifact
        raise ChangeRefusedError(str(error)) from error
    return state(keeper)


def _required(keeper: Keeper | None) -> Keeper:
    if keeper is None:
        raise ChangeRefusedError("this service was started with one artifact; start it with --models to change it")
    return keeper
