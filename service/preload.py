"""What every worker needs, imported once by the process that forks them, so that they share its memory.

The process imports this module by its name and does nothing else but fork.  Nothing here may open a session, a store or
a thread: neither ONNX Runtime nor LMDB survives a fork at work.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
from contextlib import suppress
from pathlib import Path

from fastapi import FastAPI
from pydantic import ValidationError

from feature_store.cells import FOLDER
from service.contract import Status
from service.settings import Settings

_MODULES = (
    "feature_store.lmdb_store",
    "feature_store.redis.store",
    "service.app",
    "service.lifecycle.http_server",
    "service.ranking",
    "service.runtime",
    "service.worker",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)


def _rehearse() -> None:
    """What the first route of an application brings into memory, 10 MB, is then there for all workers."""
    app = FastAPI()

    @app.get("/livez")
    async def livez() -> Status:
        return Status(status="alive")

    app.build_middleware_stack()
    with suppress(ValidationError):  # the environment may say what options of the command line overrule
        Settings(artifact=Path("artifact"), store="lmdb:///store")


for _name in _MODULES:
    importlib.import_module(_name)
_rehearse()
for _file in Path(os.environ[FOLDER]).glob(f"*_{os.getpid()}.db"):
    _file.unlink()  # metrics of a process that never counts; each worker opens files of its own
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # whoever stops all processes at once: it ends after the last worker
gc.collect()
gc.freeze()  # a collection in a worker would write into every object, and so copy the pages that it shares
