"""A TCP proxy that does to its connections what networks do: passes on, delays, stalls, resets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

_PIECE = 1 << 16  # bytes
_PIECES = 256  # on their way in one direction of a connection; then the sender has to wait, as in a network
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST
_STOP_S = 5.0


class TcpProxy:
    """A running proxy.  What is asked of it holds for connections that are there and for new ones.

    While it stalls, connections are still accepted, as by a system whose process hangs.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, to_port: int) -> None:
        self.port = 0  # that it listens on, on loopback
        self.connections = 0  # that were accepted so far
        self._loop, self._to_port = loop, to_port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._delay_s = 0.0
        self._open: set[asyncio.StreamWriter] = set()

    def delay(self, seconds: float) -> None:
        """From now on, what comes is passed on that much later, in each direction.  0: at once."""
        self._loop.call_soon_threadsafe(setattr, self, "_delay_s", seconds)

    def stall(self) -> None:
        """Pass nothing on, and lose nothing."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def flow(self) -> None:
        """End a stall: what was kept is passed on."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def reset(self) -> None:
        """End all connections of now with RST, to both sides; what was on its way is lost."""
        self._run(self._reset())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until both sides have ended it."""
        self.connections += 1
        self._open.add(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):  # else the streams report our own end as an error
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
            self._open.add(back_writer)
            try:
                await asyncio.gather(self._pass_on(reader, back_writer), self._pass_on(back_reader, writer))
            finally:
                self._open.discard(back_writer)
                back_writer.close()
        self._open.discard(writer)
        writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)
        reading = asyncio.create_task(self._read(reader, pieces))
        try:
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(due - self._loop.time())
                await self._flowing.wait()
                if not piece:
                    break
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            else:  # TLS cannot end one direction
                writer.close()
        finally:
            reading.cancel()

    async def _read(self, reader: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes]]) -> None:
        """Pieces with when they are due; an empty one is the end."""
        piece = b"-"
        while piece:
            try:
                piece = await reader.read(_PIECE)
            except OSError:  # a reset; the other side gets an end
                piece = b""
            await pieces.put((self._loop.time() + self._delay_s, piece))

    async def _reset(self) -> None:
        for writer in tuple(self._open):
            plain: socket.socket = writer.get_extra_info("socket")
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def _close(self, server: asyncio.Server) -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """In the proxy's loop, and wait for it."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_STOP_S)


@contextlib.contextmanager
def tcp_proxy(to_port: int, tls: ssl.SSLContext | None = None) -> Iterator[TcpProxy]:
    """A proxy in front of a port of loopback, in a thread of this process.  tls: what it speaks to its clients."""
    loop = asyncio.new_event_loop()
    proxy = TcpProxy(loop, to_port)
    server = loop.run_until_complete(asyncio.start_server(proxy._serve, "127.0.0.1", 0, ssl=tls))
    proxy.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy._run(proxy._close(server))
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_STOP_S)
        loop.close()
