"""Settings of running brokers: seen, and changed where they may change. For Admin.

In the caller's process and thread; blocks as long as the broker's answer takes. May fail:
ConfigError for what the broker refuses, ServiceNotAvailableError where it is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import orjson

from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shmq.client.ha import Call

__all__ = ["BrokerSetting", "change", "get"]


class BrokerSetting(NamedTuple):
    """One setting of a broker."""

    name: str
    """Its own name."""
    value: str
    """As a file would have it; empty for a path that is not set."""
    effective: str
    """What holds: another value than that where it is auto, and the broker has found one."""
    default: str
    """What it is where nobody says; empty for none, and where it must be said."""
    is_live: bool
    """Whether it may change while the broker runs."""


def get(call: Call, socket_name: str) -> list[BrokerSetting]:
    """All settings of the broker that listens there, in the order of the reference."""
    answer = orjson.loads(call(socket_name, Command(RequestCode.GET_BROKER_CONFIG)).body)
    live, effective, defaults = set(answer["live"]), answer["effective"], answer["defaults"]
    return [
        BrokerSetting(name, text, effective.get(name, text), defaults.get(name, ""), name in live)
        for name, text in answer["config"].items()
    ]


def change(call: Call, socket_name: str, changes: Mapping[str, str]) -> dict[str, str]:
    """Change some; what they are now, by own names."""
    body = orjson.dumps({"config": dict(changes)})
    command = Command(RequestCode.UPDATE_BROKER_CONFIG, body=body)
    answer: dict[str, str] = orjson.loads(call(socket_name, command).body)["config"]
    return answer
