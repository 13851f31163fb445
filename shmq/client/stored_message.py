"""A message that was looked up: a copy of its record, taken apart.

What lives here: `StoredMessage`, with the attributes that a received Message has, and where it was
found. In any process; nothing blocks. May fail: CorruptMessageError for a record that is not what
was written.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple

from shmq.core import core
from shmq.errors import CorruptMessageError, ReservedPropertyError

__all__ = ["StoredMessage"]

_CRC = "__CRC32#"
_NOT_SENT_ON = frozenset(
    {"UNIQ_KEY", "KEYS", "TAGS", "DELAY", "TIMER_DELAY_SEC", "TIMER_DELAY_MS", "TIMER_DELIVER_MS"}
)
"""What a message that is sent again gets anew, or would make it wait again."""


class StoredMessage(NamedTuple):
    """One message as it is stored; a copy, which nothing changes or takes away."""

    topic: str
    """Its topic; that of a retry is %RETRY%group."""
    broker_name: str
    """The broker that has it."""
    queue_id: int
    """Its queue."""
    queue_offset: int
    """Its place in the queue."""
    physical_offset: int
    """Byte place of its record in the CommitLog."""
    size: int
    """Bytes of its record."""
    store_timestamp: int
    """When it was stored, ms since 1970, broker's clock."""
    born_timestamp: int
    """When it was sent, ms since 1970, producer's clock."""
    born_host: str
    """ADDRESS:PORT of the producer; 127.0.0.1:0 on this host."""
    store_host: str
    """ADDRESS:PORT that the broker answers for in RocketMQ."""
    offset_message_id: str
    """RocketMQ's offsetMsgId: store host and physical offset in hexadecimal."""
    flag: int
    """The user's own integer."""
    sys_flag: int
    """RocketMQ's sysFlag."""
    reconsume_times: int
    """Deliveries that failed before."""
    properties: dict[str, str]
    """All of them but the CRC."""
    body: bytes
    """A copy of the body."""

    @property
    def body_bytes(self) -> bytes:
        """The body."""
        return self.body

    @property
    def message_id(self) -> str:
        """The producer's id (UNIQ_KEY), else offset_message_id."""
        return self.properties.get("UNIQ_KEY") or self.offset_message_id

    @property
    def tag(self) -> str | None:
        """The tag, or None."""
        return self.properties.get("TAGS")

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys."""
        return tuple(self.properties.get("KEYS", "").split())

    @property
    def origin_topic(self) -> str:
        """The topic that it was sent to; of a retry or a dead letter that of the first delivery."""
        if not self.topic.startswith(("%RETRY%", "%DLQ%")):
            return self.topic
        said = self.properties.get("RETRY_TOPIC") or self.properties.get("DLQ_ORIGIN_TOPIC")
        return said or self.topic

    def sendable_properties(self) -> dict[str, str]:
        """The properties that anybody may send; without id, keys, tag and delay."""
        return {
            name: value
            for name, value in self.properties.items()
            if name not in _NOT_SENT_ON and not _is_reserved(name, value)
        }

    @classmethod
    def of_record(cls, record: bytes, *, broker_name: str, physical_offset: int) -> StoredMessage:
        """Take a whole record of the log apart, checksums included.

        Raises:
            CorruptMessageError: it does not hold.
        """
        status, reason, said = core.parse_frame(record, physical_offset=physical_offset, demands=0)
        if status != core.STATUS["OK"][0] or said is None:
            raise CorruptMessageError(
                f"read the message at {physical_offset} of broker {broker_name}: "
                f"{core.MESSAGE_REASONS[reason][1]}"
            )
        return cls(
            topic=_text(said["topic"]),
            broker_name=broker_name,
            queue_id=said["queueId"],
            queue_offset=said["queueOffset"],
            physical_offset=physical_offset,
            size=said["totalSize"],
            store_timestamp=said["storeTimestamp"],
            born_timestamp=said["bornTimestamp"],
            born_host=_host(said["bornHost"]),
            store_host=_host(said["storeHost"]),
            offset_message_id=(said["storeHost"] + physical_offset.to_bytes(8, "big"))
            .hex()
            .upper(),
            flag=said["flag"],
            sys_flag=said["sysFlag"],
            reconsume_times=said["reconsumeTimes"],
            properties=_properties(said["properties"]),
            body=said["body"],
        )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _host(data: bytes) -> str:
    address, port = ip_address(data[:-4]), int.from_bytes(data[-4:], "big")
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _properties(data: bytes) -> dict[str, str]:
    found = {}
    for pair in data.split(b"\x02"):
        name, _, value = pair.partition(b"\x01")
        if name and value:
            found[_text(name)] = _text(value)
    found.pop(_CRC, None)
    return found


def _is_reserved(name: str, value: str) -> bool:
    try:
        core.Message("any", b"", properties={name: value})
    except ReservedPropertyError:
        return True
    return False
