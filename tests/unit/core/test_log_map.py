"""LogMap: files and segments under live views, and the remap thread on a real channel.

The broker's end of the channel is the test itself, packet by packet; tests/unit/store holds the
broker's own end to the same packets.
"""

import array
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq import errors
from shmq.core import core
from tests.support.repository import ROOT
from tests.support.store_process import wait_until
from tests.unit.core.log_in_memory import FILE_SIZE, LogInMemory, memfd

PACKET = struct.Struct("<IIQQQ")
HOT, RETIRED, FILE, FORGET, GONE = 1, 2, 3, 4, 5
STATUS = {name: value for name, (value, _) in core.STATUS.items()}


class Channel:
    """The broker's end."""

    def __init__(self, log_map: core.LogMap) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(30)
        self.log_map = log_map
        try:
            with theirs:
                log_map.start(theirs.fileno())
        except BaseException:
            self.ours.close()
            raise

    def send(self, kind: int, file_position: int, fd: int = -1, size: int = FILE_SIZE) -> None:
        packet = PACKET.pack(kind, 0, file_position, size, 0)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        self.ours.sendmsg([packet], rights)

    def receive(self) -> tuple[int, int]:
        packet, rights, _, _ = self.ours.recvmsg(64, 64)
        assert not rights
        kind, _, file_position, size, _ = PACKET.unpack(packet)
        assert size == FILE_SIZE
        return kind, file_position

    def refused(self, count: int) -> None:
        """Waits until so many packets were refused, and sees that none was answered."""
        wait_until(lambda: self.log_map.refused_count == count)
        self.ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            self.ours.recv(64)
        self.ours.settimeout(30)


@pytest.fixture
def channel(log: LogInMemory) -> Iterator[Channel]:
    channel = Channel(log.log_map)
    yield channel
    log.log_map.stop()
    channel.ours.close()


@pytest.fixture
def hot_file(tmp_path: Path, log: LogInMemory) -> Path:
    """File 0 as it would lie in commitlog/: the bytes of the segment, complete."""
    log.put(b"first", {"a": "b"})
    while log.put(bytes(1000)) < FILE_SIZE:
        pass
    path = tmp_path / f"{0:020d}"
    path.write_bytes(os.pread(log.file_fds[0], FILE_SIZE, 0))
    return path


