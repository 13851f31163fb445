"""Messages that say who sent them, so that the log alone tells what was lost, doubled or torn.

A body is producer, queue and sequence, and filler that follows from them; whoever reads it checks
every byte. Sequences count per producer and queue, from 0.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from tests.support.invariants import Appended, Place, check_appended

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Hashable, Iterable

    from tests.support.rocketmq_decoder import Frame

_HEAD = struct.Struct("<IIQI")
BODY_MIN = _HEAD.size
_FILLER = bytes(i % 251 for i in range(251 + 64))


class Sent(NamedTuple):
    """Which message it is."""

    producer: int
    queue: int
    sequence: int


def body_of(sent: Sent, size: int = BODY_MIN) -> bytes:
    """The body of a message, `size` bytes, at least BODY_MIN."""
    head = _HEAD.pack(*sent, size)
    begin = (sent.producer * 31 + sent.sequence * 7) % 251
    filler = _FILLER[begin : begin + 64]
    return (head + filler * (size // 64 + 1))[:size]


def parse_body(body: bytes | memoryview) -> Sent:
    """Which message a body is; AssertionError if a byte of it is wrong."""
    producer, queue, sequence, size = _HEAD.unpack_from(body)
    sent = Sent(producer, queue, sequence)
    assert bytes(body) == body_of(sent, size), f"torn: {sent}"
    return sent


class Found(NamedTuple):
    """One message of the log."""

    sent: Sent
    topic: str
    queue_id: int
    queue_offset: int
    physical_offset: int


def read_frames(frames: Iterable[Frame]) -> list[Found]:
    """The messages of frames, each checked to the byte."""
    return [
        Found(
            parse_body(frame.body),
            frame.topic,
            frame.queue_id,
            frame.queue_offset,
            frame.physical_offset,
        )
        for frame in frames
    ]


def check_once_and_in_order(found: Iterable[Found]) -> Counter[Hashable]:
    """The shared checker's check_appended; how many messages each (producer, queue) has."""
    return check_appended(
        Appended(
            (message.sent.producer, message.sent.queue),
            message.sent.sequence,
            Place(message.topic, message.queue_id, message.queue_offset),
        )
        for message in found
    )
