"""What a peer is to the rows: a server that starts and stops, topics, a producer and a consumer.

Each peer is one file beside this one with a class PEER. Its server part runs in the program that
measures; producers and consumers run in processes of their own (worker.py), where the topic that
the server part made arrives pickled.
"""

import os
import struct
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

Body = bytes | bytearray | memoryview
BATCH = 500
"""Messages of a batch, where they are small."""
BATCH_BYTES = 8 << 20
RECEIVE_MAX = 500
"""Messages that a consumer asks for at once."""
TIMEOUT_S = 60.0
LOOK_S = 0.1
"""How often a consumer that waits sees whether it may stop."""
STAMP = struct.Struct("<Q")
"""The number of a message that has one, its first bytes; in a paced run when it was due, monotonic
ns."""
NUMBERED = frozenset({"send", "flying", "pace"})
"""Verbs whose messages have numbers. The others send the same body again and again, to be quick."""
LOOKED_AT = 64
"""Of so many batches that a consumer gets, its first one included, one message is looked at."""
LOOKED_AT_BYTES = 512
"""At each of its ends."""
EARLY_NS = 300_000
"""A sleep of a pacer ends so long before its message is due: the kernel ends each one late by up to
100 us. The rest is waited for by giving up the core."""


class PeerError(Exception):
    """A peer lost or doubled messages, did not start, or a process of it ended."""


class NotHad(Exception):
    """What a peer needs cannot be had on this machine; says what, and how to get it."""


