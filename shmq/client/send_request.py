"""One send on its way: what is sent, what was tried, and what its status means.

What lives here: `SendRequest`, `Cure`, and what a status becomes: a SendResult's (`STORED`) or an
error (`refusal`). Both producers, of threads and of tasks, go by it. Which process: the program's.
Writes: a message into the ring of the lane that it is given. May fail: what Lane.put raises.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.errors import (
    OutcomeUnknownError,
    SendTimeoutError,
    ServiceNotAvailableError,
    ShmqError,
    for_status,
)
from shmq.status import SendStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shmq.client.queue_selector import QueueSelector, SendQueue

    class Buffer(Protocol):
        """Anything with bytes of its own."""

        def __buffer__(self, flags: int, /) -> memoryview:
            """The bytes."""

    Body = bytes | bytearray | memoryview | str | Buffer

__all__ = ["Cure", "STORED", "SendRequest", "delayed", "left_s", "nobody_came", "refusal"]

_now = SYSTEM_CLOCK.monotonic_ns

_OK = core.STATUS["OK"][0]
_TIMED_OUT = core.STATUS["TIMED_OUT"][0]
_NAMES = {value: name for name, (value, _) in core.STATUS.items()}
STORED = {
    _OK: SendStatus.SEND_OK,
    core.STATUS["FLUSH_DISK_TIMEOUT"][0]: SendStatus.FLUSH_DISK_TIMEOUT,
    core.STATUS["FLUSH_SLAVE_TIMEOUT"][0]: SendStatus.FLUSH_SLAVE_TIMEOUT,
    core.STATUS["SLAVE_NOT_AVAILABLE"][0]: SendStatus.SLAVE_NOT_AVAILABLE,
}
"""Statuses of messages that are stored."""
_UNIQ_KEY = "UNIQ_KEY"


class Cure(Enum):
    """What makes another attempt at a send worth it."""

    NONE = auto()
    """Nothing is needed."""
    CHUNK = auto()
    """Chunk memory, for a body that is larger than the ring takes."""
    SESSION = auto()
    """The next session with its broker."""


class SendRequest:
    """One message that could not be sent at once, and what was tried."""

    __slots__ = (
        "body",
        "chunk_brokers",
        "flag",
        "key",
        "keys",
        "message_id",
        "properties",
        "queue",
        "stale_count",
        "tag",
        "topic",
    )

    def __init__(
        self,
        topic: str,
        body: Body | core.Message,
        tag: str | None,
        keys: str | Iterable[str] | None,
        properties: Mapping[str, str] | None,
        flag: int,
        key: str | None,
        queue: QueueSelector | None,
    ) -> None:
        self.topic = topic
        self.body = body
        self.tag = tag
        self.keys = keys if keys is None or isinstance(keys, str) else tuple(keys)
        self.properties = properties
        self.flag = flag
        self.key = key
        self.queue = queue
        self.message_id: str | None = None
        self.stale_count = 0
        self.chunk_brokers: frozenset[str] = frozenset()

    @property
    def is_free(self) -> bool:
        """Whether it may go to any queue."""
        return self.key is None and self.queue is None

    @property
    def own_id(self) -> str:
        """The UNIQ_KEY that the program gave; empty where the lane makes one."""
        given = self.body if isinstance(self.body, core.Message) else self
        return (given.properties or {}).get(_UNIQ_KEY, "")

    def put(self, lane: core.Lane, queue: SendQueue, timeout: float, keep: bool) -> int:
        """As Lane.put; under the id that it was sent with before, if it was."""
        body, properties = self.body, self.properties
        if isinstance(body, core.Message):
            if self.message_id is None and self.properties is None:
                return lane.put(queue.row, queue.generation, body, timeout=timeout, keep=keep)
            self._take_apart(body)
            body, properties = self.body, self.properties
        if self.message_id is not None:
            properties = {**(properties or {}), _UNIQ_KEY: self.message_id}
        return lane.put(
            queue.row,
            queue.generation,
            body,
            self.tag,
            self.keys,
            properties,
            self.flag,
            True,
            timeout,
            keep,
        )

    def _take_apart(self, message: core.Message) -> None:
        """A Message takes no other id and no delay: it is sent as its parts."""
        own = dict(message.properties) | dict(self.properties or {})
        for name in (_UNIQ_KEY, "TAGS", "KEYS"):
            own.pop(name, None)
        self.tag, self.keys, self.flag = message.tag, message.keys, message.flag
        self.properties, self.body = own, message.body_bytes


def delayed(properties: Mapping[str, str] | None, delay_level: int) -> dict[str, str]:
    """Properties that have the broker deliver the message later."""
    if isinstance(delay_level, bool) or not isinstance(delay_level, int):
        raise TypeError(f"delay_level {delay_level!r}: want a whole number, 0 (at once) or more")
    if delay_level < 0:
        raise ValueError(f"delay_level {delay_level}: want 0 (at once), 1 or more")
    return {**(properties or {}), "DELAY": str(delay_level)}


def left_s(deadline_ns: int) -> float:
    """Seconds until a monotonic time; 0 behind it."""
    return max(0.0, (deadline_ns - _now()) / 1e9)


def nobody_came(topic: str, timeout: float, seen: ShmqError) -> ServiceNotAvailableError:
    """What to raise where a broker was waited for, and how it was seen last."""
    return ServiceNotAvailableError(
        f"send to {topic}: no broker that has it came in {timeout:.3g} s, nothing was sent; seen "
        f"last: {seen}",
        hint=seen.hint,
    )


def refusal(status: int, chosen: SendQueue, message_id: str | None, timeout: float) -> ShmqError:
    """What to raise for a status that is no success."""
    queue = chosen.message_queue
    what = f"send to {queue.topic} queue {queue.queue_id} of {queue.broker_name}"
    if status == _TIMED_OUT:
        if not message_id:
            return SendTimeoutError(
                f"{what}: no room in the ring for {timeout} s; nothing was sent"
            )
        return OutcomeUnknownError(
            f"{what}: message {message_id} was sent, and its broker has not said in {timeout} s "
            f"what became of it{'' if chosen.link is None else chosen.link.store_problem()}"
        )
    name = _NAMES.get(status, str(status))
    raised = for_status(name) or ShmqError
    return raised(f"{what}: {core.STATUS[name][1] if name in core.STATUS else name}")
