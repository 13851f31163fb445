"""Reader and Batch: a consumer's side of the store, against a real store process."""

import os
import random
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shmq import errors
from shmq.config import StoreConfig
from shmq.core import core
from shmq.core.fields import field_place
from shmq.store.queues import QueueHandle
from shmq.subscription import tags_code
from tests.support.rocketmq_decoder import java_hash
from tests.support.store_process import StoreClient, StoreProcess, wait_until
from tests.unit.core.log_in_memory import ENTRY, FILE_SIZE, LogInMemory
from tests.unit.core.test_lane import OK, STATUS, in_thread

Read = Callable[..., tuple[int, list[bytes], int]]


def send(client: StoreClient, queue: QueueHandle, *bodies: bytes, tag: str | None = None) -> None:
    assert client.lanes[0].put_many(*queue, bodies, tag, timeout=60)[2] == len(bodies)
    assert client.lanes[0].drain(60) == OK


def is_asleep(client: StoreClient) -> bool:
    assert client.consumer is not None
    return client.consumer.load32(core.SLEEPERS_PLACE) % 2 == 1


# --- reading --------------------------------------------------------------------------------------


def test_read_gives_messages_in_order_and_where_to_go_on(
    client: StoreClient, queue: QueueHandle
) -> None:
    reader = client.reader
    assert reader.read(*queue, 0) == (STATUS["EMPTY"], [], 0)
    send(client, queue, *(f"{i}".encode() for i in range(1000)))
    found: list[bytes] = []
    place = 0
    while place < 1000:
        status, messages, place = reader.read(*queue, place, 7)
        assert status == OK
        assert len(messages) == min(7, 1000 - len(found))
        assert [m.queue_offset for m in messages] == list(range(len(found), place))
        found += [bytes(message) for message in messages]
    assert found == [f"{i}".encode() for i in range(1000)]
    assert reader.read(*queue, 1000) == (STATUS["EMPTY"], [], 1000)
    for place in random.Random(3).sample(range(1000), 50):
        assert bytes(reader.read(*queue, place, 1)[1][0]) == f"{place}".encode()


def test_read_sees_nothing_beyond_visible_max(client: StoreClient, queue: QueueHandle) -> None:
    send(client, queue, b"a", b"b")
    reader = client.reader
    assert reader.visible_max(queue.row) == reader.max_queue_offset(queue.row) == 2
    assert reader.min_queue_offset(queue.row) == reader.hot_min_queue_offset(queue.row) == 0
    assert reader.read(*queue, 2)[0] == reader.read(*queue, 1 << 60)[0] == STATUS["EMPTY"]


def test_tag_filter_skips_before_the_message_is_touched(
    client: StoreClient, queue: QueueHandle
) -> None:
    for i in range(30):
        send(client, queue, f"{i}".encode(), tag=("red", "green", "blüe")[i % 3])
    send(client, queue, b"none")
    reader = client.reader
    red, green = java_hash("red"), java_hash("green")
    for codes in (frozenset({red}), (red,), [red], {red}):
        status, messages, place = reader.read(*queue, 0, 100, codes)
        assert (status, place) == (OK, 31)
        assert [m.tag for m in messages] == ["red"] * 10
    _, messages, place = reader.read(*queue, 0, 5, {red, green, java_hash("blüe")})
    assert [m.queue_offset for m in messages] == [0, 1, 2, 3, 4]
    _, messages, place = reader.read(*queue, 0, 2, (green,))
    assert ([m.queue_offset for m in messages], place) == ([1, 4], 5)
    # Entries that do not match count: the consumer goes on behind them.
    assert reader.read(*queue, 0, 100, (12345,)) == (STATUS["EMPTY"], [], 31)
    assert [bytes(m) for m in reader.read(*queue, 0, 100, (0,))[1]] == [b"none"]
    assert tags_code("red") == red


