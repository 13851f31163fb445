"""How the queues of a topic are shared out among the members of a group.

Pure functions over the sorted queues and client ids: each member computes the same result on its
own (RocketMQ's AllocateMessageQueueStrategy). Nothing is written, nothing blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from shmq.result import MessageQueue

__all__ = ["STRATEGIES", "Strategy", "average", "circle"]

Strategy = Callable[[Sequence[MessageQueue], Sequence[str], str], list[MessageQueue]]
"""(sorted queues, sorted client ids, one of them) -> that member's queues."""


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


STRATEGIES: Mapping[str, Strategy] = MappingProxyType({"average": average, "circle": circle})
"""By the name a consumer gives."""
