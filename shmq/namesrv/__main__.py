"""Starts a NameServer: python -m shmq.namesrv [--runtime DIR] [--name ns0] [--cluster FILE.toml].

Settings come from these arguments, the environment (SHMQ_<NAME>) and the [namesrv] table of the
cluster file; docs/reference names them all. With enableControllerInNamesrv this process is a
Controller too: here, and nowhere else, the two rooms meet. Ends on SIGTERM or SIGINT, after it has
stopped the brokers that it supervises. Exit codes: 0 stopped, 1 could not start (one line says
why), 2 its options make no sense.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from shmq import logs, service
from shmq.config import ControllerConfig, NamesrvConfig, load
from shmq.controller.manager import ControllerManager
from shmq.namesrv.namesrv import NameServer, load_cluster

__all__ = ["main"]

_log = logging.getLogger("shmq.namesrv")

_DRAIN_MARGIN_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a NameServer until a signal stops it; the exit code."""
    options = _parser().parse_args(arguments)
    logs.configure()
    return service.exit_code(lambda: _run(options), _log)


def _run(options: argparse.Namespace) -> None:
    file = None if options.cluster is None else options.cluster.resolve()
    config = load(
        NamesrvConfig,
        file=file,
        table="namesrv",
        runtime_path=None if options.runtime is None else options.runtime.absolute(),
        namesrv_name=options.name,
        fence_brokers=options.fence or None,
        acl_file=None if options.acl is None else options.acl.absolute(),
    )
    runtime_path = config.runtime_folder().absolute()
    cluster = None if file is None else load_cluster(file, runtime_path)
    drain_timeout_s = _DRAIN_MARGIN_S + (0 if cluster is None else cluster.stop_timeout_s)
    controller = None
    if config.enable_controller_in_namesrv:
        controller = ControllerManager(
            load(ControllerConfig, file=file, table="controller", runtime_path=runtime_path)
        )
    namesrv = NameServer(config, cluster=cluster, controller=controller)
    service.run(
        namesrv,
        name=f"namesrv {config.namesrv_name}",
        drain_timeout_s=drain_timeout_s,
        on_reload=None if config.acl_file is None else namesrv.reload,
        describe=namesrv.describe,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shmq-namesrv", description="Keeps the routes of a cluster; supervises its brokers."
    )
    parser.add_argument("--runtime", type=Path, metavar="DIR", help="folder of all sockets")
    parser.add_argument("--name", metavar="NAME", help="of this instance (default: ns0)")
    parser.add_argument(
        "--cluster",
        type=Path,
        metavar="FILE.toml",
        help="start, watch and restart the brokers of this file",
    )
    parser.add_argument(
        "--fence",
        action="store_true",
        help="kill registered brokers that hang, for systemd to restart them",
    )
    parser.add_argument("--acl", type=Path, metavar="FILE.toml", help="who may administrate")
    return parser


if __name__ == "__main__":
    sys.exit(main())
