"""One life of one peer: its server, producers and consumers, and flows of messages through it."""

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from board import Board
from measuring import ROOT, memory_mib
from peer import Peer, PeerError
from programs import descendants
from worker import work

_READY_TIMEOUT_S = 180.0
PATIENCE_S = 60.0
_SEND_TIMEOUT_S = 600.0
_END_TIMEOUT_S = 20.0
_LOOK_S = 0.002
_CPU_CLOCK = 2
"""CPUCLOCK_SCHED: as the scheduler counts it."""


@dataclass(frozen=True)
class Flow:
    """What became of one flow of messages."""

    count: int
    """Sent, by all producers."""
    seconds: float
    """From the first call until the last message is consumed and completed."""
    send_seconds: float
    """From the first call until the last send is accepted."""
    cpu_seconds: float
    """Of servers, producers and consumers; without that of waiting until messages are due."""
    ages_ns: list[int]
    """Of a paced flow: from when a message was due until a consumer had it, sorted."""
    late_ns: list[int]
    """Of a paced flow: from when a message was due until the pacer, if it had to wait for that,
    handed it over; sorted."""
    pacer_cpu_seconds: float
    """Processor time of the waiting."""

    @property
    def rate(self) -> float:
        return self.count / self.seconds


class Worker:
    """A producer, or a consumer."""

    def __init__(self, session: "Session", slot: int, topic: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self.slot = slot
        self._process = context.Process(
            target=work,
            args=(other, session.folders, session.module, session.board_path, slot, topic),
            daemon=True,
        )
        self._process.start()
        other.close()

    def tell(self, order: dict[str, Any]) -> None:
        self._pipe.send(order)

    def answer(self, timeout_s: float = _READY_TIMEOUT_S) -> Any:
        who = f"consumer {self.slot}" if self.slot else "a producer"
        if not self._pipe.poll(timeout_s):
            raise PeerError(f"{who} did not answer for {timeout_s:.0f} s")
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise PeerError(f"{who} ended early") from None
        if isinstance(answer, Exception):
            raise PeerError(f"{who}: {str(answer).strip()}")
        return answer

    def check(self) -> None:
        """See whether it has failed; an answer that is there stays there."""
        if not self._process.is_alive():
            self.answer(0)

    def end(self) -> None:
        """Tell it to; returns at once."""
        try:
            self._pipe.send(None)
        except OSError:
            pass  # it has ended

    def close(self) -> None:
        """Wait until it has ended."""
        self._process.join(_END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()
        self._process.close()


@dataclass(frozen=True)
class Line:
    """Producers and consumers of one kind of topic, ready to work."""

    producers: list[Worker]
    consumers: list[Worker]
    topics: list[Any]
    """As the peer made them."""
    groups: int
    members: int
    """Consumers of each group."""


class Session:
    """A peer that runs."""

    def __init__(
        self,
        peer: Peer,
        module: str,
        folders: list[str],
        start_seconds: float,
        others: frozenset[int] = frozenset(),
    ) -> None:
        self.peer = peer
        self.start_seconds = start_seconds
        """Until its server answered."""
        self._others = others
        """Processes under this one that are not the peer's."""
        self.rest_bytes = self.memory_bytes()
        """Of the server, before anybody came."""
        self.module = module
        self.folders = folders
        self.patience_s = PATIENCE_S
        """A flow in which nothing has come for so long has failed."""
        self._descriptor, self.board_path = Board.create()
        self._board = Board(self.board_path)
        self._run = 0
        self._topics = 0
        self._stack: list[Worker] = []
        self._settled: Line | None = None
        """Whose members have divided their topics."""

    def line(
        self,
        *,
        producers: int = 1,
        consumers: int = 1,
        groups: int = 1,
        topics: int = 1,
        name: str = "",
    ) -> Line:
        """Start them, on fresh topics; what there was before ends.

        Args:
            producers: of each topic.
            consumers: of each group of each topic.
            groups: of each topic.
            topics: how many.
            name: of the one topic, if it is not to be a fresh one.
        """
        self.end_workers()
        line = Line([], [], [], groups, consumers)
        self._board.clear()
        slot = 0
        for _ in range(topics):
            self._topics += 1
            topic = self.peer.topic(
                name or f"t{self._topics}", members=max(1, consumers), groups=groups
            )
            line.topics.append(topic)  # some are gone when nobody has them
            line.producers.extend(self._start(0, topic) for _ in range(producers))
            for group in range(groups):
                for _ in range(consumers):
                    slot += 1
                    line.consumers.append(self._start(slot, (topic, group)))
        for worker in self._stack:
            worker.answer()
        return line

    def _start(self, slot: int, topic: Any) -> Worker:
        worker = Worker(self, slot, topic)
        self._stack.append(worker)
        return worker

    def end_workers(self) -> None:
        self._board.words[0] = self._run  # of a flow that failed, too
        for worker in self._stack:  # all at once: some clients take seconds
            worker.end()
        while self._stack:
            self._stack.pop().close()
        self._settled = None

    def close(self) -> None:
        self.end_workers()
        os.close(self._descriptor)

    def flow(self, line: Line, verb: str, size: int, count: int, **order: Any) -> Flow:
        """Send `count` messages through a line, shared out evenly, and wait until all are consumed.

        Raises:
            PeerError: that did not come about.
        """
        each = max(1, count // len(line.producers))
        total = each * len(line.producers)
        cpu_before = self.cpu_seconds()
        self._receive(line, verb, size)
        for producer in line.producers:
            producer.tell({"verb": verb, "size": size, "count": each, **order})
        received = self._await(line, total)
        sent = [producer.answer() for producer in line.producers]
        _check(line, received, total, sent)
        cpu_seconds = self.cpu_seconds() - cpu_before
        begin_ns = min(answer["begin_ns"] for answer in sent)
        waiting = sum(answer.get("pacer_cpu_ns", 0) for answer in sent) / 1e9
        return Flow(
            total,
            (max(answer["end_ns"] for answer in received) - begin_ns) / 1e9,
            (max(answer["end_ns"] for answer in sent) - begin_ns) / 1e9,
            max(0.0, cpu_seconds - waiting),
            sorted(age for answer in received for age in answer["ages_ns"]),
            sorted(late for answer in sent for late in answer.get("late_ns", ())),
            waiting,
        )

    def send(self, line: Line, verb: str, size: int, count: int) -> None:
        """Send `count` messages by one producer; they stay where they are."""
        (producer,) = line.producers
        producer.tell({"verb": verb, "size": size, "count": count})
        producer.answer(_SEND_TIMEOUT_S)

    def drain(self, line: Line, size: int, count: int) -> float:
        """Consume what was sent before; seconds from when the consumers connect.

        Raises:
            PeerError: it is not all there.
        """
        begin_ns = time.monotonic_ns()
        self._receive(line, "batch", size)
        received = self._await(line, count)
        _check(line, received, count, [])
        return (max(answer["end_ns"] for answer in received) - begin_ns) / 1e9

    def cpu_seconds(self) -> float:
        """Processor time of the peer's processes, with what their ended threads had used."""
        total_ns = 0
        for pid in descendants() - self._others:
            try:
                # The kernel's number for the clock of a process; /proc counts in ticks of 10 ms.
                total_ns += time.clock_gettime_ns(~pid << 3 | _CPU_CLOCK)
            except OSError:
                continue
        return total_ns / 1e9

    def memory_bytes(self) -> int:
        """Of the peer's processes: what each has for itself, and its part of what is shared."""
        total = 0.0
        for pid in descendants() - self._others:
            try:
                total += memory_mib(pid, "Pss")
            except OSError:
                continue
        return int(total * (1 << 20))

    def _receive(self, line: Line, verb: str, size: int) -> None:
        self._run += 1
        for consumer in line.consumers:
            consumer.tell({"run": self._run, "verb": verb, "size": size})
        for consumer in line.consumers:
            consumer.answer()  # it receives
        if self._settled is not line:
            for topic in line.topics:
                self.peer.settle(topic, members=line.members, groups=line.groups)
            self._settled = line

    def _await(self, line: Line, sent: int) -> list[dict[str, Any]]:
        """What the consumers say once each group has got all that was sent."""
        total = sent * line.groups
        seen, moved = -1, time.monotonic()
        while (count := self._board.counts()) < total:
            if count != seen:
                seen, moved = count, time.monotonic()
            if time.monotonic() - moved > self.patience_s:
                raise PeerError(f"{count} of {total} came, and no more for {self.patience_s:g} s")
            for worker in self._stack:
                worker.check()
            time.sleep(_LOOK_S)
        self._board.words[0] = self._run
        return [consumer.answer() for consumer in line.consumers]


def _check(
    line: Line, received: list[dict[str, Any]], total: int, sent: list[dict[str, Any]]
) -> None:
    """See whether each group of each topic got what was sent to it, once.

    Args:
        line: the one that was sent through.
        received: what its consumers say.
        total: messages that were sent, as many to each topic.
        sent: what its producers say, if they were asked.

    Raises:
        PeerError: one did not.
    """
    each = total // len(line.topics)
    producers = len(sent) // len(line.topics)  # of a topic
    for at in range(0, len(received), line.members):
        members = received[at : at + line.members]
        topic, group = divmod(at // line.members, line.groups)
        who = f"group {group + 1} of {line.groups}"
        count = sum(answer["count"] for answer in members)
        if count != each:
            raise PeerError(f"{who} got {count} messages of {each}")
        if not all(answer["is_right"] for answer in members):
            raise PeerError(f"{who} got messages with other bytes than were sent")
        theirs = sent[topic * producers : (topic + 1) * producers]
        wanted = sorted(number for answer in theirs for number in answer["numbers"])
        come = sorted(number for answer in members for number in answer["numbers"])
        if come != wanted:
            missing = len(wanted) - len(set(wanted) & set(come))
            raise PeerError(
                f"{who} got {count} messages, but {missing} that were sent are not there"
            )


@contextmanager
def folder_of_run() -> Iterator[Path]:
    """A folder on the checkout's file system."""
    folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=ROOT))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def running(
    kind: type[Peer], cache: Path, folder: Path, folders: list[str], *, is_flushed: bool = False
) -> Iterator[Session]:
    """A peer on a folder, which may have messages.

    Args:
        kind: which.
        cache: what it needs lies there.
        folder: of the run.
        folders: where its clients look for modules.
        is_flushed: a send is accepted once it is on disk.
    """
    peer = kind(cache)
    # multiprocessing would start it with the first client of the first peer, and keep it.
    resource_tracker.ensure_running()
    others = frozenset(descendants())
    begin = time.perf_counter()
    peer.start(folder, is_flushed=is_flushed)
    try:
        seconds = time.perf_counter() - begin
        session = Session(peer, kind.__module__, folders, seconds, others)
        try:
            yield session
        finally:
            session.close()
    finally:
        peer.stop()
