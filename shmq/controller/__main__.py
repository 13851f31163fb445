"""The Controller's process: `python -m shmq.controller`, bin/shmq-controller.

Settings come from its options, the environment (SHMQ_<NAME>) and the [controller] table of a TOML
file; docs/reference names them all. SIGTERM or SIGINT ends it, SIGHUP has it read its ACL file
again. Exit codes: 0 stopped, 1 could not start (one line says why), 2 its options make no sense.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from shmq import logs, service
from shmq.config import ControllerConfig, load, parsed_settings
from shmq.controller.manager import ControllerManager

__all__ = ["main"]

_log = logging.getLogger("shmq.controller")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a Controller until a signal stops it; the exit code."""
    options = _parser().parse_args(arguments)
    logs.configure()
    return service.exit_code(lambda: _run(options), _log)


def _run(options: argparse.Namespace) -> None:
    config = load(
        ControllerConfig,
        file=None if options.config is None else options.config.resolve(),
        table="controller",
        controller_store_path=None if options.store is None else options.store.absolute(),
        runtime_path=None if options.runtime is None else options.runtime.absolute(),
        controller_name=options.name,
        **parsed_settings(options.set),
    )
    manager = ControllerManager(config)
    service.run(
        manager,
        name=f"controller {config.controller_name}",
        on_reload=None if config.acl_file is None else manager.reload,
        describe=manager.describe,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shmq-controller", description="Says which member of a replica set is master."
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE.toml", help="settings, in its table [controller]")
    add("--store", type=Path, metavar="FOLDER", help="folder of its journal, on a disk")
    add("--runtime", type=Path, metavar="FOLDER", help="runtime folder, shared with the brokers")
    add("--name", metavar="NAME", help="of this instance (default: c0)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting")
    return parser


if __name__ == "__main__":
    sys.exit(main())
