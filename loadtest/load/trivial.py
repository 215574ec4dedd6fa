"""A server that answers everything at once with the same bytes: what the load generator can do at most.

`python -m loadtest.load.trivial` prints its URL.
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools
import uvloop

_ANSWER_BYTES = 8_000  # as much as 50 ranked authors
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % _ANSWER_BYTES


class _Trivial(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Of httptools."""
        self._transport.write(_ANSWER + b"x" * _ANSWER_BYTES)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Trivial, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
