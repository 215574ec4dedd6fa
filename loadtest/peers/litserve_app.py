"""LitServe: one HTTP process and one inference process, several requests at once.

A batch reads its users from the store together, and both towers run once for it: 1.5 times the requests/s of
`enable_async` or of one request at a time.  batch_timeout 0 takes what is there; LitServe then looks for requests
without a pause, idle or not, and still answers more than with a timeout of 1 or 2 ms.
"""

# no `from __future__ import annotations`: LitServe reads the types of decode_request and encode_response

import asyncio
from collections.abc import Sequence

import litserve
from fastapi import Request, Response

from loadtest.peers.model import HOST, ROUTE, PeerModel, PeerSettings, RankBody

BATCH = 8


class Ranker(litserve.LitAPI):
    """The HTTP process only parses JSON; what it would validate would have to be pickled to the other one."""

    def setup(self, device: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._model = PeerModel(PeerSettings.of_environment())

    def decode_request(self, request: Request) -> RankBody:
        return RankBody.model_validate(request)

    def batch(self, inputs: Sequence[RankBody]) -> Sequence[RankBody]:
        return inputs

    def predict(self, bodies: Sequence[RankBody]) -> list[bytes]:
        return self._loop.run_until_complete(self._rank(bodies))

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/json")

    async def _rank(self, bodies: Sequence[RankBody]) -> list[bytes]:
        return self._model.answer(await asyncio.gather(*map(self._model.read, bodies)))


def main() -> None:
    port = PeerSettings.of_environment().port
    api = Ranker(api_path=ROUTE, max_batch_size=BATCH, batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True)
    quiet = {"log_level": "warning", "access_log": False, "generate_client_file": False}
    server.run(host=HOST, port=port, num_api_servers=1, **quiet)


if __name__ == "__main__":
    main()
