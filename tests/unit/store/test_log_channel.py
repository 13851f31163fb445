"""The log channel: when the memory of a retired file may be used again, and when never."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq.shm.incarnation import boot_id
from shmq.shm.names import ObjectKind, StoreName, new_generation
from shmq.shm.segment import Segment, create, unlink
from shmq.store.log_channel import FILE, FORGET, HOT, PACKET, RETIRED, LogChannel
from shmq.store.log_files import LogFiles

FILE_SIZE = 65536
SOON_S = 20.0
NEVER_S = 0.05


class Client:
    """A process that maps the log; here only what it says."""

    def __init__(self, channel: LogChannel, session: int) -> None:
        self.socket = socket.socket(fileno=channel.add(session))
        self.socket.settimeout(SOON_S)

    def receive(self) -> tuple[int, int]:
        """The next packet: its kind and file position."""
        packet, ancillary, _, _ = self.socket.recvmsg(PACKET.size, 64)
        for _, _, data in ancillary:
            os.close(int.from_bytes(data[:4], "little"))
        kind, _, file_position, _, _ = PACKET.unpack(packet)
        return kind, file_position

    def ask(self, file_position: int) -> None:
        self.socket.send(PACKET.pack(FILE, 0, file_position, FILE_SIZE, 0))

    def answer(self, file_position: int) -> None:
        self.socket.send(PACKET.pack(RETIRED, 0, file_position, FILE_SIZE, 0))


@pytest.fixture
def segments(cluster_name: str) -> Iterator[list[Segment]]:
    store = StoreName.make(
        cluster_name=cluster_name,
        broker_name="b",
        broker_id=0,
        boot_id=boot_id(),
        generation=new_generation(),
    )
    names = [store.object(ObjectKind.HOT, n) for n in range(3)]
    made = [create(name, size_bytes=FILE_SIZE) for name in names]
    yield made
    for segment, name in zip(made, names, strict=True):
        segment.close()
        unlink(name)


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[LogChannel]:
    files = LogFiles(tmp_path, FILE_SIZE)
    files.make_folders()
    for n in range(3):
        os.close(files.make_ready(n * FILE_SIZE, zero_written=False))
    channel = LogChannel(files, file_size_bytes=FILE_SIZE, on_drop=lambda _session, _reason: None)
    channel.start()
    yield channel
    channel.stop()


def _offer(channel: LogChannel, segments: list[Segment], number: int) -> None:
    channel.offer(number * FILE_SIZE, segments[number])
    channel.announce(number * FILE_SIZE)


class Retiring(threading.Thread):
    """Retires the first file; `result` says whether its memory may be used again."""

    result: bool | None = None

    def __init__(self, channel: LogChannel) -> None:
        super().__init__()
        self._channel = channel
        self.start()

    def run(self) -> None:
        self.result = self._channel.retire(0, SOON_S)


def test_memory_is_used_again_once_every_client_has_left_it(
    channel: LogChannel, segments: list[Segment]
) -> None:
    _offer(channel, segments, 0)
    clients = [Client(channel, session) for session in range(2)]
    for client in clients:
        assert client.receive() == (HOT, 0)
    retiring = Retiring(channel)
    for client in clients:
        assert client.receive() == (RETIRED, 0)
        client.answer(0)
    retiring.join()
    assert retiring.result is True
    for client in clients:
        client.socket.close()


def test_memory_of_a_client_that_does_not_answer_is_not_used_again(
    channel: LogChannel, segments: list[Segment]
) -> None:
    _offer(channel, segments, 0)
    client = Client(channel, 0)
    assert channel.retire(0, NEVER_S) is False
    assert channel.unanswered_bytes() == FILE_SIZE
    client.socket.close()


def test_client_that_leaves_while_it_is_asked_may_still_look_at_the_memory(
    channel: LogChannel, segments: list[Segment]
) -> None:
    _offer(channel, segments, 0)
    client = Client(channel, 0)
    assert client.receive() == (HOT, 0)
    retiring = Retiring(channel)
    assert client.receive() == (RETIRED, 0)
    client.socket.close()
    retiring.join()
    assert retiring.result is False


def test_client_that_left_before_may_still_look_at_what_was_hot_then(
    channel: LogChannel, segments: list[Segment]
) -> None:
    for n in range(2):
        _offer(channel, segments, n)
    client = Client(channel, 7)
    channel.remove(7)
    _offer(channel, segments, 2)
    assert [channel.retire(n * FILE_SIZE, SOON_S) for n in range(3)] == [False, False, True]
    client.socket.close()


def test_clients_of_a_dead_predecessor_may_still_look_at_adopted_memory(
    channel: LogChannel, segments: list[Segment]
) -> None:
    channel.leave_behind(0)
    for n in range(2):
        _offer(channel, segments, n)
    assert [channel.retire(n * FILE_SIZE, SOON_S) for n in range(2)] == [False, True]


def test_file_that_was_removed_is_forgotten_by_all(
    channel: LogChannel, segments: list[Segment]
) -> None:
    clients = [Client(channel, session) for session in range(2)]
    channel.forget(0)
    for client in clients:
        assert client.receive() == (FORGET, 0)
        client.socket.close()


def test_memory_that_is_not_announced_yet_goes_to_those_only_who_ask_for_it(
    channel: LogChannel, segments: list[Segment]
) -> None:
    """A client keeps what it has mapped: were the broker to die now, its successor would make that
    file's memory anew.
    """
    _offer(channel, segments, 0)
    channel.offer(FILE_SIZE, segments[1])
    client, other = Client(channel, 0), Client(channel, 1)
    assert [client.receive(), other.receive()] == [(HOT, 0)] * 2
    client.ask(FILE_SIZE)
    assert client.receive() == (HOT, FILE_SIZE)
    _offer(channel, segments, 2)
    assert [client.receive(), other.receive()] == [(HOT, 2 * FILE_SIZE)] * 2
    for each in (client, other):
        each.socket.close()
