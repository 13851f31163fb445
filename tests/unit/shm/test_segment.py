"""Segments: what is made is whole, what is attached to is checked, what fails leaves nothing."""

import fcntl
import mmap
import os
import re
import stat

import pytest

from shmq.core import core
from shmq.errors import (
    ClosedError,
    LayoutVersionError,
    OwnerError,
    ShmError,
)
from shmq.shm import header
from shmq.shm.incarnation import Incarnation, boot_id
from shmq.shm.names import ObjectKind, ObjectName, StoreName
from shmq.shm.segment import SHM_FOLDER, attach, create, grow, open_readonly, unlink
from tests.support.require import require_root
from tests.unit.shm import children
from tests.unit.shm.segments import Finisher

SIZE = 3 * 4096
HEADED = [kind for kind in ObjectKind if kind is not ObjectKind.HOT]


def _path(name: ObjectName) -> str:
    return f"{SHM_FOLDER}{name}"


def _open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
def name(store: StoreName) -> ObjectName:
    return store.object(ObjectKind.CONTROL, 0)


# --- create ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_mode_is_exact_whatever_the_umask(name: ObjectName, umask: int) -> None:
    before = os.umask(umask)
    try:
        with create(name, size_bytes=SIZE) as one:
            status = os.fstat(one.fileno())
    finally:
        os.umask(before)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == os.geteuid()


def test_every_byte_is_allocated_and_zero_at_creation(name: ObjectName) -> None:
    with create(name, size_bytes=SIZE) as one:
        status = os.fstat(one.fileno())
        assert (status.st_size, one.size_bytes) == (SIZE, SIZE)
        assert status.st_blocks * 512 >= SIZE
        assert os.pread(one.fileno(), SIZE, 0) == bytes(SIZE)


def test_fd_is_closed_on_exec(name: ObjectName) -> None:
    with create(name, size_bytes=SIZE) as one:
        assert not os.get_inheritable(one.fileno())


def test_second_creation_is_refused_and_the_first_unharmed(name: ObjectName) -> None:
    with create(name, size_bytes=SIZE) as one:
        os.pwrite(one.fileno(), b"mine", 0)
        with pytest.raises(ShmError, match=r"it exists; .*shmq shm clean"):
            create(name, size_bytes=SIZE)
        assert os.pread(one.fileno(), 4, 0) == b"mine"
        assert os.path.samestat(os.stat(_path(name)), os.fstat(one.fileno()))


@pytest.mark.parametrize("size_bytes", [0, -1, 1 << 62, 1 << 70])
def test_senseless_size_is_refused_before_anything_is_made(
    name: ObjectName, size_bytes: int
) -> None:
    with pytest.raises(ShmError, match="wanted 1 to"):
        create(name, size_bytes=size_bytes)
    assert not os.path.exists(_path(name))


