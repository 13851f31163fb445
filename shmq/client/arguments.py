"""Checks of what programs give to the client: one clear line where an argument makes no sense.

What lives here: one function for each kind of argument that several calls take; what only one call
takes is checked there. Which process: the program's, any thread. Writes nothing. May fail:
TypeError for another kind of thing, ValueError or ConfigError for a value that cannot be used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmq.errors import ConfigError, SubscriptionError
from shmq.result import MessageQueue

if TYPE_CHECKING:
    from enum import StrEnum
    from typing import TypeVar

    _Member = TypeVar("_Member", bound=StrEnum)

__all__ = [
    "RETRIES_MAX",
    "TIMEOUT_S_MAX",
    "check_bodies",
    "check_count",
    "check_filter",
    "check_message_queue",
    "check_one_place",
    "check_queue_offset",
    "check_retries",
    "check_time",
    "check_timeout",
    "member",
]

RETRIES_MAX = (1 << 31) - 1
"""RocketMQ's Integer.MAX_VALUE, which is its word for never."""
TIMEOUT_S_MAX = 1e9
"""Seconds that a call may wait at most: the core's limit, some thirty years."""


def check_timeout(what: str, timeout: float) -> None:
    """Refuse what is no time to wait; `what` says who would wait for what.

    None and infinity are refused, too: no wait of ours is without an end.

    Raises:
        TypeError: no number.
        ValueError: below zero, not a number, or more than TIMEOUT_S_MAX.
    """
    if not hasattr(timeout, "__float__"):
        raise TypeError(
            f"{what}: timeout {timeout!r}: wanted seconds as a number; to wait for as long as it "
            "takes give many"
        )
    if not 0.0 <= timeout <= TIMEOUT_S_MAX:  # NaN is not
        raise ValueError(f"{what}: timeout {timeout!r}: wanted 0 to {TIMEOUT_S_MAX:.0f} seconds")


def check_time(what: str, time: float) -> None:
    """Refuse what is no point in time.

    Raises:
        TypeError: no number.
        ValueError: before 1970, not a number, or beyond all calendars.
    """
    if not hasattr(time, "__float__"):
        raise TypeError(f"{what}: time {time!r}: wanted seconds since 1970 as a number")
    if not 0.0 <= time <= _TIME_S_MAX:
        raise ValueError(f"{what}: time {time!r}: wanted 0 to {_TIME_S_MAX:.0f} s since 1970")


_TIME_S_MAX = 253_402_300_799
"""The last second of the year 9999."""


def check_count(what: str, name: str, count: int, *, most: int | None = None) -> None:
    """Refuse a number of things that is no number from 1 on.

    Raises:
        TypeError: no int.
        ConfigError: out of range.
    """
    wanted = "1 or more" if most is None else f"1 to {most}"
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"{what}: {name} {count!r}: wanted a whole number, {wanted}")
    if count < 1 or (most is not None and count > most):
        raise ConfigError(f"{what}: {name} {count}: wanted {wanted}")


def check_retries(what: str, max_reconsume_times: object) -> None:
    """Refuse what is no number of failures; -1: as the group is configured.

    Raises:
        TypeError: no int.
        ConfigError: out of range.
    """
    wanted = f"-1 to {RETRIES_MAX}"
    if isinstance(max_reconsume_times, bool) or not isinstance(max_reconsume_times, int):
        raise TypeError(
            f"{what}: max_reconsume_times {max_reconsume_times!r}: wanted a whole number, {wanted}"
        )
    if not -1 <= max_reconsume_times <= RETRIES_MAX:
        raise ConfigError(f"{what}: max_reconsume_times {max_reconsume_times}: wanted {wanted}")


def check_one_place(what: str, key: object, queue: object) -> None:
    """Refuse a key and a queue together: each of them says which queue it is.

    Raises:
        TypeError.
    """
    if key is not None and queue is not None:
        raise TypeError(f"{what}: key and queue: either of them chooses the queue; give one")


def check_message_queue(what: str, queue: object) -> None:
    """Refuse what is no MessageQueue.

    Raises:
        TypeError.
    """
    if not isinstance(queue, MessageQueue):
        raise TypeError(f"{what}: queue {queue!r}: wanted a MessageQueue")


def check_queue_offset(what: str, queue_offset: object) -> None:
    """Refuse what is no place in a queue; whether the queue has it is asked elsewhere.

    Raises:
        TypeError.
    """
    if isinstance(queue_offset, bool) or not isinstance(queue_offset, int):
        raise TypeError(f"{what}: queue_offset {queue_offset!r}: wanted a whole number")


def check_bodies(what: str, bodies: object) -> None:
    """Refuse one body where several are wanted: its characters or bytes would be sent one by one.

    Raises:
        TypeError.
    """
    if isinstance(bodies, str | bytes | bytearray | memoryview):
        kind = type(bodies).__name__
        raise TypeError(f"{what}: bodies is one {kind}: wanted several; give [body], or use send")
    if not hasattr(bodies, "__iter__"):
        raise TypeError(f"{what}: bodies is a {type(bodies).__name__}: wanted several bodies")


def check_filter(topic: str, expression: str | None) -> None:
    """Refuse a filter with an empty tag in it ("a ||"): something is missing there.

    RocketMQ passes over it, and so does the broker; here it is more likely a mistake.

    Raises:
        TypeError: no str.
        SubscriptionError.
    """
    if expression is None:
        return
    if not isinstance(expression, str):
        raise TypeError(f'subscribe {topic}: filter {expression!r}: wanted a str, "a || b"')
    if "||" in expression and not all(part.strip() for part in expression.split("||")):
        raise SubscriptionError(
            f'subscribe {topic}: {expression!r} holds an empty tag; wanted "a || b"'
        )


def member(what: str, name: str, kind: type[_Member], value: str) -> _Member:
    """The member of an enumeration that was given, itself or by its text.

    Raises:
        ConfigError: it has no such member; the message names those it has.
    """
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(kind)
        raise ConfigError(
            f"{what}: {name} {value!r}: wanted {known}", hint=f"give one of shmq.{kind.__name__}"
        ) from None
