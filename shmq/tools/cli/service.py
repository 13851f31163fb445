"""`shmq service`: shmq as services of the machine, under systemd."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

import click

from shmq.errors import ConfigError, PermissionDeniedError, ServiceNotAvailableError
from shmq.tools.cli.output import echo_json, echo_table, json_option
from shmq.tools.units import PREFIX, Installation, broker_unit, installed_prefix

__all__ = ["service"]

EXIT_WRONG = 1
USER = "shmq"
_SYSTEM = Path("/")
_TARGET = "shmq.target"
_NAMESRV = "shmq-namesrv.service"
_CONTROLLER = "shmq-controller.service"
_EXPORTER = "shmq-exporter.socket"
_WANTS = Path("/etc/systemd/system/shmq.target.wants")
_FOLDERS = {Path("/run/shmq"): 0o2750, Path("/var/lib/shmq"): 0o700}
_TIMEOUT_S = 300.0
"""For one command of systemd's: a stop waits for brokers to drain."""
_SHOWN = ("Id", "UnitFileState", "ActiveState", "SubState", "MainPID", "NRestarts", "StatusText")


@click.group()
def service() -> None:
    """Services of this machine, under systemd (docs/operate/systemd.md)."""


@service.command("install")
@click.option(
    "--prefix",
    type=click.Path(path_type=Path, file_okay=False),
    help="Has bin/shmq-broker; else the installation that this shmq is of.",
)
@click.option(
    "-b",
    "--broker",
    "brokers",
    multiple=True,
    metavar="NAME",
    help="A broker, as often as wanted; else, if none is enabled, all there are, or broker-a.",
)
@click.option(
    "--controller", is_flag=True, help="A Controller, which says who is master of replica sets."
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="The system to write into, for an image or a package; nothing is started or enabled.",
)
def _install(
    prefix: Path | None, brokers: tuple[str, ...], controller: bool, root: Path | None
) -> None:
    """Write the units, make the user shmq, enable it all: it starts with the next boot.

    Doing it again is an upgrade: what differs is written, configuration is left as it is.
    """
    made = Installation(prefix or Path(sys.prefix), root or _SYSTEM)
    for name in brokers:
        broker_unit(name)
    if root is None:
        _require_system("install")
    made.require_prefix()
    wanted = list(brokers)
    if not wanted and (
        root is not None or not list(_WANTS.glob("shmq-broker@*"))
    ):  # all of them, or a first one
        wanted = made.brokers() or ["broker-a"]
    for place in (*made.write(), *made.make_config(wanted)):
        click.echo(f"wrote {place}")
    if root is not None:
        return
    _run("systemd-sysusers", str(made.sysusers_file))
    _run("systemd-tmpfiles", "--create", str(made.tmpfiles_file))
    _run("systemctl", "daemon-reload")
    problems = _verify(made)
    if problems:
        raise ConfigError(f"verify the units: {problems[0]}")
    enabled = [_TARGET, _NAMESRV, *map(broker_unit, wanted)]
    if controller:
        enabled.append(_CONTROLLER)
    if _has_metrics(made):
        enabled.append(_EXPORTER)
    else:
        click.echo(
            f"no metrics: {made.prefix}/bin/pip install 'shmq[exporter]', then install again"
        )
    _run("systemctl", "enable", "--quiet", *enabled)
    is_running = _show(_TARGET)["ActiveState"] == "active"
    click.echo(f"shmq runs from {made.prefix}; systemctl {'re' * is_running}start {_TARGET}")


@service.command("uninstall")
def _uninstall() -> None:
    """Stop everything and remove the units. Messages, configuration and the user stay."""
    _require_system("uninstall")
    made = _installed()
    _run("systemctl", "stop", _TARGET, *_units())
    _run("systemctl", "disable", "--quiet", _TARGET, *_units())
    for place in made.remove():
        click.echo(f"removed {place}")
    _run("systemctl", "daemon-reload")
    click.echo(f"kept: /var/lib/shmq, /etc/shmq, the user {USER}, {made.prefix}")


@service.command("status")
@json_option
def _status(is_json: bool) -> None:
    """Show what runs, and what is wrong with the installation. Exit code 1 if something is."""
    made = _installed()
    rows = [_show(unit) for unit in (_TARGET, *_units())]
    problems = _problems(made, rows)
    members = grp.getgrnam(USER).gr_mem if _has_group() else []
    if is_json:
        echo_json(
            {"prefix": made.prefix, "units": rows, "users": members, "problems": problems},
        )
    else:
        echo_table(
            ("UNIT", "BOOT", "STATE", "PID", "RESTARTS", "SAYS"),
            (
                (
                    row["Id"],
                    row["UnitFileState"],
                    f"{row['ActiveState']} ({row['SubState']})",
                    row["MainPID"].strip("0") and row["MainPID"],
                    row["NRestarts"],
                    row["StatusText"],
                )
                for row in rows
            ),
        )
        click.echo(f"runs from {made.prefix}; users: {', '.join(members) or 'root only'}")
        for problem in problems:
            click.echo(f"wrong: {problem}")
    if problems:
        raise SystemExit(EXIT_WRONG)


