"""Threads that the kernel calls by their names."""

import threading
from pathlib import Path

from shmq.threads import NamedThread, thread_pool


def _name() -> str:
    return Path("/proc/thread-self/comm").read_text("utf-8").rstrip("\n")


def _name_of_a_thread(name: str) -> str:
    seen: list[str] = []
    thread = NamedThread(target=lambda: seen.append(_name()), name=name)
    thread.start()
    thread.join()
    return seen[0]


def test_kernel_knows_the_name_of_a_thread() -> None:
    before = _name()
    assert _name_of_a_thread("shmq-flush") == "shmq-flush"
    assert _name() == before


def test_long_name_is_cut() -> None:
    assert _name_of_a_thread("shmq-listener-12345") == "shmq-listener-1"


def test_threads_of_a_pool_go_by_its_name() -> None:
    meeting = threading.Barrier(2)  # so that there are two
    with thread_pool("shmq-pool", 2) as pool:
        first, second = (pool.submit(lambda: (meeting.wait(), _name())[1]) for _ in range(2))
        assert (first.result(10), second.result(10)) == ("shmq-pool", "shmq-pool")
