"""`shmq fsck`: python -m shmq.tools.fsck under its short name."""

from __future__ import annotations

import sys

import click

from shmq.tools.fsck import main

__all__ = ["fsck"]


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def fsck(arguments: tuple[str, ...]) -> None:
    """Check a store, and repair it."""
    sys.exit(main(list(arguments)))
