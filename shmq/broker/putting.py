"""Messages that the log has, or had, are put into it again: retries, dead letters, what was cut.

What lives here: `Putter`: one StoreService and one thread for all of them, which may wait for room
in the log; `properties_of`, a message's own properties without those that only its place gave it.

Which process: a master's broker. Writes: its ring. May fail: as a send.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from shmq.core import core
from shmq.errors import ShmqError, for_status
from shmq.threads import thread_pool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shmq.store.message_store import MessageStore
    from shmq.store.queues import QueueHandle

__all__ = ["PUT_SERVICE_ID", "Putter", "properties_of"]

PUT_SERVICE_ID = 0
"""Its progress word says nothing: each of its steps is one message."""
_PUT_TIMEOUT_S = 4.0
_STORED = frozenset(
    core.STATUS[name][0]
    for name in ("OK", "FLUSH_DISK_TIMEOUT", "FLUSH_SLAVE_TIMEOUT", "SLAVE_NOT_AVAILABLE")
)
_NAMES = {value: name for name, (value, _) in core.STATUS.items()}
_TRANSACTION_BITS = 0xC


class Putter:
    """Puts messages. Its coroutine is the loop's.

    Args:
        store: running.
    """

    def __init__(self, store: MessageStore) -> None:
        self._service = store.open_service(PUT_SERVICE_ID)
        self._thread = thread_pool("shmq-put", 1)

    async def put(
        self,
        handle: QueueHandle,
        said: Mapping[str, Any],
        properties: Mapping[str, str],
        *,
        reconsume_times: int,
        what: str,
    ) -> None:
        """Put a message; returns once it is stored.

        Args:
            handle: the queue.
            said: what core.parse_frame makes of it.
            properties: all of them; DELAY delays it.
            reconsume_times: deliveries that failed before.
            what: for the error: "send back to %RETRY%g".

        Raises:
            ShmqError: as a send.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(
            self._thread, self._put, handle, said, properties, reconsume_times, what
        )

    def _put(
        self,
        handle: QueueHandle,
        said: Mapping[str, Any],
        properties: Mapping[str, str],
        reconsume_times: int,
        what: str,
    ) -> None:
        sequence = self._service.begin(
            handle,
            said["body"],
            progress=0,
            properties=properties,
            flag=said["flag"],
            sys_flag=said["sysFlag"] & ~_TRANSACTION_BITS,
            reconsume_times=reconsume_times,
            born_timestamp=said["bornTimestamp"],
            timeout_s=_PUT_TIMEOUT_S,
        )
        status = sequence
        if sequence >= 0:
            status = self._service.finish(sequence, _PUT_TIMEOUT_S)[0]
        if status not in _STORED:
            name = _NAMES.get(status, str(status))
            raised = for_status(name) or ShmqError
            raise raised(f"{what}: {core.STATUS[name][1]}")

    def close(self) -> None:
        """Put nothing more."""
        self._thread.shutdown()
        self._service.close()


def properties_of(said: Mapping[str, Any]) -> dict[str, str]:
    """All properties of a message but its record's checksum.

    Args:
        said: what core.parse_frame makes of it.
    """
    properties = {}
    for pair in said["properties"].split(b"\x02"):
        key, _, value = pair.partition(b"\x01")
        if key and value:
            properties[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    properties.pop("__CRC32#", None)
    return properties
