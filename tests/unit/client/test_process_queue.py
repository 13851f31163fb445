"""What a queue of a consumer reports: the lowest place that is not settled, whoever settles."""

import random
import threading

from shmq.client.process_queue import SPAN_MAX, UNSETTLED_COUNT_MAX, ProcessQueue
from shmq.result import MessageQueue


class Page:
    """Where a reader reports to: keeps what it was told."""

    def __init__(self) -> None:
        self.reports: list[int] = []

    def report(self, slot: int, consumer_offset: int) -> None:
        self.reports.append(consumer_offset)


class Owner:
    def __init__(self) -> None:
        self.room_count = 0

    def deliver_again(self, queue: ProcessQueue, message: object) -> None:
        raise AssertionError("nothing failed")

    def room_again(self, queue: ProcessQueue) -> None:
        queue.is_full = False
        self.room_count += 1


def queue_at(begin_offset: int = 0) -> tuple[ProcessQueue, Page, Owner]:
    page, owner = Page(), Owner()
    queue = ProcessQueue(
        owner,
        None,
        page,
        MessageQueue("t", "broker-a", 0),
        1,
        1,
        slot=0,
        claim=1,
        begin_offset=begin_offset,
    )
    return queue, page, owner


def test_in_order_each_settling_moves_the_report():
    queue, page, _ = queue_at(5)
    queue.take(range(5, 9), 40, 9)
    for offset in range(5, 9):
        queue.settle_offset(offset)
    assert page.reports == [6, 7, 8, 9]
    assert queue.unsettled_bytes == 0


def test_gap_holds_the_report_and_filtered_places_do_not():
    queue, page, _ = queue_at()
    queue.take([2, 5, 7], 3, 10)
    queue.settle_offset(7)
    queue.settle_offset(5)
    assert page.reports == []
    queue.settle_offset(2)
    assert page.reports == [10]


def test_nothing_but_filtered_messages_moves_the_report():
    queue, page, _ = queue_at()
    queue.take([], 0, 100)
    assert page.reports == [100]
    queue.take([120], 1, 130)
    queue.take([], 0, 200)
    assert page.reports == [100]
    queue.settle_offset(120)
    assert page.reports == [100, 200]


def test_settling_twice_and_settling_what_was_never_taken_change_nothing():
    queue, page, _ = queue_at()
    queue.take(range(3), 3, 3)
    queue.settle_offset(0)
    queue.settle_offset(0)
    queue.settle_offset(1)
    queue.settle_offset(2)
    queue.settle_offset(1)
    assert page.reports == [1, 2, 3]
    assert queue.unsettled_count == 0


def test_runs_settle_as_single_ones_do(rng: random.Random):
    for _ in range(200):
        queue, page, _ = queue_at()
        offsets = [0, *sorted(rng.sample(range(1, 100), 39))]
        queue.take(offsets, 40, 100)
        left = set(offsets)
        while left:
            run = sorted(rng.sample(sorted(left), rng.randint(1, len(left))))
            if rng.random() < 0.5:  # the first that are left, as receive() settles them
                run = sorted(left)[: len(run)]
            queue.settle_run(run)
            left -= set(run)
            lowest = min(left, default=100)
            assert queue.settled_offset == lowest
            assert page.reports == sorted(page.reports)


def test_dropped_queue_reports_no_more():
    queue, page, _ = queue_at()
    queue.take(range(3), 3, 3)
    queue.settle_offset(0)
    queue.drop()
    queue.settle_offset(1)
    assert page.reports == [1]


def test_full_queue_asks_for_a_look_once_there_is_room():
    queue, _, owner = queue_at()
    queue.take(range(UNSETTLED_COUNT_MAX), 1, UNSETTLED_COUNT_MAX)
    assert queue.room() == 0
    assert queue.is_full
    queue.settle_offset(7)
    assert owner.room_count == 1
    assert queue.room() == 1


def test_one_that_is_never_settled_bounds_what_is_taken_behind_it():
    queue, _, _ = queue_at()
    taken = 0
    while room := queue.room():
        queue.take(range(taken, taken + room), 1, taken + room)
        for offset in range(max(taken, 1), taken + room):
            queue.settle_offset(offset)
        taken += room
    assert taken == SPAN_MAX


def test_threads_settle_all_and_reports_never_go_back():
    queue, page, _ = queue_at()
    queue.take(range(4000), 1, 4000)
    threads = [
        threading.Thread(target=lambda n=n: [queue.settle_offset(o) for o in range(n, 4000, 4)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert page.reports == sorted(page.reports)
    assert page.reports[-1] == 4000
