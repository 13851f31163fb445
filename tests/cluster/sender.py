"""A thread that sends and checks that each message stands right behind the one before."""

from __future__ import annotations

import threading

import shmq
from tests.support.cluster import wait_for


class Sender(threading.Thread):
    """Sends one message after the other, to one queue, until it is told to stop."""

    def __init__(self, client: shmq.Client, *, may_double: bool = False) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self.doubled = 0
        self._may_double = may_double
        self.error: BaseException | None = None
        self._producer = client.producer()
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                result = self._producer.send("t", b"%d" % self.count, key="k", timeout=60.0)
                doubled = result.queue_offset - self.count - self.doubled
                assert doubled == 0 or (self._may_double and doubled > 0), (result, self.count)
                self.doubled += doubled
                self.count += 1
        except BaseException as error:  # noqa: BLE001 # shown in the test's thread
            self.error = error

    def go_on(self, count: int = 200) -> None:
        """Wait until it has sent so many more."""
        until = self.count + count
        wait_for(lambda: self.count >= until or self.error, "sends that go on")
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        if self.error is not None:
            raise self.error
