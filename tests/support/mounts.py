"""Small file systems for tests that fill a disk, find it read-only or cut its power: root only,
else skipped.
"""

import contextlib
import errno
import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support.repository import ROOT
from tests.support.require import require_or_skip, require_program, require_root

_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878
_RELEASE_STEP_S = 0.02
_RELEASE_TRIES = 1500


@contextlib.contextmanager
def small_file_system(folder: Path, *, size: int) -> Iterator[Path]:
    """A tmpfs of `size` bytes at `folder`, unmounted behind the test however it ends."""
    require_root()
    mount = require_program("mount", "mount")
    folder.mkdir()
    command = [mount, "-t", "tmpfs", "-o", f"size={size}", "shmq-test", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        require_or_skip(f"cannot mount a tmpfs here: {result.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def in_dev_shm_of(size: str) -> tuple[str, ...]:
    """A command that becomes another one, in a mount namespace with a /dev/shm of its own."""
    require_root()
    unshare = require_program("unshare", "util-linux")
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    return (unshare, "--mount", "sh", "-c", mount, "sh")


def inside(pid: int) -> tuple[str, ...]:
    """A command that becomes another one, in the mount namespace of a process."""
    nsenter = require_program("nsenter", "util-linux")
    return (nsenter, f"--mount=/proc/{pid}/ns/mnt", f"--wd={ROOT}")


def room_until(folder: Path, *, used_percent: int) -> int:
    """Bytes that somebody has to take there until so much of the file system is used."""
    room = os.statvfs(folder)
    used = room.f_blocks - room.f_bfree
    return ((room.f_bavail + used) * used_percent // 100 - used) * room.f_frsize


@contextlib.contextmanager
def others_file(path: Path, size: int | None = None) -> Iterator[None]:
    """Room that somebody else takes, and gives back; None: all that is left, whoever else takes
    some meanwhile.
    """
    with path.open("wb") as file:
        while True:  # until nobody took some in between
            room = os.statvfs(path.parent)
            try:
                os.posix_fallocate(file.fileno(), 0, size or room.f_bavail * room.f_frsize)
                break
            except OSError as error:
                if size is not None or error.errno != errno.ENOSPC:
                    raise
    try:
        yield
    finally:
        path.unlink()


def make_readonly(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def make_writable(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


class Ext4OnLoop:
    """An ext4 file system in a file, whose power can be cut. A context manager.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, image: Path, folder: Path, *, size: int, inodes: int | None = None) -> None:
        """Make and mount it; skips the test where the machine cannot.

        Args:
            image: the file to make.
            folder: to be made.
            size: bytes of the file system.
            inodes: how many it has; None: as mkfs has it.
        """
        require_root()
        self.folder = folder
        self._image = image
        mkfs = require_program("mkfs.ext4", "e2fsprogs")
        require_program("losetup", "mount")
        with image.open("wb") as file:
            file.truncate(size)
        options = [] if inodes is None else ["-N", str(inodes)]
        subprocess.run([mkfs, "-q", "-F", *options, str(image)], check=True)
        folder.mkdir()
        self._is_mounted = False
        self._mount()

    def _mount(self) -> None:
        options = "loop,errors=remount-ro"
        command = ["mount", "-t", "ext4", "-o", options, str(self._image), str(self.folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            require_or_skip(f"cannot mount ext4 on a loop device: {result.stderr.strip()}")
        self._is_mounted = True

    def cut_power(self) -> None:
        """From now on nothing reaches the disk any more; every write and sync fails."""
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, _NO_LOG_FLUSH.to_bytes(4, "little"))
        except OSError as error:
            require_or_skip(f"the kernel does not shut ext4 down: {error}")
        finally:
            os.close(fd)

    def find_error(self) -> None:
        """Let the kernel find it damaged: it makes it read-only, under whoever writes to it."""
        device = os.stat(self.folder).st_dev
        name = os.path.basename(
            os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        )
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("shmq test", "utf-8")

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Whoever writes to it or syncs it waits until the end of the block."""
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _FIFREEZE, 0)
            try:
                yield
            finally:
                fcntl.ioctl(fd, _FITHAW, 0)
        finally:
            os.close(fd)

    def boot(self) -> None:
        """Mount again what has reached the disk. Nobody may have a file of it open or mapped."""
        self._unmount()
        # A mount namespace made meanwhile by somebody else holds the file system a while longer:
        # mounted again it would be the one without power.
        waiting = threading.Event()
        for _ in range(_RELEASE_TRIES):
            used = subprocess.run(
                ["losetup", "--associated", str(self._image)],
                capture_output=True,
                text=True,
                check=True,
            )
            if not used.stdout:
                break
            waiting.wait(_RELEASE_STEP_S)
        else:
            require_or_skip(f"another mount namespace holds {self.folder}")
        self._mount()

    def _unmount(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)
        self._is_mounted = False

    def __enter__(self) -> "Ext4OnLoop":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)
