"""Python runs out of memory at each allocation of a call in turn: the call is done or raises
MemoryError, no process dies, no message is half there, and the lane goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from shmq.core import core
from tests.unit.core.store_in_thread import StoreInThread
from tests.unit.core.test_lane import OK

_testcapi = pytest.importorskip("_testcapi", reason="this Python has no _testcapi.set_nomemory")

DONE_IN_A_ROW = 8
"""So many calls that do not fail: what they allocate comes before the allocation that does."""
TRIES_MAX = 5000
BODIES = {b"plain", "t\u00e4xt".encode(), b"loan" + bytes(60), b"whole"}
PROPERTIES = {"colour": "r\u00f6d"}


@pytest.fixture
def store() -> Iterator[StoreInThread]:
    with StoreInThread(4) as made:
        yield made


def fail_at_each_allocation(work: Callable[[], object]) -> int:
    """How often it failed."""
    failed = done = 0
    for number in range(TRIES_MAX):
        try:
            _testcapi.set_nomemory(number, number + 1)
            work()
        except MemoryError:
            _testcapi.remove_mem_hooks()
            failed, done = failed + 1, 0
        finally:
            _testcapi.remove_mem_hooks()
        done += 1
        if done > DONE_IN_A_ROW:
            return failed
    raise AssertionError(f"it allocates more than {TRIES_MAX} times")


def text(*parts: str) -> str:
    """One whose UTF-8 nobody has asked for yet."""
    return "".join(parts)


def send(store: StoreInThread) -> None:
    store.lane.send(*store.queue, b"plain", "red", ["k1", "k2"], PROPERTIES, 1)


def put_and_wait(store: StoreInThread) -> None:
    sequence = store.lane.put(*store.queue, text("t\u00e4", "xt"), keep=True)
    store.lane.wait(sequence)


def put_many(store: StoreInThread) -> None:
    store.lane.put_many(*store.queue, [b"plain", text("t\u00e4", "xt"), bytearray(b"plain")], "tag")


def send_loan(store: StoreInThread) -> None:
    with store.lane.loan(*store.queue, 64, "tag") as slot:
        memoryview(slot)[:4] = b"loan"


def make(_: StoreInThread) -> None:
    keys, value = [text("k\u00f6", "y")], text("r\u00f6", "d")
    core.Message("orders", text("t\u00e4", "xt"), tag="red", keys=keys, properties={"c": value})


def receive(store: StoreInThread) -> None:
    for message in store.reader.read(*store.queue, 0, 8)[1]:
        _ = bytes(message), message.tag, message.keys, message.properties, message.message_id


@pytest.mark.parametrize("work", [send, put_and_wait, put_many, send_loan, make, receive])
def test_call_without_memory_is_done_or_raises(
    work: Callable[[StoreInThread], None], store: StoreInThread
) -> None:
    for each in (send, put_and_wait, put_many):
        each(store)
    assert fail_at_each_allocation(lambda: work(store)) > 0
    for _ in range(100):  # neither the lane's turn nor a place in its ring was kept
        assert store.lane.send(*store.queue, b"whole", timeout=30)[0] == OK
    found: list[bytes] = []
    while (answer := store.reader.read(*store.queue, len(found), 1000))[0] == OK:
        found += [bytes(message) for message in answer[1]]
    assert len(found) == store.reader.visible_max(store.queue[0])
    assert set(found) <= BODIES
    assert found[-100:] == [b"whole"] * 100
