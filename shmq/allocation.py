"""How the queues of a topic are shared out among the members of a group.

Pure functions over the sorted queues and client ids: each member computes the same result on its
own (RocketMQ's AllocateMessageQueueStrategy), so all members of a group name the same strategy. Of
RocketMQ's strategies those that go by machine room are missing: one host has one. Nothing is
written, nothing blocks; ConfigError for a strategy that nobody knows.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from shmq.errors import ConfigError
from shmq.result import MessageQueue

__all__ = [
    "Allocation",
    "STRATEGIES",
    "Strategy",
    "average",
    "by_config",
    "circle",
    "consistent_hash",
    "strategy_of",
]

Strategy = Callable[[Sequence[MessageQueue], Sequence[str], str], list[MessageQueue]]
"""(sorted queues, sorted client ids, one of them) -> that member's queues."""

Allocation = str | Strategy | Sequence[MessageQueue]
"""What a consumer may give: a strategy's name, a function of its own, or the queues it wants."""

_VIRTUAL_NODES = 10
"""Places of each member on the ring; RocketMQ's virtualNodeCnt."""


def average(
    queues: Sequence[MessageQueue], client_ids: Sequence[str], client_id: str
) -> list[MessageQueue]:
    """Neighbouring queues to each member, the first members getting one more where it does not
    come out even (RocketMQ AVG).
    """
    share, more = divmod(len(queues), len(client_ids))
    index = client_ids.index(client_id)
    begin = index * share + min(index, more)
    return list(queues[begin : begin + share + (index < more)])


def circle(
    queues: Sequence[MessageQueue], client_ids: Sequence[str], client_id: str
) -> list[MessageQueue]:
    """Queues dealt out in turn, like cards (RocketMQ AVG_BY_CIRCLE)."""
    return list(queues[client_ids.index(client_id) :: len(client_ids)])


def consistent_hash(
    queues: Sequence[MessageQueue], client_ids: Sequence[str], client_id: str
) -> list[MessageQueue]:
    """Queues and members on a ring of hashes, a queue to the next member behind it: when a member
    comes or goes, only its own queues move, but shares are uneven (RocketMQ CONSISTENT_HASH).
    """
    places, owners = _ring(tuple(client_ids))
    return [
        queue
        for queue in queues
        if owners[bisect_left(places, _hash(_text(queue))) % len(places)] == client_id
    ]


def by_config(chosen: Sequence[MessageQueue]) -> Strategy:
    """These queues, as far as the topic has them, whoever else is there (RocketMQ CONFIG). That
    each queue is somebody's, and nobody else's, is the program's care.
    """
    wanted = frozenset(chosen)

    def allocate(
        queues: Sequence[MessageQueue], _client_ids: Sequence[str], _client_id: str
    ) -> list[MessageQueue]:
        return [queue for queue in queues if queue in wanted]

    return allocate


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {"average": average, "circle": circle, "consistent-hash": consistent_hash}
)
"""By the name a consumer gives."""


def strategy_of(allocation: Allocation, *, what: str) -> Strategy:
    """The strategy that a consumer asks for: by name, as a function, or as the queues it wants.

    Raises:
        ConfigError: it is none of these; `what` says who asks.
    """
    if callable(allocation):
        return allocation
    if isinstance(allocation, str):
        if allocation in STRATEGIES:
            return STRATEGIES[allocation]
    elif _are_queues(allocation):
        return by_config(allocation)
    known = ", ".join(sorted(STRATEGIES))
    raise ConfigError(
        f"{what}: allocation {allocation!r}, wanted {known}, a list of MessageQueue or a function"
    )


def _are_queues(value: object) -> bool:
    return isinstance(value, Sequence) and all(isinstance(item, MessageQueue) for item in value)


@lru_cache(maxsize=16)
def _ring(client_ids: tuple[str, ...]) -> tuple[list[int], list[str]]:
    """Places on the ring in order, and whose they are (RocketMQ ConsistentHashRouter)."""
    ring = {
        _hash(f"{client_id}-{number}"): client_id
        for client_id in client_ids
        for number in range(_VIRTUAL_NODES)
    }
    places = sorted(ring)
    return places, [ring[place] for place in places]


def _hash(text: str) -> int:
    """The first 32 bits of the MD5, as RocketMQ's MD5Hash has them; for shares, not for secrets."""
    digest = hashlib.md5(text.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big")


def _text(queue: MessageQueue) -> str:
    """RocketMQ's MessageQueue.toString()."""
    return (
        f"MessageQueue [topic={queue.topic}, brokerName={queue.broker_name}, "
        f"queueId={queue.queue_id}]"
    )
