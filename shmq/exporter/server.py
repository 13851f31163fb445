"""The exporter's door: one HTTP page, on a socket that systemd passed or on one of our own.

What lives here: `MetricsServer`, a shmq.service.Service, and `passed_socket` (sd_listen_fds(3)).
Each request is answered in a thread of its own, a few at a time. It listens where it is told, by
default on loopback only: what it shows names topics and groups. May fail: OSError for a place that
is taken, ConfigError for a socket that is none.
"""

from __future__ import annotations

import logging
import os
import socket
import socketserver
import threading
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

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
_REQUEST_TIMEOUT_S = 10.0
"""For a request to arrive, and for its answer to be taken."""
_REQUESTS_MAX = 8
"""Answered at a time; others wait in the socket's backlog."""


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


class _Handler(WSGIRequestHandler):
    timeout = _REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug("request from=%s %s", self.client_address, format % args)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, sock: socket.socket) -> None:
        self.address_family = sock.family
        # Not through TCPServer, which makes a socket first: in its unit it may make none.
        socketserver.BaseServer.__init__(self, sock.getsockname(), _Handler)
        self.socket = sock
        self.server_name, self.server_port = "shmq-exporter", 0
        self.setup_environ()
        self._slots = threading.BoundedSemaphore(_REQUESTS_MAX)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._slots.acquire()  # each request ends within its timeout
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("request from=%s was not answered", client_address, exc_info=True)


class MetricsServer:
    """Serves what a collector reads: GET /metrics.

    Args:
        collector: reads all brokers.
        sock: listening; None: `start` makes one.
        host: where to listen without one.
        port: 0: any that is free.
    """

    def __init__(
        self, collector: Collector, *, sock: socket.socket | None, host: str, port: int
    ) -> None:
        self._collector = collector
        self._sock = sock
        self._place = host, port
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
        self._server = _Server(self._sock)
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
        return self._thread is not None and self._thread.is_alive()

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
