"""DeriveService: when a complete file is derived, and that messages come first."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from shmq.errors import DiskFullError
from shmq.store.derive import DeriveService

RUSH_BYTES = 8 << 20
"""Appended between two looks: more than any lull has."""


class Files:
    """Stands where the ConsumeQueue files are: what was added."""

    def __init__(self, *, refuses_from: int | None = None) -> None:
        self.refuses_from = refuses_from
        self.added: list[int] = []
        self.changed = threading.Condition()

    def add(self, file_position: int) -> None:
        if self.refuses_from is not None and file_position >= self.refuses_from:
            raise DiskFullError(f"write the ConsumeQueue file of {file_position}: planted")
        with self.changed:
            self.added.append(file_position)
            self.changed.notify_all()

    def close(self) -> None:
        """Nothing is open."""

    def wait_for(self, wanted: list[int]) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.added == wanted)


class Log:
    """How far the log is: further by `step_bytes` with each look. Counts the looks."""

    def __init__(self, step_bytes: int) -> None:
        self.step_bytes = step_bytes
        self.end = 0
        self.looks = threading.Semaphore(0)

    def __call__(self) -> int:
        self.looks.release()
        self.end += self.step_bytes
        return self.end


@contextmanager
def running(files: Files, log: Log, *, waiting_max: int) -> Iterator[DeriveService]:
    service = DeriveService(
        files,  # type: ignore[arg-type] # add() and close() are all that is used here
        on_derived=lambda _file_position: None,
        log_end=log,
        waiting_max=waiting_max,
    )
    service.start()
    yield service
    service.stop()
    service.close()


def test_complete_file_is_derived_at_once_while_nothing_is_appended() -> None:
    files, log = Files(), Log(step_bytes=0)
    with running(files, log, waiting_max=4) as service:
        service.put(0)
        files.wait_for([0])
        service.put(4096)
        files.wait_for([0, 4096])


def test_messages_that_leave_most_of_a_core_are_no_reason_to_wait() -> None:
    files, log = Files(), Log(step_bytes=1000)
    with running(files, log, waiting_max=4) as service:
        service.put(0)
        files.wait_for([0])
        assert log.end == 2 * log.step_bytes


def test_complete_file_waits_while_messages_rush_in() -> None:
    files, log = Files(), Log(step_bytes=RUSH_BYTES)
    with running(files, log, waiting_max=4) as service:
        service.put(0)
        for _ in range(6):
            log.looks.acquire()
        assert files.added == []
        log.step_bytes = 0
        files.wait_for([0])


def test_only_so_many_complete_files_wait() -> None:
    files, log = Files(), Log(step_bytes=RUSH_BYTES)
    with running(files, log, waiting_max=2) as service:
        service.put(0)
        service.put(4096)
        for _ in range(6):
            log.looks.acquire()
        assert files.added == []
        service.put(8192)
        files.wait_for([0])


def test_store_that_is_never_idle_is_derived_all_the_same() -> None:
    files, log = Files(), Log(step_bytes=RUSH_BYTES)
    with running(files, log, waiting_max=2) as service:
        service.put(0)
        files.wait_for([0])


def test_stop_derives_what_is_complete_and_waits_for_no_lull() -> None:
    files, log = Files(), Log(step_bytes=RUSH_BYTES)
    with running(files, log, waiting_max=8) as service:
        for file_position in (0, 4096, 8192):
            service.put(file_position)
        log.looks.acquire()
        assert files.added == []
    assert files.added == [0, 4096, 8192]


def test_stop_leaves_what_the_disk_refuses_to_the_next_start() -> None:
    files, log = Files(refuses_from=4096), Log(step_bytes=0)
    with running(files, log, waiting_max=8) as service:
        for file_position in (0, 4096, 8192):
            service.put(file_position)
    assert files.added == [0]
    assert service.failure is not None
