"""Ray Serve: proxy, replica and Ray's control plane, all on the one core.

Without dashboard and access log.  RAY_SERVE_ENABLE_HA_PROXY and RAY_SERVE_THROUGHPUT_OPTIMIZED in the environment put
HAProxy in the place of Ray's proxy, and save hops between threads.
"""

from __future__ import annotations

import threading

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from loadtest.peers.model import HOST, ROUTE, PeerModel, PeerSettings, RankBody

_CONCURRENT = 64  # requests that the replica takes at once
_OBJECT_STORE_BYTES = 100_000_000  # nothing goes through it


class Ranker:
    """A plain ASGI handler, without a FastAPI application between."""

    def __init__(self) -> None:
        self._model = PeerModel(PeerSettings.of_environment())

    async def __call__(self, request: Request) -> Response:
        body = RankBody.model_validate_json(await request.body())
        return Response(await self._model.rank(body), media_type="application/json")


def main() -> None:
    port = PeerSettings.of_environment().port
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=_OBJECT_STORE_BYTES)
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    serve.start(http_options={"host": HOST, "port": port}, logging_config=quiet)
    one = serve.deployment(num_replicas=1, max_ongoing_requests=_CONCURRENT, ray_actor_options={"num_cpus": 1})
    serve.run(one(Ranker).bind(), route_prefix=ROUTE)
    threading.Event().wait()  # Ray ends the process, and with it all others, on SIGTERM


if __name__ == "__main__":
    main()