def behind(address: int) -> str:
    """What is mapped at an address, as the kernel names it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, _, end = line.split(" ", 1)[0].partition("-")
        if int(begin, 16) <= address < int(end, 16):
            return line.partition("/")[2]
    raise AssertionError(f"nothing is mapped at {address:#x}")


def address_of(view: memoryview) -> int:
    import numpy as np

    address: int = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    return address


# --- the table ------------------------------------------------------------------------------------


def test_file_is_found_by_every_place_in_it_and_by_no_other(log: LogInMemory) -> None:
    while len(log.entries) < 100:
        log.put(b"x" * 900)
    log.map()
    assert [message.queue_offset for message in log.read()] == list(range(100))
    assert log.log_map.files() == [(0, False, 0), (FILE_SIZE, False, 1)]  # one pin: the reader's
    log.log_map.forget(0)
    data = b"".join(log.entries)
    status, messages, next_offset = log.reader.read_entries(data, 0, 10, timeout=0.01)
    assert (status, messages, next_offset) == (STATUS["CLOSED"], [], 0)  # nobody to ask
    status, messages, next_offset = log.reader.read_entries(data, 0, 10, timeout=0)
    assert (status, messages, next_offset) == (STATUS["TIMED_OUT"], [], 0)  # and nobody asked
    assert log.reader.missing_file_position == 0


def test_cold_files_beyond_the_bound_are_unmapped_oldest_use_first(log: LogInMemory) -> None:
    with core.LogMap(file_size=FILE_SIZE, cold_max=2) as log_map:
        for number in range(4):
            log_map.add(number * FILE_SIZE, log.file_fds[0])
        assert [row[0] // FILE_SIZE for row in log_map.files()] == [2, 3]
        log_map.add(9 * FILE_SIZE, log.file_fds[0], hot=True)
        log_map.add(2 * FILE_SIZE, log.file_fds[0])  # known: nothing new
        assert [row[0] // FILE_SIZE for row in log_map.files()] == [2, 3, 9]


def test_pinned_file_is_not_evicted_and_forgotten_one_lives_as_long_as_its_views(
    log: LogInMemory,
) -> None:
    view = log.message(b"pinned").body
    log.reader.close()  # its own pin
    assert log.log_map.forget(0) is False
    assert log.log_map.files() == [(FILE_SIZE, False, 0)]
    mapped = address_of(view)
    assert bytes(view) == b"pinned"
    assert "shmq-test" in behind(mapped)
    del view
    with pytest.raises(AssertionError, match="nothing is mapped"):
        behind(mapped)


def test_file_that_is_too_short_is_not_mapped(log: LogInMemory) -> None:
    fd = memfd(FILE_SIZE - 1)
    with pytest.raises(OSError, match="Invalid argument"):
        log.log_map.add(0, fd)
    os.close(fd)
    assert log.log_map.files() == []


def test_position_inside_a_file_is_refused(log: LogInMemory) -> None:
    for verb in (log.log_map.add, log.log_map.retire):
        with pytest.raises(ValueError, match="no file begins at"):
            verb(4096, log.file_fds[0])


def test_closed_map_raises(log: LogInMemory) -> None:
    log.log_map.close()
    log.log_map.close()
    assert log.log_map.closed
    with pytest.raises(errors.ClosedError):
        log.log_map.add(0, log.file_fds[0])
    with pytest.raises(errors.ClosedError):
        log.log_map.files()


def test_no_descriptor_is_left_behind(log: LogInMemory, hot_file: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    with core.LogMap(file_size=FILE_SIZE) as log_map:
        channel = Channel(log_map)
        channel.send(HOT, 0, log.file_fds[0])
        with hot_file.open("rb") as file:
            channel.send(RETIRED, 0, file.fileno())
            assert channel.receive() == (RETIRED, 0)
            channel.send(FILE, FILE_SIZE, file.fileno())
            channel.send(17, 0, file.fileno())
            channel.refused(1)
        channel.ours.close()
    assert count() == before


# --- retiring -------------------------------------------------------------------------------------


def test_complete_file_takes_the_place_of_the_segment_under_a_live_view(
    log: LogInMemory, hot_file: Path
) -> None:
    log.map(hot=True)
    message = log.read(0, 1)[0]
    view = message.body
    address = address_of(view)
    assert "memfd" in behind(address)
    with hot_file.open("rb") as file:
        log.log_map.retire(0, file.fileno())
    os.pwrite(log.file_fds[0], b"\xff" * FILE_SIZE, 0)  # the segment serves other bytes now
    assert bytes(view) == b"first"
    assert message.properties == {"a": "b"}
    assert address_of(log.read(0, 1)[0].body) == address
    assert str(hot_file).removeprefix("/") in behind(address)
    assert log.log_map.files()[0][:2] == (0, False)
    assert log.log_map.remap_count == 1


@pytest.mark.parametrize("end", ["first", "last"])
def test_file_with_other_bytes_is_refused_and_the_segment_stays(
    end: str, log: LogInMemory, hot_file: Path
) -> None:
    log.map(hot=True)
    view = log.read(0, 1)[0].body
    damaged = bytearray(hot_file.read_bytes())
    damaged[100 if end == "first" else -3000] ^= 1
    hot_file.write_bytes(damaged)
    with hot_file.open("rb") as file, pytest.raises(OSError, match="Stale"):
        log.log_map.retire(0, file.fileno())
    assert "memfd" in behind(address_of(view))
    assert log.log_map.files()[0][:2] == (0, True)


def test_file_that_cannot_be_mapped_leaves_the_segment_and_its_views_alone(
    log: LogInMemory, hot_file: Path
) -> None:
    log.map(hot=True)
    view = log.read(0, 1)[0].body
    os.truncate(hot_file, FILE_SIZE - 1)
    out, into = os.pipe()
    with hot_file.open("rb") as file:
        for fd in (file.fileno(), out, os.open("/", os.O_RDONLY)):
            with pytest.raises(OSError, match=r"\[Errno"):
                log.log_map.retire(0, fd)
    os.close(out)
    os.close(into)
    os.close(fd)
    assert bytes(view) == b"first"
    assert "memfd" in behind(address_of(view))


def test_readers_never_meet_a_hole_while_segments_are_replaced(
    log: LogInMemory, hot_file: Path
) -> None:
    """One thread reads bodies without a pause; each byte is right, through 200 remaps."""
    bodies = memoryview(hot_file.read_bytes())
    seen = 0
    stop = threading.Event()
    view = None
    log_map = core.LogMap(file_size=FILE_SIZE)

    def look() -> None:
        nonlocal seen
        while not stop.is_set():
            assert bytes(view) == b"first"  # type: ignore[arg-type]
            seen += 1

    reader = core.Reader(log.control, log.arena, log_map)
    with hot_file.open("rb") as file:
        log_map.add(0, log.file_fds[0], hot=True)
        view = reader.read_entries(log.entries[0], 0)[1][0].body
        thread = threading.Thread(target=look)
        thread.start()
        for _ in range(200):
            log_map.retire(0, file.fileno())
            log_map.forget(0)  # the view keeps the entry; a new one begins hot again
            log_map.add(0, log.file_fds[0], hot=True)
            reader.close()
            reader = core.Reader(log.control, log.arena, log_map)
            view = reader.read_entries(log.entries[0], 0)[1][0].body
        stop.set()
        thread.join()
    assert seen
    assert len(bodies) == FILE_SIZE
    reader.close()
    log_map.close()


# --- the remap thread -----------------------------------------------------------------------------


def test_thread_maps_retires_and_answers(
    channel: Channel, log: LogInMemory, hot_file: Path
) -> None:
    channel.send(HOT, 0, log.file_fds[0])
    wait_until(lambda: log.log_map.files() == [(0, True, 0)])
    view = log.read(0, 1)[0].body
    with hot_file.open("rb") as file:
        channel.send(RETIRED, 0, file.fileno())
        assert channel.receive() == (RETIRED, 0)
    assert log.log_map.files() == [(0, False, 2)]
    assert bytes(view) == b"first"
    assert str(hot_file).removeprefix("/") in behind(address_of(view))


def test_thread_answers_while_the_program_is_busy_in_python(
    channel: Channel, log: LogInMemory, hot_file: Path
) -> None:
    """The broker gets its memory back from a program that never calls shmq, nor lets go of the
    GIL: the test's own main thread, which holds it while the kernel shows the answer."""
    channel.send(HOT, 0, log.file_fds[0])
    wait_until(lambda: log.log_map.files() == [(0, True, 0)])
    log.read(0, 1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody takes the GIL from this thread
    try:
        channel.ours.setblocking(False)
        with hot_file.open("rb") as file:
            channel.send(RETIRED, 0, file.fileno())
            answer = b""
            while not answer:  # bounded by the watchdog; a non-blocking recv does not wait
                try:
                    answer = channel.ours.recv(64)
                except BlockingIOError:
                    continue
    finally:
        sys.setswitchinterval(interval)
    assert PACKET.unpack(answer)[0] == RETIRED


def test_retired_file_that_was_never_mapped_is_answered(channel: Channel, hot_file: Path) -> None:
    with hot_file.open("rb") as file:
        channel.send(RETIRED, 7 * FILE_SIZE, file.fileno())
        assert channel.receive() == (RETIRED, 7 * FILE_SIZE)


def test_damaged_file_is_not_answered_for(
    channel: Channel, log: LogInMemory, hot_file: Path
) -> None:
    channel.send(HOT, 0, log.file_fds[0])
    data = bytearray(hot_file.read_bytes())
    data[50] ^= 1
    hot_file.write_bytes(data)
    with hot_file.open("rb") as file:
        channel.send(RETIRED, 0, file.fileno())
        channel.refused(1)
    assert log.log_map.files() == [(0, True, 0)]


def test_odd_packets_are_refused_and_the_channel_goes_on(
    channel: Channel, log: LogInMemory
) -> None:
    channel.send(HOT, 0)  # no fd
    channel.send(HOT, 4096, log.file_fds[0])  # no file begins there
    channel.send(FILE, 0, log.file_fds[0], size=FILE_SIZE * 2)
    channel.send(99, 0)
    channel.ours.send(b"short")
    channel.ours.send(bytes(200))
    channel.refused(6)
    channel.send(HOT, 0, log.file_fds[0])
    wait_until(lambda: log.log_map.files() == [(0, True, 0)])


def test_segment_whose_file_is_gone_is_answered_once_nobody_looks(
    channel: Channel, log: LogInMemory, hot_file: Path
) -> None:
    assert hot_file.exists()
    channel.send(HOT, 0, log.file_fds[0])
    channel.send(GONE, 0)
    assert channel.receive() == (RETIRED, 0)
    channel.send(HOT, 0, log.file_fds[0])
    wait_until(lambda: log.log_map.files() == [(0, True, 0)])
    view = log.read(0, 1)[0].body
    log.reader.close()
    channel.send(GONE, 0)
    wait_until(lambda: log.log_map.files() == [])
    channel.refused(0)  # a view looks at the segment: no answer
    assert bytes(view) == b"first"


def test_forget_drops_what_is_mapped(channel: Channel, log: LogInMemory) -> None:
    channel.send(FILE, 0, log.file_fds[0])
    wait_until(lambda: log.log_map.files() == [(0, False, 0)])
    channel.send(FORGET, 0)
    wait_until(lambda: log.log_map.files() == [])


# --- requests -------------------------------------------------------------------------------------


def test_request_is_answered_with_the_file_or_with_gone(channel: Channel, log: LogInMemory) -> None:
    answers: list[int] = []

    def ask(file_position: int) -> threading.Thread:
        thread = threading.Thread(
            target=lambda: answers.append(log.log_map.request_file(file_position, 30.0))
        )
        thread.start()
        return thread

    for file_position, answer, status in (
        (0, FILE, STATUS["OK"]),
        (FILE_SIZE, GONE, STATUS["OFFSET_TOO_SMALL"]),
        (2 * FILE_SIZE, HOT, STATUS["OK"]),
    ):
        thread = ask(file_position)
        assert channel.receive() == (FILE, file_position)
        channel.send(answer, file_position, -1 if answer == GONE else log.file_fds[0])
        thread.join()
        assert answers.pop() == status
        if (
            answer == GONE
        ):  # it may have been a RETIRED once: the broker is told that nothing is mapped
            assert channel.receive() == (RETIRED, file_position)
    assert log.log_map.request_file(0, 0.0) == STATUS["OK"]  # known: nobody is asked


def test_read_asks_for_the_file_it_needs(channel: Channel, log: LogInMemory) -> None:
    log.put(b"cold")
    found: list[list[core.Message]] = []
    thread = threading.Thread(target=lambda: found.append(log.read(0, 1, timeout=30)))
    thread.start()
    assert channel.receive() == (FILE, 0)
    channel.send(FILE, 0, log.file_fds[0])
    thread.join()
    assert bytes(found[0][0]) == b"cold"


def test_request_that_is_not_answered_times_out(channel: Channel, log: LogInMemory) -> None:
    assert log.log_map.request_file(0, 0.01) == STATUS["TIMED_OUT"]
    assert channel.receive() == (FILE, 0)


def test_request_ends_when_the_broker_dies(channel: Channel, log: LogInMemory) -> None:
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(log.log_map.request_file(0, 60.0)))
    thread.start()
    channel.receive()
    channel.ours.close()
    thread.join()
    assert statuses == [STATUS["CLOSED"]]
    wait_until(lambda: not log.log_map.channel_open)
    assert log.log_map.request_file(0, 1.0) == STATUS["CLOSED"]