def test_codes_that_cannot_change_are_remembered_and_others_looked_at_anew(
    client: StoreClient, queue: QueueHandle
) -> None:
    send(client, queue, b"a", tag="a")
    send(client, queue, b"b", tag="b")
    codes = [java_hash("a")]
    assert [m.tag for m in client.reader.read(*queue, 0, 9, codes)[1]] == ["a"]
    codes[0] = java_hash("b")
    assert [m.tag for m in client.reader.read(*queue, 0, 9, codes)[1]] == ["b"]
    with pytest.raises(TypeError):
        client.reader.read(*queue, 0, 9, ["x"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="tag codes"):
        client.reader.read(*queue, 0, 9, range(5000))


def test_handle_of_a_deleted_queue_is_fenced(
    client: StoreClient, queue: QueueHandle, store: StoreProcess, request: pytest.FixtureRequest
) -> None:
    send(client, queue, b"a")
    client.reader.watch(*queue, 1)
    store.call("delete_queue", topic=request.node.name, queue_id=0)
    assert client.reader.read(*queue, 0)[0] == STATUS["FENCED"]
    assert client.reader.wait(0) == queue.row  # a read tells what happened


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"row": 1 << 30}, ValueError),
        ({"row": -1}, ValueError),
        ({"generation": 0}, ValueError),
        ({"queue_offset": -1}, ValueError),
        ({"queue_offset": "x"}, TypeError),
        ({"max_count": 0}, ValueError),
        ({"max_count": 1 << 31}, ValueError),
        ({"tag_codes": 5}, TypeError),
        ({"tag_codes": [1 << 70]}, OverflowError),
        ({"timeout": "x"}, TypeError),
        ({"nonsense": 1}, TypeError),
    ],
    ids=repr,
)
def test_bad_argument_is_refused(
    arguments: dict[str, object], error: type[Exception], client: StoreClient, queue: QueueHandle
) -> None:
    given = {"row": queue.row, "generation": queue.generation, "queue_offset": 0, **arguments}
    for verb in (client.reader.read, client.reader.read_columns):
        with pytest.raises(error):
            verb(**given)  # type: ignore[arg-type]


def test_many_queues_are_read_by_turns(client: StoreClient, store: StoreProcess) -> None:
    """Each row keeps its own place in its chain of blocks."""
    queues = [store.add_queue("Turns", number) for number in range(50)]
    client.grant(*queues)
    for i in range(400):
        for queue in queues[i % 2 :: 2]:
            client.lanes[0].put(*queue, f"{queue.row}:{i // 2}".encode())
    assert client.lanes[0].drain(60) == OK
    places = dict.fromkeys(queues, 0)
    for _ in range(20):
        for queue in queues:
            _, messages, places[queue] = client.reader.read(*queue, places[queue], 10)
            wanted = range(places[queue] - 10, places[queue])
            assert [bytes(m) for m in messages] == [f"{queue.row}:{i}".encode() for i in wanted]


# --- batches --------------------------------------------------------------------------------------


def test_columns_say_what_the_messages_say(client: StoreClient, queue: QueueHandle) -> None:
    wanted = [bytes([i % 256]) * (i % 50) for i in range(500)]
    send(client, queue, *wanted, tag="red")
    status, batch, place = client.reader.read_columns(*queue, 0, 1000)
    assert (status, len(batch), place) == (OK, 500, 500)
    _, messages, _ = client.reader.read(*queue, 0, 1000)
    for name, column in (
        ("queue_offset", batch.queue_offsets),
        ("physical_offset", batch.physical_offsets),
        ("size", batch.sizes),
    ):
        assert column.format == "Q"
        assert column.readonly
        assert np.asarray(column).dtype == np.uint64
        assert column.tolist() == [getattr(message, name) for message in messages]
    assert batch.body_sizes.tolist() == [len(body) for body in wanted]
    assert [bytes(body) for body in batch.bodies()] == wanted
    assert batch.bodies(copy=True) == wanted
    copied, places = batch.copy_bodies()
    assert copied == b"".join(wanted)
    assert [copied[places[i] : places[i + 1]] for i in range(500)] == wanted
    assert bytes(batch[3]) == bytes(batch[-497]) == wanted[3]
    assert batch[3].tag == "red"
    with pytest.raises(IndexError):
        batch[500]
    with pytest.raises(BufferError, match="columns"):
        memoryview(batch)
    addresses = batch.body_addresses.tolist()
    view = np.frombuffer(batch.bodies()[7], np.uint8)
    assert view.__array_interface__["data"][0] == addresses[7]