def test_interrupted_creation_leaves_nothing(
    name: ObjectName, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: int) -> None:
        raise KeyboardInterrupt

    before = _open_fds()
    monkeypatch.setattr(os, "posix_fallocate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        create(name, size_bytes=SIZE)
    assert not os.path.exists(_path(name))
    assert _open_fds() == before


def test_longest_name_can_be_made() -> None:
    store = StoreName.make(
        cluster_name="c" * 500,
        broker_name="b" * 500,
        broker_id=2**63 - 1,
        boot_id=boot_id(),
        generation="f" * 16,
    )
    name = store.object(ObjectKind.COMPLETION, 2**32 - 1)
    with create(name, size_bytes=SIZE):
        assert unlink(name)


# --- no room, no fd -------------------------------------------------------------------------------

_FULL = """
import os, sys
from shmq.errors import ShmqError
from shmq.shm.names import ObjectKind, parse_store
from shmq.shm.segment import create, grow

store = parse_store("shmq.c.b.0.01234567.00000000deadbeef")
first = create(store.object(ObjectKind.CONTROL, 0), size_bytes=1 << 20)
fds = os.listdir("/proc/self/fd")
for what in (
    lambda: create(store.object(ObjectKind.HOT, 1), size_bytes=64 << 20),
    lambda: grow(first, size_bytes=64 << 20),
):
    try:
        what()
        print("no error")
    except ShmqError as error:
        print(type(error).__name__, error)
assert os.listdir("/proc/self/fd") == fds
assert os.listdir("/dev/shm") == [first.name.file_name], os.listdir("/dev/shm")
assert (first.size_bytes, os.fstat(first.fileno()).st_size) == (1 << 20, 1 << 20)
grow(first, size_bytes=2 << 20)
print("free again", os.statvfs("/dev/shm").f_bavail * 4096)
"""


def test_full_dev_shm_is_a_message_with_the_remedy_and_leaves_nothing() -> None:
    lines = children.run_in_private_shm("size=4m", _FULL).splitlines()
    for line, verb in zip(lines[:2], ("create", "grow"), strict=True):
        assert re.match(
            rf"ShmFullError {verb} /shmq\.c\.b\.0.*: \d+ bytes wanted, 3145728 of 4194304 free in"
            r" /dev/shm; mount -o remount,size=\.\.\. /dev/shm, docker --shm-size, or lower",
            line,
        )
    assert lines[2] == f"free again {2 << 20}"


def test_dev_shm_without_inodes_is_named_as_such() -> None:
    out = children.run_in_private_shm(
        "size=4m,nr_inodes=2",
        """
        from shmq.errors import ShmFullError
        from shmq.shm.names import ObjectKind, parse_store
        from shmq.shm.segment import create
        store = parse_store("shmq.c.b.0.01234567.00000000deadbeef")
        create(store.object(ObjectKind.HOT, 0), size_bytes=4096)
        try:
            create(store.object(ObjectKind.HOT, 1), size_bytes=4096)
        except ShmFullError as error:
            print(error)
        """,
    )
    assert "has no inode left; mount -o remount,nr_inodes=" in out


def test_writing_to_an_allocated_segment_never_faults_on_a_full_mount() -> None:
    children.run_in_private_shm(
        "size=4m",
        """
        import mmap, os
        from shmq.errors import ShmFullError
        from shmq.shm.names import ObjectKind, parse_store
        from shmq.shm.segment import create
        store = parse_store("shmq.c.b.0.01234567.00000000deadbeef")
        one = create(store.object(ObjectKind.HOT, 0), size_bytes=4 << 20)
        with mmap.mmap(one.fileno(), 4 << 20) as pages:  # a sparse object would be SIGBUS here
            for place in range(0, 4 << 20, 4096):
                pages[place] = 1
        """,
    )


_WITHOUT = """
import os, resource, sys
from shmq.errors import LimitError
from shmq.shm import memfd
from shmq.shm.names import ObjectKind, parse_store
from shmq.shm.segment import attach, create, open_readonly
from tests.unit.shm.segments import new_store

store = new_store(sys.argv[1])
one = create(store.object(ObjectKind.HOT, 0), size_bytes=4096)
"""


def test_no_fd_left_is_a_limit_error(cluster_name: str) -> None:
    out = children.run(
        _WITHOUT
        + """
fds = len(os.listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (fds, fds))
for what in (
    lambda: create(store.object(ObjectKind.HOT, 1), size_bytes=4096),
    lambda: attach(one.name, readonly=True),
    lambda: open_readonly(one),
    lambda: memfd.create_sealed("ring", size_bytes=4096),
):
    try:
        what()
    except LimitError as error:
        print(error)
from shmq.shm.segment import unlink
assert unlink(one.name) and not unlink(store.object(ObjectKind.HOT, 1))
""",
        cluster_name,
    )
    assert len(out.splitlines()) == 4
    assert all("no file descriptor left; raise LimitNOFILE=" in line for line in out.splitlines())


def test_file_size_limit_is_a_limit_error_and_leaves_nothing(cluster_name: str) -> None:
    out = children.run(
        _WITHOUT
        + """
from shmq.shm.segment import unlink
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    create(store.object(ObjectKind.HOT, 1), size_bytes=1 << 20)
except LimitError as error:
    print(error)
assert unlink(one.name) and not unlink(store.object(ObjectKind.HOT, 1))
""",
        cluster_name,
    )
    assert "over the file size limit; raise LimitFSIZE=" in out


# --- attach ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ObjectKind)
@pytest.mark.parametrize("readonly", [True, False])
def test_finished_segment_is_attached_to(
    store: StoreName, finisher: Finisher, kind: ObjectKind, readonly: bool
) -> None:
    name = store.object(kind, 3)
    with finisher.make(name, size_bytes=SIZE), attach(name, readonly=readonly) as other:
        assert (other.name, other.size_bytes, other.is_readonly) == (name, SIZE, readonly)
        mode = os.O_RDONLY if readonly else os.O_RDWR
        assert fcntl.fcntl(other.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == mode
        assert not os.get_inheritable(other.fileno())


def test_header_is_read_as_the_core_wrote_it(name: ObjectName, finisher: Finisher) -> None:
    owner = Incarnation(1234, 567890)
    with create(name, size_bytes=SIZE):
        finisher.finish(name, size_bytes=SIZE, owner=owner)
        with attach(name, readonly=True) as other:
            seen = other.header
    assert seen is not None
    assert seen.owner == owner
    assert (seen.owner_uid, seen.master_epoch, seen.number) == (1000, 7, 0)
    assert (seen.size_bytes, seen.boot_id) == (SIZE, boot_id())
    assert f"{seen.store_generation:016x}" == name.store.generation


def test_constants_are_those_of_the_layout(finisher: Finisher) -> None:
    from shmq.shm.budget import SEGMENT_COUNT_MAX

    wanted = (core.LAYOUT_VERSION, header.HEADER_SIZE, SEGMENT_COUNT_MAX)
    assert finisher.constants() == wanted


@pytest.mark.parametrize("kind", HEADED)
def test_other_layout_version_is_refused_with_both_numbers(
    store: StoreName, finisher: Finisher, kind: ObjectKind
) -> None:
    name = store.object(kind, 0)
    with create(name, size_bytes=SIZE):
        finisher.finish(name, size_bytes=SIZE, version=3)
        wanted = rf"attach {name}: layout 3, need {core.LAYOUT_VERSION}; "
        with pytest.raises(LayoutVersionError, match=wanted):
            attach(name, readonly=True)


def test_unfinished_segment_is_refused(name: ObjectName, finisher: Finisher) -> None:
    with create(name, size_bytes=SIZE):
        finisher.finish(name, size_bytes=SIZE, has_magic=False)
        with pytest.raises(ShmError, match="no magic; its creator died"):
            attach(name, readonly=True)


def test_segment_too_small_for_a_header_is_refused(name: ObjectName) -> None:
    with create(name, size_bytes=64), pytest.raises(ShmError, match="64 bytes, wanted a header"):
        attach(name, readonly=True)


def test_segment_of_another_kind_is_refused(name: ObjectName, finisher: Finisher) -> None:
    with create(name, size_bytes=SIZE):
        finisher.finish(name, size_bytes=SIZE, kind=ObjectKind.ARENA)
        with pytest.raises(ShmError, match="magic b'shmqarna', wanted b'shmqctrl'"):
            attach(name, readonly=True)


def test_segment_of_another_number_is_refused(name: ObjectName, finisher: Finisher) -> None:
    with create(name, size_bytes=SIZE):
        finisher.finish(name, size_bytes=SIZE, number=5)
        with pytest.raises(ShmError, match="number 5, wanted 0"):
            attach(name, readonly=True)


def test_segment_of_another_store_generation_is_refused(
    name: ObjectName, finisher: Finisher
) -> None:
    with create(name, size_bytes=SIZE):
        finisher.finish(name, size_bytes=SIZE, generation="00000000deadbeef")
        with pytest.raises(OwnerError, match="store generation 00000000deadbeef, wanted"):
            attach(name, readonly=True)


def test_segment_of_another_boot_is_refused(name: ObjectName, finisher: Finisher) -> None:
    with create(name, size_bytes=SIZE):
        finisher.finish(name, size_bytes=SIZE, boot=bytes(16))
        with pytest.raises(OwnerError, match=r"boot id 0{32}, wanted"):
            attach(name, readonly=True)


@pytest.mark.parametrize("kind", ObjectKind)
def test_name_of_another_boot_is_refused(
    store: StoreName, finisher: Finisher, kind: ObjectKind
) -> None:
    other = StoreName(store.cluster, store.broker, 0, "00000000", store.generation)
    name = other.object(kind, 0)
    with finisher.make(name), pytest.raises(OwnerError, match="boot"):
        attach(name, readonly=True)


@pytest.mark.parametrize("kind", ObjectKind)
def test_memory_of_another_boot_id_is_shown_to_who_only_watches(
    store: StoreName, finisher: Finisher, kind: ObjectKind
) -> None:
    other = StoreName(store.cluster, store.broker, 0, "00000000", store.generation)
    name = other.object(kind, 0)
    with create(name, size_bytes=SIZE):
        if kind in HEADED:
            finisher.finish(name, size_bytes=SIZE, boot=bytes(16))
        attach(name, readonly=True, any_boot=True).close()


@pytest.mark.parametrize("kind", HEADED)
def test_object_smaller_than_its_header_says_is_refused(
    store: StoreName, finisher: Finisher, kind: ObjectKind
) -> None:
    name = store.object(kind, 0)
    with create(name, size_bytes=SIZE):
        finisher.finish(name, size_bytes=SIZE + 1)
        with pytest.raises(ShmError, match=f"{SIZE} bytes, its header says {SIZE + 1}"):
            attach(name, readonly=True)


def test_segment_whose_growth_was_cut_short_by_a_crash_is_attached_to(
    name: ObjectName, finisher: Finisher
) -> None:
    with finisher.make(name, size_bytes=SIZE) as one:
        grow(one, size_bytes=2 * SIZE)  # and died before the core stored the new size
        with attach(name, readonly=True, size_bytes=SIZE) as other:
            assert other.size_bytes == 2 * SIZE
            assert other.header is not None
            assert other.header.size_bytes == SIZE


def test_kind_that_never_grows_must_have_its_exact_size(
    store: StoreName, finisher: Finisher
) -> None:
    name = store.object(ObjectKind.COMPLETION, 0)
    with create(name, size_bytes=2 * SIZE):
        finisher.finish(name, size_bytes=SIZE)
        with pytest.raises(ShmError, match="its header says"):
            attach(name, readonly=True)
    hot = store.object(ObjectKind.HOT, 0)
    with create(hot, size_bytes=SIZE):
        for wanted in (SIZE - 1, SIZE + 1):
            with pytest.raises(ShmError, match=f"{SIZE} bytes, wanted {wanted}"):
                attach(hot, readonly=True, size_bytes=wanted)
        attach(hot, readonly=True, size_bytes=SIZE).close()


def test_growing_kind_below_the_listed_size_is_refused(
    name: ObjectName, finisher: Finisher
) -> None:
    with finisher.make(name), pytest.raises(ShmError, match="8192 bytes, wanted 9000"):
        attach(name, readonly=True, size_bytes=9000)


def test_absent_segment_is_refused(name: ObjectName) -> None:
    with pytest.raises(ShmError, match=f"attach {name}: no such object in /dev/shm"):
        attach(name, readonly=True)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_segment_that_others_may_write_is_refused(
    name: ObjectName, finisher: Finisher, mode: int
) -> None:
    with finisher.make(name) as one:
        os.fchmod(one.fileno(), mode)
        with pytest.raises(OwnerError, match=f"mode {mode:04o} lets others write, wanted 0600"):
            attach(name, readonly=True)


def test_segment_of_another_uid_is_refused(name: ObjectName, finisher: Finisher) -> None:
    require_root()
    with finisher.make(name) as one:
        os.fchown(one.fileno(), children.NOBODY, -1)
        with pytest.raises(OwnerError, match="owned by uid 65534, wanted 0; run as the user"):
            attach(name, readonly=True)
        attach(name, readonly=True, owner_uid=children.NOBODY).close()


def test_another_uid_can_neither_attach_nor_open_nor_unlink_nor_occupy(
    name: ObjectName, finisher: Finisher
) -> None:
    with finisher.make(name) as one:
        out = children.run_as_nobody(
            """
            import os, sys
            from shmq.errors import ShmqError
            from shmq.shm.names import parse
            from shmq.shm.segment import attach, create, unlink
            name = parse(sys.argv[1])
            for what in (
                lambda: attach(name, readonly=True),
                lambda: attach(name, readonly=True, owner_uid=0),
                lambda: create(name, size_bytes=4096),
                lambda: unlink(name),
                lambda: os.open(f"/dev/shm{name}", os.O_RDONLY),
                lambda: os.open(f"/dev/shm{name}", os.O_RDWR),
                lambda: os.truncate(f"/dev/shm{name}", 0),
            ):
                try:
                    print("done", what())
                except (ShmqError, OSError) as error:
                    print(type(error).__name__, str(error).partition(": ")[2])
            """,
            name,
        )
        assert os.fstat(one.fileno()).st_nlink == 1
    assert out.splitlines() == [
        "OwnerError owned by uid 0, wanted 65534; run as the user that made it, or remove it as"
        " that user",
        "OwnerError no right for uid 65534",
        "ShmError it exists; a broker with the same name runs, or one died here: its restart adopts"
        " the memory, `shmq shm clean` removes it",
        "OwnerError another uid owns it",
        *[f"PermissionError '/dev/shm{name}'"] * 3,
    ]


@pytest.mark.parametrize("readonly", [True, False])
def test_pipe_at_the_name_is_refused_without_opening_it(
    store: StoreName, name: ObjectName, readonly: bool
) -> None:
    os.mkfifo(_path(name))  # opening it to read would wait for a writer for ever
    with pytest.raises(ShmError, match="not a shared memory object"):
        attach(name, readonly=readonly)


def test_link_at_the_name_is_not_followed(
    name: ObjectName, store: StoreName, finisher: Finisher
) -> None:
    target = store.object(ObjectKind.CONTROL, 1)
    with finisher.make(target):
        os.symlink(_path(target), _path(name))
        with pytest.raises(ShmError, match="not a shared memory object"):
            attach(name, readonly=True)
        with pytest.raises(ShmError, match="it exists"):
            create(name, size_bytes=SIZE)


def test_refused_attachment_leaks_no_fd(name: ObjectName, finisher: Finisher) -> None:
    with create(name, size_bytes=SIZE):
        finisher.finish(name, size_bytes=SIZE, version=1)
        before = _open_fds()
        with pytest.raises(LayoutVersionError):
            attach(name, readonly=True)
        assert _open_fds() == before


# --- grow, read-only fds, unlink, the handle ----------------------------------------------------


def test_grown_segment_keeps_its_bytes_and_is_allocated(name: ObjectName) -> None:
    with create(name, size_bytes=SIZE) as one:
        os.pwrite(one.fileno(), b"x" * SIZE, 0)
        grow(one, size_bytes=100 * SIZE)
        status = os.fstat(one.fileno())
        assert (one.size_bytes, status.st_size) == (100 * SIZE, 100 * SIZE)
        assert status.st_blocks * 512 >= 100 * SIZE
        assert os.pread(one.fileno(), 2 * SIZE, 0) == b"x" * SIZE + bytes(SIZE)
        grow(one, size_bytes=100 * SIZE)  # nothing to do


def test_segment_never_shrinks(name: ObjectName) -> None:
    with create(name, size_bytes=SIZE) as one:
        with pytest.raises(ShmError, match="never shrinks"):
            grow(one, size_bytes=SIZE - 1)
        assert os.fstat(one.fileno()).st_size == SIZE


def test_read_only_segment_cannot_grow(name: ObjectName, finisher: Finisher) -> None:
    with (
        finisher.make(name),
        attach(name, readonly=True) as other,
        pytest.raises(ShmError, match="opened read-only"),
    ):
        grow(other, size_bytes=1 << 20)


def test_read_only_fd_allows_no_writable_mapping_and_no_truncation(name: ObjectName) -> None:
    with create(name, size_bytes=SIZE) as one:
        fd = open_readonly(one)
        try:
            assert os.path.samestat(os.fstat(fd), os.fstat(one.fileno()))
            assert not os.get_inheritable(fd)
            with pytest.raises(PermissionError):
                mmap.mmap(fd, SIZE)
            with pytest.raises(OSError, match="Invalid argument"):
                os.ftruncate(fd, 0)
            with mmap.mmap(fd, SIZE, prot=mmap.PROT_READ) as pages:
                os.pwrite(one.fileno(), b"seen", 0)
                assert pages[:4] == b"seen"
        finally:
            os.close(fd)


def test_read_only_fd_is_the_object_even_when_its_name_is_another_by_now(
    name: ObjectName,
) -> None:
    with create(name, size_bytes=SIZE) as old:
        unlink(name)
        with create(name, size_bytes=SIZE):
            fd = open_readonly(old)
            try:
                assert os.path.samestat(os.fstat(fd), os.fstat(old.fileno()))
            finally:
                os.close(fd)


def test_another_uid_cannot_make_its_read_only_fd_writable(name: ObjectName) -> None:
    require_root()
    with create(name, size_bytes=SIZE) as one:
        fd = open_readonly(one)
        os.set_inheritable(fd, True)
        try:
            out = children.run_as_nobody(
                """
                import mmap, os, sys
                # Handed over as fd 0, as a socket would.
                assert mmap.mmap(0, 4096, prot=mmap.PROT_READ)[:1] == b"\\0"
                for flags in (os.O_RDWR, os.O_RDONLY, os.O_RDWR | os.O_TRUNC):
                    try:
                        os.open("/proc/self/fd/0", flags)
                        print("opened")
                    except PermissionError:
                        print("refused")
                try:
                    os.fchmod(0, 0o666)
                    print("changed")
                except PermissionError:
                    print("refused")
                """,
                stdin=fd,
            )
        finally:
            os.close(fd)
    assert out.split() == ["refused"] * 4


def test_unlink_says_whether_it_was_there_and_takes_nothing_from_holders(
    name: ObjectName,
) -> None:
    with create(name, size_bytes=SIZE) as one:
        assert unlink(name)
        assert not unlink(name)
        os.pwrite(one.fileno(), b"still", 0)
        assert os.pread(one.fileno(), 5, 0) == b"still"


def test_closed_segment_says_so(name: ObjectName) -> None:
    one = create(name, size_bytes=SIZE)
    one.close()
    one.close()
    with pytest.raises(ClosedError, match=f"use {name}: the segment is closed"):
        one.fileno()
    assert "closed" in repr(one)


def test_segment_used_in_a_forked_child_raises(cluster_name: str) -> None:
    out = children.run(
        """
        import os, sys
        from shmq.errors import ForkError
        from shmq.shm.names import ObjectKind
        from shmq.shm.segment import create, unlink
        from tests.unit.shm.segments import new_store
        one = create(new_store(sys.argv[1]).object(ObjectKind.HOT, 0), size_bytes=4096)
        pid = os.fork()
        if not pid:
            try:
                one.fileno()
            except ForkError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        one.fileno()
        unlink(one.name)
        """,
        cluster_name,
    )
    assert "used by its child" in out


def test_only_the_segment_module_touches_posix_ipc() -> None:
    users = [
        path.name
        for path in (children.ROOT / "shmq").rglob("*.py")
        if re.search(r"^\s*(import|from) posix_ipc", path.read_text(), re.M)
    ]
    assert users == ["segment.py"]
