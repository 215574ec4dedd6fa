"""The proxy, between a real server that echoes and real sockets."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest

from loadtest.proxy import TcpProxy, tcp_proxy

PATIENCE_S = 10.0


class Echo(socketserver.BaseRequestHandler):
    """Sends back what comes, and ends when the other side has."""

    got: ClassVar[list[bytes]] = []

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.request.recv(1 << 16):
                self.got.append(data)
                self.request.sendall(self.answer(data))

    def answer(self, data: bytes) -> bytes:
        return data


class Shout(Echo):
    """Another server."""

    def answer(self, data: bytes) -> bytes:
        return data.upper()


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with tcp_proxy(server.server_address[1]) as running:
                yield running
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def echoed() -> list[bytes]:
    """What the server got since the test began."""
    Echo.got.clear()
    return Echo.got


def connected(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S)


def received(connection: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (piece := connection.recv(1 << 16)):
        got += piece
    return got


def test_it_passes_on_both_ways_and_in_order(proxy: TcpProxy) -> None:
    sent = bytes(range(256)) * 8000  # more than the buffers between hold
    with connected(proxy) as first, connected(proxy) as second:
        writing = threading.Thread(target=first.sendall, args=(sent,))
        writing.start()
        second.sendall(b"other")
        assert received(second, 5) == b"other"
        assert received(first, len(sent)) == sent
        writing.join()
    assert proxy.connections == 2


def test_an_end_is_passed_on_after_what_was_sent(proxy: TcpProxy) -> None:
    with connected(proxy) as connection:
        connection.sendall(b"last words")
        connection.shutdown(socket.SHUT_WR)
        assert received(connection, 100) == b"last words"  # and then the end, or it would wait


def test_a_delay_is_in_each_direction(proxy: TcpProxy) -> None:
    with connected(proxy) as connection:
        proxy.delay(0.1)
        begun = time.monotonic()
        connection.sendall(b"x")
        assert received(connection, 1) == b"x"
        assert time.monotonic() - begun >= 0.2
        proxy.delay(0.0)
        connection.sendall(b"y")
        assert received(connection, 1) == b"y"


def test_a_stall_loses_nothing(proxy: TcpProxy) -> None:
    with connected(proxy) as before:
        before.sendall(b"a")
        assert received(before, 1) == b"a"
        proxy.stall()
        with connected(proxy) as after:
            before.sendall(b"b")
            after.sendall(b"c")
            before.settimeout(0.2)
            with pytest.raises(TimeoutError):
                before.recv(1)
            before.settimeout(PATIENCE_S)
            proxy.flow()
            assert received(before, 1) == b"b"
            assert received(after, 1) == b"c"


def test_a_reset_ends_connections_of_now_and_no_later_ones(proxy: TcpProxy) -> None:
    with connected(proxy) as connection:
        connection.sendall(b"x")
        assert received(connection, 1) == b"x"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with connected(proxy) as connection:
        connection.sendall(b"y")
        assert received(connection, 1) == b"y"


def test_what_is_stalled_is_lost_by_a_reset(proxy: TcpProxy) -> None:
    with connected(proxy) as connection:
        proxy.stall()
        connection.sendall(b"x")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.reset()
        proxy.flow()
        connection.settimeout(PATIENCE_S)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_no_server_behind_it_ends_the_connection() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        unused = free.getsockname()[1]
    with tcp_proxy(unused) as proxy, connected(proxy) as connection:
        assert connection.recv(1) == b""


def test_a_stall_of_one_direction_holds_the_answers_only(proxy: TcpProxy, echoed: list[bytes]) -> None:
    with connected(proxy) as connection:
        proxy.stall("to_client", leak=3)
        connection.sendall(b"abcdefgh")
        assert received(connection, 3) == b"abc"
        assert echoed == [b"abcdefgh"]
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(PATIENCE_S)
        proxy.heal()
        assert received(connection, 5) == b"defgh"


def test_a_cut_ends_an_answer_in_its_middle(proxy: TcpProxy) -> None:
    with connected(proxy) as connection:
        proxy.cut(4, "to_client")
        connection.sendall(b"abcdefgh")
        with pytest.raises(ConnectionResetError):
            received(connection, 8)
    proxy.heal()
    with connected(proxy) as connection:
        connection.sendall(b"y")
        assert received(connection, 1) == b"y"


def test_corruption_changes_bytes_and_no_lengths(proxy: TcpProxy, echoed: list[bytes]) -> None:
    sent = bytes(10_000)
    with connected(proxy) as connection:
        proxy.corrupt(0.01, "to_client", seed=5)
        connection.sendall(sent)
        got = received(connection, len(sent))
        assert len(got) == len(sent)
        assert 50 < sum(byte != 0 for byte in got) < 200
        assert b"".join(echoed) == sent
        proxy.corrupt(1.0, "to_client")
        connection.sendall(b"x" * 100)
        assert received(connection, 100).count(b"x") < 20
        proxy.heal()
        connection.sendall(b"whole")
        assert received(connection, 5) == b"whole"


def test_new_connections_go_where_somebody_listens(proxy: TcpProxy) -> None:
    with EchoServer(("127.0.0.1", 0), Shout) as other, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with connected(proxy) as before:
                before.sendall(b"a")
                assert received(before, 1) == b"a"
                proxy.send_to(free.getsockname()[1], other.server_address[1])
                for _ in range(3):
                    with connected(proxy) as connection:
                        connection.sendall(b"a")
                        assert received(connection, 1) == b"A"
                before.sendall(b"b")
                assert received(before, 1) == b"b"
        finally:
            other.shutdown()
            thread.join()
