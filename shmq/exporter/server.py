"""The exporter's door: one HTTP page, on a socket that systemd passed or on one of our own.

What lives here: `MetricsServer`, a shmq.service.Service, and `passed_socket` (sd_listen_fds(3)).
Each request is answered in a thread of its own, a few at a time. Whoever is slow keeps nobody out:
a visit has one deadline for all of it, and where there are too many, one that has not even asked
yet makes room. It listens where it is told, by default on loopback only: what it shows names topics
and groups. May fail: OSError for a place that is taken, ConfigError for a socket that is none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import socketserver
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from shmq.clock import SYSTEM_CLOCK, Clock
from shmq.errors import ConfigError
from shmq.exporter.text_page import CONTENT_TYPE, text_page
from shmq.threads import NamedThread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shmq.exporter.collector import Collector

__all__ = ["MetricsServer", "passed_socket"]

_log = logging.getLogger("shmq.exporter")

_FIRST_FD = 3
"""SD_LISTEN_FDS_START."""
_VISIT_NS_MAX = 10_000_000_000
"""For a request to arrive, be answered, and its answer to be taken: all of it."""
_VISITS_MAX = 8
"""At a time; one more, and the slowest has to go."""
_LOOKS_MAX = 2 * _VISITS_MAX
"""Wait for the brokers to be read, with those that had to go; who comes then is not heard."""
_STUCK_NS = 2 * _VISIT_NS_MAX
"""A visit that has not ended by then hangs in what it reads."""
_LOOP_NS_MAX = 5_000_000_000
"""The thread that takes connections goes round twice a second."""


def passed_socket(environ: Mapping[str, str] = os.environ) -> socket.socket | None:
    """The listening socket that systemd gave this process; None without one.

    Raises:
        ConfigError: it gave several, or one that does not listen on a stream.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = environ.get("LISTEN_FDS", "0")
    if count == "0":
        return None
    if count != "1":
        raise ConfigError(f"LISTEN_FDS={count}: wanted one socket; give the unit one ListenStream=")
    try:
        taken = socket.socket(fileno=_FIRST_FD)
        listens = taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError(f"LISTEN_FDS: descriptor {_FIRST_FD}: {error.strerror}") from error
    if taken.type is not socket.SOCK_STREAM or not listens:
        raise ConfigError(f"LISTEN_FDS: descriptor {_FIRST_FD} does not listen on a stream")
    taken.set_inheritable(False)
    return taken


@dataclass(slots=True)
class _Visit:
    """A connection, from accept to close."""

    begin_ns: int
    has_asked: bool = False
    """Its request is here."""
    is_over: bool = False
    """It was told to go."""