def test_batch_is_filtered_and_may_be_empty(client: StoreClient, queue: QueueHandle) -> None:
    status, batch, place = client.reader.read_columns(*queue, 0)
    assert (status, len(batch), place) == (STATUS["EMPTY"], 0, 0)
    assert batch.queue_offsets.tolist() == batch.bodies() == []
    assert batch.copy_bodies()[0] == b""
    send(client, queue, b"a", b"b", tag="x")
    send(client, queue, b"c", tag="y")
    status, batch, place = client.reader.read_columns(*queue, 0, 9, (java_hash("y"),))
    assert (status, batch.queue_offsets.tolist(), place) == (OK, [2], 3)


def test_batch_outlives_reader_and_map(client: StoreClient, queue: QueueHandle) -> None:
    send(client, queue, b"kept", bytes(10_000), b"kept too", *[bytes(8_000)] * 12, b"last")
    _, batch, _ = client.reader.read_columns(*queue, 0)
    client.reader.close()
    client.log_map.close()
    bodies, column = batch.bodies(), batch.queue_offsets
    assert len(batch.copy_bodies()[0]) == 106_016
    message = batch[0]
    del batch
    assert (bytes(bodies[0]), bytes(bodies[-1]), bytes(message)) == (b"kept", b"last", b"kept")
    assert column.tolist() == list(range(16))


# --- holes and damage -----------------------------------------------------------------------------


def test_hole_is_skipped_and_counted(log: LogInMemory) -> None:
    """A hole has no tag any more: whoever reads, with whatever filter, is told that one is lost."""
    for i in range(5):
        log.put(f"{i}".encode(), tags_code=7)
    log.map()
    log.entries[2] = ENTRY.pack(0, 0, 0)
    status, messages, place = log.reader.read_entries(b"".join(log.entries), 0, tag_codes=(7,))
    assert (status, place) == (OK, 5)
    assert [bytes(m) for m in messages] == [b"0", b"1", b"3", b"4"]
    assert log.reader.lost_count == 1


@pytest.mark.parametrize(
    "entry",
    [
        ENTRY.pack(1, 0, 122),  # no frame begins there
        ENTRY.pack(0, 0, 121),  # another size
        ENTRY.pack(0, 0, 90),  # smaller than any frame
        ENTRY.pack(0, 0, (1 << 32) + 122),  # cut to 32 bits it would fit
        ENTRY.pack(65_500, 0, 200),  # beyond the file
        ENTRY.pack(122, 0, 122),  # the frame of another queue_offset
    ],
)
def test_entry_that_lies_about_its_frame_is_skipped_and_counted(
    entry: bytes, log: LogInMemory
) -> None:
    assert log.put(b"12345") == 0
    assert log.put(b"12345") == 122
    log.map()
    status, messages, place = log.reader.read_entries(entry, 0)
    if entry[16:] == ENTRY.pack(0, 0, (1 << 32) + 122)[16:]:
        assert [len(m) for m in messages] in ([5], [])
        return
    assert (status, messages, place) == (STATUS["EMPTY"], [], 1)
    assert log.reader.lost_count == 1


def test_frame_that_would_leave_its_file_is_no_message(log: LogInMemory) -> None:
    """Its head is right and lies in the file; the rest would lie behind the mapping."""
    place, size = FILE_SIZE - 36, 200
    log.write(place, struct.pack(">IIIIIQQ", size, 0xDAA320A7, 0, 0, 0, 0, place))
    log.map()
    assert log.reader.read_entries(ENTRY.pack(place, 0, size), 0)[1] == []
    assert log.reader.lost_count == 1


