"""mosec: HTTP in Rust, one worker in Python, several requests at once.

A batch reads its users from the store together, and both towers run once for it: 1.3 times the requests/s of a batch of
1, which waits for the store with the core idle.  A second worker on the same core was slower.  `max_wait_time` 1 ms
takes as many as 10 ms (the default), and answers sooner when little is asked.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import uvloop
from mosec import Server, Worker
from mosec.errors import ValidationError
from pydantic import ValidationError as InvalidBody

from loadtest.peers.model import HOST, ROUTE, PeerModel, PeerSettings, RankBody

BATCH = 8
WAIT_MS = 1
TIMEOUT_MS = 30_000


class Ranker(Worker):
    """Its store has an event loop of its own: mosec calls from a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = uvloop.new_event_loop()
        self._model = PeerModel(PeerSettings.of_environment())

    def deserialize(self, data: bytes) -> RankBody:
        try:
            return RankBody.model_validate_json(data)
        except InvalidBody as error:
            raise ValidationError(str(error)) from error

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: Sequence[RankBody]) -> list[bytes]:
        return self._loop.run_until_complete(self._rank(data))

    async def _rank(self, bodies: Sequence[RankBody]) -> list[bytes]:
        return self._model.answer(await asyncio.gather(*map(self._model.read, bodies)))


def main() -> None:
    port = PeerSettings.of_environment().port
    options = {"--address": HOST, "--port": port, "--log-level": "warning", "--timeout": TIMEOUT_MS}
    sys.argv[1:] = [str(word) for pair in options.items() for word in pair]  # which is what mosec reads
    server = Server()
    server.append_worker(Ranker, num=1, max_batch_size=BATCH, max_wait_time=WAIT_MS, route=ROUTE)
    server.run()


if __name__ == "__main__":
    main()
