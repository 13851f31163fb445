"""Lane, Loan, ChunkMemory: the producer's side of one ring, against a real store process.

The store is stopped (SIGSTOP) where a test needs the ring to stay full, and killed where it needs
a successor; nothing stands in for it.
"""

import contextlib
import gc
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from shmq import errors
from shmq.core import core
from shmq.store.queues import QueueHandle
from tests.support import standing_still
from tests.support.repository import ROOT
from tests.support.store_process import StoreClient, StoreProcess, wait_until
from tests.unit.core.store_in_thread import StoreInThread

STATUS = {name: value for name, (value, _) in core.STATUS.items()}
OK = STATUS["OK"]
NO_PLACE = (-1, -1, 0)


def stopped(store: StoreProcess) -> contextlib.AbstractContextManager[None]:
    """While it is stopped nothing is taken from any ring."""
    return standing_still.stopped(store.pid)


def in_thread(function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Runs it; the list gets what it returned or raised."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001 - the outcome of a test's own thread
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def is_asleep(lane: core.Lane, client: StoreClient) -> bool:
    """Whether a thread sleeps on the lane's bell: its epoch is odd."""
    index = client.lanes.index(lane)
    assert client.ingress is not None
    place = core.LANES_PLACE + index * core.LAYOUT["lane"][0] + 16
    return client.ingress.load32(place) % 2 == 1


def bodies(client: StoreClient, queue: QueueHandle, begin: int = 0) -> list[bytes]:
    found: list[bytes] = []
    while True:
        status, messages, begin = client.reader.read(queue.row, queue.generation, begin, 1000)
        if status != OK:
            assert status == STATUS["EMPTY"]
            return found
        found += [bytes(message) for message in messages]


@pytest.fixture
def lane(client: StoreClient) -> core.Lane:
    return client.lanes[0]


# --- one message ----------------------------------------------------------------------------------


def test_send_returns_where_the_message_is(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    before_ms = time.time_ns() // 10**6
    status, sequence, queue_offset, physical_offset, size, key = lane.send(
        *queue, b"body", "red", ["k1", "k2"], {"a": "b"}, 42
    )
    assert (status, sequence, queue_offset) == (OK, 0, 0)
    _, (message,), _ = client.reader.read(*queue, 0)
    assert bytes(message) == b"body"
    assert (message.physical_offset, message.size) == (physical_offset, size)
    assert (message.tag, message.keys, message.flag) == ("red", ("k1", "k2"), 42)
    assert message.properties["a"] == "b"
    assert message.message_id == key
    assert before_ms <= message.born_timestamp <= message.store_timestamp + 1000


def test_put_does_not_wait_and_its_completion_comes_on_demand(
    lane: core.Lane, queue: QueueHandle, store: StoreProcess
) -> None:
    with stopped(store):
        sequence = lane.put(*queue, b"body", keep=True)
        assert sequence == 0
        assert lane.take(sequence) is None
        assert lane.wait(sequence, timeout=0.01) == (STATUS["TIMED_OUT"], *NO_PLACE)
        assert lane.next_sequence == 1
        assert lane.done_sequence == 0
    status, queue_offset, physical_offset, size = lane.wait(sequence)
    assert (status, queue_offset) == (OK, 0)
    assert physical_offset >= 0
    assert size > 0
    for again in (lane.wait, lane.take, lane.forget):
        with pytest.raises(ValueError, match="keep=True"):
            again(sequence)


def test_completion_that_nobody_kept_cannot_be_waited_for(
    lane: core.Lane, queue: QueueHandle
) -> None:
    sequence = lane.put(*queue, b"body")
    with pytest.raises(ValueError, match="keep=True"):
        lane.wait(sequence)
    assert lane.drain() == OK


def test_made_message_is_sent_whole(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    made = core.Message("Any", b"body", tag="t", keys="k", properties={"a": "b"}, flag=9)
    lane.send(*queue, made)
    _, (message,), _ = client.reader.read(*queue, 0)
    assert bytes(message) == b"body"
    assert message.flag == 9
    assert {**made.properties, "UNIQ_KEY": message.message_id} == message.properties
    with pytest.raises(TypeError, match="brings its own"):
        lane.send(*queue, made, "tag")
    with pytest.raises(errors.BodyTypeError, match="received"):
        lane.send(*queue, message)
    assert lane.next_sequence == 1


def test_array_is_sent_with_dtype_and_shape(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    array = np.arange(6, dtype="<i2").reshape(2, 3)
    lane.send(*queue, array, "t")
    _, (message,), _ = client.reader.read(*queue, 0)
    assert np.array_equal(message.array(), array)
    assert message.tag == "t"


def test_own_unique_key_is_kept(lane: core.Lane, client: StoreClient, queue: QueueHandle) -> None:
    *_, key = lane.send(*queue, b"", properties={"UNIQ_KEY": "mine"})
    assert key == "mine"
    sequence = lane.put(*queue, core.Message("T", b"", properties={"UNIQ_KEY": "other"}))
    assert lane.unique_key(sequence) is None
    assert lane.drain() == OK
    _, messages, _ = client.reader.read(*queue, 0)
    assert [message.message_id for message in messages] == ["mine", "other"]


def test_unique_keys_have_rocketmqs_form_and_grow(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    status, first, count = lane.put_many(*queue, [b"x"] * 50)
    assert (status, count) == (OK, 50)
    keys = [lane.unique_key(first + i) for i in range(count)]
    assert lane.drain() == OK
    other = client.lanes[1].put(*queue, b"x")
    keys_of_both = [*keys, client.lanes[1].unique_key(other)]
    for key in keys_of_both:
        assert re.fullmatch("7F000001" + f"{os.getpid() & 0xFFFF:04X}" + "[0-9A-F]{20}", key or "")
    assert keys == sorted(keys)  # type: ignore[type-var]
    assert len(set(keys_of_both)) == 51
    _, messages, _ = client.reader.read(*queue, 0, 50)
    assert [message.message_id for message in messages] == keys
    lane.put_many(*queue, [b"x"] * 60)
    with pytest.raises(ValueError, match="last 64 records"):
        lane.unique_key(first)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 1000, 16_000])
def test_bodies_of_every_size_arrive_whole(
    size: int, lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    body = random.Random(size).randbytes(size)
    assert lane.send(*queue, body)[0] == OK
    assert bodies(client, queue) == [body]


def test_ring_wraps_at_every_remaining_size(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    """Some thousand records of changing size pass the ring's end at every multiple of 8."""
    generator = random.Random(5)
    wanted = [generator.randbytes(generator.randrange(400)) for _ in range(4000)]
    for body in wanted:
        assert lane.put(*queue, body) >= 0
    assert lane.drain() == OK
    assert bodies(client, queue) == wanted


# --- what is refused before anything is written ---------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"body": 5}, errors.BodyTypeError),
        ({"body": None}, errors.BodyTypeError),
        ({"body": memoryview(bytes(512 * 1024 + 1))}, errors.MessageTooLargeError),
        ({"tag": "a\x01"}, errors.IllegalPropertyError),
        ({"keys": [""]}, errors.IllegalPropertyError),
        ({"properties": {"a": "\x00"}}, errors.IllegalPropertyError),
        ({"properties": {"__CRC32#": "x"}}, errors.ReservedPropertyError),
        ({"properties": {"a": "x" * 33_000}}, errors.PropertiesTooLargeError),
        ({"flag": 1 << 31}, ValueError),
        ({"flag": "x"}, TypeError),
        ({"timeout": "x"}, TypeError),
        ({"row": -1}, ValueError),
        ({"row": 1 << 32}, ValueError),
        ({"generation": "x"}, TypeError),
        ({"nonsense": 1}, TypeError),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", repr(value)),  # the same in every process
)
def test_bad_argument_is_refused_and_nothing_is_sent(
    arguments: dict[str, object],
    error: type[Exception],
    lane: core.Lane,
    queue: QueueHandle,
) -> None:
    given = {"row": queue.row, "generation": queue.generation, "body": b"", **arguments}
    for verb in (lane.put, lane.send):
        with pytest.raises(error) as refused:
            verb(**given)  # type: ignore[arg-type]
        if isinstance(refused.value, errors.ShmqError):
            assert refused.value.code
            assert refused.value.hint
    given["bodies"] = [b"good", given.pop("body")]
    with pytest.raises(error):
        lane.put_many(**given)  # type: ignore[arg-type]
    assert lane.next_sequence == 0


def test_put_needs_its_first_three_arguments(lane: core.Lane, queue: QueueHandle) -> None:
    with pytest.raises(TypeError, match="needs the argument 'body'"):
        lane.put(*queue)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="two values"):
        lane.put(*queue, b"", row=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="at most"):
        lane.put(*queue, *[b""] * 20)  # type: ignore[call-arg,arg-type]


def test_refusal_of_the_broker_is_a_status(
    lane: core.Lane, store: StoreProcess, queue: QueueHandle
) -> None:
    assert lane.send(queue.row, queue.generation + 1, b"")[0] == STATUS["NO_TOPIC"]
    other = store.add_queue("NotGranted")
    status, sequence, *place, key = lane.send(*other, b"")
    assert (status, tuple(place)) == (STATUS["NOT_GRANTED"], NO_PLACE)
    assert key is not None
    assert sequence == 1
    kept = lane.put(*other, b"", keep=True)
    assert lane.wait(kept) == (STATUS["NOT_GRANTED"], *NO_PLACE)
    assert lane.send(*queue, b"")[:3] == (OK, 3, 0)


# --- many messages --------------------------------------------------------------------------------


def test_put_many_sends_all_kinds_in_order(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    array = np.arange(3, dtype="<u2")
    mixed = [b"bytes", "text", bytearray(b"array"), memoryview(b"view"), array]
    assert lane.put_many(*queue, mixed, "red", properties={"a": "b"}) == (OK, 0, 5)
    made = [core.Message("T", b"own", tag="blue"), b"plain"]
    assert lane.put_many(*queue, iter(made)) == (OK, 5, 2)
    assert lane.drain() == OK
    _, messages, _ = client.reader.read(*queue, 0)
    assert [bytes(message) for message in messages] == [
        b"bytes", b"text", b"array", b"view", array.tobytes(), b"own", b"plain",
    ]  # fmt: skip
    assert [message.tag for message in messages] == ["red"] * 5 + ["blue", None]
    assert np.array_equal(messages[4].array(), array)
    assert messages[4].properties["a"] == "b"


def test_put_many_of_nothing_sends_nothing(lane: core.Lane, queue: QueueHandle) -> None:
    assert lane.put_many(*queue, []) == (OK, 0, 0)
    with pytest.raises(TypeError):
        lane.put_many(*queue, 5)  # type: ignore[arg-type]


def test_put_many_that_does_not_fit_waits_for_room(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    wanted = [bytes([i % 256]) * (i % 300) for i in range(3000)]
    assert lane.put_many(*queue, wanted, timeout=60) == (OK, 0, 3000)
    assert lane.drain() == OK
    assert bodies(client, queue) == wanted


def test_put_many_says_how_many_went(
    lane: core.Lane, client: StoreClient, queue: QueueHandle, store: StoreProcess
) -> None:
    with stopped(store):
        status, first, count = lane.put_many(*queue, [b"x"] * 100, timeout=0.01)
        assert (status, first, count) == (STATUS["TIMED_OUT"], 0, 64)  # completions
        assert lane.put_many(*queue, [b"x"], timeout=0) == (STATUS["FULL"], 64, 0)
    assert lane.drain() == OK
    assert len(bodies(client, queue)) == 64


def test_batch_that_keeps_more_than_fits_does_not_wait_for_itself(
    lane: core.Lane, queue: QueueHandle
) -> None:
    assert lane.put_many(*queue, [b"x"] * 100, timeout=60, keep=True) == (STATUS["FULL"], 0, 64)
    found = lane.wait_many(0, 64)
    assert found.status == OK
    assert [row[:2] for row in found] == [(OK, i) for i in range(64)]
    keys = [key for _, _, key in found]
    assert len({*keys}) == 64
    assert keys == sorted(keys)  # type: ignore[type-var]
    assert lane.put_many(*queue, [b"x"] * 36, keep=True) == (OK, 64, 36)
    assert len(lane.wait_many(64, 36)) == 36


def test_wait_many_gives_what_is_there_when_time_is_over(
    lane: core.Lane, queue: QueueHandle, store: StoreProcess
) -> None:
    lane.put_many(*queue, [b"x"] * 5, keep=True)
    assert lane.drain() == OK
    with stopped(store):
        lane.put_many(*queue, [b"x"] * 5, keep=True)
        assert len(lane.wait_many(0, 10, timeout=0.01)) == 5
    assert len(lane.wait_many(5, 5)) == 5
    assert lane.wait_many(10, 0).status is None
    for first, count in ((9, 1), (8, 2**31), (2**64 - 1, 2)):
        with pytest.raises(ValueError, match="not put with keep"):
            lane.wait_many(first, count)


def test_wait_many_keeps_the_keys_of_a_lane_that_another_thread_closes(
    lane: core.Lane, client: StoreClient, queue: QueueHandle, store: StoreProcess
) -> None:
    lane.put_many(*queue, [b"x"] * 5, keep=True)
    assert lane.drain() == OK
    with stopped(store):
        lane.put_many(*queue, [b"x"] * 5, keep=True)
        keys = [lane.unique_key(sequence) for sequence in range(10)]
        thread, outcome = in_thread(lambda: lane.wait_many(0, 10, timeout=None))
        wait_until(lambda: is_asleep(lane, client))
        lane.close()
        thread.join()
    (found,) = outcome
    assert found.status is None
    assert [row[0] for row in found] == [OK] * 5 + [STATUS["CLOSED"]] * 5
    assert [row[1] for row in found] == [0, 1, 2, 3, 4] + [-1] * 5
    assert [row[2] for row in found] == keys


# --- room -----------------------------------------------------------------------------------------


def test_full_ring_says_so_or_waits_as_asked(
    lane: core.Lane, client: StoreClient, queue: QueueHandle, store: StoreProcess
) -> None:
    body = bytes(lane.record_size_max - 64 - 42)
    with stopped(store):
        for _ in range(4):
            assert lane.put(*queue, body, timeout=0) >= 0
        assert lane.put(*queue, body, timeout=0) == STATUS["FULL"]
        assert lane.put(*queue, body, timeout=0.01) == STATUS["TIMED_OUT"]
        assert lane.send(*queue, body, timeout=0.01)[:2] == (STATUS["TIMED_OUT"], -1)
        assert lane.next_sequence == 4
        thread, outcome = in_thread(lambda: lane.put(*queue, body, timeout=60))
        wait_until(lambda: is_asleep(lane, client))
    thread.join()
    assert outcome == [4]
    assert lane.drain() == OK
    assert len(bodies(client, queue)) == 5


def test_full_completions_are_freed_as_they_are_done_or_taken(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    """A completion that somebody wants stays; the thread that waits for its entry gets it when it
    is taken, at once and not at the end of a sleep."""
    kept = lane.put(*queue, b"kept", keep=True)
    assert lane.put_many(*queue, [b"x"] * 63) == (OK, 1, 63)
    assert lane.drain() == OK
    assert lane.put(*queue, b"x", timeout=0) == STATUS["FULL"]
    thread, outcome = in_thread(lambda: lane.put(*queue, b"x", timeout=60))
    wait_until(lambda: is_asleep(lane, client))
    assert lane.take(kept) is not None
    thread.join()
    assert outcome == [64]
    assert lane.put_many(*queue, [b"x"] * 64) == (OK, 65, 64)


def test_forgotten_completion_frees_its_entry(lane: core.Lane, queue: QueueHandle) -> None:
    kept = lane.put(*queue, b"kept", keep=True)
    lane.put_many(*queue, [b"x"] * 63)
    lane.forget(kept)
    assert lane.put_many(*queue, [b"x"] * 64)[0] == OK


def test_send_that_timed_out_is_let_go_of(
    lane: core.Lane, client: StoreClient, queue: QueueHandle, store: StoreProcess
) -> None:
    with stopped(store):
        status, sequence, *_, key = lane.send(*queue, b"late", timeout=0.01)
        assert (status, sequence) == (STATUS["TIMED_OUT"], 0)
        assert key
    assert lane.drain() == OK
    assert bodies(client, queue) == [b"late"]
    assert lane.put_many(*queue, [b"x"] * 200)[0] == OK


def test_zero_timeout_never_waits_for_another_thread(
    lane: core.Lane, client: StoreClient, queue: QueueHandle, store: StoreProcess
) -> None:
    with stopped(store):
        lane.put_many(*queue, [b"x"] * 64)
        thread, outcome = in_thread(lambda: lane.put(*queue, b"y", timeout=60))
        wait_until(lambda: is_asleep(lane, client))
        assert lane.put(*queue, b"z", timeout=0) == STATUS["FULL"]
        assert lane.put(*queue, b"z", timeout=0.01) == STATUS["TIMED_OUT"]
    thread.join()
    assert outcome == [64]


# --- large bodies ---------------------------------------------------------------------------------


@pytest.fixture
def chunk(client: StoreClient) -> core.ChunkMemory:
    size, fds = client.store.call(
        "grant_chunk", session=client.offer.session, size_bytes=1024 * 1024
    )
    memory = core.Mapping(fds["chunk"], size, writable=True)
    os.close(fds["chunk"])
    return core.ChunkMemory(client.control, memory, session=client.offer.session)


def test_large_body_without_chunk_memory_asks_for_it(lane: core.Lane, queue: QueueHandle) -> None:
    assert lane.put(*queue, bytes(100_000)) == STATUS["TOO_LARGE"]
    assert lane.send(*queue, bytes(100_000))[0] == STATUS["TOO_LARGE"]
    assert lane.next_sequence == 0


def test_large_bodies_pass_the_chunk_memory_many_times_over(
    client: StoreClient, queue: QueueHandle, chunk: core.ChunkMemory
) -> None:
    """Both lanes share it, from two threads; every body arrives whole, in its lane's order."""
    wanted = {}
    generator = random.Random(9)
    for number, lane in enumerate(client.lanes):
        lane.attach_chunk(chunk)
        wanted[number] = [
            bytes([number]) + generator.randbytes(generator.choice([10, 20_000, 70_000, 300_000]))
            for _ in range(30)
        ]

    def send_all(number: int) -> None:
        for body in wanted[number]:
            assert client.lanes[number].put(*queue, body, timeout=60) >= 0

    threads = [in_thread(lambda number=number: send_all(number)) for number in wanted]
    for thread, outcome in threads:
        thread.join()
        assert outcome == [None]
    for lane in client.lanes:
        assert lane.drain(60) == OK
    found = bodies(client, queue)
    assert len(found) == 60
    for number, own in wanted.items():
        assert [body for body in found if body[0] == number] == own
    assert chunk.used_bytes == 0


def test_full_chunk_memory_waits_like_a_full_ring(
    lane: core.Lane,
    client: StoreClient,
    queue: QueueHandle,
    chunk: core.ChunkMemory,
    store: StoreProcess,
) -> None:
    lane.attach_chunk(chunk)
    body = bytes(500_000)
    with stopped(store):
        assert lane.put(*queue, body, timeout=0) >= 0
        assert lane.put(*queue, body, timeout=0) >= 0
        assert chunk.used_bytes >= 1_000_000
        assert lane.put(*queue, body, timeout=0) == STATUS["FULL"]
        assert lane.put(*queue, body, timeout=0.01) == STATUS["TIMED_OUT"]
        assert lane.put(*queue, b"small", timeout=0) >= 0  # the ring has room
        thread, outcome = in_thread(lambda: lane.put(*queue, body, timeout=60))
        other, outcome_of_other = in_thread(
            lambda: [client.lanes[1].attach_chunk(chunk), client.lanes[1].put(*queue, body)][1]
        )
    thread.join()
    other.join()
    assert (outcome, outcome_of_other) == ([3], [0])
    for each in client.lanes:
        assert each.drain(60) == OK
    assert len(bodies(client, queue)) == 5


def test_body_larger_than_the_chunk_memory_is_refused(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    size, fds = client.store.call("grant_chunk", session=client.offer.session, size_bytes=65536)
    memory = core.Mapping(fds["chunk"], size, writable=True)
    os.close(fds["chunk"])
    lane.attach_chunk(core.ChunkMemory(client.control, memory, session=client.offer.session))
    with pytest.raises(errors.MessageTooLargeError, match="chunk memory"):
        lane.put(*queue, bytes(200_000))
    assert lane.send(*queue, bytes(20_000))[0] == OK


# --- threads --------------------------------------------------------------------------------------


def test_threads_share_a_lane_and_each_gets_its_own_completion(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    threads = 4
    each = 200

    def send_own(number: int) -> list[tuple[int, bytes]]:
        found = []
        for i in range(each):
            body = f"{number}:{i}".encode()
            status, _, queue_offset, *_ = lane.send(*queue, body, timeout=60)
            assert status == OK
            found.append((queue_offset, body))
        return found

    running = [in_thread(lambda number=number: send_own(number)) for number in range(threads)]
    places: list[tuple[int, bytes]] = []
    for thread, outcome in running:
        thread.join()
        (found,) = outcome
        assert isinstance(found, list), found
        assert found == sorted(found)
        places += found
    assert [body for _, body in sorted(places)] == bodies(client, queue)
    assert [place for place, _ in sorted(places)] == list(range(threads * each))


def test_close_gets_every_waiter_up(
    lane: core.Lane, client: StoreClient, queue: QueueHandle, store: StoreProcess
) -> None:
    with stopped(store):
        kept = lane.put(*queue, b"x", keep=True)
        lane.put_many(*queue, [b"x"] * 63)
        waiting = [
            in_thread(lambda: lane.wait(kept, None)),
            in_thread(lambda: lane.put(*queue, b"x", timeout=None)),
            in_thread(lambda: lane.put(*queue, b"x", timeout=None)),
            in_thread(lambda: lane.drain(None)),
        ]
        wait_until(lambda: is_asleep(lane, client))
        lane.close()
        for thread, outcome in waiting:
            thread.join()
            assert isinstance(outcome[0], errors.ClosedError)
    lane.close()
    assert lane.closed
    for verb in (lambda: lane.put(*queue, b""), lane.drain, lambda: lane.next_sequence):
        with pytest.raises(errors.ClosedError, match="closed"):
            verb()


def test_closed_lane_lets_go_of_its_mappings(client: StoreClient, queue: QueueHandle) -> None:
    assert client.lanes[0].send(*queue, b"x")[0] == OK
    with pytest.raises(BufferError):
        client.completion.close()
    for lane in client.lanes:
        lane.close()
    client.reader.close()
    assert client.ingress is not None
    for mapping in (client.control, client.arena, client.completion, client.ingress):
        mapping.close()


@pytest.mark.parametrize("verb", ["wait", "put", "drain", "send"])
def test_interrupt_ends_every_wait(
    verb: str, lane: core.Lane, client: StoreClient, queue: QueueHandle, store: StoreProcess
) -> None:
    with stopped(store):
        kept = lane.put(*queue, b"x", keep=True)
        if verb == "put":
            lane.put_many(*queue, [b"x"] * 63)
        waits: dict[str, Callable[[], object]] = {
            "wait": lambda: lane.wait(kept, None),
            "put": lambda: lane.put(*queue, b"x", timeout=None),
            "drain": lambda: lane.drain(None),
            "send": lambda: lane.send(*queue, b"x", timeout=None),
        }

        def interrupt() -> None:
            wait_until(lambda: is_asleep(lane, client))
            os.kill(os.getpid(), signal.SIGINT)

        thread, _ = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            waits[verb]()
        thread.join()
    assert lane.wait(kept)[0] == OK
    assert lane.send(*queue, b"goes on")[0] == OK


# --- loans ----------------------------------------------------------------------------------------


def test_loan_is_filled_in_place_and_sent_on_exit(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    loan = lane.loan(*queue, 8, "red", properties={"a": "b"}, keep=True)
    assert isinstance(loan, core.Loan)
    with loan as view:
        view[:] = b"in place"
        assert lane.next_sequence == 0
    assert loan.committed
    assert lane.wait(loan.sequence)[0] == OK
    _, (message,), _ = client.reader.read(*queue, 0)
    assert bytes(message) == b"in place"
    assert message.tag == "red"
    assert message.properties["a"] == "b"
    with pytest.raises(ValueError, match="released"):
        view[0]


def test_loan_is_aborted_by_an_exception(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    loan = lane.loan(*queue, 8)
    assert isinstance(loan, core.Loan)
    with pytest.raises(ZeroDivisionError), loan as view:
        view[0] = 1 // 0
    assert not loan.committed
    with pytest.raises(ValueError, match="aborted"):
        loan.commit()
    loan.abort()
    assert lane.send(*queue, b"next")[:2] == (OK, 0)
    assert bodies(client, queue) == [b"next"]


def test_loan_may_be_cut_shorter(lane: core.Lane, client: StoreClient, queue: QueueHandle) -> None:
    loan = lane.loan(*queue, 100, "red")
    assert isinstance(loan, core.Loan)
    with loan.view as view:
        view[:3] = b"abc"
    with pytest.raises(ValueError, match="101 bytes of 100"):
        loan.commit(101)
    assert loan.commit(3) == 0
    assert loan.commit() == 0
    assert lane.drain() == OK
    _, (message,), _ = client.reader.read(*queue, 0)
    assert (bytes(message), message.tag) == (b"abc", "red")


def test_loan_is_not_ended_while_a_view_of_it_is_alive(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    """An array on memory that another message owns by now would scribble over it."""
    loan = lane.loan(*queue, 16)
    assert isinstance(loan, core.Loan)
    view = loan.__enter__()
    array = np.frombuffer(view, dtype="<i8")
    array[:] = (1, 2)
    with pytest.raises(BufferError):
        loan.__exit__(None, None, None)
    assert not loan.committed
    for end in (loan.commit, loan.abort):
        with pytest.raises(BufferError, match="alive"):
            end()
    del array, view
    assert loan.commit() == 0
    assert lane.drain() == OK
    assert bodies(client, queue) == [np.array([1, 2], "<i8").tobytes()]


def test_loan_that_is_dropped_sends_nothing_and_frees_the_lane(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    lane.loan(*queue, 16)
    view = lane.loan(*queue, 16).view  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="loan"):
        lane.put(*queue, b"x")
    with pytest.raises(RuntimeError, match="loan"):
        lane.loan(*queue, 16)
    del view
    gc.collect()
    assert lane.send(*queue, b"x")[:2] == (OK, 0)
    assert bodies(client, queue) == [b"x"]


def test_other_threads_wait_for_a_loan_to_end(
    lane: core.Lane, client: StoreClient, queue: QueueHandle
) -> None:
    loan = lane.loan(*queue, 5)
    assert isinstance(loan, core.Loan)
    thread, outcome = in_thread(lambda: lane.put(*queue, b"later", timeout=60))
    late, outcome_of_late = in_thread(lambda: lane.put(*queue, b"never", timeout=0.01))
    late.join()
    assert outcome_of_late == [STATUS["TIMED_OUT"]]
    with loan as view:
        view[:] = b"first"
    thread.join()
    assert outcome == [1]
    assert lane.drain() == OK
    assert bodies(client, queue) == [b"first", b"later"]


def test_large_loan_lies_in_the_chunk_memory(
    lane: core.Lane, client: StoreClient, queue: QueueHandle, chunk: core.ChunkMemory
) -> None:
    assert lane.loan(*queue, 300_000) == STATUS["TOO_LARGE"]
    lane.attach_chunk(chunk)
    for _ in range(10):
        loan = lane.loan(*queue, 300_000)
        assert isinstance(loan, core.Loan)
        with loan as view:
            np.frombuffer(view, np.uint8)[:] = 7
        aborted = lane.loan(*queue, 300_000)
        assert isinstance(aborted, core.Loan)
        aborted.abort()
    assert lane.drain(60) == OK
    assert bodies(client, queue) == [b"\x07" * 300_000] * 10
    assert chunk.used_bytes == 0


def test_loan_of_a_closed_lane_cannot_be_sent(lane: core.Lane, queue: QueueHandle) -> None:
    loan = lane.loan(*queue, 5)
    assert isinstance(loan, core.Loan)
    view = loan.view
    lane.close()
    view[:] = b"still"  # the memory is there as long as the view
    view.release()
    with pytest.raises(errors.ClosedError):
        loan.commit()
    loan.abort()


# --- the other side ends --------------------------------------------------------------------------


def test_session_that_breaks_a_rule_is_ended_and_its_waiters_are_told(
    client: StoreClient, queue: QueueHandle, store: StoreProcess
) -> None:
    lane = client.lanes[1]
    assert client.ingress is not None
    with stopped(store):
        kept = lane.put(*queue, b"never taken", keep=True)
        thread, outcome = in_thread(lambda: lane.wait(kept, None))
        ring = core.RING_DATA_PLACE + lane.capacity_bytes
        with memoryview(client.ingress) as memory:
            memory[ring : ring + 4] = (3).to_bytes(4, "little")  # no record has this size
    thread.join()
    assert outcome == [(STATUS["CLOSED"], *NO_PLACE)]
    assert lane.ended == STATUS["CORRUPT"]
    assert lane.drain() == STATUS["CLOSED"]


def test_session_that_the_broker_closes_tells_its_producer(
    client: StoreClient, queue: QueueHandle, store: StoreProcess
) -> None:
    lane = client.lanes[0]
    assert lane.send(*queue, b"x")[0] == OK
    store.call("close_session", session=client.offer.session)
    assert lane.ended == STATUS["CLOSED"]
    sequence = lane.put(*queue, b"x", keep=True)
    assert lane.wait(sequence) == (STATUS["CLOSED"], *NO_PLACE)
    lane.put_many(*queue, [b"x"] * 100, timeout=60)
    assert lane.put(*queue, b"x", timeout=60) == STATUS["CLOSED"]


def test_child_of_fork_gets_an_error_and_the_parent_goes_on() -> None:
    script = """
import gc, os, sys, tempfile
from pathlib import Path
from shmq import errors
from shmq.config import StoreConfig
from tests.support.store_process import StoreClient, StoreProcess
from tests.support.dev_shm import RUN_TOKEN
with tempfile.TemporaryDirectory(prefix="shmq-test-") as folder:
    config = StoreConfig(
        store_path=Path(folder, "store"), runtime_path=Path(folder, "run"),
        cluster_name=f"{RUN_TOKEN}fork", broker_name="b",
        commit_log_file_size_bytes=1 << 20, hot_segment_count=3, max_message_size_bytes=65536,
    )
    with StoreProcess(config) as store, StoreClient(store) as client:
        queue = store.add_queue("T")
        client.grant(queue)
        lane = client.lanes[0]
        loan = lane.loan(*queue, 5)
        pid = os.fork()
        if pid == 0:
            for use in (lambda: lane.put(*queue, b"x"), lane.drain, lane.close, loan.abort,
                        lambda: lane.next_sequence, lambda: client.reader.read(*queue, 0)):
                try:
                    use()
                except errors.ForkError:
                    continue
                os._exit(2)
            del lane, loan
            client.lanes.clear()
            gc.collect()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        with loan as view:
            view[:] = b"whole"
        assert lane.drain() == 0
        assert bytes(client.reader.read(*queue, 0)[1][0]) == b"whole"
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


def test_lane_refuses_what_is_not_its_session(client: StoreClient) -> None:
    def make(**changed: object) -> core.Lane:
        options: dict[str, object] = {
            "session": client.offer.session,
            "lane": 0,
            "event_fd": client.fds["event"],
        }
        return core.Lane(  # type: ignore[arg-type]
            client.control, client.ingress, client.completion, **{**options, **changed}
        )

    with pytest.raises(ValueError, match="session 100000"):
        make(session=100_000)
    with pytest.raises(ValueError, match="lane 7"):
        make(lane=7)
    with pytest.raises(ValueError, match="policy 9"):
        make(policy=9)
    with pytest.raises(OSError, match="Bad file"):
        make(event_fd=10_000)
    with pytest.raises(TypeError, match="want a Mapping"):
        core.Lane(b"", client.ingress, client.completion, session=0, lane=0, event_fd=0)  # type: ignore[arg-type]


# --- a store that takes nothing -------------------------------------------------------------------


def test_full_log_holds_producers_up_and_says_why() -> None:
    with StoreInThread(hot_count=1) as store:
        lane, queue = store.lane, store.queue
        sent = 0
        while lane.put(*queue, bytes(1000), timeout=0.05) >= 0:
            sent += 1
        assert lane.put(*queue, b"x", timeout=0.01) == STATUS["TIMED_OUT"]
        store.appender.set_status(-STATUS["LOG_FULL"])
        assert lane.put(*queue, b"x", timeout=0.01) == STATUS["LOG_FULL"]
        assert lane.send(*queue, b"x", timeout=0.01)[:2] == (STATUS["LOG_FULL"], -1)
        thread, outcome = in_thread(lambda: lane.put(*queue, b"x", timeout=60))
        store.appender.set_status(0)
        store.add_hot(1)
        thread.join()
        assert outcome == [sent]
        assert lane.drain() == OK
        assert store.reader.visible_max(queue[0]) == sent + 1


def test_store_that_has_failed_for_good_does_not_let_producers_wait() -> None:
    with StoreInThread(hot_count=1) as store:
        lane, queue = store.lane, store.queue
        while lane.put(*queue, bytes(1000), timeout=0.05) >= 0:
            pass
        thread, outcome = in_thread(lambda: lane.put(*queue, b"x", timeout=None))
        store.appender.set_status(-STATUS["FLUSH_FAILED"])
        store.appender.set_status(0)  # a full disk has come and gone
        assert lane.put(*queue, b"x", timeout=None) == STATUS["FLUSH_FAILED"]
        thread.join()
        assert outcome == [STATUS["FLUSH_FAILED"]]
        assert lane.drain(None) == STATUS["FLUSH_FAILED"]


def test_store_that_fails_for_good_answers_those_who_wait_for_the_disk() -> None:
    with StoreInThread() as store:
        lane, queue = store.lane, store.queue
        store.appender.set_queue(queue[0], core.ROW_ACTIVE, core.ROW_FLUSH)
        done = lane.put(*queue, b"not waiting", wait=False, keep=True)
        first = lane.put(*queue, b"waiting", keep=True)
        thread, outcome = in_thread(lambda: lane.wait(first, timeout=None))
        wait_until(lambda: lane.appended_sequence == 2)
        store.appender.set_status(-STATUS["FLUSH_FAILED"])
        thread.join()
        assert outcome[0][0] == STATUS["FLUSH_FAILED"]
        assert lane.wait(done, timeout=None)[0] == OK
        assert lane.send(*queue, b"x", timeout=None)[0] == STATUS["FLUSH_FAILED"]


def test_completion_waits_for_the_level_of_its_queue_unless_told_not_to() -> None:
    with StoreInThread() as store:
        lane, queue = store.lane, store.queue
        store.appender.set_queue(queue[0], core.ROW_ACTIVE, core.ROW_FLUSH)
        assert lane.send(*queue, b"not waiting", wait=False)[:3] == (OK, 0, 0)
        waiting = lane.put(*queue, b"waiting", keep=True)
        assert lane.wait(waiting, timeout=0.01)[0] == STATUS["TIMED_OUT"]
        wait_until(lambda: lane.appended_sequence == 2)
        assert store.reader.visible_max(queue[0]) == 0
        assert lane.drain(0.01) == STATUS["TIMED_OUT"]
        store.appender.set_queue(queue[0], core.ROW_ACTIVE, 0)
        assert lane.send(*queue, b"x")[0] == OK


def test_completion_whose_level_nobody_will_report_is_not_waited_for() -> None:
    with StoreInThread() as store:
        lane, queue = store.lane, store.queue
        store.appender.set_queue(queue[0], core.ROW_ACTIVE, core.ROW_FLUSH)
        first, second = (lane.put(*queue, b"x", keep=True) for _ in range(2))
        thread, outcome = in_thread(lambda: lane.wait(first, None))
        wait_until(lambda: lane.appended_sequence == 2)
        store.appender.detach(0)
        thread.join()
        assert outcome == [(STATUS["CLOSED"], *NO_PLACE)]
        assert lane.take(second) == (STATUS["CLOSED"], *NO_PLACE)
