"""The parent's own port: health of all workers, their metrics.  It binds to loopback unless told otherwise."""

from __future__ import annotations

import socket
import threading
import uuid
from typing import TYPE_CHECKING, Any, Literal, Protocol

import uvicorn
from fastapi import FastAPI, Response
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from service.doors.door import Door
from service.doors.doorway import Doorway
from service.doors.limits import Limits
from service.doors.protocol import guarded
from service.errors import PROBLEM_JSON, NotReadyError, install_error_handlers, problem_of
from service.lifecycle.admin import ModelsCollector, add_models
from service.lifecycle.places import Place
from service.processes import ProcessesCollector, State, state_of
from service.release import package_version
from service.scrape import METRICS_TYPE, Scrape

if TYPE_CHECKING:
    from service.lifecycle.keeper import Keeper

_LIMITS = Limits(connections=128)


class WorkerState(BaseModel):
    """Of one process.  ended: another is started after a pause."""

    role: Literal["engine", "worker"] = Field(description="engine: runs the towers for the workers")
    pid: int | None
    state: State
    restarts: int
    model_version: str | None


class Health(BaseModel):
    status: Literal["alive", "ready"]


class AdminVersion(BaseModel):
    """Of the software, and of the models that workers answer with: one, but while they are replaced."""

    service: str
    model_versions: list[str]


class Supervised(Protocol):
    """The workers, seen from another thread."""

    places: list[Place]

    @property
    def stopping(self) -> bool: ...

    def wedged(self) -> list[Place]:
        """Workers that make no progress."""


def create_admin(
    service: Supervised, scrape: Scrape, keeper: Keeper | None = None, door: Door | None = None
) -> FastAPI:
    """The application of the admin port.  keeper: of the models; None where one artifact serves for ever."""
    app = FastAPI(title="FARM ranker, administration", version=package_version(), redirect_slashes=False)
    collectors: list[Collector] = [ProcessesCollector(service.places)]
    if keeper is not None:
        collectors.append(ModelsCollector(keeper))
    not_ready: dict[int | str, dict[str, Any]] = {503: {"description": "Not ready", "content": {PROBLEM_JSON: {}}}}

    @app.get("/livez", summary="Do the parent and all workers get on?", responses=not_ready)
    async def livez() -> Health:
        """503 while a worker makes no progress: it is killed and replaced within a second or two."""
        if wedged := service.wedged():
            raise NotReadyError(f"{len(wedged)} of {len(service.places)} processes make no progress")
        return Health(status="alive")

    @app.get("/readyz", summary="Do all workers, and engine processes, take traffic?", responses=not_ready)
    async def readyz() -> Health:
        _require_ready(service)
        return Health(status="ready")

    @app.get("/workers", summary="Each worker's process and state")
    async def workers() -> list[WorkerState]:
        return states(service)

    @app.get("/version", summary="What is running?")
    async def version() -> AdminVersion:
        models = {worker.model_version for worker in states(service) if worker.model_version}
        return AdminVersion(service=app.version, model_versions=sorted(models))

    @app.get("/metrics", summary="Prometheus metrics of all workers", response_class=Response)
    def get_metrics() -> Response:
        return Response(scrape.text(*collectors), media_type=METRICS_TYPE)

    add_models(app, keeper)
    install_error_handlers(app)
    if door is not None:
        app.add_middleware(Doorway, door=door, on_error=problem_of)
    app.add_middleware(_WithRequestId)
    return app


def states(service: Supervised) -> list[WorkerState]:
    """Of all workers, by number."""
    return [_state(place) for place in service.places]


def _state(place: Place) -> WorkerState:
    process, ready = place.process, place.ready_at is not None
    return WorkerState(
        role=place.role,
        pid=None if process is None else process.pid,
        state=state_of(place),
        restarts=place.restarts,
        model_version=place.model_version if ready else None,
    )


def _require_ready(service: Supervised) -> None:
    """NotReadyError says how many processes are ready."""
    if service.stopping:
        raise NotReadyError("the service is being stopped")
    ready = sum(worker.state == "ready" for worker in states(service))
    if ready < len(service.places):
        raise NotReadyError(f"{ready} of {len(service.places)} processes are ready")


class AdminServer:
    """Serves an application in a thread of its own, on a socket that listens already."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        config = uvicorn.Config(  # of what the parent has imported anyway: it is kept small
            app,
            loop="asyncio",
            http=guarded(_LIMITS),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)

    def __enter__(self) -> AdminServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()


class _WithRequestId:
    """Problem details name the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["request_id"] = uuid.uuid4().hex
        await self._app(scope, receive, send)