def _damaged_log(log: LogInMemory, *, hot: bool) -> bytes:
    """Entries of three messages, the second of them with a byte that nobody sent."""
    log.put(b"good")
    place = log.put(b"damaged", {"a": "b"})
    log.put(b"good too")
    log.map(hot=hot)
    log.write(place + 90, b"\xff")
    return b"".join(log.entries)


def test_damage_inside_a_frame_in_memory_is_found_when_asked_for(log: LogInMemory) -> None:
    entries = _damaged_log(log, hot=True)
    assert len(log.reader.read_entries(entries, 0)[1]) == 3
    assert log.reader.lost_count == 0
    _, messages, next_offset = log.reader.read_entries(entries, 0, verify=True)
    assert [bytes(m) for m in messages] == [b"good", b"good too"]
    assert next_offset == 3
    assert log.reader.lost_count == 1


def test_damage_inside_a_frame_in_a_file_is_always_found(log: LogInMemory) -> None:
    """A disk may have changed what memory had right."""
    entries = _damaged_log(log, hot=False)
    _, messages, next_offset = log.reader.read_entries(entries, 0)
    assert [bytes(m) for m in messages] == [b"good", b"good too"]
    assert next_offset == 3
    assert log.reader.lost_count == 1


def test_entries_must_be_whole_and_aligned(log: LogInMemory) -> None:
    log.put(b"x")
    log.map()
    with pytest.raises(ValueError, match="24 bytes"):
        log.reader.read_entries(log.entries[0] + b"x", 0)
    with pytest.raises(ValueError, match="aligned"):
        log.reader.read_entries(memoryview(b"x" + log.entries[0])[1:], 0)
    with pytest.raises(TypeError):
        log.reader.read_entries("text", 0)  # type: ignore[arg-type]


def test_message_is_found_by_its_place_in_the_log(client: StoreClient, queue: QueueHandle) -> None:
    *_, physical_offset, _, key = client.lanes[0].send(*queue, b"found")
    message = client.reader.message_at(physical_offset)
    assert message is not None
    assert (bytes(message), message.message_id) == (b"found", key)
    assert client.reader.message_at(physical_offset + 8) is None  # inside a frame
    assert client.reader.message_at(1 << 50) is None  # not written yet


# --- waiting --------------------------------------------------------------------------------------


def test_wait_returns_a_row_that_has_something(client: StoreClient, queue: QueueHandle) -> None:
    reader = client.reader
    assert reader.wait(0) == -1
    reader.watch(*queue, 0)
    assert reader.wait(0) == reader.wait(0.01) == -1
    send(client, queue, b"x")
    assert reader.wait(0) == reader.wait(60) == queue.row
    reader.watch(*queue, 1)  # from here on
    assert reader.wait(0) == -1
    reader.unwatch(queue.row)
    send(client, queue, b"y")
    assert reader.wait(0.01) == -1
    reader.unwatch(queue.row)


@pytest.mark.parametrize("policy", [core.WAIT_BLOCKING, core.WAIT_ADAPTIVE, core.WAIT_BUSY_SPIN])
def test_sleeping_consumer_is_woken_by_a_message(store: StoreProcess, policy: int) -> None:
    with StoreClient(store, policy=policy) as client:
        queue = store.add_queue("Wait", policy)
        client.grant(queue)
        client.subscribe(queue)
        client.reader.watch(*queue, 0)
        thread, outcome = in_thread(lambda: client.reader.wait(None))
        if policy != core.WAIT_BUSY_SPIN:
            wait_until(lambda: is_asleep(client))
        send(client, queue, b"x")
        thread.join()
        assert outcome == [queue.row]
        for lane in client.lanes:
            lane.close()
        client.reader.close()


