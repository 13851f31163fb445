"""`shmq acl`: check an ACL file, and say what it allows whom and why. Asks no broker."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import click

from shmq.acl import Acl, Action
from shmq.errors import ConfigError
from shmq.tools.cli.output import echo_json, json_option

__all__ = ["acl"]

EXIT_DENIED = 1


@click.group()
def acl() -> None:
    """ACL files: who may map, send, pull, consume and administrate (docs/operate/rights.md)."""


_FILE = click.argument("file", metavar="FILE", type=click.Path(path_type=Path))


@acl.command("check")
@_FILE
@json_option
def _check(file: Path, is_json: bool) -> None:
    """Check a file as a broker would before it takes it into force."""
    rules = Acl.load(file, owner_uid=file.stat().st_uid if file.exists() else None)
    warnings = _warnings(rules)
    if is_json:
        echo_json({"accounts": len(rules.accounts), "warnings": warnings})
        return
    click.echo(f"{file}: {len(rules.accounts)} accounts, nothing wrong")
    for warning in warnings:
        click.echo(f"warning: {warning}")


def _warnings(rules: Acl) -> list[str]:
    """What is no error, and may not be what was meant."""
    found = []
    for account in rules.accounts:
        denies = [line for line in account.topics if line.perm == 0]
        if account.is_map and denies:
            found.append(
                f"{account.title}: map = true reads everything in the log, whatever topic_perms "
                f'"{denies[0].text}" denies'
            )
        if account.uid == 0:
            found.append(f"{account.title}: root may do everything, whatever is written")
    return found


@acl.command("explain")
@_FILE
@click.option("--user", required=True, metavar="USER", help="Name or uid.")
@click.option("--map", "wants_map", is_flag=True, help="May it map the log?")
@click.option("--admin", "wants_admin", is_flag=True, help="May it administrate?")
@click.option("--send", metavar="TOPIC", help="May it send to this topic?")
@click.option("--pull", metavar="TOPIC", help="May it read this topic?")
@click.option("--consume", metavar="GROUP", help="May it take part in this group?")
@json_option
def _explain(
    file: Path,
    user: str,
    wants_map: bool,
    wants_admin: bool,
    send: str | None,
    pull: str | None,
    consume: str | None,
    is_json: bool,
) -> None:
    """Say what a user may do, and which line says so. Exit code 1 if something is denied."""
    asked = [(Action.MAP, "")] if wants_map else []
    asked += [(Action.ADMIN, "")] if wants_admin else []
    for action, name in ((Action.SEND, send), (Action.PULL, pull), (Action.CONSUME, consume)):
        asked += [] if name is None else [(action, name)]
    if not asked:
        raise click.UsageError("wanted --map, --admin, --send, --pull or --consume")
    uid, gids = _peer(user)
    rules = Acl.load(file, owner_uid=file.stat().st_uid if file.exists() else None)
    answers = []
    for action, name in asked:
        said = rules.explain(uid, gids, action, name)
        is_allowed = said.is_allowed or uid == 0
        rule = "uid 0 is root's: no rule is asked" if uid == 0 else said.rule
        answers.append({"action": action, "name": name, "allowed": is_allowed, "rule": rule})
    if is_json:
        echo_json({"user": user, "uid": uid, "answers": answers})
    else:
        for answer in answers:
            verdict = "allowed" if answer["allowed"] else "denied"
            what = " ".join(filter(None, (str(answer["action"]), str(answer["name"]))))
            click.echo(f"{what}: {verdict} by {answer['rule']}")
    if not all(answer["allowed"] for answer in answers):
        raise SystemExit(EXIT_DENIED)


def _peer(user: str) -> tuple[int, frozenset[int]]:
    """A user's uid and all of its groups; a number that is nobody's has none."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        if user.isdecimal():
            return int(user), frozenset()
        raise ConfigError(f"--user {user}: no such user on this machine") from None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return entry.pw_uid, frozenset(groups)