def test_request_ends_when_the_map_is_stopped(channel: Channel, log: LogInMemory) -> None:
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(log.log_map.request_file(0, 60.0)))
    thread.start()
    channel.receive()
    log.log_map.stop()
    thread.join()
    assert statuses == [STATUS["CLOSED"]]


def test_map_takes_the_channel_of_a_successor(log: LogInMemory) -> None:
    first = Channel(log.log_map)
    with pytest.raises(RuntimeError, match="serves another channel"):
        Channel(log.log_map)
    first.send(HOT, 0, log.file_fds[0])
    wait_until(lambda: log.log_map.files() == [(0, True, 0)])
    first.ours.close()
    wait_until(lambda: not log.log_map.channel_open)
    second = Channel(log.log_map)
    second.send(HOT, 0, log.file_fds[0])  # announced again: the same bytes
    second.send(HOT, FILE_SIZE, log.file_fds[1])
    wait_until(lambda: len(log.log_map.files()) == 2)
    second.ours.close()


def test_files_are_left_on_the_next_channel_as_they_may_have_been_removed(
    log: LogInMemory, hot_file: Path
) -> None:
    first = Channel(log.log_map)
    first.send(HOT, FILE_SIZE, log.file_fds[1])
    first.send(FILE, 0, log.file_fds[0])
    wait_until(lambda: len(log.log_map.files()) == 2)
    view = log.read(0, 1)[0].body
    first.ours.close()
    wait_until(lambda: not log.log_map.channel_open)
    assert len(log.log_map.files()) == 2, "reads go on meanwhile"
    second = Channel(log.log_map)
    wait_until(lambda: [place for place, _, _ in log.log_map.files()] == [FILE_SIZE])
    assert bytes(view) == b"first"
    log.log_map.stop()
    second.ours.close()


