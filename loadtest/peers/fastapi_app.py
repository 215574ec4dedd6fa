"""A plain FastAPI handler: pydantic in, orjson out, inference in the handler.

On the one core that it has, a thread for the inference would only add a hand-over.
"""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI, Response

from loadtest.peers.model import HOST, ROUTE, PeerModel, PeerSettings, RankBody


def create_app(settings: PeerSettings) -> FastAPI:
    app, model = FastAPI(), PeerModel(settings)

    @app.post(ROUTE)
    async def rank(body: RankBody) -> Response:
        return Response(await model.rank(body), media_type="application/json")

    return app


def main() -> None:
    settings = PeerSettings.of_environment()
    uvicorn.run(create_app(settings), host=HOST, port=settings.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
