"""Reads a queue as a consumer does: in memory while it is there, from the files behind that.

What lives here: `QueueReader`. Where the entries of old messages are not in memory any more, a
consumer asks its broker for them; here that is the `read_cold` of the store process. Their files
come through the client's log channel by themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmq.core import core

if TYPE_CHECKING:
    from shmq.store.queues import QueueHandle
    from tests.support.store_process import ClientSide, StoreProcess

_OK = core.STATUS["OK"][0]
_EMPTY = core.STATUS["EMPTY"][0]
_TOO_SMALL = core.STATUS["OFFSET_TOO_SMALL"][0]
_ENTRY_SIZE = core.LAYOUT["entry"][0]
TIMEOUT_S = 30.0


class QueueReader:
    """Reads one queue in order, from `queue_offset` on.

    Attributes:
        queue_offset: the next to read.
        cold_count: messages whose entries came from the store process.
    """

    def __init__(
        self,
        store: StoreProcess,
        client: ClientSide,
        handle: QueueHandle,
        topic: str,
        queue_id: int = 0,
        *,
        queue_offset: int = 0,
    ) -> None:
        self._store = store
        self._reader = client.reader
        self.handle = handle
        self.topic = topic
        self.queue_id = queue_id
        self.queue_offset = queue_offset
        self.cold_count = 0

    def read(self, max_count: int = 256, *, verify: bool = False) -> list[core.Message]:
        """The next messages; none if there is nothing more to see. AssertionError for a status
        that no reader should meet.
        """
        while True:  # bounded: every round moves on or returns
            begin = self.queue_offset
            status, messages, self.queue_offset = self._reader.read(
                *self.handle, begin, max_count, verify=verify, timeout=TIMEOUT_S
            )
            if messages or status == _EMPTY:
                return messages
            if status == _OK and self.queue_offset > begin:
                continue  # nothing but holes
            assert status == _TOO_SMALL, (self.topic, self.queue_id, begin, status)
            messages = self._read_cold(max_count, verify=verify)
            if messages or self.queue_offset == begin:
                self.cold_count += len(messages)
                return messages

    def _read_cold(self, max_count: int, *, verify: bool) -> list[core.Message]:
        answer, _ = self._store.call(
            "read_cold",
            topic=self.topic,
            queue_id=self.queue_id,
            queue_offset=self.queue_offset,
            entry_count=max_count,
        )
        if answer is None:
            return []
        first, entries = answer[0], bytes.fromhex(answer[1])
        assert len(entries) % _ENTRY_SIZE == 0
        self.queue_offset = first
        status, messages, self.queue_offset = self._reader.read_entries(
            entries, first, max_count, verify=verify, timeout=TIMEOUT_S
        )
        assert status in (_OK, _EMPTY), (self.topic, self.queue_id, first, status)
        return messages

    def read_all(self, *, verify: bool = False) -> list[core.Message]:
        """All that is visible now and not read yet."""
        messages: list[core.Message] = []
        while found := self.read(1024, verify=verify):
            messages += found
        return messages