@service.command("allow")
@click.argument("user", metavar="USER")
def _allow(user: str) -> None:
    """Let USER connect: it joins the group shmq. What it may do then, an ACL file says."""
    _require_root("allow")
    _installed()
    try:
        pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(
            f"allow {user!r}: no such user on this machine", hint="getent passwd lists them"
        ) from None
    _run("usermod", "--append", "--groups", USER, user)
    click.echo(
        f"{user} is in the group {USER}: from its next login on; a service of it is restarted"
    )


# ---- what is there ---------------------------------------------------------------------------


def _installed() -> Installation:
    prefix = installed_prefix(_SYSTEM)
    if prefix is None:
        raise ConfigError(
            "find the services: their units are not there",
            hint=f"{PREFIX}/bin/shmq service install writes them",
        )
    return Installation(prefix)


def _has_metrics(made: Installation) -> bool:
    """Whether the exporter has what it imports."""
    python = str(made.prefix / "bin/python")
    return _try_run(python, "-P", "-c", "import prometheus_client").returncode == 0


def _units() -> list[str]:
    """Every unit that is enabled or has been started, but the target."""
    known = {path.name for path in _WANTS.glob("shmq-*")}
    listed = _run("systemctl", "list-units", "--all", "--plain", "--no-legend", "shmq-*")
    for line in listed.splitlines():
        name, is_loaded, *_ = line.split()
        if is_loaded != "not-found":  # named by another's After= only
            known.add(name)
    return sorted(known)


def _show(unit: str) -> dict[str, str]:
    said = _run("systemctl", "show", f"--property={','.join(_SHOWN)}", unit)
    values = dict(line.partition("=")[::2] for line in said.splitlines())
    return {name: values.get(name, "") for name in _SHOWN}


def _problems(made: Installation, rows: list[dict[str, str]]) -> list[str]:
    found = [f"{place} is not as this version writes it" for place in made.differing()]
    found += _verify(made)
    if not _has_group():
        found.append(f"there is no user or group {USER}")
    else:
        found += _folder_problems()
    configured = set()
    for name in made.brokers():
        try:
            configured.add(broker_unit(name))
        except ConfigError as error:
            found.append(f"{made.broker_folder}/{name}.toml is no broker's: {error}")
    for row in rows:
        unit = row["Id"]
        if row["ActiveState"] == "failed":
            found.append(f"{unit} has failed: journalctl --unit {unit}")
        if unit.startswith("shmq-broker@") and unit not in configured:
            name = unit.removeprefix("shmq-broker@").removesuffix(".service")
            found.append(
                f"{unit} has no configuration in {made.broker_folder}: put it back, or have one"
                f" made: shmq service install --broker {name}"
            )
    return found


def _has_group() -> bool:
    try:
        grp.getgrnam(USER)
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


def _folder_problems() -> list[str]:
    found = []
    uid, gid = pwd.getpwnam(USER).pw_uid, grp.getgrnam(USER).gr_gid
    for folder, mode in _FOLDERS.items():
        try:
            status = folder.stat()
        except FileNotFoundError:
            found.append(f"{folder} is not there: systemd-tmpfiles --create")
            continue
        seen = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
        if seen != (uid, gid, mode):
            found.append(
                f"{folder} has owner {seen[0]}:{seen[1]} and mode {seen[2]:04o};"
                f" wanted {uid}:{gid} and {mode:04o}: systemd-tmpfiles --create"
            )
    return found


# ---- systemd's own programs ------------------------------------------------------------------


def _require_root(what: str) -> None:
    if os.geteuid() != 0:
        raise PermissionDeniedError(f"{what}: uid {os.geteuid()} may not", hint="run it as root")


def _require_system(what: str) -> None:
    _require_root(what)
    if not Path("/run/systemd/system").is_dir():
        raise ServiceNotAvailableError(
            f"{what}: systemd does not run this machine",
            hint="install --root FOLDER writes the files for one that it runs",
        )


def _verify(made: Installation) -> list[str]:
    """What systemd finds wrong with the units."""
    units = [str(made.unit_folder / name.replace("@.", "@verified.")) for name in made.units]
    done = _try_run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units)
    return done.stderr.splitlines() if done.returncode != 0 else []


def _run(*command: str) -> str:
    """What a command prints; an error if it fails."""
    done = _try_run(*command)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
        raise ServiceNotAvailableError(f"{_named(command)}: {said[-1]}", hint="see journalctl -xe")
    return done.stdout


def _try_run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise ServiceNotAvailableError(
            f"{_named(command)}: no such program", hint="install Debian's package systemd"
        ) from None
    except subprocess.TimeoutExpired:
        raise ServiceNotAvailableError(
            f"{_named(command)}: not done in {_TIMEOUT_S:.0f} s", hint="see systemctl list-jobs"
        ) from None


def _named(command: tuple[str, ...]) -> str:
    return " ".join(command[:3])
