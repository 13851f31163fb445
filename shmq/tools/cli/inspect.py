"""`shmq inspect`: python -m shmq.tools.inspect under its short name."""

from __future__ import annotations

import sys

import click

from shmq.tools.inspect import main

__all__ = ["inspect"]


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def inspect(arguments: tuple[str, ...]) -> None:
    """Show a segment or a file of a store, field by field."""
    sys.exit(main(list(arguments)))
