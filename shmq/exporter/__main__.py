"""The exporter's process: `python -m shmq.exporter`, bin/shmq-exporter.

Serves the metrics of all brokers of a runtime folder over HTTP. It reads shared memory that belongs
to its own user (as root: anybody's) and asks nobody. Where systemd passes a listening socket, it
takes that; else it listens as it is told. SIGTERM or SIGINT ends it. Exit codes: 0 ended in order,
1 it could not start, 2 its options make no sense.
"""

import argparse
import contextlib
import gc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from shmq import logs, service
from shmq.config import default_namesrv_folder
from shmq.errors import ConfigError
from shmq.exporter.collector import SERIES_MAX, Collector
from shmq.exporter.server import MetricsServer, passed_socket

__all__ = ["main"]

_log = logging.getLogger("shmq.exporter")

LISTEN_DEFAULT = "127.0.0.1:5557"
"""The port of RocketMQ's exporter."""
_DRAIN_TIMEOUT_S = 5.0
_GC_THRESHOLD = 200_000
"""Objects made before the garbage collector looks at the youngest; Python's own is 700."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve metrics until told to stop; returns the exit code."""
    options = _parser().parse_args(arguments)
    logs.configure(getattr(logging, options.log_level))
    return service.exit_code(lambda: _run(options), _log)


def _run(options: argparse.Namespace) -> None:
    host, port = _place(options.listen)
    runtime = options.runtime or default_namesrv_folder()
    _log.info("brokers of runtime=%s", runtime)
    with contextlib.suppress(PermissionError):  # the first look says whose it is
        if not runtime.exists():
            _log.warning("no runtime folder %s: no broker is shown until it is there", runtime)
    gc.set_threshold(_GC_THRESHOLD)  # a page of 10,000 series would set it off 60 times
    collector = Collector(runtime, has_queues=options.queues, series_max=options.series_max)
    server = MetricsServer(collector, sock=passed_socket(), host=host, port=port)
    service.run(server, name="exporter", drain_timeout_s=_DRAIN_TIMEOUT_S)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shmq-exporter", description="Serves the metrics of this host's brokers to Prometheus."
    )
    add = parser.add_argument
    add("--runtime", type=Path, metavar="FOLDER", help="runtime folder of the brokers")
    add(
        "--listen",
        default=LISTEN_DEFAULT,
        metavar="HOST:PORT",
        help=f"where, unless systemd passed a socket (default: {LISTEN_DEFAULT})",
    )
    add("--queues", action="store_true", help="series by queue, too")
    add(
        "--series-max",
        type=_count,
        default=SERIES_MAX,
        metavar="N",
        help=f"series shown at most, those of brokers first (default: {SERIES_MAX})",
    )
    add(
        "--log-level",
        default="INFO",
        choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        help="lowest level that is logged",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: wanted a whole number from 1 on")
    return int(text)


def _place(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not host or not colon or not port.isdecimal() or int(port) > 65535:
        wanted = f"wanted HOST:PORT, such as {LISTEN_DEFAULT}"
        raise ConfigError(f"--listen {listen}: {wanted}; host 0.0.0.0 is all that the machine has")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    sys.exit(main())
