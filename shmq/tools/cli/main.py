"""The entry point of `shmq`: finds the verb, and says in one line what went wrong."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

import click

from shmq.errors import ShmqError
from shmq.version import version_text

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["cli", "main"]

EXIT_FAILED = 1
EXIT_USAGE = 64
_VERBS = {
    "dev": "start a cluster in the foreground, for development",
    "pub": "send messages: from the command line, a file or a pipe",
    "sub": "receive messages and print them",
    "msg": "look up messages by id, key, time or place; send one again",
    "dlq": "list the dead letters of a group, deliver them once more",
    "topic": "list, show, create, change and delete topics",
    "group": "list consumer groups, show their lag, change them; reset, skip, clone their offsets",
    "broker": "list brokers, show what one says of itself, have producers leave one",
    "ha": "show the members of replica sets, who is in sync; have another one become master",
    "namesrv": "list NameServers; their key-value configuration",
    "cluster": "show clusters and what is wrong in them",
    "acl": "check an ACL file, say what it allows whom and why",
    "service": "install shmq as services of the machine (systemd), show them, allow users",
    "top": "show brokers, topics and groups as they go",
    "check": "judge one thing for monitoring: lag, disk, ha, ...; exit codes as nagios",
    "doctor": "look for what will hurt, and say the remedy",
    "shm": "list shared memory; clean up what dead brokers left",
    "inspect": "show a segment or a file of a store, field by field",
    "fsck": "check a store, and repair it",
    "completion": "print the completion script of a shell",
}


class _Verbs(click.Group):
    """Imports a verb's file when it is used, not before: `shmq --help` costs nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command: click.Command = getattr(import_module(f"shmq.tools.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version=version_text(), message="shmq %(version)s")
def cli() -> None:
    """shmq: RocketMQ for one host.

    Start with `shmq dev` in one terminal, then `shmq sub orders` and `shmq pub orders hello`.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    click.UsageError.exit_code = EXIT_USAGE
    try:
        cli.main(args=arguments, prog_name="shmq")
    except ShmqError as error:
        click.echo(f"error: {error}; {error.hint}", err=True)
        sys.exit(EXIT_FAILED)
    except OSError as error:  # standard output on a full disk, a file that cannot be read
        click.echo(f"error: {error}", err=True)
        _give_up_output()
        sys.exit(EXIT_FAILED)


def _give_up_output() -> None:
    """What is still in the buffer goes nowhere: the interpreter would try once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
