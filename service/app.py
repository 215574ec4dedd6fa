"""The FastAPI application over a loaded runtime."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope

from service.ask import read_ask
from service.body import JSON, read_json_body
from service.contract import RecordSchemaName, Status, Version
from service.doors.door import Caller
from service.doors.doorway import Doorway
from service.doors.limits import Limits
from service.errors import NotReadyError, install_error_handlers, problem_of
from service.events import accept_events, counting_rejections
from service.express import express
from service.metrics import name_models
from service.openapi import events_body, events_responses, install_openapi, problems, rank_body, rank_responses
from service.ranking import rank
from service.release import package_version
from service.runtime import Runtime
from service.telemetry import Telemetry

_ACCEPTED = 202
_ROUTES = ("/rank", "/events", "/livez", "/readyz", "/version")  # that metrics name

_DESCRIPTION = """Ranks candidate live-streaming authors for a user, and takes the events that keep histories fresh.

Fields are only added to requests and answers: clients ignore those they do not know.
Ids beyond 2^53 are decimal strings, in requests and in answers."""


def create_app(runtime: Runtime) -> ASGIApp:
    """The service over `runtime`, which it closes when it stops."""
    app = _documented(runtime)
    name_models(runtime.serving.all())
    return Telemetry(Doorway(app, runtime.door, problem_of), _ROUTES)


def create_protocol(runtime: Runtime, limits: Limits) -> type[asyncio.Protocol]:
    """Of the service's connections: rankings go past the application, which answers them only where it is called."""

    async def post(scope: Scope, receive: Receive, request_id: str) -> bytes:
        caller = runtime.door.check(scope["path"], scope["method"], scope["headers"])
        return await _rank(runtime, scope, receive, request_id, caller)

    return express(limits, "/rank", post)


def _documented(runtime: Runtime) -> FastAPI:
    """The application without what `create_app` puts around it: ids of requests, metrics, and short rankings."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await runtime.close()

    app = FastAPI(
        title="FARM ranker",
        version=package_version(),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    install_error_handlers(app)
    _add_ranking(app, runtime)
    _add_events(app, runtime)
    _add_health(app, runtime)
    _add_reports(app, runtime)
    install_openapi(app, lambda: runtime.store.schema)
    return app


async def _rank(runtime: Runtime, scope: Scope, receive: Receive, request_id: str, caller: Caller) -> bytes:
    body = await read_json_body(scope, receive, runtime.settings.max_body_bytes)
    return await rank(runtime, read_ask(body, request_id, caller, scope["headers"]))


def _add_ranking(app: FastAPI, runtime: Runtime) -> None:
    @app.post("/rank", tags=["ranking"], summary="Rank", responses=rank_responses(), openapi_extra=rank_body())
    async def post_rank(request: Request) -> Response:
        """Probabilities of each task for each candidate author, and the order that the formula makes of them."""
        state = request.state
        answer = await _rank(runtime, request.scope, request.receive, state.request_id, state.caller)
        return Response(answer, media_type=JSON)


def _add_events(app: FastAPI, runtime: Runtime) -> None:
    described: dict[str, Any] = {"responses": events_responses(), "openapi_extra": events_body(runtime.store.schema)}

    @app.post("/events", status_code=_ACCEPTED, tags=["events"], summary="Views, authors, users", **described)
    async def post_events(request: Request) -> Response:
        """Durable when it is answered, and in the histories that rankings read within a second (at once with LMDB).

        After any other answer, or none, the same request may be sent again: to take an event twice changes nothing.
        """
        with counting_rejections():
            body = await read_json_body(request.scope, request.receive, runtime.settings.max_events_body_bytes)
            answer = await accept_events(runtime, body, request.state.request_id)
        return Response(answer, _ACCEPTED, media_type=JSON)


def _add_health(app: FastAPI, runtime: Runtime) -> None:
    @app.get("/livez", tags=["operations"], summary="Is the process alive?", responses=problems(NotReadyError))
    async def livez() -> Status:
        """503 while a batch does not end: this process must be replaced."""
        if runtime.wedged:
            raise NotReadyError("a batch does not end")
        return Status(status="alive")

    @app.get("/readyz", tags=["operations"], summary="Does it take traffic?", responses=problems(NotReadyError))
    async def readyz() -> Status:
        """200 from when the model is loaded, checked and warm, until the service is told to stop.

        A store that is down changes nothing: rankings say what they lack.  One that comes and does not fit does.
        """
        if runtime.unready:
            raise NotReadyError(runtime.unready)
        return Status(status="ready")


def _add_reports(app: FastAPI, runtime: Runtime) -> None:
    @app.get("/version", tags=["operations"], summary="What is running?")
    async def get_version() -> Version:
        engine, schema = runtime.model, runtime.store.schema
        return Version(
            service=app.version,
            model_version=engine.version,
            arch=engine.manifest.arch,
            tasks=list(engine.tasks),
            provider=engine.provider,
            formula_version=runtime.formula.version,
            calibration=engine.calibration.hash,
            record_schema=RecordSchemaName(name=schema.name, version=schema.version, ids=schema.ids),
        )
