"""A producer or consumer process of its own, for tests that kill and stop such processes.

What lives here: both ends. The process has one session that the test opened for it, and does what
the test asks over a socket; `produce` and `consume` run in a thread until they are stopped, over
the death of the store's process if need be.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
import threading
import zlib
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shmq.core import core
from shmq.core.fields import field_place
from shmq.shm.incarnation import Incarnation
from tests.crash.ledger import Sent, body_of, parse_body
from tests.support.standing_still import stop_process
from tests.support.store_process import (
    ANSWER_TIMEOUT_S,
    ClientSide,
    Offer,
    StoreProcess,
    receive_packet,
    send_packet,
    wait_until,
)

if TYPE_CHECKING:
    from shmq.store.queues import QueueHandle
    from tests.support.zygote import Zygote

_OK = core.STATUS["OK"][0]
_FULL = core.STATUS["FULL"][0]
_TIMED_OUT = core.STATUS["TIMED_OUT"][0]
_EMPTY = core.STATUS["EMPTY"][0]
_CLOSED = core.STATUS["CLOSED"][0]
_OFFSET_TOO_SMALL = core.STATUS["OFFSET_TOO_SMALL"][0]
TAIL_PLACE = core.LANES_PLACE + field_place("lane", "tail")
"""Where the tail of a client's first ring lies in its ingress memory."""
COUNTER_SIZE = mmap.PAGESIZE
_WINDOW = 8
_SLICE_S = 0.1
_READ_PAUSE_S = 0.0005


# ---- the process ---------------------------------------------------------------------------------


class _Loop:
    """What runs in the thread."""

    def __init__(self, client: ClientSide, counter: memoryview) -> None:
        self.client = client
        self._counter = counter
        self.count = 0
        self.failure: str | None = None
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        self.stopping.set()
        self._thread.join()
        return {"count": self.count, "failure": self.failure, **self.report()}

    def _run(self) -> None:
        try:
            self.work()
        except Exception as error:  # noqa: BLE001 # told to the test, which fails with it
            self.failure = f"{type(error).__name__}: {error}"

    def work(self) -> None:
        raise NotImplementedError

    def count_one(self) -> None:
        self.count += 1
        self._counter[0] = self.count

    def report(self) -> dict[str, Any]:
        return {}


class _Producing(_Loop):
    """Sends to queue after queue, some in flight at a time; asks again until each is answered."""

    def __init__(
        self,
        client: ClientSide,
        counter: memoryview,
        *,
        producer: int,
        queues: list[list[int]],
        sizes: list[int],
        burst: int = 1,
        pause_ms: float = 0.5,
    ) -> None:
        super().__init__(client, counter)
        self._producer = producer
        self._queues = queues
        self._sizes = sizes
        self._burst = burst
        self._pause_s = pause_ms / 1000
        self.sent = [0] * len(queues)
        self._under_way: deque[tuple[int, int, int]] = deque()
        self._refused: list[int] = []
        self._last_acked: list[tuple[int, int] | None] = [None] * len(queues)

    def work(self) -> None:
        lane = self.client.lanes[0]
        number = 0
        while not self.stopping.is_set():
            queue = number % len(self._queues)
            size = self._sizes[number % len(self._sizes)]
            body = body_of(Sent(self._producer, queue, self.sent[queue]), size)
            row, generation = self._queues[queue]
            sequence = lane.put(row, generation, body, timeout=_SLICE_S, keep=True)
            if sequence in (_FULL, _TIMED_OUT):
                continue  # nothing was sent
            assert sequence >= 0, f"put: status {sequence}"
            self._under_way.append((sequence, queue, self.sent[queue]))
            self.sent[queue] += 1
            number += 1
            while len(self._under_way) >= _WINDOW and not self.stopping.is_set():
                self._settle()
            if number % self._burst == 0:
                self.stopping.wait(self._pause_s)  # leaves the processor to the others
        while self._under_way:
            self._settle()

    def _settle(self) -> None:
        """Wait for the oldest one, for a while."""
        sequence, queue, number = self._under_way[0]
        status, queue_offset, _, _ = self.client.lanes[0].wait(sequence, _SLICE_S)
        if status == _TIMED_OUT:
            return
        self._under_way.popleft()
        if status != _OK:
            self._refused.append(status)
            return
        self.count_one()
        self._last_acked[queue] = number, queue_offset

    def report(self) -> dict[str, Any]:
        return {"sent": self.sent, "refused": self._refused, "last_acked": self._last_acked}


