"""Members of replica sets as they say themselves, for tools that judge them.

What lives here: `members_in`, and what is asked of its answer. A member that stands by has no
shared memory and is in no route: it is found by its socket only. In a tool's process; writes
nothing. Blocks up to a second for each member that hangs, which is left out then. Never fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmq.client import ha
from shmq.errors import ShmqError
from shmq.remoting.client import Client
from shmq.remoting.runtime_folder import RuntimeFolder

if TYPE_CHECKING:
    from pathlib import Path

    from shmq.client.ha import HaMember
    from shmq.remoting.command import Command

__all__ = ["masterless", "members_in", "problem_of"]

_TIMEOUT_S = 1.0
"""One that is well answers in milliseconds; monitoring gives a check ten seconds."""


def members_in(runtime: Path) -> list[HaMember]:
    """The members that answer in a runtime folder, by broker_name and broker_id; none where there
    is no such folder.
    """
    try:
        with RuntimeFolder.open(runtime) as folder:

            def call(socket_name: str, command: Command) -> Command:
                client = Client(folder, socket_name, role="tool", timeout_s=_TIMEOUT_S)
                try:
                    return client.call(command, timeout_s=_TIMEOUT_S)
                finally:
                    client.close()

            return ha.members(call, folder.socket_names("broker"), None)
    except ShmqError:
        return []


def masterless(members: list[HaMember]) -> dict[str, list[HaMember]]:
    """By broker_name the members of those replica sets of which no master answers."""
    led = {member.broker_name for member in members if member.is_master}
    found: dict[str, list[HaMember]] = {}
    for member in members:
        if member.broker_name not in led:
            found.setdefault(member.broker_name, []).append(member)
    return found


def problem_of(member: HaMember) -> str:
    """What is wrong with a member: why it is not master, or does not copy; empty if nothing is."""
    return "; ".join(filter(None, (member.problem, member.replica_problem)))
