"""The exporter's door: whoever is slow, or says nothing at all, keeps nobody out."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from typing import TYPE_CHECKING

import pytest

from shmq.exporter.collector import Collector
from shmq.exporter.server import MetricsServer
from tests.support.clock import SteppedClock
from tests.support.cluster import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from prometheus_client.metrics_core import Metric as Family

TIMEOUT_S = 30.0


class HeldCollector(Collector):
    """Hangs in a look until it is let go."""

    def __init__(self, runtime: Path) -> None:
        super().__init__(runtime)
        self.begun, self.may_end = threading.Event(), threading.Event()

    def collect(self) -> Iterable[Family]:
        self.begun.set()
        assert self.may_end.wait(TIMEOUT_S)
        return super().collect()


@pytest.fixture
def collector(tmp_path: Path) -> HeldCollector:
    made = HeldCollector(tmp_path)
    made.may_end.set()
    return made


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def server(collector: HeldCollector, clock: SteppedClock) -> Iterator[MetricsServer]:
    made = MetricsServer(collector, sock=None, host="127.0.0.1", port=0, clock=clock)
    made.start()
    try:
        yield made
    finally:
        made.drain(0)
        made.stop()


def connect(server: MetricsServer) -> socket.socket:
    host, _, port = server.address.removeprefix("http://").removesuffix("/metrics").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=TIMEOUT_S)


def scrape(server: MetricsServer) -> bytes:
    with urllib.request.urlopen(server.address, timeout=TIMEOUT_S) as page:
        return bytes(page.read())


def is_over(connection: socket.socket) -> bool:
    """Whether its other end has let go of it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_visitors_who_say_nothing_keep_nobody_out(server: MetricsServer) -> None:
    with contextlib.ExitStack() as opened:
        silent = [opened.enter_context(connect(server)) for _ in range(30)]
        for one in silent:
            with contextlib.suppress(OSError):  # it had to make room
                one.send(b"G")
        for _ in range(3):
            assert b"shmq_exporter_series" in scrape(server)
        assert is_over(silent[0])
    assert server.is_healthy()


def test_a_byte_now_and_then_does_not_put_the_end_off(
    server: MetricsServer, clock: SteppedClock
) -> None:
    with connect(server) as slow:
        slow.settimeout(0.1)
        for byte in b"GET /metrics?" + bytes(100):
            try:
                slow.send(bytes([byte]))
                clock.advance(ms=1_300)
                if is_over(slow):
                    break
            except TimeoutError:
                continue  # not yet
            except OSError:
                break
        else:
            pytest.fail("a visit of two minutes")
    assert b"shmq_exporter_series" in scrape(server)


def test_is_not_well_while_a_look_hangs(
    server: MetricsServer, collector: HeldCollector, clock: SteppedClock
) -> None:
    assert server.is_healthy()
    collector.may_end.clear()
    with connect(server) as asking:
        asking.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert collector.begun.wait(TIMEOUT_S)
        clock.advance(ms=15_000)
        wait_for(server.is_healthy)  # cut by now, and given time to end
        clock.advance(ms=10_000)
        threading.Event().wait(1.5)  # it has gone round since
        assert not server.is_healthy()
        collector.may_end.set()
    assert wait_for(server.is_healthy)


def test_who_has_asked_is_answered_before_who_has_not(
    server: MetricsServer, collector: HeldCollector
) -> None:
    collector.may_end.clear()
    with contextlib.ExitStack() as opened:
        asking = opened.enter_context(connect(server))
        asking.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert collector.begun.wait(TIMEOUT_S)
        silent = [opened.enter_context(connect(server)) for _ in range(8)]
        assert is_over(silent[0])
        collector.may_end.set()
        assert b"200 OK" in asking.recv(1 << 16)
