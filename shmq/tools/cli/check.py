"""`shmq check`: one thing judged for monitoring that starts a program and reads its exit code."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from shmq.config import SERVICES_FOLDER, default_namesrv_folder
from shmq.monitor.monitor import Monitor
from shmq.tools.answers import answer_times
from shmq.tools.checks import CHECKS, State
from shmq.tools.cli.output import cluster_option, echo_json, json_option
from shmq.tools.members import members_in
from shmq.tools.reading import Reading
from shmq.tools.units import broker_configs

__all__ = ["check"]

_URGENCY = (State.OK, State.UNKNOWN, State.WARNING, State.CRITICAL)
"""What outweighs what: something that is known to be wrong is worse than what is not known."""
_ANSWER_MAX_S = 60.0
"""Nobody is waited for longer, whatever is said to be critical."""


@click.command(
    epilog="Limits unless said otherwise: "
    + "; ".join(
        f"{name} {each.limits[0]:g} and {each.limits[1]:g} {each.unit}"
        for name, each in CHECKS.items()
    )
    + "."
)
@click.argument("names", metavar="CHECK...", nargs=-1, type=click.Choice([*CHECKS, "all"]))
@click.option("-w", "--warn", type=float, metavar="N", help="From there on it is a warning.")
@click.option("-c", "--crit", type=float, metavar="N", help="From there on it is critical.")
@click.option(
    "--brokers",
    "wanted_brokers",
    type=click.IntRange(0),
    metavar="N",
    help="So many brokers are to be there; of services as many as /etc/shmq/brokers has.",
)
@json_option
@cluster_option
def check(
    namesrv: str | None,
    is_json: bool,
    wanted_brokers: int | None,
    warn: float | None,
    crit: float | None,
    names: tuple[str, ...],
) -> None:
    """Judge what runs as nagios plugins do: broker, services (NameServers and Controllers), lag,
    disk, shm, memory, files, ha, dlq, or all.

    Reads shared memory and asks no broker: one that hangs does not hold it up. But ha asks all
    members, since one that stands by has no memory; each that hangs costs it a second. And services
    asks what it judges; one that hangs costs as many seconds as are critical. It must run as the
    brokers' user, or as root. One line for each check, with performance data; exit code 0 ok, 1
    warning, 2 critical, 3 unknown: the worst of all.
    """
    if not names:
        raise click.UsageError(f"name what to check: {', '.join(CHECKS)}, or all")
    chosen = list(CHECKS) if "all" in names else list(dict.fromkeys(names))
    if len(chosen) > 1 and (warn is not None or crit is not None):
        raise click.UsageError("--warn and --crit are limits of one check: name that one")
    runtime = Path(namesrv) if namesrv else default_namesrv_folder()
    if wanted_brokers is None:
        wanted_brokers = len(broker_configs()) if runtime == SERVICES_FOLDER else 0
    limits = {name: _limits(name, warn, crit) for name in chosen}
    monitor = Monitor(runtime)
    try:
        reading = Reading.read(monitor, wanted_brokers=wanted_brokers)
    finally:
        monitor.close()
    if any(CHECKS[name].asks_members for name in chosen):
        reading.members = members_in(runtime)
    for name in chosen:
        if CHECKS[name].asks_services:
            timeout_s = min(max(limits[name][1], 0.0), _ANSWER_MAX_S)
            reading.answers = answer_times(runtime, timeout_s=timeout_s)
    verdicts = [CHECKS[name].run(name, reading, limits[name]) for name in chosen]
    if is_json:
        echo_json({"checks": [verdict.to_dict() for verdict in verdicts]})
    else:
        for verdict in verdicts:
            click.echo(verdict.line())
    sys.exit(max((verdict.state for verdict in verdicts), key=_URGENCY.index))


def _limits(name: str, warn: float | None, crit: float | None) -> tuple[float, float]:
    low, high = CHECKS[name].limits
    limits = (low if warn is None else warn, high if crit is None else crit)
    if not limits[0] <= limits[1]:  # not a number, for one
        raise click.UsageError(
            f"check {name}: warning from {limits[0]:g}, critical from {limits[1]:g} on; wanted"
            " --warn not above --crit"
        )
    return limits
