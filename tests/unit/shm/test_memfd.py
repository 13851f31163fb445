"""Sealed memory: a client can do nothing to it but write, and nothing else passes for it."""

import fcntl
import mmap
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from shmq.errors import ShmError
from shmq.shm.memfd import create_sealed, verify_sealed
from shmq.shm.names import ObjectKind, StoreName
from shmq.shm.segment import create
from tests.support.require import require_root
from tests.unit.shm import children

SIZE = 3 * 4096
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@pytest.fixture
def fds() -> Iterator[ExitStack]:
    """Closes what a test opens."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def ring(fds: ExitStack) -> int:
    fd = create_sealed("ring", size_bytes=SIZE)
    fds.callback(os.close, fd)
    return fd


def _verify(fd: int, like: int) -> None:
    status = os.fstat(like)
    verify_sealed(fd, size_bytes=SIZE, inode=status.st_ino, uid=os.geteuid())


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_memory_is_allocated_zero_private_and_closed_on_exec(fds: ExitStack, umask: int) -> None:
    before = os.umask(umask)
    try:
        ring = create_sealed("ring", size_bytes=SIZE)
    finally:
        os.umask(before)
    fds.callback(os.close, ring)
    status = os.fstat(ring)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == SIZE
    assert status.st_blocks * 512 >= SIZE
    assert os.pread(ring, SIZE, 0) == bytes(SIZE)
    assert not os.get_inheritable(ring)


@pytest.mark.parametrize("size_bytes", [0, SIZE - 1, SIZE + 1, 1 << 30])
def test_size_cannot_be_changed(ring: int, size_bytes: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(ring, size_bytes)
    with pytest.raises(PermissionError):
        os.posix_fallocate(ring, SIZE, 4096)
    assert os.fstat(ring).st_size == SIZE


@pytest.mark.parametrize("seal", [fcntl.F_SEAL_WRITE, 0x0010, fcntl.F_SEAL_SHRINK])
def test_no_seal_can_be_added(ring: int, seal: int) -> None:
    with pytest.raises(PermissionError):
        fcntl.fcntl(ring, fcntl.F_ADD_SEALS, seal)


def test_memory_is_shared_and_writable(ring: int) -> None:
    with mmap.mmap(ring, SIZE) as one, mmap.mmap(ring, SIZE) as other:
        one[SIZE - 1] = 7
        assert other[SIZE - 1] == 7


def test_memory_passed_back_over_a_socket_is_recognised(ring: int, fds: ExitStack) -> None:
    near, far = socket.socketpair()
    with near, far:
        socket.send_fds(near, [b"x"], [ring])
        _, received, _, _ = socket.recv_fds(far, 1, 1)
    fds.callback(os.close, received[0])
    _verify(received[0], ring)


def test_memory_whose_maker_died_is_recognised(fds: ExitStack) -> None:
    near, far = socket.socketpair()
    with near, far:
        child = children.start(
            """
            import os, socket, sys
            from shmq.shm.memfd import create_sealed
            fd = create_sealed("ring", size_bytes=3 * 4096)
            with socket.socket(fileno=os.dup(0)) as channel:
                socket.send_fds(channel, [str(os.fstat(fd).st_ino).encode()], [fd])
            os.kill(os.getpid(), 9)
            """,
            stdin=far.fileno(),
        )
        child.communicate()
        inode, received, _, _ = socket.recv_fds(near, 100, 1)
    fds.callback(os.close, received[0])
    verify_sealed(received[0], size_bytes=SIZE, inode=int(inode), uid=os.geteuid())


def _other(name: str) -> Callable[[int, ExitStack], int]:
    """The fds that a client might hand in instead of its ring."""

    def give(ring: int, fds: ExitStack) -> int:
        fd = {
            "another ring": lambda: create_sealed("ring", size_bytes=SIZE),
            "a larger ring": lambda: create_sealed("ring", size_bytes=SIZE + 4096),
            "unsealed": lambda: _memfd(0),
            "sealed to shrink only": lambda: _memfd(fcntl.F_SEAL_SHRINK),
            "sealed, more seals possible": lambda: _memfd(SEALS & ~fcntl.F_SEAL_SEAL),
            "sealed against writing too": lambda: _memfd(SEALS | fcntl.F_SEAL_WRITE),
            "sealed against new writers too": lambda: _memfd(SEALS | 0x0010),
            "read-only": lambda: os.open(f"/proc/self/fd/{ring}", os.O_RDONLY),
            "a path only": lambda: os.open(f"/proc/self/fd/{ring}", os.O_PATH),
            "a pipe": lambda: _keep_first(os.pipe(), fds),
            "a file": lambda: os.open(__file__, os.O_RDONLY),
            "a folder": lambda: os.open("/", os.O_RDONLY),
            "a device": lambda: os.open("/dev/zero", os.O_RDWR),
            "an eventfd": lambda: os.eventfd(0),
            "a socket": lambda: socket.socket(socket.AF_UNIX).detach(),
        }[name]()
        fds.callback(os.close, fd)
        return fd

    return give


def _memfd(seals: int) -> int:
    fd = os.memfd_create("ring", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    os.fchmod(fd, 0o600)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _keep_first(pair: tuple[int, int], fds: ExitStack) -> int:
    fds.callback(os.close, pair[1])
    return pair[0]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("another ring", r"inode \d+, wanted \d+"),
        ("a larger ring", r"inode \d+, wanted \d+"),
        ("unsealed", "seals 0x0, wanted 0x7"),
        ("sealed to shrink only", "seals 0x2, wanted 0x7"),
        ("sealed, more seals possible", "seals 0x6, wanted 0x7"),
        ("sealed against writing too", "seals 0xf, wanted 0x7"),
        ("sealed against new writers too", "seals 0x17, wanted 0x7"),
        ("read-only", "access 0, wanted 2"),
        ("a path only", "Bad file descriptor"),
        ("a pipe", "Invalid argument"),
        ("a file", "Invalid argument"),
        ("a folder", "Invalid argument"),
        ("a device", "Invalid argument"),
        ("an eventfd", "Invalid argument"),
        ("a socket", "Invalid argument"),
    ],
)
def test_foreign_fd_is_refused_in_one_line(
    ring: int, fds: ExitStack, other: str, reason: str
) -> None:
    fd = _other(other)(ring, fds)
    with pytest.raises(ShmError, match=f"resume: .*{reason}") as refusal:
        _verify(fd, ring)
    assert "\n" not in str(refusal.value)
    os.fstat(fd)  # still the caller's


def test_closed_fd_is_refused(ring: int) -> None:
    with pytest.raises(ShmError, match="Bad file descriptor"):
        _verify(1 << 20, ring)


def test_named_object_is_refused_although_it_is_of_the_right_size(
    ring: int, store: StoreName
) -> None:
    with (
        create(store.object(ObjectKind.CONTROL, 0), size_bytes=SIZE) as one,
        pytest.raises(ShmError, match="seals 0x1, wanted 0x7"),
    ):
        _verify(one.fileno(), one.fileno())


@pytest.mark.parametrize(
    ("size_bytes", "inode_distance", "uid_distance", "reason"),
    [(SIZE - 1, 0, 0, "size"), (SIZE, 1, 0, "inode"), (SIZE, 0, 1, "uid")],
)
def test_each_recorded_fact_must_match(
    ring: int, size_bytes: int, inode_distance: int, uid_distance: int, reason: str
) -> None:
    status = os.fstat(ring)
    with pytest.raises(ShmError, match=f"resume: {reason} "):
        verify_sealed(
            ring,
            size_bytes=size_bytes,
            inode=status.st_ino + inode_distance,
            uid=status.st_uid + uid_distance,
        )


def test_memory_whose_mode_was_opened_up_is_refused(ring: int) -> None:
    os.fchmod(ring, 0o666)
    with pytest.raises(ShmError, match="mode 0666, wanted 0600"):
        _verify(ring, ring)


def test_memory_of_huge_pages_is_refused_whatever_its_inode(fds: ExitStack, ring: int) -> None:
    huge = os.memfd_create("ring", os.MFD_HUGETLB | os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    fds.callback(os.close, huge)
    os.fchmod(huge, 0o600)
    fcntl.fcntl(huge, fcntl.F_ADD_SEALS, SEALS)
    with pytest.raises(ShmError, match="device"):
        verify_sealed(huge, size_bytes=0, inode=os.fstat(huge).st_ino, uid=os.geteuid())


def test_another_uid_can_write_its_ring_and_nothing_more() -> None:
    require_root()
    ring = create_sealed("ring", size_bytes=SIZE)
    try:
        out = children.run_as_nobody(
            """
            import mmap, os
            pages = mmap.mmap(0, 4096)
            pages[0] = 1
            for what in (
                lambda: os.ftruncate(0, 0),
                lambda: os.ftruncate(0, 1 << 20),
                lambda: os.fchmod(0, 0o666),
                lambda: os.open("/proc/self/fd/0", os.O_RDWR),
            ):
                try:
                    what()
                    print("done")
                except PermissionError:
                    print("refused")
            """,
            stdin=ring,
        )
        assert out.split() == ["refused"] * 4
        assert os.pread(ring, 1, 0) == b"\1"
        _verify(ring, ring)
    finally:
        os.close(ring)


@pytest.mark.parametrize("size_bytes", [0, -1])
def test_senseless_size_is_refused(size_bytes: int) -> None:
    with pytest.raises(ShmError, match="wanted 1 or more"):
        create_sealed("ring", size_bytes=size_bytes)


def test_refused_memory_leaks_no_fd() -> None:
    # A file size limit refuses; a lack of memory would be the machine's.
    out = children.run(
        """
        import os, resource
        from shmq.errors import ShmError
        from shmq.shm.memfd import create_sealed
        before = os.listdir("/proc/self/fd")
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        try:
            create_sealed("ring", size_bytes=1 << 20)
        except ShmError as error:
            print(error)
        assert os.listdir("/proc/self/fd") == before
        """
    )
    assert out == "create memfd ring: 1048576 bytes wanted: File too large"
