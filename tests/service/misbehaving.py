"""An HTTP server that does as it is told, wrong things too."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson

RANKING = {
    "request_id": "r",
    "model_version": "m",
    "ranking": [{"author_id": 2, "live_id": None, "score": 0.5, "xtr": {"ctr": 0.25}}],
    "degraded": [],
    "timing_ms": {"store": 0.1, "queue": 0.1, "user_tower": 0.1, "candidate_tower": 0.1, "total": 0.5},
}

Act = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Server:
    """Its URL, and the requests that came."""

    url: str
    routes: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)  # names in lower case
    bodies: list[bytes] = field(default_factory=list)


_over = threading.Event()  # lets go of those who are kept waiting


@contextmanager
def misbehaving(*acts: Act) -> Iterator[Server]:
    """Each request meets the next act; those after the last meet the last."""
    lock = threading.Lock()
    _over.clear()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with lock:
                number = len(server.routes)
                server.routes.append(self.path)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            with suppress(OSError):
                acts[min(number, len(acts) - 1)](self)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *args: object) -> None:
            """Nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        _over.set()
        http.shutdown()
        thread.join()
        http.server_close()


def says(status: int, answer: object = None, **headers: str) -> Act:
    """An answer: bytes as they are, anything else as JSON.  `retry_after` is the header Retry-After."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
        handler.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


def ranks(handler: BaseHTTPRequestHandler) -> None:
    """A ranking."""
    says(200, RANKING)(handler)


def resets(handler: BaseHTTPRequestHandler) -> None:
    """The connection, without a word."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    """In the middle of the body."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    handler.close_connection = True


def says_nothing(handler: BaseHTTPRequestHandler) -> None:
    """For as long as the test goes on."""
    _over.wait()
    handler.close_connection = True


def dribbles(handler: BaseHTTPRequestHandler) -> None:
    """A body that does not end, each byte well within any timeout."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not _over.wait(0.01):
        handler.wfile.write(b" ")


def together(number: int) -> Act:
    """A ranking, when this many requests are under way at one time."""
    meeting = threading.Barrier(number)

    def act(handler: BaseHTTPRequestHandler) -> None:
        meeting.wait(10.0)
        ranks(handler)

    return act


def begins_late(handler: BaseHTTPRequestHandler) -> None:
    """A body of which one byte comes, after 0.9 s, and no other."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    if not _over.wait(0.9):
        handler.wfile.write(b"{")
    says_nothing(handler)


def dribbles_its_head(handler: BaseHTTPRequestHandler) -> None:
    """A header that does not end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not _over.wait(0.3):
        handler.wfile.write(b"x")
