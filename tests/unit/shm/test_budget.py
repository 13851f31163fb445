"""Sizes: what nobody asked for shrinks to what is there, what was asked for is kept or refused."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmq.errors import ConfigError, LimitError, ShmError, ShmFullError
from shmq.shm.budget import (
    FILE_SIZE_BYTES_DEFAULT,
    FILE_SIZE_BYTES_FLOOR,
    SEGMENT_COUNT_FLOOR,
    SEGMENT_COUNT_MAX,
    HotLogRequest,
    Machine,
    plan_sizes,
)
from tests.unit.shm import children

MIB = 1 << 20
GIB = 1 << 30

PLENTY = Machine(
    shm_free_bytes=24 * GIB,
    shm_total_bytes=24 * GIB,
    memory_bytes=48 * GIB,
    memory_source="MemAvailable of the machine",
    open_file_limit=1 << 19,
    map_count_limit=65530,
)
CONTAINER = replace(PLENTY, shm_free_bytes=64 * MIB, shm_total_bytes=64 * MIB)


@pytest.mark.parametrize(
    ("free", "segment_count", "file_size_bytes"),
    [
        (100 * GIB, 16, 64 * MIB),
        (8 * GIB, 16, 64 * MIB),
        (4 * GIB, 8, 64 * MIB),
        (2 * GIB, 4, 64 * MIB),
        (1 * GIB, 3, 64 * MIB),
        (256 * MIB, 3, 32 * MIB),
        (128 * MIB, 3, 16 * MIB),
        (64 * MIB, 3, 8 * MIB),
        (40 * MIB, 3, 8 * MIB),
    ],
)
def test_hot_log_follows_the_free_room(free: int, segment_count: int, file_size_bytes: int) -> None:
    plan = plan_sizes(HotLogRequest(), replace(PLENTY, shm_free_bytes=free))
    assert (plan.segment_count, plan.file_size_bytes) == (segment_count, file_size_bytes)
    assert plan.arena_bytes == segment_count * file_size_bytes // 4


def test_containers_64_mib_do_and_leave_room_for_a_second_broker() -> None:
    plan = plan_sizes(HotLogRequest(), CONTAINER)
    assert (plan.file_size_bytes, plan.segment_count) == (8 * MIB, 3)
    assert plan.session_count >= 64
    assert plan.shm_bytes <= 48 * MIB
    up_front = plan.file_size_bytes * plan.segment_count + HotLogRequest().fixed_bytes
    second = replace(CONTAINER, shm_free_bytes=64 * MIB - up_front)
    assert plan_sizes(HotLogRequest(), second).segment_count == 3
    assert any("commit_log_file_size_bytes=8388608, smaller than" in line for line in plan.shrunk)


def test_plentiful_machine_shrinks_nothing() -> None:
    plan = plan_sizes(HotLogRequest(), PLENTY)
    assert plan.shrunk == ()
    assert plan.session_count == 256
    assert plan.ring_bytes == MIB
    assert plan.open_files < 4096


def test_little_memory_shrinks_rings_before_sessions() -> None:
    machine = replace(CONTAINER, memory_bytes=300 * MIB, memory_source="/x/memory.max")
    plan = plan_sizes(HotLogRequest(), machine)
    assert plan.ring_bytes < MIB
    assert plan.session_count > 0
    assert plan.memory_bytes <= 300 * MIB - 64 * MIB
    assert any("ring_bytes=" in line for line in plan.shrunk)


def test_existing_stores_file_size_is_kept_by_taking_fewer_segments() -> None:
    plan = plan_sizes(
        HotLogRequest(file_size_bytes=64 * MIB), replace(PLENTY, shm_free_bytes=300 * MIB)
    )
    assert (plan.file_size_bytes, plan.segment_count) == (64 * MIB, 3)


def test_larger_messages_get_larger_files() -> None:
    plan = plan_sizes(HotLogRequest(max_message_size_bytes=100 * MIB), PLENTY)
    assert plan.file_size_bytes == 128 * MIB
    plan = plan_sizes(HotLogRequest(max_message_size_bytes=12 * MIB), CONTAINER_100)
    assert plan.file_size_bytes == 16 * MIB


CONTAINER_100 = replace(CONTAINER, shm_free_bytes=100 * MIB)


# --- refused --------------------------------------------------------------------------------------


def test_explicit_size_that_does_not_fit_is_refused_with_what_there_is_and_the_remedy() -> None:
    request = HotLogRequest(file_size_bytes=GIB, segment_count=8)
    with pytest.raises(
        ShmFullError,
        match=r"plan the hot log \(commit_log_file_size_bytes=1073741824, hot_segment_count=8\):"
        r" needs \d+ bytes in /dev/shm, 67108864 of 67108864 are free; mount -o remount,size=\.\.\."
        r" /dev/shm, docker --shm-size, or lower commit_log_file_size_bytes below 1073741824",
    ):
        plan_sizes(request, CONTAINER)


def test_explicit_segment_count_lets_the_file_size_shrink() -> None:
    plan = plan_sizes(HotLogRequest(segment_count=5), CONTAINER)
    assert (plan.file_size_bytes, plan.segment_count) == (8 * MIB, 5)


def test_too_small_a_mount_is_refused_naming_leftovers_as_a_cause() -> None:
    with pytest.raises(ShmFullError, match=r"\(smallest sizes\).*`shmq shm clean`"):
        plan_sizes(HotLogRequest(), replace(CONTAINER, shm_free_bytes=16 * MIB))


def test_too_little_memory_is_refused_naming_the_limit() -> None:
    machine = replace(PLENTY, memory_bytes=80 * MIB, memory_source="/sys/fs/cgroup/a/memory.max")
    with pytest.raises(
        LimitError, match=r"bytes of memory, 83886080 are left by /sys/fs/cgroup/a/memory\.max"
    ):
        plan_sizes(HotLogRequest(), machine)


def test_explicit_sessions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LimitError, match=r"session_count=1000.*RLIMIT_NOFILE is 1024"):
        plan_sizes(HotLogRequest(session_count=1000), replace(PLENTY, open_file_limit=1024))
    with pytest.raises(LimitError, match=r"vm\.max_map_count 1100"):
        plan_sizes(HotLogRequest(session_count=1000), replace(PLENTY, map_count_limit=1100))
    with pytest.raises(ShmFullError, match="session_count=10000"):
        plan_sizes(HotLogRequest(session_count=10_000), CONTAINER)


def test_few_open_files_give_few_sessions_and_too_few_are_refused() -> None:
    plan = plan_sizes(HotLogRequest(), replace(PLENTY, open_file_limit=128))
    assert 0 < plan.session_count < 16
    assert plan.open_files <= 128
    with pytest.raises(LimitError, match="needs 72 open files .* RLIMIT_NOFILE is 64"):
        plan_sizes(HotLogRequest(segment_count=16), replace(PLENTY, open_file_limit=64))
    plan = plan_sizes(HotLogRequest(), replace(CONTAINER, open_file_limit=64))
    assert plan.session_count == 3


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (HotLogRequest(file_size_bytes=8 * MIB + 1), "wanted a multiple of 4096 of at least"),
        (HotLogRequest(file_size_bytes=4 * MIB), "at least 4259840"),
        (HotLogRequest(file_size_bytes=-4096), "at least"),
        (HotLogRequest(segment_count=2), "hot_segment_count=2: wanted 3 to 64"),
        (HotLogRequest(segment_count=65), "hot_segment_count=65: wanted 3 to 64"),
        (HotLogRequest(arena_bytes=0), "arena_bytes=0: wanted 1 or more"),
        (HotLogRequest(session_count=0), "session_count=0: wanted 1 or more"),
        (HotLogRequest(ring_bytes=-1), "ring_bytes=-1: wanted 1 or more"),
    ],
)
def test_size_that_no_machine_makes_right_is_a_config_error(
    request_: HotLogRequest, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        plan_sizes(request_, PLENTY)


def test_smaller_messages_allow_smaller_files() -> None:
    request = HotLogRequest(file_size_bytes=MIB, max_message_size_bytes=256 << 10)
    assert plan_sizes(request, PLENTY).file_size_bytes == MIB


# --- every request, every machine -----------------------------------------------------------------

_maybe = st.none()
_requests = st.builds(
    HotLogRequest,
    file_size_bytes=_maybe | st.integers(1040, 1 << 18).map(lambda pages: pages * 4096),
    segment_count=_maybe | st.integers(SEGMENT_COUNT_FLOOR, SEGMENT_COUNT_MAX),
    arena_bytes=_maybe | st.integers(1, 4 * GIB),
    session_count=_maybe | st.integers(1, 5000),
    ring_bytes=_maybe | st.integers(1, 16 * MIB),
)
_machines = st.builds(
    replace,
    st.just(PLENTY),
    shm_free_bytes=st.integers(0, 8 * GIB),
    memory_bytes=st.integers(0, 16 * GIB),
    open_file_limit=st.integers(16, 1 << 16),
    map_count_limit=st.integers(1000, 1 << 17),
)


@given(_requests, _machines)
def test_plan_keeps_what_was_asked_for_and_fits_or_is_refused(
    request: HotLogRequest, machine: Machine
) -> None:
    try:
        plan = plan_sizes(request, machine)
    except (ShmFullError, LimitError) as error:
        reason = str(error)
    else:
        reason = ""
    if reason:
        assert re.search(r"needs \d+ ", reason)
        return
    for key in ("file_size_bytes", "segment_count", "arena_bytes", "session_count", "ring_bytes"):
        asked = getattr(request, key)
        assert asked is None or getattr(plan, key) == asked
    hot_bytes = plan.file_size_bytes * plan.segment_count
    assert plan.shm_bytes == (
        hot_bytes
        + plan.arena_bytes
        + request.fixed_bytes
        + plan.session_count * request.completion_bytes
    )
    assert plan.shm_bytes <= machine.shm_free_bytes
    assert plan.memory_bytes == plan.shm_bytes + plan.session_count * plan.ring_bytes
    assert plan.memory_bytes <= machine.memory_bytes
    assert plan.open_files <= machine.open_file_limit
    assert plan.session_count >= 1
    assert plan.file_size_bytes % 4096 == 0
    if request.file_size_bytes is None:
        assert FILE_SIZE_BYTES_FLOOR <= plan.file_size_bytes <= FILE_SIZE_BYTES_DEFAULT
    if request.segment_count is None:
        assert 3 <= plan.segment_count <= 16


@given(_machines, st.integers(0, 4 * GIB))
def test_more_room_never_refuses_what_less_room_allowed(machine: Machine, more: int) -> None:
    try:
        plan_sizes(HotLogRequest(), machine)
    except ShmError:
        return
    larger = replace(
        machine,
        shm_free_bytes=machine.shm_free_bytes + more,
        memory_bytes=machine.memory_bytes + more,
    )
    plan_sizes(HotLogRequest(), larger)


# --- the real machine -----------------------------------------------------------------------------


def test_machine_is_read_as_it_is() -> None:
    machine = Machine.read()
    assert 0 < machine.shm_free_bytes <= machine.shm_total_bytes
    assert machine.memory_bytes > 0
    assert machine.open_file_limit > 0
    assert machine.map_count_limit > 0
    plan_sizes(HotLogRequest(), machine)


_PLAN_AND_MAKE = """
import os
from shmq.shm.budget import HotLogRequest, Machine, plan_sizes, raise_open_files
from shmq.shm.memfd import create_sealed
from shmq.shm.names import ObjectKind, parse_store
from shmq.shm.segment import create