class _Consuming(_Loop):
    """Reads queues from their beginning and checks every message."""

    def __init__(self, client: ClientSide, counter: memoryview, *, queues: list[list[int]]) -> None:
        super().__init__(client, counter)
        self._queues = queues
        self._next = [0] * len(queues)
        self._jumped = [0] * len(queues)
        self._sequences: dict[tuple[int, int, int], int] = {}

    def work(self) -> None:
        reader = self.client.reader
        for row, generation in self._queues:
            reader.watch(row, generation, 0)
        while not self.stopping.is_set():
            if reader.wait(_SLICE_S) >= 0:
                self.read_all()
            self.stopping.wait(_READ_PAUSE_S)
        self.read_all()

    def read_all(self) -> None:
        for index, (row, generation) in enumerate(self._queues):
            while True:  # to the end of the queue
                status, messages, following = self.client.reader.read(
                    row, generation, self._next[index], 64
                )
                if status == _OFFSET_TOO_SMALL:  # it lags: what is not in memory is not read here
                    self._jump(index, row)
                    continue
                if status in (_CLOSED, _TIMED_OUT):  # a file is wanted, and nobody lives to give it
                    return
                assert status in (_OK, _EMPTY), f"read: status {status}"
                for message in messages:
                    self._check(index, message)
                self._next[index] = following
                if not messages:
                    break
            self.client.reader.watch(row, generation, self._next[index])

    def _jump(self, index: int, row: int) -> None:
        self._next[index] = self.client.reader.hot_min_queue_offset(row)
        self._jumped[index] += 1
        self._sequences = {key: at for key, at in self._sequences.items() if key[0] != index}

    def _check(self, index: int, message: core.Message) -> None:
        sent = parse_body(message.body)
        key = index, sent.producer, sent.queue
        wanted = self._sequences.get(key, sent.sequence if self._jumped[index] else 0)
        assert sent.sequence == wanted, (
            f"{sent} at queue_offset {message.queue_offset}, want sequence {wanted}; "
            f"{self.client.reader.lost_count} entries were passed over"
        )
        self._sequences[key] = wanted + 1
        self.count_one()

    def report(self) -> dict[str, Any]:
        return {
            "next": self._next,
            "jumped": sum(self._jumped),
            "lost": self.client.reader.lost_count,
        }


class _Hoarding(_Consuming):
    """Keeps a view of every message it reads."""

    def __init__(self, client: ClientSide, counter: memoryview, *, queues: list[list[int]]) -> None:
        super().__init__(client, counter, queues=queues)
        self._kept: list[tuple[memoryview, int]] = []

    def _check(self, index: int, message: core.Message) -> None:
        super()._check(index, message)
        self._kept.append((message.body, zlib.crc32(message.body)))

    def report(self) -> dict[str, Any]:
        spoiled = sum(zlib.crc32(view) != crc for view, crc in self._kept)
        return {
            **super().report(),
            "kept": len(self._kept),
            "spoiled": spoiled,
            "reading": self.client.reader.read(*self._queues[0], self._next[0], 1)[0],
        }


class _Worker:
    def __init__(self) -> None:
        self.client: ClientSide
        self._counter: memoryview
        self._loop: _Loop | None = None

    def attach(self, fds: dict[str, int], offer: dict[str, Any]) -> None:
        fd = fds.pop("counter")
        self._counter = memoryview(mmap.mmap(fd, COUNTER_SIZE)).cast("Q")
        os.close(fd)
        self.client = ClientSide(Offer(**offer), fds)

    def attach_chunk(self, fds: dict[str, int]) -> None:
        self.client.attach_chunk(fds["chunk"])

    def resume(self, fds: dict[str, int], offer: dict[str, Any]) -> None:
        self.client.resume_with(Offer(**offer), fds)

    def send(
        self, _fds: dict[str, int], how: str, queue: list[int], sent: list[int], size: int
    ) -> Any:
        """One way of sending, in this thread: its name is that of the Lane's verb."""
        lane = self.client.lanes[0]
        first = Sent(*sent)
        if how == "put_many":
            bodies = [body_of(first._replace(sequence=first.sequence + i), size) for i in range(3)]
            return lane.put_many(*queue, bodies, tag="a")
        body = body_of(first, size)
        if how == "put":
            return lane.put(*queue, body, tag="a", keys="k", properties={"p": "1"})
        if how == "loan":
            loan = lane.loan(*queue, size, tag="a")
            loan.view[:] = body
            return loan.commit()
        return lane.send(*queue, body, tag="a")

    def fill(self, _fds: dict[str, int], queue: list[int], producer: int, room: int) -> int:
        """Send until the ring's tail is less than `room` before its end; how many that took."""
        lane, ingress = self.client.lanes[0], self.client.ingress
        capacity = lane.capacity_bytes
        for sequence in range(capacity):  # each takes some
            assert ingress is not None
            if capacity - ingress.load64(TAIL_PLACE) % capacity < room:
                return sequence
            assert lane.put(*queue, body_of(Sent(producer, 0, sequence), 150), tag="a") >= 0
        raise AssertionError("the ring's tail never comes to its end")

    def drain(self, _fds: dict[str, int]) -> int:
        return self.client.lanes[0].drain(ANSWER_TIMEOUT_S)

    def produce(self, _fds: dict[str, int], **options: Any) -> None:
        self._loop = _Producing(self.client, self._counter, **options)
        self._loop.start()

    def consume(self, _fds: dict[str, int], **options: Any) -> None:
        self._loop = _Consuming(self.client, self._counter, **options)
        self._loop.start()

    def hoard(self, _fds: dict[str, int], **options: Any) -> None:
        self._loop = _Hoarding(self.client, self._counter, **options)
        self._loop.start()

    def failure(self, _fds: dict[str, int]) -> str | None:
        assert self._loop is not None
        return self._loop.failure

    def stop(self, _fds: dict[str, int]) -> Any:
        assert self._loop is not None
        return self._loop.stop()


