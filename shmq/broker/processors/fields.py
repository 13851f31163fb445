"""What the requests of a broker have in common: handles, queues, lists of objects, JSON answers.

Pure; a field or body of another shape raises ConfigError (INVALID_PARAMETER).
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeGuard

import orjson

from shmq.errors import ConfigError
from shmq.json_fields import Fields
from shmq.remoting.command import Command, Scalar, response_to
from shmq.store.queues import QueueHandle

__all__ = [
    "QueueField",
    "client_id_of",
    "fields_of",
    "handles_of",
    "items_of",
    "json_response",
    "pairs",
    "queue_of",
    "ranged",
]

ITEM_COUNT_MAX = 65_536
"""Objects in one request; a frame does not hold more."""
HANDLE_COUNT_MAX = 262_144
"""Handles in one list: the rows that a broker has by default."""
_CLIENT_ID = re.compile(r"[A-Za-z0-9@#._-]{1,255}")
_WORD_MAX = (1 << 32) - 1


class QueueField(NamedTuple):
    """The queue that a request names."""

    topic: str
    queue_id: int


def json_response(
    command: Command, value: object, ext_fields: Mapping[str, Scalar] | None = None
) -> Command:
    """SUCCESS with a JSON body."""
    return response_to(command, ext_fields=ext_fields, body=orjson.dumps(value))


def fields_of(item: object, what: str) -> Fields:
    """One object of a body."""
    return Fields(item, what=what)  # type: ignore[arg-type]  # it refuses what is no object


def items_of(body: Mapping[str, object], key: str, what: str) -> list[Fields]:
    """The objects of a list in a body; a missing one is empty."""
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > ITEM_COUNT_MAX:
        raise ConfigError(f"{what}: {key}: wanted a list of at most {ITEM_COUNT_MAX} objects")
    return [fields_of(item, f"{what}: {key}") for item in value]


def handles_of(value: object, what: str) -> list[QueueHandle]:
    """Handles, written [[first row, generation, how many rows], ...]; a missing list is empty."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError(f"{what}: wanted a list of [row, generation, count]")
    handles: list[QueueHandle] = []
    for item in value:
        if not _is_run(item) or not 1 <= item[2] <= HANDLE_COUNT_MAX - len(handles):
            raise ConfigError(
                f"{what}: {item!r}, wanted [row, generation, count], at most {HANDLE_COUNT_MAX} "
                "rows in all"
            )
        row, generation, count = item
        handles += (QueueHandle(row + index, generation) for index in range(count))
    return handles


def _is_run(item: object) -> TypeGuard[list[int]]:
    return (
        isinstance(item, list)
        and len(item) == 3
        and all(type(part) is int and 0 <= part <= _WORD_MAX for part in item)
    )


def queue_of(command: Command) -> QueueField:
    """The fields topic and queueId."""
    take = command.fields()
    return QueueField(take.text("topic"), ranged(take, "queueId", 0, _WORD_MAX))


def client_id_of(take: Fields, key: str) -> str:
    """A client's name for itself, which goes into logs and lists."""
    text = take.text(key)
    if not _CLIENT_ID.fullmatch(text):
        wanted = "1 to 255 of A-Z a-z 0-9 @ # . _ -"
        raise ConfigError(f"{take.what}: {key}: {text[:64]!r}, wanted {wanted}")
    return text


def ranged(take: Fields, key: str, least: int, most: int, default: int | None = None) -> int:
    """A whole number within its range."""
    value = take.number(key, default)
    if not least <= value <= most:
        raise ConfigError(f"{take.what}: {key}: {value}, wanted {least} to {most}")
    return value


def pairs(handles: Iterable[QueueHandle]) -> list[list[int]]:
    """Handles as they travel."""
    return [list(handle) for handle in handles]