request = HotLogRequest()
plan = plan_sizes(request, Machine.read())
raise_open_files(plan.open_files)
store = parse_store("shmq.c.b.0.01234567.00000000deadbeef")
made = [create(store.object(ObjectKind.HOT, n), size_bytes=plan.file_size_bytes)
        for n in range(plan.segment_count)]
made.append(create(store.object(ObjectKind.ARENA, 0), size_bytes=plan.arena_bytes))
made.append(create(store.object(ObjectKind.CONTROL, 0), size_bytes=request.fixed_bytes))
for n in range(plan.session_count):
    made.append(create(store.object(ObjectKind.COMPLETION, n), size_bytes=request.completion_bytes))
    for fd in range(6):
        os.dup(0)
    create_sealed("ring", size_bytes=4096)
print(plan.file_size_bytes, plan.segment_count, plan.session_count)
"""


def test_plan_for_a_64_mib_mount_can_be_made_to_its_last_byte() -> None:
    out = children.run_in_private_shm("size=64m", _PLAN_AND_MAKE)
    assert out.split()[:2] == [str(8 * MIB), "3"]


def test_plan_under_a_low_fd_limit_can_be_made_to_its_last_fd() -> None:
    out = children.run_in_private_shm(
        "size=64m",
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n" + _PLAN_AND_MAKE,
    )
    assert out.split() == [str(8 * MIB), "3", "3"]


def test_soft_limit_of_open_files_is_raised_and_the_hard_one_respected() -> None:
    out = children.run(
        """
        import resource
        from shmq.errors import LimitError
        from shmq.shm.budget import raise_open_files
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
        raise_open_files(50)
        print(resource.getrlimit(resource.RLIMIT_NOFILE))
        raise_open_files(150)
        print(resource.getrlimit(resource.RLIMIT_NOFILE))
        try:
            raise_open_files(201)
        except LimitError as error:
            print(error)
        """
    ).splitlines()
    assert out[:2] == ["(114, 200)", "(200, 200)"], "64 beside them, as far as they go"
    assert out[2].startswith("open 201 files: the hard limit is 200; raise LimitNOFILE=")


def test_what_is_no_tmpfs_is_warned_about() -> None:
    out = children.run_in_private_shm(
        "size=4m",
        """
        import subprocess
        from shmq.shm.budget import Machine
        assert not any("tmpfs" in line for line in Machine.read().warnings)
        subprocess.run(["mount", "-t", "ramfs", "none", "/dev/shm"], check=True)
        print(*Machine.read().warnings, sep="\\n")
        """,
    )
    assert "/dev/shm is on ramfs, not tmpfs" in out