def serve(sock: socket.socket) -> None:
    """Answer requests until the test closes its end."""
    worker = _Worker()
    while True:  # until then
        try:
            request, fds = receive_packet(sock)
        except EOFError:
            return
        answer = getattr(worker, request.pop("op"))(fds, **request)
        send_packet(sock, {"ok": answer}, {})


# ---- the test's side -----------------------------------------------------------------------------


class Worker:
    """Starts such a process with a session of a store. A context manager: it is killed at the
    end.
    """

    def __init__(
        self, zygote: Zygote, store: StoreProcess, *, map_log: bool = True, **options: Any
    ) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(ANSWER_TIMEOUT_S)
        with theirs:
            self.process = zygote.fork("worker", theirs.fileno())
        incarnation = Incarnation.of(self.process.pid)
        assert incarnation is not None
        self._map_log = map_log
        self.offer, fds = store.open_session(process=incarnation, map_log=map_log, **options)
        self.send_rows: list[int] = []
        self._bells: list[QueueHandle] = []
        counter_fd = os.memfd_create("test-counter", os.MFD_CLOEXEC)
        os.ftruncate(counter_fd, COUNTER_SIZE)
        self._counter = mmap.mmap(counter_fd, COUNTER_SIZE)
        fds["counter"] = counter_fd
        self.call("attach", fds, offer=asdict(self.offer))
        self._kept = {name: fds.pop(name) for name in ("ingress", "consumer") if name in fds}
        _close(fds)

    @property
    def pid(self) -> int:
        return self.process.pid

    def ring_tail(self) -> int:
        """How far it has published its first ring, in bytes."""
        fd = self._kept["ingress"]
        with core.Mapping(fd, os.fstat(fd).st_size) as ingress:
            return ingress.load64(TAIL_PLACE)

    def begin(self, op: str, fds: dict[str, int] | None = None, **arguments: Any) -> None:
        """Ask without waiting for the answer, which `answer` gives."""
        send_packet(self._sock, {"op": op, **arguments}, fds or {})

    def answer(self) -> Any:
        try:
            return receive_packet(self._sock)[0]["ok"]
        except EOFError:
            raise ConnectionError(f"worker {self.pid} ended: {self.process.wait()}") from None

    def call(self, op: str, fds: dict[str, int] | None = None, **arguments: Any) -> Any:
        self.begin(op, fds, **arguments)
        return self.answer()

    def grant(self, store: StoreProcess, *handles: QueueHandle) -> None:
        self.send_rows += [handle.row for handle in handles]
        store.call("grant", session=self.offer.session, rows=self.send_rows)

    def grant_chunk(self, store: StoreProcess, size_bytes: int) -> None:
        _, fds = store.call("grant_chunk", session=self.offer.session, size_bytes=size_bytes)
        self.call("attach_chunk", fds)
        self._kept |= fds

    def subscribe(self, store: StoreProcess, *handles: QueueHandle) -> None:
        self._bells += handles
        for handle in handles:
            store.call("subscribe", session=self.offer.session, bell=0, row=handle.row)

    def resume(self, store: StoreProcess) -> None:
        """Bring its session to the successor of a store process that died."""
        self.offer, fds = store.resume_session(
            self.offer, self._kept, send_rows=self.send_rows, map_log=self._map_log
        )
        self.call("resume", fds, offer=asdict(self.offer))
        _close(fds)
        for handle in self._bells:
            store.call("subscribe", session=self.offer.session, bell=0, row=handle.row)

    def count(self) -> int:
        """Messages that it has sent and seen answered, or read, so far; it is not asked."""
        return int.from_bytes(self._counter[:8], sys.byteorder)

    def check(self) -> None:
        """AssertionError if something was wrong in its eyes."""
        failure = self.call("failure")
        assert failure is None, failure

    def finish(self) -> dict[str, Any]:
        """Stop its loop; what it reports."""
        report: dict[str, Any] = self.call("stop")
        assert report["failure"] is None, report["failure"]
        return report

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()

    def freeze(self) -> None:
        """SIGSTOP, and wait until it stands."""
        stop_process(self.pid)

    def close(self) -> None:
        self.kill()
        self._sock.close()
        self._counter.close()
        _close(self._kept)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def await_progress(workers: list[Worker], *, by: int = 1) -> None:
    """Return once each of them has gone on by that many messages from here."""
    wanted = [worker.count() + by for worker in workers]
    try:
        wait_until(lambda: all(w.count() >= n for w, n in zip(workers, wanted, strict=True)))
    except AssertionError:
        for worker in workers:
            worker.check()
        raise


def _close(fds: dict[str, int]) -> None:
    while fds:
        os.close(fds.popitem()[1])
