"""A TCP proxy that does to its connections what networks do: passes on, delays, stalls, corrupts, cuts, resets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from typing import Any, Literal

Direction = Literal["to_server", "to_client"]
DIRECTIONS: tuple[Direction, ...] = ("to_server", "to_client")

_PIECE = 1 << 16  # bytes
_PIECES = 256  # on their way in one direction of a connection; then the sender has to wait, as in a network
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST
_STOP_S = 5.0


class _Way:
    """What is done in one direction, to connections that are there and to new ones."""

    def __init__(self) -> None:
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.delay_s = 0.0
        self.leak = 0  # bytes of its first piece that a stalled connection still passes on
        self.cut_after: int | None = None  # bytes of a piece, then the connection is reset
        self.corrupt_share = 0.0  # of the bytes
        self.random = random.Random(0)

    def corrupted(self, piece: bytes) -> bytes:
        """Some bytes are others."""
        if not self.corrupt_share:
            return piece
        if self.corrupt_share >= 1:
            return self.random.randbytes(len(piece))
        changed = bytearray(piece)
        for at in range(len(piece)):
            if self.random.random() < self.corrupt_share:
                changed[at] ^= self.random.randrange(1, 256)
        return bytes(changed)


class TcpProxy:
    """A running proxy.  What is asked of it holds for connections that are there and for new ones.

    Without a direction it is done in both.  While it stalls, connections are still accepted, as by a system whose
    process hangs.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, to_port: int) -> None:
        self.port = 0  # that it listens on, on loopback
        self.connections = 0  # that were accepted so far
        self._loop, self._to_ports = loop, (to_port,)
        self._ways = {direction: _Way() for direction in DIRECTIONS}
        self._numbers = count()
        self._open: set[asyncio.StreamWriter] = set()

    def delay(self, seconds: float, *directions: Direction) -> None:
        """From now on, what comes is passed on that much later, in each direction.  0: at once."""
        self._change(directions, lambda way: setattr(way, "delay_s", seconds))

    def stall(self, *directions: Direction, leak: int = 0) -> None:
        """Pass nothing on, and lose nothing.

        leak: bytes that each connection still passes on of the next piece, so that a message ends in its middle.
        """

        def begin(way: _Way) -> None:
            way.leak = leak
            way.flowing.clear()

        self._change(directions, begin)

    def flow(self) -> None:
        """End a stall: what was kept is passed on."""
        self._change((), lambda way: way.flowing.set())

    def cut(self, after: int, *directions: Direction) -> None:
        """Of the next piece of each connection only `after` bytes are passed on, then both sides get RST."""
        self._change(directions, lambda way: setattr(way, "cut_after", after))

    def corrupt(self, share: float, *directions: Direction, seed: int = 0) -> None:
        """Each byte is another one with that probability; 1: noise of the same length."""

        def begin(way: _Way) -> None:
            way.corrupt_share, way.random = share, random.Random(seed)

        self._change(directions, begin)

    def heal(self) -> None:
        """End all that was asked for, but what was reset or corrupted stays so."""

        def end(way: _Way) -> None:
            way.delay_s, way.leak, way.cut_after, way.corrupt_share = 0.0, 0, None, 0.0
            way.flowing.set()

        self._change((), end)

    def send_to(self, *ports: int) -> None:
        """New connections go to these ports of loopback, in turn; to the next when nobody listens."""
        self._loop.call_soon_threadsafe(setattr, self, "_to_ports", ports)

    def reset(self) -> None:
        """End all connections of now with RST, to both sides; what was on its way is lost."""
        self._run(self._reset())

    def _change(self, directions: tuple[Direction, ...], change: Callable[[_Way], None]) -> None:
        for direction in directions or DIRECTIONS:
            self._loop.call_soon_threadsafe(change, self._ways[direction])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until both sides have ended it."""
        self.connections += 1
        self._open.add(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):  # else the streams report our own end as an error
            back_reader, back_writer = await self._connect()
            self._open.add(back_writer)
            pair = writer, back_writer
            try:
                await asyncio.gather(
                    self._pass_on(reader, back_writer, self._ways["to_server"], pair),
                    self._pass_on(back_reader, writer, self._ways["to_client"], pair),
                )
            finally:
                self._open.discard(back_writer)
                back_writer.close()
        self._open.discard(writer)
        writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ports, first = self._to_ports, next(self._numbers)
        for turn in range(len(ports)):
            with contextlib.suppress(ConnectionError):
                return await asyncio.open_connection("127.0.0.1", ports[(first + turn) % len(ports)])
        raise ConnectionRefusedError("nobody listens")

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: _Way,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        """One direction.  pair: both ends of the connection."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)
        reading = asyncio.create_task(self._read(reader, pieces, way))
        try:
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(due - self._loop.time())
                piece = await _held(writer, way, way.corrupted(piece))
                if not piece:
                    break
                if way.cut_after is not None:
                    await _cut(writer, piece[: way.cut_after], pair)
                    return
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            else:  # TLS cannot end one direction
                writer.close()
        finally:
            reading.cancel()

    async def _read(self, reader: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes]], way: _Way) -> None:
        """Pieces with when they are due; an empty one is the end."""
        piece = b"-"
        while piece:
            try:
                piece = await reader.read(_PIECE)
            except OSError:  # a reset; the other side gets an end
                piece = b""
            await pieces.put((self._loop.time() + way.delay_s, piece))

    async def _reset(self) -> None:
        for writer in tuple(self._open):
            _abort(writer)

    async def _close(self, server: asyncio.Server) -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """In the proxy's loop, and wait for it."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_STOP_S)


async def _held(writer: asyncio.StreamWriter, way: _Way, piece: bytes) -> bytes:
    """Wait while the way is stalled; what is left of the piece, when some of it leaked."""
    if way.flowing.is_set() or len(piece) <= way.leak:
        leaked = 0
    else:
        leaked = way.leak
        writer.write(piece[:leaked])
    await way.flowing.wait()
    return piece[leaked:]


async def _cut(writer: asyncio.StreamWriter, part: bytes, pair: tuple[asyncio.StreamWriter, ...]) -> None:
    writer.write(part)
    await writer.drain()
    for end in pair:
        _abort(end)


def _abort(writer: asyncio.StreamWriter) -> None:
    """End with RST."""
    plain: socket.socket = writer.get_extra_info("socket")
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


@contextlib.contextmanager
def tcp_proxy(to_port: int, tls: ssl.SSLContext | None = None) -> Iterator[TcpProxy]:
    """A proxy in front of a port of loopback, in a thread of this process.  tls: what it speaks to its clients."""
    loop = asyncio.new_event_loop()
    proxy = TcpProxy(loop, to_port)
    server = loop.run_until_complete(asyncio.start_server(proxy._serve, "127.0.0.1", 0, ssl=tls, backlog=1024))
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
