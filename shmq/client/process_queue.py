"""One claimed queue of a consumer: what was taken, what is settled, what may be reported.

What lives here: `ProcessQueue`, a small state machine without I/O. The progress that a consumer
reports is the lowest queue_offset that is not settled, so that nothing taken is lost when it dies.
Which process: the program's; one thread at a time. Nothing fails.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shmq.client.broker_link import BrokerLink
    from shmq.result import MessageQueue

__all__ = ["ProcessQueue"]


@dataclass(eq=False, slots=True)
class ProcessQueue:
    """One claimed queue."""

    link: BrokerLink
    """The session through which it is read."""
    message_queue: MessageQueue
    """Which queue."""
    row: int
    """Its row."""
    generation: int
    """Generation of the row."""
    slot: int
    """Claim slot in the consumer page."""
    claim: int
    """Claim number."""
    next_offset: int
    """queue_offset to read next."""
    settled_offset: int
    """Everything below it is settled; what is reported."""
    taken: deque[int] = field(default_factory=deque)
    """Offsets handed out and not settled below, in order."""
    settled: set[int] = field(default_factory=set)
    """Offsets settled before an earlier one."""
    reported: int = -1
    """What was reported last."""

    @property
    def unsettled_count(self) -> int:
        """Messages handed out and not settled."""
        return len(self.taken) - len(self.settled)

    def settle(self, queue_offset: int) -> None:
        """One message is done with."""
        if queue_offset < self.settled_offset:
            return
        self.settled.add(queue_offset)
        self._advance()

    def skip_to(self, next_offset: int) -> None:
        """Reading goes on at next_offset; what lies between was filtered or is lost."""
        self.next_offset = next_offset
        if not self.taken:
            self.settled_offset = next_offset

    def _advance(self) -> None:
        while self.taken and self.taken[0] in self.settled:
            self.settled.discard(self.taken.popleft())
        self.settled_offset = self.taken[0] if self.taken else self.next_offset
