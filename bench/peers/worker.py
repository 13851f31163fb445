"""A producer or a consumer as a process: it is told what to do through a pipe, and answers each.

What consumers have received and completed stands on a board that all map: a slot of two words for
each of them, of which it is the one writer, so that who measures sees when all of it has come.
"""

import importlib
import mmap
import os
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from peer import RECEIVE_MAX, STAMP, Consumer, Producer, batch_of
from servers import end_with_parent

SLOT_WORDS = 16
"""Two cache lines."""
SLOTS = 64
LOOK_S = 0.1
"""How often a consumer that waits sees whether it may stop."""


class Board:
    """Slot 0: the number of the run that may end. Slot n: count of consumer n, and when it was."""

    def __init__(self, path: str | Path) -> None:
        descriptor = os.open(path, os.O_RDWR)
        self.words = memoryview(mmap.mmap(descriptor, SLOTS * SLOT_WORDS * 8)).cast("Q")
        os.close(descriptor)

    @staticmethod
    def create() -> tuple[int, str]:
        """Its descriptor, and a path by which children find it."""
        descriptor = os.memfd_create("bench-board")
        os.truncate(descriptor, SLOTS * SLOT_WORDS * 8)
        return descriptor, f"/proc/{os.getpid()}/fd/{descriptor}"

    def clear(self) -> None:
        """No consumer is there any more, or yet."""
        for at in range(SLOT_WORDS, SLOTS * SLOT_WORDS):
            self.words[at] = 0

    def counts(self) -> int:
        return sum(self.words[SLOT_WORDS::SLOT_WORDS])


def work(
    pipe: Connection, folders: list[str], module: str, board_path: str, slot: int, topic: Any
) -> None:
    """The process: of a producer where slot is 0, else of the consumer `slot`. Ends with None."""
    end_with_parent()
    sys.path[:0] = folders
    try:
        peer = importlib.import_module(module).PEER
        if slot == 0:
            producer = peer.producer(topic)
            pipe.send("ready")
            _obey(pipe, lambda order: _produce(producer, order))
            producer.close()
        else:
            place, group = topic
            consumer = peer.consumer(place, group)
            board = Board(board_path)
            pipe.send("ready")
            _obey(pipe, lambda order: _consume(pipe, consumer, board, slot, order))
            consumer.close()
    except (EOFError, KeyboardInterrupt):
        return
    except BaseException:
        pipe.send(RuntimeError(traceback.format_exc()))
        raise


def _obey(pipe: Connection, do: Any) -> None:
    while (order := pipe.recv()) is not None:
        pipe.send(do(order))


def _produce(producer: Producer, order: dict[str, Any]) -> dict[str, int]:
    count, size = order["count"], order["size"]
    body = bytes(size)
    begin_ns = time.monotonic_ns()
    match order["verb"]:
        case "put":
            producer.put_repeatedly(body, count)
        case "batch":
            many = [body] * batch_of(size)
            for _ in range(count // len(many)):
                producer.put_many(many)
            if count % len(many):
                producer.put_many(many[: count % len(many)])
            producer.flush()
        case "send":
            for _ in range(count):
                producer.send(body)
        case "flying":
            producer.send_flying(body, count, order["flying"])
        case "pace":
            producer.pace(size, count, order["interval_ns"])
        case verb:
            raise ValueError(f"no such verb: {verb}")
    return {"begin_ns": begin_ns, "end_ns": time.monotonic_ns()}


def _consume(
    pipe: Connection, consumer: Consumer, board: Board, slot: int, order: dict[str, Any]
) -> dict[str, Any]:
    """Receives until the run may end; with "ages": how late each message was, in ns."""
    words, at, run = board.words, slot * SLOT_WORDS, order["run"]
    ages: list[int] | None = [] if order["ages"] else None
    count = byte_count = 0
    words[at] = 0
    pipe.send("receiving")
    while words[0] != run:
        bodies = consumer.receive(RECEIVE_MAX, LOOK_S)
        if not bodies:
            continue
        if ages is not None:
            now_ns = time.monotonic_ns()
            ages.extend([now_ns - STAMP.unpack_from(body)[0] for body in bodies])
        count += len(bodies)
        byte_count += sum(map(len, bodies))
        consumer.complete()
        words[at + 1] = time.monotonic_ns()
        words[at] = count
    return {"count": count, "bytes": byte_count, "end_ns": words[at + 1], "ages_ns": ages}
