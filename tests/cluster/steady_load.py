"""A program that sends, and consumes what it sends, until it is told to stop."""

from __future__ import annotations

import threading

import shmq


class SteadyLoad:
    """One thread of this process. A context manager."""

    def __init__(self, client: shmq.Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        producer = self._client.producer()
        producer.send("invoices", b"first")
        with self._client.consumer("invoices", group="billing") as consumer:
            while not self._stop.wait(0.02):
                for _ in range(10):
                    producer.send("invoices", bytes(100), timeout=60.0)
                for message in consumer.receive(10, timeout=0.1):
                    with message.process():
                        pass

    def stop(self) -> None:
        """Return once it has stopped. Twice does nothing."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> SteadyLoad:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