@pytest.mark.parametrize("is_kept", [True, False])
def test_segment_that_retired_without_a_channel_is_left_on_the_next(
    log: LogInMemory, hot_file: Path, is_kept: bool
) -> None:
    """Nobody would ask for it any more, and its memory, unlinked, stay for as long as we do."""
    log.map(hot=True)
    view = log.read(0, 1)[0].body if is_kept else None
    log.read(len(log.entries) - 1, 1)  # the reader looks at the second file now
    channel = Channel(log.log_map)
    try:
        channel.send(HOT, FILE_SIZE, log.file_fds[1])
        assert channel.receive() == (FILE, 0)
        with hot_file.open("rb") as file:
            if is_kept:
                channel.send(FILE, 0, file.fileno())
            else:
                channel.send(GONE, 0)
                assert channel.receive() == (RETIRED, 0)
        wait_until(lambda: (0, True, 0) not in log.log_map.files())
        wait_until(lambda: all(not hot for at, hot, _ in log.log_map.files() if at == 0))
        if view is not None:
            assert bytes(view) == b"first"
            assert hot_file.name in behind(address_of(view))
        channel.send(HOT, 2 * FILE_SIZE, log.file_fds[1])  # it asks but once
        channel.refused(0)
    finally:
        log.log_map.stop()
        channel.ours.close()


