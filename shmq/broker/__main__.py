"""The broker's process: `python -m shmq.broker`, bin/shmq-broker.

Reads settings from a TOML file, the environment and its options (shmq.config says in which order),
then lives as shmq.service says: SIGTERM or SIGINT ends it in order, SIGHUP has it read its
ACL file again. Exit codes: 0 ended in order, 1 it could not start or failed, 2 its options make no
sense.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from shmq import logs, service
from shmq.broker.roles import Member
from shmq.config import BrokerConfig, load, load_broker_tables, parsed_settings
from shmq.errors import ConfigError
from shmq.service import DRAIN_TIMEOUT_S

__all__ = ["main"]

_log = logging.getLogger("shmq.broker")


def main(arguments: list[str] | None = None) -> int:
    """Run a broker until it is told to stop; returns the exit code."""
    options = _parser().parse_args(arguments)
    logs.configure(getattr(logging, options.log_level))
    return service.exit_code(lambda: _run(options), _log)


def _run(options: argparse.Namespace) -> None:
    config = _config(options)
    member = Member(config, is_waiting=options.wait)
    service.run(
        member,
        name=f"broker {config.broker_name}:{config.broker_id}",
        drain_timeout_s=options.drain_timeout,
        on_reload=None if config.acl_file is None else member.reload,
        describe=member.describe,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shmq-broker", description="Serves one store of messages to the programs of this host."
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE.toml", help="settings; options below count before it")
    add("--broker", metavar="NAME", help="its table [broker.NAME] in a cluster file; its name too")
    add("--store", metavar="FOLDER", help="folder of the store (store_path)")
    add("--name", metavar="NAME", help="broker_name")
    add("--id", metavar="N", help="broker_id; 0 is the master")
    add("--cluster", metavar="NAME", help="cluster_name")
    add("--runtime", metavar="FOLDER", help="runtime folder, shared with NameServers and clients")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting, by its own name or RocketMQ's",
    )
    add(
        "--wait",
        action="store_true",
        help="be no master until told: a supervisor or Controller says which member is",
    )
    add(
        "--log-level",
        default="INFO",
        choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        help="lowest level that is logged",
    )
    add(
        "--drain-timeout",
        type=float,
        default=DRAIN_TIMEOUT_S,
        metavar="SECONDS",
        help="for what clients have published when the broker is told to stop",
    )
    return parser


def _config(options: argparse.Namespace) -> BrokerConfig:
    settings: dict[str, Any] = {
        "store_path": options.store,
        "broker_name": options.name,
        "broker_id": options.id,
        "cluster_name": options.cluster,
        "runtime_path": options.runtime,
    }
    settings |= parsed_settings(options.set)
    table = None
    if options.broker is not None:
        table = ("broker", options.broker)
        if options.config is None:
            raise ConfigError(f"--broker {options.broker}: wanted --config FILE.toml too")
        found = load_broker_tables(options.config).get(options.broker)
        if found is None:
            raise ConfigError(f"{options.config}: no [broker.{options.broker}]")
        if settings["broker_name"] is None and not {"broker_name", "brokerName"} & found.keys():
            settings["broker_name"] = options.broker
    return load(BrokerConfig, file=options.config, table=table, **settings)


if __name__ == "__main__":
    sys.exit(main())
