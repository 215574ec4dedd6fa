"""BentoML: one worker under its supervisor.

Typed arguments in, bytes out.  Its adaptive batching is not used: it takes lists where HTTP comes in, so behind the
same request it needs a call of the service to itself, over HTTP, and under load such calls
failed ("Server disconnected").
"""

# no `from __future__ import annotations`: BentoML reads the types of an API

import os
import sys
from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from loadtest.peers.model import HOST, ROUTE, PeerModel, PeerSettings, RankBody

Json = Annotated[bytes, ContentType("application/json")]


@bentoml.service(name="ranker", workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Ranker:
    """Without an access log."""

    def __init__(self) -> None:
        self._model = PeerModel(PeerSettings.of_environment())

    @bentoml.api(route=ROUTE)
    async def rank(
        self,
        user_id: int,
        candidates: list[int],
        page: int | None = None,
        top_k: int | None = None,
        now_ms: int | None = None,
    ) -> Json:
        body = RankBody(user_id=user_id, candidates=candidates, page=page, top_k=top_k, now_ms=now_ms)
        return await self._model.rank(body)


def main() -> None:
    port = str(PeerSettings.of_environment().port)
    words = ["-m", "bentoml", "serve", "loadtest.peers.bentoml_app:Ranker", "--host", HOST, "--port", port]
    os.execv(sys.executable, [sys.executable, *words])


if __name__ == "__main__":
    main()