def test_full_channel_delays_a_request_and_nothing_else(channel: Channel, log: LogInMemory) -> None:
    """Answers that the broker does not read fill the channel; requests then run out of time."""
    fd = memfd(FILE_SIZE)
    for _ in range(2000):
        try:
            channel.ours.setblocking(False)
            channel.send(RETIRED, 5 * FILE_SIZE, fd)
        except BlockingIOError:
            break
    os.close(fd)
    assert log.log_map.request_file(0, 0.05) == STATUS["TIMED_OUT"]


# --- processes and signals ------------------------------------------------------------------------


def test_thread_has_a_name_and_takes_no_signal(channel: Channel, log: LogInMemory) -> None:
    channel.send(HOT, 0, log.file_fds[0])
    wait_until(log.log_map.files)  # it runs: a thread that is being made blocks everything
    (task,) = (
        task
        for task in Path("/proc/self/task").iterdir()
        if task.joinpath("comm").read_text().strip() == "shmq-remap"
    )
    lines = dict(
        line.split(":\t", 1)
        for line in task.joinpath("status").read_text().splitlines()
        if ":\t" in line
    )
    blocked = int(lines["SigBlk"], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD):
        assert blocked >> (number - 1) & 1


def test_interrupt_ends_a_request(channel: Channel, log: LogInMemory) -> None:
    def interrupt() -> None:
        channel.receive()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        log.log_map.request_file(0, 60.0)
    thread.join()


def test_child_of_fork_gets_an_error_and_leaves_the_parent_alone() -> None:
    """The child has no remap thread; using or dropping the map in it must not hang."""
    script = """
import gc, os, sys
from shmq import errors
from tests.unit.core.log_in_memory import FILE_SIZE, LogInMemory
from tests.unit.core.test_log_map import Channel, HOT, wait_until
log = LogInMemory()
channel = Channel(log.log_map)
channel.send(HOT, 0, log.file_fds[0])
wait_until(lambda: log.log_map.files() == [(0, True, 0)])
message = log.message(b"kept")
pid = os.fork()
if pid == 0:
    for use in (log.log_map.files, log.log_map.stop, log.log_map.close, log.reader.wake):
        try:
            use()
        except errors.ForkError as error:
            assert "before fork" in str(error)
        else:
            os._exit(2)
    assert bytes(message) == b"kept"
    del message, log
    gc.collect()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
channel.send(HOT, FILE_SIZE, log.file_fds[1])
wait_until(lambda: len(log.log_map.files()) == 2)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
