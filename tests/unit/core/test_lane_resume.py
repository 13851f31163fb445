"""A lane whose broker dies: the ring goes on under the successor, each record once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq import errors
from shmq.config import StoreConfig
from shmq.core import core
from shmq.store.queues import QueueHandle
from tests.support.standing_still import stop_process
from tests.support.store_process import StoreClient, StoreProcess, wait_until
from tests.unit.core.test_lane import OK, STATUS, bodies, in_thread, is_asleep


class Pair:
    """A store that may be killed and followed by another, and a client of both."""

    def __init__(self, folder: Path, cluster_name: str) -> None:
        self.config = StoreConfig(
            store_path=folder / "store",
            runtime_path=folder / "run",
            cluster_name=cluster_name,
            broker_name="b",
            commit_log_file_size_bytes=8 << 20,
            hot_segment_count=3,
            ring_bytes=256 * 1024,
            lane_count=2,
            completion_count=64,
        )
        self.store = StoreProcess(self.config)
        self.client = StoreClient(self.store)
        self.queue: QueueHandle = self.store.add_queue("T")
        self.client.grant(self.queue)

    def freeze(self) -> None:
        """From here on nothing is taken; it will be killed."""
        stop_process(self.store.pid)

    def succeed(self) -> None:
        """Kill it, start its successor, hand the session over."""
        self.store.kill()
        self.store = self.store.restart()
        assert self.store.is_adopted
        self.client.resume(self.store)

    def close(self) -> None:
        for lane in self.client.lanes:
            lane.close()
        self.client.reader.close()
        self.client.close()
        self.store.stop()


@pytest.fixture
def pair(tmp_path: Path, cluster_name: str) -> Iterator[Pair]:
    pair = Pair(tmp_path, cluster_name)
    yield pair
    pair.close()


def test_every_kind_of_wait_goes_on_under_the_successor(pair: Pair) -> None:
    lane, queue = pair.client.lanes[0], pair.queue
    other = pair.client.lanes[1]
    assert lane.send(*queue, b"before")[0] == OK
    kept = lane.put(*queue, b"done before", keep=True)
    assert lane.drain() == OK
    pair.freeze()
    open_one = lane.put(*queue, b"published", keep=True)
    other.put_many(*queue, [b"fill"] * 64)
    waiting = [
        in_thread(lambda: lane.send(*queue, b"sent", timeout=60)),
        in_thread(lambda: lane.wait(open_one, None)),
        in_thread(lambda: other.put(*queue, b"found room", timeout=60)),
        in_thread(lambda: other.drain(60)),
    ]
    wait_until(lambda: is_asleep(lane, pair.client) and is_asleep(other, pair.client))
    pair.succeed()
    for thread, _ in waiting:
        thread.join()
    sent, waited, put, drained = (outcome[0] for _, outcome in waiting)
    assert isinstance(sent, tuple)
    assert sent[0] == OK
    assert isinstance(waited, tuple)
    assert waited[0] == OK
    assert (put, drained) == (64, OK)
    assert lane.wait(kept)[0] == OK
    assert lane.send(*queue, b"after")[0] == OK
    assert other.drain() == OK
    found = bodies(pair.client, queue)
    assert found.count(b"fill") == 64
    assert [body for body in found if body not in (b"fill", b"found room")] == [
        b"before",
        b"done before",
        b"published",
        b"sent",
        b"after",
    ]
    assert found.count(b"found room") == 1


def test_published_records_are_taken_once_by_a_successor_without_a_word(pair: Pair) -> None:
    """The successor sleeps when the session comes back; the hand-over itself wakes it."""
    lane = pair.client.lanes[0]
    pair.freeze()
    assert lane.put_many(*pair.queue, [bytes([i]) for i in range(30)])[2] == 30
    pair.succeed()
    assert lane.drain() == OK
    assert bodies(pair.client, pair.queue) == [bytes([i]) for i in range(30)]


def test_large_body_under_way_survives(pair: Pair) -> None:
    lane = pair.client.lanes[0]
    pair.client.grant_chunk(1 << 20)
    body = os.urandom(300_000)
    pair.freeze()
    assert lane.put(*pair.queue, body) >= 0
    pair.succeed()
    assert lane.drain() == OK
    for _ in range(8):
        assert lane.put(*pair.queue, body) >= 0
    assert lane.drain() == OK
    assert bodies(pair.client, pair.queue) == [body] * 9


def test_loan_may_be_open_over_the_death(pair: Pair) -> None:
    lane = pair.client.lanes[0]
    loan = lane.loan(*pair.queue, 4)
    assert isinstance(loan, core.Loan)
    with loan as view:
        pair.freeze()
        pair.succeed()
        view[:] = b"loan"
    assert lane.drain() == OK
    assert bodies(pair.client, pair.queue) == [b"loan"]


def test_unique_keys_do_not_repeat_over_the_death(pair: Pair) -> None:
    lane = pair.client.lanes[0]
    keys = {lane.send(*pair.queue, b"x")[5] for _ in range(20)}
    pair.freeze()
    pair.succeed()
    keys |= {lane.send(*pair.queue, b"x")[5] for _ in range(20)}
    assert len(keys) == 40


def test_lane_refuses_a_ring_that_stands_elsewhere(pair: Pair) -> None:
    """A second Lane on a used ring, and the slot's next session, do not stand where this one is."""
    client, queue = pair.client, pair.queue
    lane = client.lanes[0]
    for _ in range(200):
        assert lane.send(*queue, bytes(1000))[0] == OK
    event = client.fds["event"]
    with pytest.raises(errors.FencedError, match="open a new session"):
        core.Lane(
            client.control,
            client.ingress,  # type: ignore[arg-type] # a producer has one
            client.completion,
            session=client.offer.session,
            lane=0,
            event_fd=event,
        )
    pair.store.call("close_session", session=client.offer.session)
    with StoreClient(pair.store) as successor:
        assert successor.offer.session == client.offer.session
        for each in (lane, client.lanes[1]):  # the other one has sent nothing and stands at 0, too
            with pytest.raises(errors.FencedError, match="open a new session"):
                each.resume(successor.control, successor.completion, event)
        assert lane.ended == STATUS["CLOSED"]
        for each in successor.lanes:
            each.close()
        successor.reader.close()
