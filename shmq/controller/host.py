"""What the kernel and the runtime folder say of masterships, and the death of who hangs.

What lives here: `KernelHost`, the machine's Host in a real Controller. Mastership is a flock in the
folder that the members of a broker_name share (shm.mastership): the record beside it says who
declared it, `/proc/locks` who has it without having declared it yet. A member is known by its
process, which the kernel named when it connected.

In the Controller, in its loop's thread. Reads only, and sends SIGKILL. Never raises: what cannot
be read is logged once, and counts as nothing.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING, Final

from shmq.errors import ShmqError
from shmq.remoting.identity import has_ended
from shmq.remoting.runtime_folder import broker_socket_name
from shmq.shm.incarnation import Incarnation
from shmq.shm.mastership import holder_pid, load_record
from shmq.store.left_memory import has_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shmq.remoting.runtime_folder import RuntimeFolder
    from shmq.shm.mastership import MasterRecord

__all__ = ["KernelHost"]

_log = logging.getLogger("shmq.controller")

_STRANGER: Final = -1
"""Holds mastership, and is no member that has registered here."""


class KernelHost:
    """See Host in controller.py.

    Args:
        folder: the runtime folder; open as long as this is used.
        member_of: the broker_id of the member of a broker_name that is this process; None: none.
    """

    def __init__(self, folder: RuntimeFolder, member_of: Callable[[str, int], int | None]) -> None:
        self._folder = folder
        self._member_of = member_of
        self._problems: dict[str, str] = {}

    def mastership_holder(self, broker_name: str) -> int | None:
        """The broker_id of the living process that holds mastership, -1 where that is unknown."""
        try:
            record = self._record(broker_name)
            if record is not None and record.lives:
                return record.broker_id
            pid = holder_pid(self._private(broker_name))
        except ShmqError as error:
            self._say(broker_name, error)
            return None
        if pid is None:
            return None
        member = self._member_of(broker_name, pid)
        return _STRANGER if member is None else member

    def has_memory(self, broker_name: str) -> bool:
        """Whether the shared memory of the last mastership is there."""
        try:
            record = self._record(broker_name)
            return record is not None and has_memory(self._private(broker_name), record)
        except ShmqError as error:
            self._say(broker_name, error)
            return False

    def kill_holder(self, broker_name: str) -> int | None:
        """Send SIGKILL to the process that holds mastership, and to no other that has its pid by
        now; its pid, or None where there is none or it is not ours to kill.
        """
        try:
            record = self._record(broker_name)
            life = record.owner if record is not None and record.lives else None
            if life is None:
                pid = holder_pid(self._private(broker_name))
                life = None if pid is None else Incarnation.of(pid)
            return None if life is None or not _kill(life) else life.pid
        except (ShmqError, OSError) as error:
            _log.error("fence broker=%s: %s", broker_name, error)
            return None

    def _record(self, broker_name: str) -> MasterRecord | None:
        return load_record(self._private(broker_name))

    def _private(self, broker_name: str) -> Path:
        """What the members of a replica set share."""
        return self._folder.private(broker_socket_name(broker_name, 0))

    def _say(self, broker_name: str, error: ShmqError) -> None:
        if self._problems.get(broker_name) != str(error):
            self._problems[broker_name] = str(error)
            _log.error("broker=%s: %s; %s", broker_name, error, error.hint)


def _kill(life: Incarnation) -> bool:
    try:
        pidfd = os.pidfd_open(life.pid)
    except ProcessLookupError:
        return False
    try:
        # Held by the pidfd, the pid is nobody else's from here on.
        if has_ended(pidfd) or Incarnation.of(life.pid) != life:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)
    return True