class _Handler(WSGIRequestHandler):
    server: _Server

    def parse_request(self) -> bool:
        # What was cut off reads like a request that has ended: nobody waits for its answer.
        return super().parse_request() and self.server.has_asked(self.request)

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug("request from=%s %s", self.client_address, format % args)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self.address_family = sock.family
        # Not through TCPServer, which makes a socket first: in its unit it may make none.
        socketserver.BaseServer.__init__(self, sock.getsockname(), _Handler)
        self.socket = sock
        self.server_name, self.server_port = "shmq-exporter", 0
        self.setup_environ()
        self._clock = clock
        self._went_round_ns = clock.monotonic_ns()
        self._visits: dict[socket.socket, _Visit] = {}
        # Held to cut a connection: its thread must not close it, and its number be another's, then.
        self._lock = threading.Lock()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Make room for this connection; the thread that accepts must never wait for a visitor."""
        with self._lock:
            open_visits = [(one, visit) for one, visit in self._visits.items() if not visit.is_over]
            if len(open_visits) >= _VISITS_MAX:
                slowest = min(open_visits, key=lambda it: (it[1].has_asked, it[1].begin_ns))
                self._cut(*slowest)
            # Who has not asked ends as soon as it is cut; a look at the brokers cannot be cut.
            if sum(visit.has_asked for visit in self._visits.values()) >= _LOOKS_MAX:
                return False
            self._visits[request] = _Visit(self._clock.monotonic_ns())
        return True

    def service_actions(self) -> None:
        """Twice a second at least: cut what takes too long."""
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            self._went_round_ns = now_ns
            for request, visit in self._visits.items():
                if not visit.is_over and now_ns - visit.begin_ns > _VISIT_NS_MAX:
                    self._cut(request, visit)

    def _cut(self, request: socket.socket, visit: _Visit) -> None:
        """Its thread wakes from whatever it waits for, and ends."""
        visit.is_over = True
        with contextlib.suppress(OSError):  # its peer has gone
            request.shutdown(socket.SHUT_RDWR)

    def has_asked(self, request: Any) -> bool:
        """A whole request is here; False if its visit is over."""
        with self._lock:
            visit = self._visits[request]
            visit.has_asked = True
            return not visit.is_over

    def shutdown_request(self, request: Any) -> None:
        """Whatever became of it, it ends here."""
        with self._lock:
            self._visits.pop(request, None)
        super().shutdown_request(request)

    def is_healthy(self) -> bool:
        """Whether connections are taken and answers come to an end."""
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            begun = [visit.begin_ns for visit in self._visits.values()]
            return (
                now_ns - self._went_round_ns < _LOOP_NS_MAX
                and now_ns - min(begun, default=now_ns) < _STUCK_NS
            )

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("request from=%s was not answered", client_address, exc_info=True)


class MetricsServer:
    """Serves what a collector reads: GET /metrics.

    Args:
        collector: reads all brokers.
        sock: listening; None: `start` makes one.
        host: where to listen without one.
        port: 0: any that is free.
        clock: of its deadlines.
    """

    def __init__(
        self,
        collector: Collector,
        *,
        sock: socket.socket | None,
        host: str,
        port: int,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._collector = collector
        self._sock = sock
        self._place = host, port
        self._clock = clock
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        assert self._sock is not None
        name = self._sock.getsockname()
        if not isinstance(name, tuple):
            return str(name)
        host = f"[{name[0]}]" if ":" in name[0] else name[0]
        return f"http://{host}:{name[1]}/metrics"

    def start(self) -> None:
        """Listen and serve.

        Raises:
            ConfigError: it cannot listen there.
        """
        if self._sock is None:
            host, port = self._place
            try:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                self._sock = socket.create_server((host, port), family=family)
            except OSError as error:
                raise ConfigError(f"listen on {host}:{port}: {error.strerror}") from error
        self._server = _Server(self._sock, self._clock)
        self._server.set_app(self._answer)
        self._thread = NamedThread(target=self._server.serve_forever, name="shmq-metrics")
        self._thread.start()
        _log.info("metrics at %s", self.address)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        """The page at /metrics, and nothing elsewhere (PEP 3333)."""
        status, content_type, page = "404 Not Found", "text/plain", b"metrics are at /metrics\n"
        if environ.get("PATH_INFO") == "/metrics" and environ.get("REQUEST_METHOD") == "GET":
            status, content_type = "200 OK", CONTENT_TYPE
            page = text_page(self._collector.collect())
        start_response(status, [("Content-Type", content_type), ("Content-Length", f"{len(page)}")])
        return [page]

    def is_healthy(self) -> bool:
        """Whether it still answers."""
        return (
            self._server is not None
            and self._thread is not None
            and self._thread.is_alive()
            and self._server.is_healthy()
        )

    def drain(self, timeout_s: float) -> None:
        """Take no new request."""
        del timeout_s  # at once
        if self._server is not None:
            self._server.shutdown()

    def stop(self) -> None:
        """Release everything."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        elif self._sock is not None:
            self._sock.close()
        if self._thread is not None:
            self._thread.join()
        self._collector.close()
