"""A process kept ready to become the next broker: it has imported everything already.

What lives here: `Spare`, the supervisor's side; the other is whatever its command starts
(shmq/broker/spare.py). It is an exec'd process like any broker, never a fork, and waits on a socket
that nobody but us has: it ends when we do. In the NameServer, on its event loop; nothing blocks but
the start and the end of a process. May fail: OSError where no process can be started; a spare that
died is noticed when it is wanted, and the broker is then started in the ordinary way.
"""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Spare"]


class Spare:
    """One process, started when there is time and given away when there is none."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it with `command` and `environment`.

        Raises:
            OSError: it could not be started.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._child = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._child.pid

    def become(
        self, arguments: Sequence[str], *, lock_fd: int, log_fd: int
    ) -> subprocess.Popen[bytes] | None:
        """Have it go on as the broker of these arguments; its process is the caller's from here.

        Args:
            arguments: of a broker's command, behind the program.
            lock_fd: the broker's lock; the process has it too from now on.
            log_fd: where it prints.

        Returns:
            None: it has ended, and nothing was started.
        """
        is_given = self._child.poll() is None
        if is_given:
            try:
                message = orjson.dumps(list(arguments))
                socket.send_fds(self._socket, [message], [lock_fd, log_fd])
            except OSError:
                is_given = False
        if not is_given:
            self.stop()
            return None
        self._socket.close()  # what was sent stays readable
        return self._child

    def stop(self) -> None:
        """End it. It holds nothing and has begun nothing. Twice does nothing."""
        self._socket.close()
        self._child.kill()
        self._child.wait()
