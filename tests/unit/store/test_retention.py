"""When files go: by which clock, after which rules; and what goes with them, in a real store."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq.config import StoreConfig
from shmq.core import core
from shmq.errors import DiskFullError
from shmq.store.expire import ExpiredFile, KeptFile
from shmq.store.message_store import MessageStore
from shmq.store.retention import HOLD_MS, AgeClock, DiskUsage, Retention, Round, plan_round
from tests.support.clock import SteppedClock
from tests.support.store_process import ClientSide, wait_until

OK = core.STATUS["OK"][0]
FILE_SIZE = 1 << 20
HOUR_MS = 3_600_000
RESERVED_MS = 72 * HOUR_MS
ALWAYS = ";".join(f"{hour:02d}" for hour in range(24))
AMPLE = DiskUsage(1 << 30, 100 << 30)


# ---- the clock -----------------------------------------------------------------------------------


def age_clock(clock: SteppedClock, *, last_store_ms: int | None = None) -> AgeClock:
    last = clock.wall_ms() if last_store_ms is None else last_store_ms
    return AgeClock(clock, last_store_ms=last, reserved_ms=RESERVED_MS)


@pytest.mark.parametrize("years", [10, -10])
def test_step_of_the_wall_clock_counts_only_after_it_has_held_for_an_hour(years: int) -> None:
    clock = SteppedClock()
    ages = age_clock(clock)
    begin_ms = clock.wall_ms()
    step_ms = years * 365 * 24 * HOUR_MS
    clock.jump_wall(ms=step_ms)
    assert ages.now_ms() == begin_ms
    clock.advance(ms=HOLD_MS - 1000)
    assert ages.now_ms() == begin_ms + HOLD_MS - 1000
    clock.advance(ms=1000)
    assert ages.now_ms() == begin_ms + step_ms + HOLD_MS


def test_clock_that_was_set_right_again_never_counted() -> None:
    clock = SteppedClock()
    ages = age_clock(clock)
    for _ in range(10):  # each step begins the hour anew
        clock.jump_wall(ms=100 * HOUR_MS)
        assert ages.now_ms() == clock.wall_ms() - 100 * HOUR_MS
        clock.advance(ms=HOLD_MS // 2)
        assert ages.now_ms() == clock.wall_ms() - 100 * HOUR_MS
        clock.jump_wall(ms=-100 * HOUR_MS)
        assert ages.now_ms() == clock.wall_ms()


def test_slow_drift_is_followed() -> None:
    clock = SteppedClock()
    ages = age_clock(clock)
    for _ in range(100):
        clock.advance(ms=10_000)
        clock.jump_wall(ms=500)
        assert ages.now_ms() == clock.wall_ms()


def test_start_after_which_everything_would_go_at_once_waits_an_hour() -> None:
    clock = SteppedClock()
    last_ms = clock.wall_ms() - 100 * HOUR_MS
    ages = age_clock(clock, last_store_ms=last_ms)
    assert ages.now_ms() == last_ms
    clock.advance(ms=HOLD_MS)
    assert ages.now_ms() == clock.wall_ms()


@pytest.mark.parametrize("last_hours_ago", [71, 0, -1000])
def test_start_with_a_newest_message_that_stays_believes_the_wall_clock(last_hours_ago: int):
    clock = SteppedClock()
    ages = age_clock(clock, last_store_ms=clock.wall_ms() - last_hours_ago * HOUR_MS)
    assert ages.now_ms() == clock.wall_ms()


def test_empty_store_believes_the_wall_clock() -> None:
    clock = SteppedClock()
    assert age_clock(clock, last_store_ms=0).now_ms() == clock.wall_ms()


# ---- the rules -----------------------------------------------------------------------------------

NOW_MS = 1_800_000_000_000


def plan(
    hours: list[float],
    *,
    is_time: bool = True,
    disk: DiskUsage = AMPLE,
    min_position: int = 0,
    **settings: object,
) -> Round:
    """For files whose newest messages are so many hours old."""
    config = StoreConfig(store_path=Path("/nowhere"), **settings)  # type: ignore[arg-type]
    files = [
        KeptFile(number * FILE_SIZE, FILE_SIZE, NOW_MS - int(age * HOUR_MS))
        for number, age in enumerate(hours)
    ]
    return plan_round(
        files,
        min_position=min_position,
        now_ms=NOW_MS,
        is_time=is_time,
        disk=disk,
        config=config,
    )


def numbers(decided: Round) -> list[int]:
    return [position // FILE_SIZE for position in decided.file_positions]


def disk(ratio: int) -> DiskUsage:
    """A disk of 100 files, so full."""
    return DiskUsage(ratio * FILE_SIZE, (100 - ratio) * FILE_SIZE)


def test_files_of_72_hours_go_and_younger_ones_stay() -> None:
    assert numbers(plan([200, 72, 71.9, 1])) == [0, 1]
    assert numbers(plan([200, 72, 71.9, 1], file_reserved_hours=1)) == [0, 1, 2, 3]


def test_nothing_goes_at_another_hour_unless_the_disk_is_three_quarters_full() -> None:
    assert numbers(plan([200, 1], is_time=False)) == []
    assert numbers(plan([200, 1], is_time=False, disk=disk(75))) == []
    assert numbers(plan([200, 1], is_time=False, disk=disk(76))) == [0]


def test_young_file_keeps_those_behind_it_whatever_their_age() -> None:
    assert numbers(plan([200, 1, 200])) == [0]


def test_at_most_ten_files_go_in_a_round() -> None:
    assert numbers(plan([200] * 30)) == list(range(10))
    assert numbers(plan([200] * 30, delete_file_batch_max=3)) == [0, 1, 2]


def test_fuller_disk_than_85_percent_takes_as_many_young_files_as_it_needs() -> None:
    assert numbers(plan([1] * 20, is_time=False, disk=disk(85))) == []
    assert numbers(plan([1] * 20, is_time=False, disk=disk(88))) == [0, 1, 2]
    assert numbers(plan([100] * 5 + [1] * 20, is_time=False, disk=disk(88))) == [0, 1, 2, 3, 4]
    off = plan([1] * 20, is_time=False, disk=disk(88), clean_file_forcibly_enable=False)
    assert numbers(off) == []


def test_disk_that_others_fill_takes_no_message_before_its_time() -> None:
    decided = plan([100, 1, 1], is_time=False, disk=disk(95))
    assert numbers(decided) == [0]  # more than 75 percent: what has expired goes
    assert decided.is_in_vain
    assert not plan([1] * 20, is_time=False, disk=disk(95)).is_in_vain


def test_large_disk_with_room_enough_is_never_full() -> None:
    large = DiskUsage(990 << 30, 10 << 30)
    assert numbers(plan([200, 1], is_time=False, disk=large)) == []
    as_rocketmq = plan([200, 1], is_time=False, disk=large, disk_ample_free_bytes=1 << 50)
    assert numbers(as_rocketmq) == [0]


def test_what_was_begun_is_ended_first_at_any_hour() -> None:
    assert numbers(plan([1, 1, 200], is_time=False, min_position=2 * FILE_SIZE)) == [0, 1]


# ---- a store -------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock(wall_ms=time.time_ns() // 1_000_000)


@pytest.fixture
def config(tmp_path: Path, cluster_name: str) -> StoreConfig:
    return StoreConfig(
        store_path=tmp_path / "store",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=FILE_SIZE,
        hot_segment_count=8,
        lane_count=1,
        max_message_size_bytes=256 << 10,
        delete_when=ALWAYS,
        delete_commit_log_files_interval_ms=0,
        clean_resource_interval_ms=HOUR_MS,  # rounds by the test's hand only
    )


@contextlib.contextmanager
def reading(store: MessageStore) -> Iterator[ClientSide]:
    offer = store.sessions.open(uid=os.getuid(), pid=os.getpid(), pid_start_time=1)
    fds, offer.fds = offer.fds, {}
    client = ClientSide(offer, fds)  # type: ignore[arg-type] # an Offer is what came over a socket
    try:
        yield client
    finally:
        client.close()
        store.sessions.close(offer.session, offer.generation)


def fill(store: MessageStore, count: int) -> None:
    """`count` messages of 200 KiB in turn in two queues, five in a file; all files derived."""
    handles = [store.queues.add("orders", queue_id) for queue_id in (0, 1)]
    with reading(store) as client:
        store.sessions.grant(client.offer.session, [handle.row for handle in handles])
        for number in range(count):
            assert client.lanes[0].send(*handles[number % 2], bytes(200 << 10))[0] == OK
    complete = (store.positions.committed_position // FILE_SIZE) * FILE_SIZE
    is_any = complete > store.positions.min_position
    wait_until(lambda: not is_any or store._derive.is_derived(complete - FILE_SIZE))


def file_numbers(store: MessageStore) -> list[int]:
    """Files of the log, without those made ahead."""
    names = sorted(os.listdir(store.config.store_path / "commitlog"))
    end = store.positions.committed_position
    return [int(name) // FILE_SIZE for name in names if int(name) < end]


def mins(store: MessageStore) -> list[int]:
    queues = store.queues
    return [queues.offsets(queues.find("orders", q)).min_queue_offset for q in (0, 1)]


def test_expired_files_go_with_all_that_belongs_to_them(config: StoreConfig, clock: SteppedClock):
    told: list[ExpiredFile] = []
    with MessageStore(config, clock=clock, on_expired=told.append) as store:
        fill(store, 28)
        assert file_numbers(store) == [0, 1, 2, 3, 4, 5]
        clock.advance(ms=RESERVED_MS - HOUR_MS)
        assert store.retention.round() == []
        clock.advance(ms=2 * HOUR_MS)
        gone = store.retention.round()
        assert [one.file_position // FILE_SIZE for one in gone] == [0, 1, 2, 3, 4]
        assert told == gone
        assert [tuple(span) for span in gone[0].spans] == [("orders", 0, 0, 3), ("orders", 1, 0, 2)]
        assert file_numbers(store) == [5]
        derived = config.store_path / "shmq" / "consumequeue"
        assert sorted(os.listdir(derived)) == []
        assert store.positions.min_position == 5 * FILE_SIZE
        assert mins(store) == [13, 12]
        assert store.retention.expired_file_count == 5
        assert store.read_cold("orders", 0, 3, 10) is None
        with reading(store) as client:
            handle = store.queues.find("orders", 0)
            status, messages, _ = client.reader.read(*handle, 0, 100)
            assert (status, messages) == (core.STATUS["OFFSET_TOO_SMALL"][0], [])
            _, messages, _ = client.reader.read(*handle, 13, 100)
            assert [message.queue_offset for message in messages] == [13]
    with MessageStore(config, clock=clock) as store:
        assert mins(store) == [13, 12]
        fill(store, 2)
        assert store.queues.offsets(store.queues.find("orders", 0)).max_queue_offset == 15


def test_queue_whose_messages_are_all_gone_goes_on_behind_them(config: StoreConfig, clock):
    with MessageStore(config, clock=clock) as store:
        fill(store, 4)
        other = store.queues.add("other", 0)
        with reading(store) as client:
            store.sessions.grant(client.offer.session, [other.row])
            for _ in range(8):
                client.lanes[0].send(*other, bytes(200 << 10))
        wait_until(lambda: store._derive.is_derived(FILE_SIZE))
        clock.advance(ms=RESERVED_MS + HOUR_MS)
        assert len(store.retention.round()) == 2
        assert mins(store) == [2, 2]
    with MessageStore(config, clock=clock) as store:
        now = store.queues.offsets(store.queues.find("orders", 0))
        assert (now.min_queue_offset, now.max_queue_offset) == (2, 2)


def test_request_lets_expired_files_go_at_another_hour(config: StoreConfig, clock: SteppedClock):
    hour = time.localtime(clock.wall_ms() // 1000).tm_hour
    other = f"{(hour + 12) % 24:02d}"
    config = StoreConfig(**{**_fields(config), "delete_when": other, "delete_file_batch_max": 2})
    with MessageStore(config, clock=clock) as store:
        fill(store, 28)
        clock.advance(ms=RESERVED_MS + 24 * HOUR_MS)
        assert store.retention.round() == []
        store.retention.request()  # two files a batch, until none is left
        wait_until(lambda: file_numbers(store) == [5])


def _fields(config: StoreConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_death_between_two_steps_is_made_good_by_the_next_round(config: StoreConfig, clock):
    with MessageStore(config, clock=clock) as store:
        fill(store, 28)
        store._derive.expire(0)  # as far as a broker came that died then
        store._appender.set_min_position(FILE_SIZE)
        assert file_numbers(store) == [0, 1, 2, 3, 4, 5]
        assert len(store.retention.round()) == 1
        assert file_numbers(store) == [1, 2, 3, 4, 5]
    with MessageStore(config, clock=clock) as store:
        assert store.positions.min_position == FILE_SIZE
        assert mins(store) == [3, 2]


def test_messages_from_the_future_age_from_when_they_are_seen(config: StoreConfig):
    behind = SteppedClock(wall_ms=time.time_ns() // 1_000_000 - 1000 * HOUR_MS)
    with MessageStore(config, clock=behind) as store:
        fill(store, 28)
        assert store.retention.round() == []
        behind.advance(ms=RESERVED_MS)
        assert len(store.retention.round()) == 5


def test_nearly_full_disk_takes_no_new_file_and_says_so(config: StoreConfig, clock: SteppedClock):
    with MessageStore(config, clock=clock) as store:
        usage = DiskUsage(91, 9)
        full = Retention(
            config,
            store.retention._expiry,
            clock=clock,
            min_position=lambda: 0,
            last_store_ms=0,
            on_expired=lambda _expired: None,
            look=lambda _path: usage,
        )
        with pytest.raises(DiskFullError, match=r"91 % full, wanted at most 90"):
            full.check_room()
        usage = DiskUsage(90, 10)
        full.check_room()
