"""Looking back from a program or a tool: messages by id, key, time and place, over all brokers.

What lives here: `MessageFinder`, which asks each master, or a slave where there is none, and
fetches what was found, piece by piece. It maps nothing: copies come over the control socket. Which
process: any. Writes nothing. May fail:
ServiceNotAvailableError where a broker is away, whatever a broker refuses, CorruptMessageError.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import orjson

from shmq.client.stored_message import StoredMessage
from shmq.errors import (
    ConfigError,
    MessageNotFoundError,
    ServiceNotAvailableError,
    ShmqError,
    TopicNotExistError,
)
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from shmq.remoting.command import Scalar

__all__ = ["MESSAGE_COUNT_DEFAULT", "MESSAGE_COUNT_MAX", "MessageFinder"]

MESSAGE_COUNT_DEFAULT = 64
MESSAGE_COUNT_MAX = 1024
_HEX_SIZES = (32, 56)
"""Digits of an offsetMsgId with an IPv4 or IPv6 address."""
_OFFSET_DIGITS = 16

_Place = tuple[str, dict[str, Any]]
"""(broker_name, what it says of a message)."""


class MessageFinder:
    """Asks the brokers of a cluster."""

    def __init__(
        self,
        invoke: Callable[[str, Command], Command],
        brokers: Callable[[], list[str]],
    ) -> None:
        """Nothing happens yet.

        Args:
            invoke: asks the broker of a name and gives its answer, whatever its code.
            brokers: their names, in order.
        """
        self._invoke = invoke
        self._all = brokers

    # ---- one message -----------------------------------------------------------------------------

    def get(self, message_id: str, *, topic: str | None, broker: str | None) -> StoredMessage:
        """A message by either kind of id; of several with one id the one that was stored first."""
        failure: ShmqError | None = None
        try:
            found = self._query(
                _brokers(broker) or self._all(),
                {"topic": topic or "", "key": message_id, "_UNIQUE_KEY_QUERY": True},
                MESSAGE_COUNT_MAX,
            )
        except ServiceNotAvailableError as error:  # no index: an id of the other kind needs none
            found, failure = [], error
        if found:
            name, place = min(found, key=lambda item: (item[1]["storeTimestamp"], item[0]))
            return self._fetch(name, place)
        at_place = self._by_offset_id(message_id, broker)
        if at_place is not None and topic in (None, at_place.topic):
            return at_place
        if failure is not None:
            raise failure
        raise MessageNotFoundError(
            f"message {message_id}: no broker has it{f' in topic {topic}' if topic else ''}"
        )

    def _by_offset_id(self, message_id: str, broker: str | None) -> StoredMessage | None:
        try:
            host = bytes.fromhex(message_id)[:-8]
            physical_offset = int(message_id[-_OFFSET_DIGITS:], 16)
        except ValueError:
            return None
        if len(message_id) not in _HEX_SIZES or physical_offset >> 63:
            return None
        found = []
        for name in _brokers(broker) or self._all():
            try:
                message = self.at(name, physical_offset)
            except MessageNotFoundError:
                continue
            if message.offset_message_id == f"{host.hex()}{physical_offset:016x}".upper():
                found.append(message)
        if len(found) > 1:
            names = ", ".join(message.broker_name for message in found)
            raise ConfigError(
                f"message {message_id}: {names} each have one of this id, for they write the same "
                "address into their records",
                hint="name the broker (--broker), or use the message's UNIQ_KEY",
            )
        return found[0] if found else None

    def at(self, broker_name: str, physical_offset: int) -> StoredMessage:
        """The message whose record begins at a place of a broker's log.

        Raises:
            MessageNotFoundError: none does, or none any more.
        """
        return self._fetch(broker_name, {"physicalOffset": physical_offset, "size": 1})

    # ---- several ---------------------------------------------------------------------------------

    def find(
        self,
        topic: str,
        *,
        key: str | None,
        begin_ms: int,
        end_ms: int,
        queue_id: int | None,
        broker: str | None,
        message_count: int,
    ) -> list[StoredMessage]:
        """Messages of a topic by key and time, the newest first."""
        what = f"find messages of {topic}"
        if key is not None and (not key or key.split() != [key]):
            raise ConfigError(
                f"{what}: key {key!r}: wanted one of the words that a message was sent with"
            )
        if begin_ms > end_ms:
            raise ConfigError(f"{what}: from {begin_ms} to {end_ms} ms: it ends before it begins")
        fields: dict[str, Scalar] = {
            "topic": topic,
            "key": key or "",
            "beginTimestamp": begin_ms,
            "endTimestamp": end_ms,
            "queueId": -1 if queue_id is None else queue_id,
        }
        names = _brokers(broker) or self._all()
        return self._fetch_all(self._query(names, fields, message_count))

    def read(
        self, topic: str, queue_id: int, queue_offset: int, *, broker: str, message_count: int
    ) -> list[StoredMessage]:
        """Messages of a queue in order, from `queue_offset` on."""
        fields: dict[str, Scalar] = {
            "topic": topic,
            "queueId": queue_id,
            "index": queue_offset,
            "count": message_count,
        }
        answer = self._ask(broker, RequestCode.QUERY_CONSUME_QUEUE, fields)
        return self._fetch_all((broker, place) for place in _messages(answer))

    def _query(
        self, names: Iterable[str], fields: Mapping[str, Scalar], message_count: int
    ) -> list[_Place]:
        """Places of messages, the newest first."""
        found: list[_Place] = []
        missing: TopicNotExistError | None = None
        is_known = False
        for name in names:
            try:
                answer = self._ask(
                    name, RequestCode.QUERY_MESSAGE, {**fields, "maxNum": message_count}
                )
            except TopicNotExistError as error:
                missing = error
                continue
            is_known = True
            found += [(name, place) for place in _messages(answer)]
        if missing is not None and not is_known:
            raise missing
        return heapq.nlargest(message_count, found, key=lambda item: item[1]["storeTimestamp"])

    def _fetch_all(self, places: Iterable[_Place]) -> list[StoredMessage]:
        messages = []
        for name, place in places:
            try:
                messages.append(self._fetch(name, place))
            except MessageNotFoundError:
                continue  # it expired meanwhile
        return messages

    # ---- asking ----------------------------------------------------------------------------------

    def _fetch(self, broker_name: str, place: Mapping[str, Any]) -> StoredMessage:
        record = bytearray()
        size = place["size"]
        while len(record) < size:  # each piece is at least a byte
            command = Command(
                RequestCode.VIEW_MESSAGE_BY_ID,
                {"offset": place["physicalOffset"], "begin": len(record)},
            )
            answer = self._invoke(broker_name, command)
            if answer.code == ResponseCode.QUERY_NOT_FOUND or not (answer.code or answer.body):
                raise MessageNotFoundError(f"broker {broker_name}: {answer.remark}")
            error = error_of(answer)
            if error is not None:
                raise error
            size = answer.fields().number("size")
            record += answer.body
        return StoredMessage.of_record(
            bytes(record), broker_name=broker_name, physical_offset=place["physicalOffset"]
        )

    def _ask(self, broker_name: str, code: RequestCode, fields: Mapping[str, Scalar]) -> Command:
        answer = self._invoke(broker_name, Command(code, dict(fields)))
        error = error_of(answer)
        if error is not None:
            raise error
        return answer


def _brokers(name: str | None) -> list[str]:
    return [] if name is None else [name]


def _messages(answer: Command) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = orjson.loads(answer.body)["messages"]
    return rows
