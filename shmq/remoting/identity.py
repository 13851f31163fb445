"""Who is at the other end of a connected Unix socket, as the kernel tells it.

What lives here: `Identity` (uid, gid, one life of one process) and `peer_of`, which asks
SO_PEERCRED for it and holds the process by a pidfd. Nothing of it is ever taken from what a peer
says. Rights come from the uid and gid; the process is there to be noticed dead and, if need be, to
be killed, and a pid alone serves for neither, since Linux hands it out again.

The pidfd comes from SO_PEERPIDFD (Linux 6.5), which names the process that connected, whatever
became of its pid. Without it pidfd_open(2) is asked for the pid, and the process found there counts
only if it is the same before and after: what is left is a peer that died, and whose pid another
process got, before its connection was accepted, and that changes nobody's rights.

In every process. May fail: the peer is gone (ClosedError), no descriptor is left (LimitError).
"""

import errno
import os
import select
import signal
import socket
import struct
from dataclasses import dataclass

from shmq.errors import ClosedError, LimitError, ShmqError
from shmq.shm.incarnation import Incarnation

__all__ = ["Identity", "Peer", "has_ended", "peer_of", "refuse_descriptors"]

# Of <asm-generic/socket.h>; Python's socket module does not have them yet.
_SO_PEERPIDFD = 77
_SO_PASSRIGHTS = 83
_SO_PEERGROUPS = 59
_GROUPS_BYTES_MAX = 1024  # as much as Python's getsockopt takes
_UCRED = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class Identity:
    """What the kernel says of a peer."""

    uid: int
    """Effective uid when it connected (or listened)."""
    gid: int
    """Effective gid then."""
    pid: int
    """Process id in our pid namespace; 0: of another namespace."""
    incarnation: Incarnation | None
    """The process's one life; None where it cannot be seen."""
    groups: frozenset[int] = frozenset()
    """Supplementary groups then; none of more than 256 are seen."""

    @property
    def gids(self) -> frozenset[int]:
        """All groups it is in."""
        return self.groups | {self.gid}

    def __str__(self) -> str:
        return f"pid {self.pid} of uid {self.uid}"


class Peer:
    """An identity and the pidfd that holds it. Owns the pidfd."""

    __slots__ = ("_pidfd", "identity")

    def __init__(self, identity: Identity, pidfd: int) -> None:
        self.identity = identity
        self._pidfd = pidfd

    @property
    def pidfd(self) -> int:
        """Readable once the process has ended; -1 where there is none."""
        return self._pidfd

    def take_pidfd(self) -> int:
        """The pidfd, which is the caller's to close from now on; -1 where there is none."""
        pidfd, self._pidfd = self._pidfd, -1
        return pidfd

    def kill(self) -> bool:
        """Send SIGKILL to this process and no other; False if it has ended or is not held.

        Raises:
            PermissionError: it belongs to another uid.
        """
        if self._pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Let go of the process. Twice does nothing."""
        pidfd = self.take_pidfd()
        if pidfd >= 0:
            os.close(pidfd)


def peer_of(sock: socket.socket, *, ask_kernel_for_pidfd: bool = True) -> Peer:
    """The peer of a connected Unix stream socket. Never blocks.

    Args:
        sock: connected; on the connecting side the peer is the process that called listen(2).
        ask_kernel_for_pidfd: False goes the way of kernels without SO_PEERPIDFD.

    Raises:
        ClosedError: the peer's process has ended.
        LimitError, ShmError: no descriptor is left, `/proc` cannot be read.
    """
    pid, uid, gid = _UCRED.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    pidfd = _asked_pidfd(sock) if ask_kernel_for_pidfd else -1
    try:
        life = Incarnation.of(pid)
        if pidfd >= 0:
            # Had it ended before we looked, the pid might be another's by now.
            life = None if has_ended(pidfd) else life
            return Peer(Identity(uid, gid, pid, life, _groups(sock)), pidfd)
        if pid > 0:
            pidfd = _opened_pidfd(pid)
            if pidfd < 0 or life is None or life != Incarnation.of(pid):
                raise ClosedError(f"identify the peer: pid {pid} has ended")
        return Peer(Identity(uid, gid, pid, life, _groups(sock)), pidfd)
    except ShmqError:
        if pidfd >= 0:
            os.close(pidfd)
        raise


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended. Never blocks."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def refuse_descriptors(sock: socket.socket) -> None:
    """Make the kernel refuse every descriptor that is sent to this socket, where it can (6.16).

    Sockets accepted from a listening one inherit it. Elsewhere the receiver's empty ancillary
    buffer makes the kernel drop them.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError as error:
        if error.errno not in {errno.ENOPROTOOPT, errno.EINVAL, errno.EOPNOTSUPP}:
            raise


def _groups(sock: socket.socket) -> frozenset[int]:
    """Supplementary groups of the peer when it connected."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES_MAX)
    except OSError as error:
        if error.errno in {errno.ERANGE, errno.ENODATA, errno.ENOPROTOOPT}:
            return frozenset()
        raise
    return frozenset(gid for (gid,) in struct.iter_unpack("I", raw))


def _asked_pidfd(sock: socket.socket) -> int:
    """The pidfd from SO_PEERPIDFD; -1 where this kernel has none to give."""
    try:
        # The kernel installs it close-on-exec.
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
    except OSError as error:
        if error.errno in {errno.ESRCH, errno.ENODATA}:
            raise ClosedError("identify the peer: its process has ended") from None
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise _no_descriptor() from error
        return -1
    return int.from_bytes(raw, "little", signed=True)


def _opened_pidfd(pid: int) -> int:
    """The pidfd from pidfd_open(2); -1 if there is no such process."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise _no_descriptor() from error
        raise


def _no_descriptor() -> LimitError:
    return LimitError(
        "identify the peer: no file descriptor left; raise LimitNOFILE= in the unit, or ulimit -n"
    )