def test_no_queue_starves_another(client: StoreClient, store: StoreProcess) -> None:
    queues = [store.add_queue("Fair", number) for number in range(5)]
    client.grant(*queues)
    for queue in queues:
        send(client, queue, b"x")
        client.reader.watch(*queue, 0)
    seen = [client.reader.wait(0) for _ in range(10)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == sorted(queue.row for queue in queues)


def test_watched_rows_come_and_go_in_any_order(client: StoreClient, store: StoreProcess) -> None:
    generator = random.Random(11)
    queues = [store.add_queue("Watch", number) for number in range(40)]
    client.grant(*queues)
    for queue in queues:
        client.lanes[0].put(*queue, b"x")
    assert client.lanes[0].drain(60) == OK
    watched: set[int] = set()
    for _ in range(500):
        queue = generator.choice(queues)
        if queue.row in watched:
            watched.remove(queue.row)
            client.reader.unwatch(queue.row)
        else:
            watched.add(queue.row)
            client.reader.watch(*queue, 0)
        assert {client.reader.wait(0) for _ in range(len(watched) or 1)} == (watched or {-1})


def test_thread_that_waits_sees_what_is_watched_meanwhile(
    client: StoreClient, queue: QueueHandle
) -> None:
    send(client, queue, b"there already")
    thread, outcome = in_thread(lambda: client.reader.wait(60))
    wait_until(lambda: is_asleep(client))
    client.reader.watch(*queue, 0)
    thread.join()
    assert outcome == [queue.row]


def test_readers_that_share_a_bell_wait_each_for_its_own_queues(
    client: StoreClient, store: StoreProcess
) -> None:
    queues = [store.add_queue("Shared", number) for number in range(2)]
    client.grant(*queues)
    for queue in queues:
        client.subscribe(queue)
    readers = [client.reader.share(), client.reader.share()]
    for reader, queue in zip(readers, queues, strict=True):
        reader.watch(*queue, 0)
    waits = [in_thread(lambda r=reader: r.wait(60)) for reader in readers]
    wait_until(lambda: is_asleep(client))
    send(client, queues[1], b"x")  # rings for both, and is one's alone
    waits[1][0].join()
    assert waits[1][1] == [queues[1].row]
    assert waits[0][1] == []
    readers[1].close()  # who shares it goes on
    send(client, queues[0], b"x")
    waits[0][0].join()
    assert waits[0][1] == [queues[0].row]
    readers[0].close()


def test_one_wait_is_for_the_readers_of_several_sessions(
    client: StoreClient, store: StoreProcess
) -> None:
    with StoreClient(store) as other:
        queues = [store.add_queue("Several", number) for number in range(2)]
        readers = (client.reader, other.reader)
        for each, queue in zip((client, other), queues, strict=True):
            each.grant(queue)
            each.subscribe(queue)
            each.reader.watch(*queue, 0)
        assert core.Reader.wait_any(readers, 0) == core.Reader.wait_any(readers, 0.01) == -1
        for index, each in enumerate((client, other)):
            thread, outcome = in_thread(lambda: core.Reader.wait_any(readers, 60))
            wait_until(lambda: is_asleep(client) and is_asleep(other))
            send(each, queues[index], b"x")
            thread.join()
            assert outcome == [index]
            each.reader.watch(*queues[index], 1)
        thread, outcome = in_thread(lambda: core.Reader.wait_any(readers, 60))
        wait_until(lambda: is_asleep(client) and is_asleep(other))
        other.reader.wake()
        thread.join()
        assert outcome == [1]
        thread, outcome = in_thread(lambda: core.Reader.wait_any(readers, 60))
        wait_until(lambda: is_asleep(client) and is_asleep(other))
        other.reader.close()
        thread.join()
        assert isinstance(outcome[0], errors.ClosedError)
        for lane in other.lanes:
            lane.close()
    with pytest.raises(ValueError, match="1 to 128"):
        core.Reader.wait_any((), 0)
    with pytest.raises(TypeError, match="want a Reader"):
        core.Reader.wait_any((client,), 0)  # type: ignore[arg-type]


def test_message_tells_the_keeper_that_the_read_named(
    client: StoreClient, queue: QueueHandle
) -> None:
    class Keeper:
        def __init__(self) -> None:
            self.told: list[tuple[str, int]] = []

        def process(self, message: core.Message) -> str:
            self.told.append(("process", message.queue_offset))
            return "a context"

        def settle(self, message: core.Message) -> None:
            self.told.append(("settle", message.queue_offset))

    send(client, queue, b"a", b"b")
    keeper = Keeper()
    _, messages, _ = client.reader.read(*queue, 0, keeper=keeper)  # type: ignore[arg-type]
    assert messages[1].process() == "a context"  # type: ignore[comparison-overlap]
    messages[0].settle()
    assert keeper.told == [("process", 1), ("settle", 0)]
    _, nobodys, _ = client.reader.read(*queue, 0)
    with pytest.raises(TypeError, match="no consumer"):
        nobodys[0].process()


def test_wake_ends_the_wait_that_is_on_or_else_the_next(
    client: StoreClient, queue: QueueHandle
) -> None:
    client.reader.watch(*queue, 0)
    client.reader.wake()
    assert client.reader.wait(60) == -1
    thread, outcome = in_thread(lambda: client.reader.wait(60))
    wait_until(lambda: is_asleep(client))
    client.reader.wake()
    thread.join()
    assert outcome == [-1]


def test_several_threads_may_wait_on_one_reader(client: StoreClient, queue: QueueHandle) -> None:
    client.reader.watch(*queue, 0)
    waiting = [in_thread(lambda: client.reader.wait(60)) for _ in range(4)]
    wait_until(lambda: is_asleep(client))
    send(client, queue, b"x")
    for thread, outcome in waiting:
        thread.join()
        assert outcome == [queue.row]


def test_close_gets_the_waiter_up(client: StoreClient, queue: QueueHandle) -> None:
    client.reader.watch(*queue, 0)
    thread, outcome = in_thread(lambda: client.reader.wait(None))
    wait_until(lambda: is_asleep(client))
    client.reader.close()
    client.reader.close()
    thread.join()
    assert isinstance(outcome[0], errors.ClosedError)
    with pytest.raises(errors.ClosedError):
        client.reader.read(*queue, 0)


def test_interrupt_ends_the_wait(client: StoreClient, queue: QueueHandle) -> None:
    client.reader.watch(*queue, 0)

    def interrupt() -> None:
        wait_until(lambda: is_asleep(client))
        os.kill(os.getpid(), signal.SIGINT)

    thread, _ = in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.reader.wait(None)
    thread.join()


def test_reader_without_a_bell_does_not_wait(log: LogInMemory) -> None:
    assert log.reader.wait(0) == -1
    with pytest.raises(ValueError, match="no consumer page"):
        log.reader.wait(1)


def test_messages_pass_from_one_process_to_another_under_load(store: StoreProcess) -> None:
    """Producer and consumer threads with sessions of their own; none lost, in order."""
    count = 20_000
    with StoreClient(store) as producer, StoreClient(store) as consumer:
        queue = store.add_queue("Load")
        producer.grant(queue)
        consumer.subscribe(queue)

        def produce() -> None:
            for i in range(count):
                assert producer.lanes[0].put(*queue, i.to_bytes(4, "little"), timeout=60) >= 0

        thread, outcome = in_thread(produce)
        place = 0
        while place < count:
            consumer.reader.watch(*queue, place)
            assert consumer.reader.wait(60) == queue.row
            status, batch, after = consumer.reader.read_columns(*queue, place, 1000)
            assert status == OK
            numbers = np.frombuffer(batch.copy_bodies()[0], "<u4")
            assert numbers.tolist() == list(range(place, after))
            place = after
        thread.join()
        assert outcome == [None]
        for client in (producer, consumer):
            for lane in client.lanes:
                lane.close()
            client.reader.close()


# --- the consumer page ----------------------------------------------------------------------------


def test_claims_and_reports_lie_in_the_consumer_page(
    client: StoreClient, queue: QueueHandle
) -> None:
    reader = client.reader
    assert client.consumer is not None
    size = core.LAYOUT["claim"][0]

    def words(index: int) -> tuple[int, int, int, int]:
        place = core.CLAIMS_PLACE + index * size
        page = client.consumer
        assert page is not None
        return (
            page.load64(place + field_place("claim", "claim")),
            page.load64(place + field_place("claim", "consumer_offset")),
            page.load32(place + field_place("claim", "queue_row")),
            page.load32(place + field_place("claim", "row_generation")),
        )

    last = reader.claim_capacity - 1
    assert last == client.offer.claim_capacity - 1 or last > 0
    for index in (0, last):
        reader.claim(index, 77, *queue, 5)
        assert words(index) == (77, 5, queue.row, queue.generation)
        reader.report(index, 9)
        assert words(index)[:2] == (77, 9)
        reader.drop_claim(index)
        assert words(index)[0] == 0
    for verb in (
        lambda: reader.claim(last + 1, 1, *queue, 0),
        lambda: reader.report(last + 1, 0),
        lambda: reader.drop_claim(last + 1),
    ):
        with pytest.raises(ValueError, match="consumer page has"):
            verb()


# --- retiring under a reader ----------------------------------------------------------------------


def test_views_hold_their_bytes_while_the_log_rolls_on(tmp_path: Path, cluster_name: str) -> None:
    """A consumer that keeps every view: hot segments are replaced by files under it, and reused."""
    file_size = 256 * 1024
    config = StoreConfig(
        store_path=tmp_path / "store",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        broker_name="b",
        commit_log_file_size_bytes=file_size,
        hot_segment_count=3,
        max_message_size_bytes=64 * 1024,
    )
    with StoreProcess(config) as store, StoreClient(store) as client:
        queue = store.add_queue("T")
        client.grant(queue)
        generator = random.Random(1)
        wanted: list[bytes] = []
        views: list[memoryview] = []
        place = 0
        while len(wanted) < 12 * file_size // 4000:
            wanted.append(generator.randbytes(4000))
            assert client.lanes[0].send(*queue, wanted[-1], timeout=60)[0] == OK
            if len(wanted) % 10 == 0:
                status, messages, place = client.reader.read(*queue, place, 1000)
                assert status == OK
                views += [message.body for message in messages]
        _, messages, place = client.reader.read(*queue, place, 1000)
        views += [message.body for message in messages]
        assert client.log_map.remap_count >= 5
        assert client.log_map.refused_count == 0
        assert [bytes(view) for view in views] == wanted
        # Let go of them: the files stay mapped up to the bound, and come back on demand.
        del views, messages
        for file_position, _, _ in client.log_map.files():
            client.log_map.forget(file_position)
        status, messages, _ = client.reader.read(*queue, place - 20, 20)
        assert status == OK
        assert [bytes(message) for message in messages] == wanted[-20:]
        for lane in client.lanes:
            lane.close()
        del messages
        client.reader.close()


def test_reader_is_of_one_store(log: LogInMemory) -> None:
    with (
        core.LogMap(file_size=4096) as other,
        pytest.raises(ValueError, match="files of 4096 bytes"),
    ):
        core.Reader(log.control, log.arena, other)
    with pytest.raises(ValueError, match="bell 9"):
        core.Reader(log.control, log.arena, log.log_map, bell=9)
    with pytest.raises(TypeError):
        core.Reader(log.control, log.arena, None)  # type: ignore[arg-type]


def test_readers_in_threads_share_one_log_map(client: StoreClient, queue: QueueHandle) -> None:
    wanted = [f"{i}".encode() * 10 for i in range(2000)]
    send(client, queue, *wanted)
    failures: list[object] = []

    def read_all() -> None:
        reader = core.Reader(client.control, client.arena, client.log_map)
        _, messages, _ = reader.read(*queue, 0, 2000)
        if [bytes(message) for message in messages] != wanted:
            failures.append(messages)
        reader.close()

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
