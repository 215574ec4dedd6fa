"""The client that `loadtest.bench.stages` serves: one connection, one request after another."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from multiprocessing.connection import Connection

_LENGTH = re.compile(rb"content-length: (\d+)\r\n")
_REPEATS = 4  # of all bodies, for each time it is told to


def post_all(port: int, bodies: Sequence[bytes], told: Connection) -> None:
    """For each True that is told, post all bodies some times and tell how many requests that were; end at False."""
    head = "POST /rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    requests = [head.format(len(body)).encode() + body for body in bodies] * _REPEATS
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while told.recv():
            for request in requests:
                connection.sendall(request)
                _read_answer(connection)
            told.send(len(requests))


def _read_answer(connection: socket.socket) -> None:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 16)
    head, _, body = received.partition(b"\r\n\r\n")
    found = _LENGTH.search(head + b"\r\n")
    if found is None or not head.startswith(b"HTTP/1.1 200"):
        raise ConnectionError(f"unexpected answer: {head!r}")
    left = int(found[1]) - len(body)
    while left:
        left -= len(connection.recv(left))
