"""Which worker takes a connection: the one that has the fewest.

Clients keep their connections, so a worker has the load of those it took.  All workers wait on one listening socket:
nothing is lost with a worker that ends, as what waits on a socket of its own (SO_REUSEPORT) would be, and the first to
wake does not take all that wait, as it does where each accepts whatever it finds.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import socket
from collections.abc import Callable
from pathlib import Path

CLOSED = 2**62  # in place of a count: takes none

_COUNT_BYTES = 8
_AFTER_YOU_S = 0.002  # how long a worker leaves a connection to those that have fewer
_NO_DESCRIPTOR_S = 0.5  # before accept is tried again when the process has no file descriptor left
_LAST_S = 0.1  # from the last connection taken until idle ones are closed: what was sent on it has arrived by then

_log = logging.getLogger(__name__)


class Loads:
    """Open connections of each worker, in memory that all of them share."""

    def __init__(self, file: Path) -> None:
        """file: made by `create`."""
        with file.open("r+b") as opened:
            self._counts = memoryview(mmap.mmap(opened.fileno(), 0)).cast("q")  # [workers]

    @classmethod
    def create(cls, file: Path, workers: int) -> Loads:
        file.write_bytes(CLOSED.to_bytes(_COUNT_BYTES, "little") * workers)
        return cls(file)

    def set(self, worker: int, connections: int) -> None:
        self._counts[worker] = connections

    def least(self) -> int:
        return min(self._counts)


class Acceptor:
    """Takes connections of a listening socket for one worker, in the loop that runs."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        connections: Callable[[], int],
        loads: Loads,
        worker: int,
    ) -> None:
        """listener: bound.  connections: how many of this worker are open.  OSError when another listens there."""
        self._listener, self._protocol, self._connections = listener, protocol, connections
        self._loads, self._worker = loads, worker
        self._opening: set[asyncio.Task[object]] = set()
        self._loop = asyncio.get_running_loop()
        listener.setblocking(False)
        listener.listen(socket.SOMAXCONN)
        self._resume()

    def publish(self) -> int:
        """Tell the others how many connections this worker has."""
        count = self._connections() + len(self._opening)
        self._loads.set(self._worker, count)
        return count

    async def close(self) -> None:
        """Take what waits, then nothing more."""
        self._loop.remove_reader(self._listener)
        while self._take():
            pass
        self._listener.close()
        self._loads.set(self._worker, CLOSED)
        await asyncio.sleep(_LAST_S)

    def _resume(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._on_waiting)
            self.publish()

    def _on_waiting(self) -> None:
        if self.publish() <= self._loads.least():
            self._take()
        else:
            self._pause(_AFTER_YOU_S, self._take)

    def _pause(self, seconds: float, then: Callable[[], object]) -> None:
        self._loop.remove_reader(self._listener)
        self._loop.call_later(seconds, self._after_pause, then)

    def _after_pause(self, then: Callable[[], object]) -> None:
        self._resume()
        then()

    def _take(self) -> bool:
        """One connection, if one waits."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            if self._listener.fileno() >= 0:
                _log.warning("no connection can be taken: %s", error)
                self._pause(_NO_DESCRIPTOR_S, lambda: None)
            return False
        connection.setblocking(False)
        opening = self._loop.create_task(self._loop.connect_accepted_socket(self._protocol, connection))
        self._opening.add(opening)
        opening.add_done_callback(self._opened)
        self.publish()
        return True

    def _opened(self, opening: asyncio.Task[object]) -> None:
        self._opening.discard(opening)
        if not opening.cancelled() and (error := opening.exception()) is not None:
            _log.warning("a connection failed before its first byte: %r", error)
