"""The runtime folder: where sockets lie, who may make one, and which of them is alive.

    <folder>                       0750 or stricter, ours; systemd makes it 2750 shmq:shmq
      namesrv-<name>.sock          0660: the folder's group may connect
      broker-<broker_name>-<id>.sock
      controller-<name>.sock
      <socket>.lock                held (flock) by the process that has the socket of that name
      <name>.d/                    0700: what one daemon keeps for itself (`private`)

A server binds its socket under a temporary name, gives it its mode, listens, and only then renames
it to where clients look: nobody can connect to a socket that is not ready or too open, whatever the
umask. What lay there before is replaced only while its lock is ours and only if it is a socket of
ours that refuses connections: a stale one. Everything goes relative to the open folder (through
/proc/self/fd, which also lets a folder's path be longer than a socket's 107 bytes), so that nobody
can put another folder in its place.

In every process: daemons `make` the folder, clients `open` it. What may fail: the folder is not to
be trusted (OwnerError), the name is taken (OwnerError), nobody listens
(ServiceNotAvailableError), no right (PermissionDeniedError).
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import struct
from pathlib import Path
from types import TracebackType

from shmq.errors import (
    ConfigError,
    LimitError,
    OwnerError,
    PermissionDeniedError,
    ServiceNotAvailableError,
    ShmqError,
    SystemBusyError,
)
from shmq.shm.names import label

__all__ = [
    "Listener",
    "RuntimeFolder",
    "broker_socket_name",
    "controller_socket_name",
    "namesrv_socket_name",
]

FOLDER_MODE = 0o750
SOCKET_MODE = 0o660
BACKLOG_COUNT = 512
"""Connections that wait to be accepted; more wait in connect(2), each in its own process."""

_SUFFIX = ".sock"
_SOCKET_NAME = re.compile(r"(?:namesrv|broker|controller)-[A-Za-z0-9_-]{1,72}")
_PRIVATE_NAME = re.compile(r"[A-Za-z0-9_-]{1,96}")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_TIMEVAL = struct.Struct("ll")


def namesrv_socket_name(name: str) -> str:
    """The socket of the NameServer instance `name`: "namesrv-ns0"."""
    return f"namesrv-{label(name)}"


def controller_socket_name(name: str) -> str:
    """The socket of the Controller instance `name`: "controller-c0"."""
    return f"controller-{label(name)}"


def broker_socket_name(broker_name: str, broker_id: int) -> str:
    """The socket of one broker: "broker-broker-a-0". Its life has one; a new role keeps it."""
    return f"broker-{label(broker_name)}-{broker_id}"


class RuntimeFolder:
    """An open runtime folder. Owns one descriptor; a context manager."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path, fd: int) -> None:
        """Not for callers: see `make` and `open`."""
        self.path = path
        self._fd = fd

    @classmethod
    def make(cls, path: Path) -> "RuntimeFolder":
        """Open the folder, made first where it is missing; for processes that serve.

        Raises:
            OwnerError: it belongs to another uid, or others may write into it.
            ConfigError: it cannot be made there.
        """
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
                path.chmod(FOLDER_MODE)  # in one step it would be subject to the umask
        except OSError as error:
            raise ConfigError(
                f"make the runtime folder {path}: {error.strerror}; name another with --runtime"
            ) from error
        folder = cls.open(path)
        owner = os.fstat(folder._fd).st_uid
        if owner != os.geteuid():
            folder.close()
            raise OwnerError(
                f"open the runtime folder {path}: owner uid {owner}, wanted {os.geteuid()};"
                " run as its owner, or name another folder with --runtime"
            )
        return folder

    @classmethod
    def open(cls, path: Path) -> "RuntimeFolder":
        """Open the folder as it is; for processes that connect.

        Raises:
            ServiceNotAvailableError: there is none, so nobody serves there.
            PermissionDeniedError: this uid may not enter it.
            OwnerError: others may write into it, or it lies among everybody's folders (/tmp) and
                is not our own: what listens there could be anybody.
        """
        try:
            fd = os.open(path, _FOLDER_FLAGS)
        except OSError as error:
            raise _unreachable(f"open the runtime folder {path}", error) from error
        folder = cls(path, fd)
        try:
            folder._check()
        except ShmqError:
            folder.close()
            raise
        return folder

    def _check(self) -> None:
        status = os.fstat(self._fd)
        what = f"open the runtime folder {self.path}"
        if status.st_mode & stat.S_ISVTX and status.st_mode & _OTHERS_WRITE:
            raise OwnerError(
                f"{what}: it is everybody's; wanted a folder where nobody but its owner makes"
                " sockets",
                hint="name the one that the NameServer has; shmq dev --runtime FOLDER makes one",
            )
        if status.st_mode & _OTHERS_WRITE:
            raise OwnerError(
                f"{what}: mode {stat.S_IMODE(status.st_mode):04o}; wanted {FOLDER_MODE:04o}, where"
                " nobody but its owner makes sockets: chmod it, or name another folder"
            )
        if status.st_uid in (os.geteuid(), 0):
            return
        parent = os.stat("..", dir_fd=self._fd)
        if parent.st_mode & stat.S_IWOTH:
            raise OwnerError(
                f"{what}: owner uid {status.st_uid} in a folder where everybody may make one;"
                f" wanted uid {os.geteuid()}: remove it, or name another folder"
            )

    def _give_to_group(self, place: str) -> None:
        """Whoever is in the folder's group may connect, with or without its set-group-ID bit."""
        group = os.fstat(self._fd).st_gid
        if os.stat(place, dir_fd=self._fd, follow_symlinks=False).st_gid == group:
            return  # a unit of systemd may not chown at all
        try:
            os.chown(place, -1, group, dir_fd=self._fd)
        except PermissionError as error:
            raise OwnerError(
                f"listen in {self.path}: its group is {group}, and uid {os.geteuid()} is not in it;"
                " join it, or chgrp the folder to a group of its owner"
            ) from error

    def listen(self, name: str) -> "Listener":
        """Listen on the socket `name` (of `namesrv_socket_name` and its like).

        Raises:
            OwnerError: a living process has the name, or something that is no stale socket of ours
                lies there.
            ConfigError: the folder takes no socket (full, read-only).
        """
        _check_name(name)
        what = f"listen on {name} in {self.path}"
        try:
            return self._listen(name, what)
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                raise _no_descriptor(what) from error
            raise ConfigError(f"{what}: {error.strerror}") from error

    def _listen(self, name: str, what: str) -> "Listener":
        with contextlib.ExitStack() as undo:
            lock_fd = self._lock(name, what)
            undo.callback(os.close, lock_fd)
            self._check_stale(name, what)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(sock.close)
            sock.setblocking(False)
            temporary = f".{name}.new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._fd)  # of a predecessor killed right here
            sock.bind(self._address(temporary))
            self._give_to_group(temporary)
            os.chmod(temporary, SOCKET_MODE, dir_fd=self._fd)
            sock.listen(BACKLOG_COUNT)
            place = f"{name}{_SUFFIX}"
            os.rename(temporary, place, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            inode = os.stat(place, dir_fd=self._fd, follow_symlinks=False).st_ino
            folder_fd = os.dup(self._fd)
            undo.pop_all()
        return Listener(sock, name, folder_fd, lock_fd, inode)

    def connect(self, name: str, *, timeout_s: float) -> socket.socket:
        """Connect to the socket `name`. Blocks up to `timeout_s` where its backlog is full.

        Raises:
            ServiceNotAvailableError: nobody listens there.
            PermissionDeniedError: this uid is not in the socket's group.
            SystemBusyError: the server does not accept.
        """
        sock = self._new_socket(name)
        try:
            # The kernel's own timeout for a full backlog: a Unix socket cannot be polled for it.
            seconds = int(timeout_s)
            timeval = _TIMEVAL.pack(seconds, max(1, int((timeout_s - seconds) * 1e6)))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            sock.connect(self._address(f"{name}{_SUFFIX}"))
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            raise _unreachable(f"connect to {name} in {self.path}", error) from error
        return sock

    def try_connect(self, name: str) -> socket.socket | None:
        """Connect to the socket `name` without waiting; None where its backlog is full.

        Raises:
            as `connect`.
        """
        sock = self._new_socket(name)
        try:
            sock.setblocking(False)
            sock.connect(self._address(f"{name}{_SUFFIX}"))
        except BlockingIOError:
            sock.close()
            return None
        except OSError as error:
            sock.close()
            raise _unreachable(f"connect to {name} in {self.path}", error) from error
        return sock

    def socket_names(self, kind: str) -> list[str]:
        """The sockets of a kind ("namesrv", "broker", "controller") that lie here, sorted; whether
        somebody listens is another matter.
        """
        found = (name.removesuffix(_SUFFIX) for name in os.listdir(self._fd))
        return sorted({n for n in found if _SOCKET_NAME.fullmatch(n) and n.startswith(f"{kind}-")})

    def locked_names(self, kind: str) -> list[str]:
        """The names of a kind on which somebody has listened since the folder was made, sorted;
        whether anybody does is another matter: locks stay.
        """
        found = (name.removesuffix(".lock") for name in os.listdir(self._fd) if ".lock" in name)
        return sorted({n for n in found if _SOCKET_NAME.fullmatch(n) and n.startswith(f"{kind}-")})

    def private(self, name: str) -> Path:
        """The folder `<name>.d`, mode 0700, made if missing: for one daemon's marks and records.

        Raises:
            OwnerError: it is not ours alone.
        """
        if not _PRIVATE_NAME.fullmatch(name):
            raise ConfigError(f"private folder {name!r}: wanted 1 to 96 of A-Z a-z 0-9 _ -")
        place = f"{name}.d"
        with contextlib.suppress(FileExistsError):
            os.mkdir(place, 0o700, dir_fd=self._fd)
        status = os.stat(place, dir_fd=self._fd, follow_symlinks=False)
        is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if not is_ours or stat.S_IMODE(status.st_mode) & 0o077:
            raise OwnerError(
                f"open {self.path / place}: mode {stat.S_IMODE(status.st_mode):04o}, owner uid"
                f" {status.st_uid}; wanted a folder of ours, 0700"
            )
        return self.path / place

    def try_lock(self, name: str) -> int | None:
        """Take the lock file `<name>.lock`, for as long as the descriptor is open; None if held.

        Whoever it is passed to holds it too. The file stays: removing a lock file that another
        process may be opening would let two hold it.
        """
        fd = os.open(f"{name}.lock", _LOCK_FLAGS, 0o600, dir_fd=self._fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        """Close the folder; listeners live on. Twice does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> "RuntimeFolder":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _lock(self, name: str, what: str) -> int:
        fd = self.try_lock(name)
        if fd is None:
            raise OwnerError(f"{what}: another process has it; stop that one, or choose a name")
        return fd

    def _check_stale(self, name: str, what: str) -> None:
        """Return if nothing lies at the socket's place, or a dead socket of ours."""
        place = f"{name}{_SUFFIX}"
        try:
            status = os.stat(place, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise OwnerError(f"{what}: {place} is no socket of ours; remove it by hand")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self._address(place))
            except ConnectionRefusedError:
                return
            except OSError:
                pass
        raise OwnerError(f"{what}: something listens at {place} without its lock; stop that first")

    def _new_socket(self, name: str) -> socket.socket:
        _check_name(name)
        try:
            return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise _unreachable(f"connect to {name} in {self.path}", error) from error

    def _address(self, place: str) -> str:
        return f"/proc/self/fd/{self._fd}/{place}"


class Listener:
    """A listening socket that clients find, its name and its lock. A context manager."""

    __slots__ = ("_folder_fd", "_inode", "_lock_fd", "name", "sock")

    def __init__(
        self, sock: socket.socket, name: str, folder_fd: int, lock_fd: int, inode: int
    ) -> None:
        """Not for callers: see RuntimeFolder.listen."""
        self.sock = sock
        self.name = name
        self._folder_fd = folder_fd
        self._lock_fd = lock_fd
        self._inode = inode

    def close(self) -> None:
        """Stop listening and remove the socket, if it is still this one. Twice does nothing."""
        if self._folder_fd < 0:
            return
        place = f"{self.name}{_SUFFIX}"
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(place, dir_fd=self._folder_fd, follow_symlinks=False)
            if stat.S_ISSOCK(status.st_mode) and status.st_ino == self._inode:
                os.unlink(place, dir_fd=self._folder_fd)
        self.sock.close()
        os.close(self._folder_fd)
        os.close(self._lock_fd)
        self._folder_fd = -1

    def __enter__(self) -> "Listener":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _check_name(name: str) -> None:
    if not _SOCKET_NAME.fullmatch(name):
        raise ConfigError(
            f"socket name {name[:100]!r}: wanted namesrv-, broker- or controller- and 1 to 72 of"
            " A-Z a-z 0-9 _ -"
        )


def _unreachable(what: str, error: OSError) -> ShmqError:
    """What a failed open or connect means to whoever wanted to talk to a server."""
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return ServiceNotAvailableError(
            f"{what}: {error.strerror}; nothing listens there",
            hint="start a cluster (shmq dev, shmq-namesrv), or name its runtime folder",
        )
    if isinstance(error, PermissionError):
        groups = sorted({os.getegid(), *os.getgroups()})
        return PermissionDeniedError(
            f"{what}: uid {os.geteuid()} with groups {groups} may not",
            hint="run as the owner of the runtime folder, or join its group",
        )
    if isinstance(error, BlockingIOError):
        return SystemBusyError(f"{what}: the server does not accept connections")
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return _no_descriptor(what)
    return ServiceNotAvailableError(f"{what}: {error.strerror}")


def _no_descriptor(what: str) -> LimitError:
    return LimitError(
        f"{what}: no file descriptor left; raise LimitNOFILE= in the unit, or ulimit -n"
    )
