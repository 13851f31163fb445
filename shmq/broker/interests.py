"""Which connections want to hear of changes to which topics.

In the loop's thread; nothing blocks or fails. Bounded by connections times the topics that exist:
a topic is added once it was found, and goes with its deletion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shmq.remoting.server import Connection

__all__ = ["Interests"]


class Interests:
    """Topics by connection, and back."""

    def __init__(self) -> None:
        self._by_topic: dict[str, set[Connection]] = {}
        self._by_connection: dict[Connection, set[str]] = {}

    def add(self, topic: str, connection: Connection) -> None:
        """This connection was given handles of the topic."""
        self._by_topic.setdefault(topic, set()).add(connection)
        self._by_connection.setdefault(connection, set()).add(topic)

    def of(self, topic: str) -> set[Connection]:
        """Connections that were."""
        return set(self._by_topic.get(topic, ()))

    def remove(self, connection: Connection) -> None:
        """The connection has ended."""
        for topic in self._by_connection.pop(connection, ()):
            connections = self._by_topic[topic]
            connections.discard(connection)
            if not connections:
                del self._by_topic[topic]

    def remove_topic(self, topic: str) -> None:
        """The topic is gone, and whoever cared was told."""
        for connection in self._by_topic.pop(topic, ()):
            self._by_connection[connection].discard(topic)
