"""Reads what has left memory: entries from a broker, messages from its files, or copies of them.

What lives here: `ColdReader`, of one consumer. Each answer says from which member of the replica
set to read next (suggestWhichBrokerId): a master sends who is far behind to a slave, which sends
back who has caught up. Where the master is away a slave is asked without being suggested. What a
slave has not, or not yet, or not any more, is asked of the master alone: nothing is passed over for
what a slave says. Which process: the program's; one thread at a time. Writes nothing. May fail:
ServiceNotAvailableError where nobody has it just now; what the master answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shmq.core import core
from shmq.errors import OffsetIllegalError, ShmqError, TopicNotExistError
from shmq.result import MessageQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmq.client.broker_link import BrokerLink
    from shmq.client.instance import Client
    from shmq.client.process_queue import ProcessQueue

__all__ = ["ColdRead", "ColdReader", "Place"]

_BATCH = 256
_READ_TIMEOUT_S = 1.0
"""For a broker to answer with a file of the log."""
_OK = core.STATUS["OK"][0]
_TOO_SMALL = core.STATUS["OFFSET_TOO_SMALL"][0]
_TIMED_OUT = core.STATUS["TIMED_OUT"][0]
_MASTER = 0


class Place(NamedTuple):
    """A queue in a session."""

    queue: MessageQueue
    """Which."""
    link: BrokerLink
    """The session."""
    reader: core.Reader
    """Of that session."""
    row: int
    """Of the queue there."""
    generation: int
    """Of the row."""


class ColdRead(NamedTuple):
    """What was found."""

    status: int
    """Of the core; OK where there are messages, or none that match."""
    messages: list[core.Message]
    """In order."""
    next_offset: int
    """Where to go on."""
    is_expired: bool = False
    """What was asked for is not kept any more: next_offset is the first that is."""


class ColdReader:
    """Of one consumer.

    Args:
        client: whose sessions are read.
        topic: the topic.
        group: for which it reads; "": for none.
        expression: the filter, for who may not map the log.
        tag_codes: hashes of the tags that pass; None: all messages.
        bell: of the sessions, that the consumer waits on.
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        group: str,
        *,
        expression: str,
        tag_codes: Sequence[int] | None,
        bell: int,
    ) -> None:
        self._client = client
        self._topic = topic
        self._group = group
        self._expression = expression
        self._tag_codes = tag_codes
        self._bell = bell
        self._sent_on: dict[MessageQueue, int] = {}
        self._readers: dict[BrokerLink, core.Reader] = {}
        self._places: dict[tuple[BrokerLink, int], Place] = {}

    def is_sent_on(self, queue: MessageQueue) -> bool:
        """Whether the next read of a queue is for a slave, whatever is in the master's memory."""
        return queue in self._sent_on

    def read(
        self,
        place: Place,
        first: int,
        count: int,
        *,
        keeper: ProcessQueue | None = None,
    ) -> ColdRead:
        """Messages of a queue from a queue_offset on, which are not in the memory that the session
        maps. Blocks for up to some seconds.

        Args:
            place: the queue, in the session in which it is consumed.
            first: queue_offset to begin at.
            count: messages at most.
            keeper: what messages are to be settled by.

        Raises:
            OffsetIllegalError: there is no such offset.
            ServiceNotAvailableError: its broker is away, and no slave has it.
        """
        queue = place.queue
        if not self.is_sent_on(queue) and place.link.is_up:
            found = self._read(place, place.link, first, count, keeper)
            if found is not None:
                return found
        try:
            return self._read_slave(place, first, count, keeper)
        except ShmqError:
            self._sent_on.pop(queue, None)
            if not place.link.is_up:
                raise
            return self._read_here(place, first, count, keeper)

    def _read(
        self,
        place: Place,
        home: BrokerLink,
        first: int,
        count: int,
        keeper: ProcessQueue | None,
    ) -> ColdRead | None:
        """From the member that the session is with; None: before there were messages, one has been
        suggested that is not `home`, where the queue is consumed.
        """
        link, queue = place.link, place.queue
        if not link.is_mapped:
            pulled = link.pull(
                self._topic,
                queue.queue_id,
                first,
                count,
                filter=self._expression,
                group=self._group,
                keeper=keeper,
            )
            self._send_on(queue, home, pulled.broker_id)
            return ColdRead(_OK, pulled.messages, pulled.next_offset)
        found = link.read_entries(
            self._topic, queue.queue_id, first, min(count, _BATCH), group=self._group
        )
        if found.entries:
            self._send_on(queue, home, found.broker_id)
            return ColdRead(
                *place.reader.read_entries(
                    found.entries,
                    found.queue_offset,
                    count,
                    self._tag_codes,
                    timeout=_READ_TIMEOUT_S,
                    keeper=keeper,
                )
            )
        if not found.is_in_memory:  # RocketMQ's OFFSET_MOVED: it goes on at the first that is kept
            return ColdRead(_OK, [], found.queue_offset, is_expired=True)
        self._send_on(queue, home, found.broker_id)
        if self.is_sent_on(queue):
            return None
        return self._read_here(place, first, count, keeper)

    def _read_here(
        self, place: Place, first: int, count: int, keeper: ProcessQueue | None
    ) -> ColdRead:
        """With the entries in memory, and messages from its files."""
        return ColdRead(
            *place.reader.read(
                place.row,
                place.generation,
                first,
                count,
                self._tag_codes,
                False,  # verify
                _READ_TIMEOUT_S,
                keeper,
            )
        )

    def _send_on(self, queue: MessageQueue, home: BrokerLink, broker_id: int) -> None:
        """Heed what an answer suggests for the next read."""
        if broker_id in (_MASTER, home.broker_id):
            self._sent_on.pop(queue, None)
        elif self._client.slaves.any_of(queue.broker_name):
            self._sent_on[queue] = broker_id

    # ---- slaves ----------------------------------------------------------------------------------

    def _read_slave(
        self, place: Place, first: int, count: int, keeper: ProcessQueue | None
    ) -> ColdRead:
        """From a slave: what it has in memory, or in its files."""
        queue = place.queue
        link = self._client.slaves.reading(queue.broker_name, self._sent_on.get(queue, _MASTER))
        slave = self._slave_place(queue, link)
        status, messages, next_offset = slave.reader.read(
            slave.row, slave.generation, first, count, self._tag_codes, False, 0.0, keeper
        )
        found = ColdRead(status, messages, next_offset)
        if status in (_TOO_SMALL, _TIMED_OUT):
            answer = self._read(slave, place.link, first, count, keeper)
            found = self._read_here(slave, first, count, keeper) if answer is None else answer
        if found.status != _OK or found.is_expired:
            self._places.pop((link, queue.queue_id), None)  # its rows may be others by now
            raise OffsetIllegalError(
                f"read {queue} at {first} from slave {link.broker_id}: status {found.status}, "
                f"it goes on at {found.next_offset}"
            )
        home = place.link
        is_hot = found.messages and home.is_up and home.is_mapped
        if is_hot and found.messages[-1].physical_offset >= home.hot_min_position:
            self._sent_on.pop(queue, None)
        return found

    def _slave_place(self, queue: MessageQueue, link: BrokerLink) -> Place:
        """A queue in a session with a slave."""
        known = self._places.get((link, queue.queue_id))
        if known is not None:
            return known
        for old in [old for old in self._readers if not old.is_up]:
            self._readers.pop(old).close()
            self._places = {key: place for key, place in self._places.items() if key[0] is not old}
        if link not in self._readers:
            self._readers[link] = link.share_reader(self._bell)[1]
        reader = self._readers[link]
        for facts in link.read_queues(self._topic):
            at = MessageQueue(self._topic, queue.broker_name, facts["queueId"])
            self._places[link, at.queue_id] = Place(
                at, link, reader, facts["row"], facts["generation"]
            )
        if (link, queue.queue_id) not in self._places:
            raise TopicNotExistError(f"read {queue}: slave {link.broker_id} has no such queue yet")
        return self._places[link, queue.queue_id]

    def close(self) -> None:
        """Let go of the readers."""
        readers, self._readers = self._readers, {}
        self._places = {}
        for reader in readers.values():
            reader.close()
