"""`shmq doctor`: what of this machine and of what runs on it will hurt, and its remedy."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from shmq.config import default_namesrv_folder
from shmq.tools.cli.output import cluster_option, echo_json, json_option
from shmq.tools.doctor import Severity, examine

__all__ = ["doctor"]

_EXIT = {Severity.OK: 0, Severity.WARNING: 1, Severity.ERROR: 2}


@click.command()
@click.option(
    "--store",
    "stores",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Look at this store too, whose broker does not run. Repeatable.",
)
@click.option("-q", "--quiet", is_flag=True, help="Only what is wrong.")
@json_option
@cluster_option
def doctor(namesrv: str | None, is_json: bool, quiet: bool, stores: tuple[Path, ...]) -> None:
    """Look at the machine and at what runs for what will hurt; say the remedy of each.

    Exit codes: 0 all is well, 1 there are warnings, 2 something does not work.
    """
    runtime = Path(namesrv) if namesrv else default_namesrv_folder()
    found = examine(runtime, stores)
    code = max(_EXIT[finding.severity] for finding in found)
    if quiet:
        found = [finding for finding in found if finding.severity is not Severity.OK]
    if is_json:
        echo_json({"findings": [finding.to_dict() for finding in found]})
    else:
        for finding in found:
            click.echo(f"{finding.severity:7}  {finding.check}: {finding.seen}")
            if finding.remedy:
                click.echo(f"         -> {finding.remedy}")
    sys.exit(code)
