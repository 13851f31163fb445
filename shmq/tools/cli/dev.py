"""`shmq dev`: a cluster in the foreground, for development."""

from __future__ import annotations

import queue
import signal
import tempfile
from pathlib import Path

import click

from shmq.client.local import start
from shmq.client.namesrv_process import LOG
from shmq.config import default_runtime_folder
from shmq.threads import NamedThread

__all__ = ["dev"]

_STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_LOG_STEP_S = 0.25


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep stores there and find them again; else they are temporary.",
)
@click.option("-b", "--brokers", type=click.IntRange(1, 26), default=1, show_default=True)
@click.option(
    "-s",
    "--slaves",
    type=click.IntRange(0, 16),
    default=0,
    show_default=True,
    help="For each broker: they copy it, and take its place when it dies.",
)
@click.option(
    "--runtime",
    type=click.Path(path_type=Path, file_okay=False),
    help="Runtime folder; else the default one, where clients look by themselves.",
)
def dev(folder: Path | None, brokers: int, slaves: int, runtime: Path | None) -> None:
    """Start a NameServer and brokers; stop them on Ctrl-C.

    The cluster's log is printed as it comes. When it has stopped, everything that was sent is on
    disk; a temporary store is removed.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    root = Path(tempfile.mkdtemp(prefix="shmq-dev-")) if folder is None else folder.absolute()
    run = (runtime or default_runtime_folder()).absolute()
    is_temporary = folder is None
    with start(root, run, brokers=brokers, slaves=slaves, is_temporary=is_temporary) as client:
        names = ", ".join(sorted(client.routes.brokers()))
        at = "" if runtime is None else f" -n {runtime}"
        where = "" if runtime is None else repr(str(runtime))
        click.echo(f"shmq is up: {names}; {'a temporary store' if folder is None else folder}")
        click.echo(f"  send:     shmq pub{at} orders hello")
        click.echo(f"  receive:  shmq sub{at} orders")
        click.echo(f"  look:     shmq cluster list{at}")
        if slaves:
            click.echo(f"  slaves:   shmq ha status{at}")
        click.echo(f"  program:  shmq.connect({where})")
        click.echo("Ctrl-C stops it.")
        _follow(root / LOG)
        click.echo("stopping")


def _follow(log: Path) -> None:
    """Print what is logged until a stop signal comes."""
    taken: queue.SimpleQueue[int] = queue.SimpleQueue()
    NamedThread(target=lambda: taken.put(signal.sigwait(_STOP_SIGNALS)), daemon=True).start()
    with open(log, encoding="utf-8", errors="replace") as lines:
        lines.seek(0, 2)
        while True:
            try:
                taken.get(timeout=_LOG_STEP_S)
            except queue.Empty:
                click.echo(lines.read(), nl=False, err=True)
                continue
            return