def batch_of(size: int) -> int:
    """Messages of one batch."""
    return max(1, min(BATCH, BATCH_BYTES // size))


def body_of(size: int) -> bytes:
    """What a body is, but for its number: no two neighbours in it are the same, and none is 0."""
    pattern = bytes(range(1, 252))
    return (pattern * (size // len(pattern) + 1))[:size]


def numbered(number: int, body: bytes) -> bytes:
    """A body with a number."""
    return STAMP.pack(number) + body[STAMP.size :]


class Producer:
    """Sends to one topic."""

    def work(self, *, verb: str, size: int, count: int, **more: int) -> dict[str, Any]:
        """Send so many in the way that the verb says; when that began and ended, the numbers that
        the messages had, and of a paced run how well it was paced.
        """
        paced: dict[str, Any] = {}
        body = body_of(size)
        numbers = range(0)
        begin_ns = time.monotonic_ns()
        match verb:
            case "send":
                numbers = range(count)
                for number in numbers:
                    self.send(numbered(number, body))
            case "put":
                self.put_repeatedly(body, count)
            case "batch":
                self.put_batches(body, count, batch_of(size))
            case "flying":
                numbers = range(count)
                self.send_flying(body, numbers, more["flying"])
            case "pace":
                numbers = due_times(count, more["interval_ns"])
                paced = self.pace(body, numbers).said()
            case _:
                raise ValueError(f"no such verb: {verb}")
        end_ns = time.monotonic_ns()
        return {"begin_ns": begin_ns, "end_ns": end_ns, "numbers": numbers, **paced}

    def send(self, body: Body) -> None:
        """One message; returns when it is accepted at the level the server was started with."""
        raise NotImplementedError

    def put(self, body: Body) -> None:
        """One message, by the quickest call that takes one: not waited for, where a peer can."""
        self.send(body)

    def put_many(self, bodies: Sequence[Body]) -> None:
        """As many at once as the peer can take."""
        for body in bodies:
            self.put(body)

    def flush(self) -> None:
        """Return when all that was put is accepted."""

    def put_batches(self, body: Body, count: int, size: int) -> None:
        """As `put_many`, so many at a time."""
        many = [body] * size
        for _ in range(count // size):
            self.put_many(many)
        if count % size:
            self.put_many(many[: count % size])
        self.flush()

    def send_flying(self, body: bytes, numbers: range, flying: int) -> None:
        """One for each number, `flying` of them under way at once."""
        for at in range(0, len(numbers), flying):
            self.put_many([numbered(number, body) for number in numbers[at : at + flying]])
            self.flush()

    def put_repeatedly(self, body: Body, count: int) -> None:
        """As `put`, one call each."""
        put = self.put
        for _ in range(count):
            put(body)
        self.flush()

    def pace(self, body: bytes, due_times_ns: range) -> "Pacer":
        """As `put`, each when it is due, or at once if that is past; its number says when."""
        pacer = Pacer()
        rest = body[STAMP.size :]
        for due_ns in due_times_ns:
            pacer.wait_until(due_ns)
            self.put(STAMP.pack(due_ns) + rest)
        self.flush()
        return pacer

    def close(self) -> None:
        """It sends no more."""


class Consumer:
    """Receives from one topic, as a member of one group."""

    def work(
        self, board_path: str, words: memoryview, at: int, *, run: int, verb: str, size: int
    ) -> Iterator[dict[str, Any]]:
        """Yields once it is about to receive; receives until word 0 says that the run may end.

        Args:
            board_path: of the board.
            words: of the board.
            at: of its slot, where it says what it has received and completed, and when.
            run: its number.
            verb: of the producers: whether messages have numbers, and an age.
            size: of a message.
        """
        ages, numbers = array("q"), array("Q")
        is_numbered, is_paced = verb in NUMBERED, verb == "pace"
        begin = STAMP.size if is_numbered else 0
        wanted = body_of(size)
        sizes: set[int] = set()
        is_right = True
        count = batches = 0
        words[at] = 0
        yield {}
        while words[0] != run:
            bodies = self.receive(RECEIVE_MAX, LOOK_S)
            if not bodies:
                continue
            if is_numbered:
                now_ns = time.monotonic_ns()
                their = [STAMP.unpack_from(body)[0] for body in bodies]
                numbers.extend(their)
                if is_paced:
                    ages.extend([now_ns - number for number in their])
            if batches % LOOKED_AT == 0:
                is_right = is_right and _is_right(bodies[-1], wanted, begin)
            batches += 1
            count += len(bodies)
            sizes.update(map(len, bodies))
            self.complete()
            words[at + 1] = time.monotonic_ns()
            words[at] = count
        yield {
            "count": count,
            "is_right": is_right and sizes <= {size},
            "numbers": numbers,
            "end_ns": words[at + 1],
            "ages_ns": ages,
        }

    def receive(self, max_count: int, timeout_s: float) -> Sequence[Body]:
        """What is there, at least one unless none comes in time. Called after complete()."""
        raise NotImplementedError

    def complete(self) -> None:
        """All that was received is done with: it does not come again. May read ahead."""

    def close(self) -> None:
        """It receives no more."""


class Peer:
    """The server part."""

    NAME: ClassVar[str]
    IS_DURABLE: ClassVar[bool] = True
    """Whether there is a server that keeps messages on disk and accepts or refuses each."""
    HAS_GROUPS: ClassVar[bool] = True
    """Whether several consumers can share a topic."""
    WARM_UP_S: ClassVar[float] = 0.0
    """Of messages in each life before the first that are measured: for what compiles as it runs."""
    SETTINGS: ClassVar[dict[str, str]]
    """What was chosen, to be read by people: server, put, batch, consumer."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    @staticmethod
    def fetch(cache: Path) -> None:
        """Bring what it needs beside its Python packages into the folder, unless it is there.

        Raises:
            NotHad: it cannot be had.
        """

    def version(self) -> str:
        """Of the client, and of the server that runs."""
        raise NotImplementedError

    def start(self, folder: Path, *, is_flushed: bool) -> None:
        """Start on a folder, which may have messages.

        Args:
            folder: on the file system that is measured.
            is_flushed: a send is accepted once it is on disk.
        """

    def stop(self) -> None:
        """End it in order, and wait until it is gone."""

    def topic(self, name: str, *, members: int = 1, groups: int = 1) -> Any:
        """A topic, made unless it is there: what its clients need to know of it, to be pickled.

        Args:
            name: letters, digits and dashes.
            members: consumers in each group, at most.
            groups: each gets every message.
        """
        raise NotImplementedError

    def settle(self, topic: Any, *, members: int, groups: int) -> None:
        """Return when each group has divided the topic among its members, who all receive; called
        before anything is sent. What a member has in hand as others join may come to them, too.
        """

    @staticmethod
    def producer(topic: Any) -> Producer:
        """In a process of its own."""
        raise NotImplementedError

    @staticmethod
    def consumer(topic: Any, group: int) -> Consumer:
        """In a process of its own; of a group, counted from 0."""
        raise NotImplementedError


def _is_right(body: Body, wanted: bytes, begin: int) -> bool:
    """Whether its ends are what was sent, from a byte on."""
    head, tail = (
        slice(begin, LOOKED_AT_BYTES),
        slice(max(begin, len(wanted) - LOOKED_AT_BYTES), None),
    )
    return bytes(body[head]) == wanted[head] and bytes(body[tail]) == wanted[tail]


def due_times(count: int, interval_ns: int) -> range:
    """When each message of a paced run is due, from now on."""
    begin_ns = time.monotonic_ns() + interval_ns
    return range(begin_ns, begin_ns + count * interval_ns, interval_ns)


class Pacer:
    """Waits until messages are due, and knows what that cost."""

    def __init__(self) -> None:
        self.late_ns: list[int] = []
        """How long after it was due each message was handed over, of those that were waited for:
        not of those that an earlier send held up."""
        self.cpu_ns = 0
        """Processor time of the waiting: it is the bench's, not the peer's."""

    def wait_until(self, due_ns: int) -> None:
        """Return at once if that is past."""
        left_ns = due_ns - time.monotonic_ns()
        if left_ns <= 0:
            return
        begin_ns = time.thread_time_ns()
        if left_ns > EARLY_NS:
            time.sleep((left_ns - EARLY_NS) / 1e9)
        while (now_ns := time.monotonic_ns()) < due_ns:
            os.sched_yield()
        self.cpu_ns += time.thread_time_ns() - begin_ns
        self.late_ns.append(now_ns - due_ns)

    def said(self) -> dict[str, Any]:
        """What Producer.work() answers beside begin and end."""
        return {"late_ns": self.late_ns, "pacer_cpu_ns": self.cpu_ns}
