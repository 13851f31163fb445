"""The socket of an event loop: a byte for each arming that is answered; no broker waits for it."""

import os
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from shmq.store.queues import QueueHandle
from tests.support.store_process import StoreClient, wait_until
from tests.unit.core.test_lane import OK, STATUS
from tests.unit.core.test_reader import send


@pytest.fixture
def wake(client: StoreClient) -> Iterator[socket.socket]:
    _, fds = client.store.call("grant_socket", session=client.offer.session)
    with socket.socket(fileno=fds["socket"]) as wake:
        yield wake


def is_readable(wake: socket.socket, timeout: float = 30) -> bool:
    return bool(select.select([wake], [], [], timeout)[0])


def test_armed_reader_is_told_of_a_message_by_a_byte(
    client: StoreClient, queue: QueueHandle, wake: socket.socket
) -> None:
    reader = client.reader
    reader.watch(*queue, 0)
    send_quietly(client, queue)
    assert not is_readable(wake, 0)
    reader.watch(*queue, 1)
    before = reader.rings()
    reader.arm()
    assert reader.wait(0) == -1
    send_quietly(client, queue)
    assert is_readable(wake)
    assert reader.rings() == before + 1
    assert wake.recv(100) == b"\1"
    assert reader.wait(0) == queue.row


def send_quietly(client: StoreClient, queue: QueueHandle) -> None:
    """As send, but no thread sleeps meanwhile, whose bell would be told of, too."""
    before = client.reader.visible_max(queue.row)
    client.lanes[0].put(*queue, b"x")
    wait_until(lambda: client.reader.visible_max(queue.row) > before)


def test_one_arming_is_answered_once(
    client: StoreClient, queue: QueueHandle, wake: socket.socket
) -> None:
    client.reader.arm()
    for _ in range(20):
        send_quietly(client, queue)
    assert is_readable(wake)
    assert wake.recv(100) == b"\1"
    client.reader.arm()
    send_quietly(client, queue)
    assert is_readable(wake)
    assert wake.recv(100) == b"\1"
    client.reader.disarm()
    send_quietly(client, queue)
    assert not is_readable(wake, 0)


def test_all_that_share_a_bell_are_told_by_one_byte(
    client: StoreClient, queue: QueueHandle, wake: socket.socket
) -> None:
    other = client.reader.share()
    for reader in (client.reader, other):
        reader.watch(*queue, 0)
        reader.arm()
    client.reader.disarm()  # the other one is still armed
    client.reader.arm()
    send_quietly(client, queue)
    assert is_readable(wake)
    assert len(wake.recv(100)) == 1
    assert [reader.wait(0) for reader in (client.reader, other)] == [queue.row] * 2
    other.close()  # armed: the count of those that sleep must not keep it
    client.reader.disarm()
    send_quietly(client, queue)
    assert not is_readable(wake, 0)


def test_armed_lane_is_told_of_its_completion(
    client: StoreClient, queue: QueueHandle, wake: socket.socket
) -> None:
    lane = client.lanes[0]
    lane.arm(False)
    sequence = lane.put(*queue, b"x", keep=True)
    assert is_readable(wake)
    wake.recv(100)
    found = lane.take(sequence)
    assert found is not None
    assert found[0] == OK
    lane.disarm()
    send_quietly(client, queue)
    assert not is_readable(wake, 0)


def test_spin_gives_what_take_gives(client: StoreClient, queue: QueueHandle) -> None:
    lane = client.lanes[0]
    sequence = lane.put(*queue, b"x", keep=True)
    found = None
    while found is None:  # bounded by the watchdog
        found = lane.spin(sequence)
    assert found[:2] == (OK, 0)
    with pytest.raises(ValueError, match="it was taken"):
        lane.spin(sequence)


def test_lane_armed_for_space_is_told_when_a_full_ring_has_room(
    client: StoreClient, queue: QueueHandle, wake: socket.socket
) -> None:
    lane = client.lanes[0]
    body = bytes(lane.capacity_bytes // 8)
    sent = 0
    for _ in range(200):
        lane.arm(True)
        status = lane.put(*queue, body, timeout=0)
        if status >= 0:
            sent += 1
            continue
        assert status == STATUS["FULL"]
        assert is_readable(wake)
        wake.recv(100)
    assert sent > 20
    assert lane.drain(60) == OK


@pytest.mark.parametrize("habit", ["never reads", "blocks", "shuts down", "closes"])
def test_broker_never_waits_for_a_client_that(
    habit: str, client: StoreClient, queue: QueueHandle, wake: socket.socket
) -> None:
    os.set_blocking(wake.fileno(), True)  # its own end's flag, and no more
    if habit == "shuts down":
        wake.shutdown(socket.SHUT_RDWR)
    if habit == "closes":
        wake.close()
    for _ in range(300):  # far more bytes than the socket holds
        client.reader.arm()
        client.lanes[0].arm(True)
        send(client, queue, b"x")
    if habit == "never reads":
        assert 1 <= len(wake.recv(1 << 20)) < 100


def test_socket_ends_with_the_session_and_a_second_one_ends_the_first(
    client: StoreClient, queue: QueueHandle, wake: socket.socket
) -> None:
    _, fds = client.store.call("grant_socket", session=client.offer.session)
    with socket.socket(fileno=fds["socket"]) as second:
        assert wake.recv(1) == b""
        client.reader.arm()
        send_quietly(client, queue)
        assert is_readable(second)
        assert second.recv(100) == b"\1"
        client.store.call("close_session", session=client.offer.session)
        assert is_readable(second)
        assert second.recv(100) == b""


def test_waking_a_thread_does_not_wait_for_an_armed_reader(
    client: StoreClient, queue: QueueHandle, wake: socket.socket
) -> None:
    client.reader.watch(*queue, 0)
    other = client.reader.share()
    other.arm()
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(client.reader.wait(60)))
    thread.start()
    client.reader.wake()
    thread.join(60)
    assert found == [-1]
    other.close()
