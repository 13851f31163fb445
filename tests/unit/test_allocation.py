"""Who gets which queue: as RocketMQ 5.5.0's own classes say, and what holds for any group."""

import pytest

from shmq.allocation import STRATEGIES, by_config, consistent_hash, strategy_of
from shmq.errors import ConfigError
from shmq.result import MessageQueue

# For each strategy, number of queues and number of members: each member's queues, by their place
# in the sorted list. Printed by AllocateMessageQueueAveragely, ...AveragelyByCircle and
# ...ConsistentHash of rocketmq-client 5.5.0 for the queues and ids that are made below.
ROCKETMQ = {
    ("average", 8, 3): ((0, 1, 2), (3, 4, 5), (6, 7)),
    ("average", 5, 7): ((0,), (1,), (2,), (3,), (4,), (), ()),
    ("average", 16, 4): ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15)),
    ("average", 1, 1): ((0,),),
    ("average", 12, 5): ((0, 1, 2), (3, 4, 5), (6, 7), (8, 9), (10, 11)),
    ("circle", 8, 3): ((0, 3, 6), (1, 4, 7), (2, 5)),
    ("circle", 5, 7): ((0,), (1,), (2,), (3,), (4,), (), ()),
    ("circle", 16, 4): ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)),
    ("circle", 1, 1): ((0,),),
    ("circle", 12, 5): ((0, 5, 10), (1, 6, 11), (2, 7), (3, 8), (4, 9)),
    ("consistent-hash", 8, 3): ((4,), (0, 6, 7), (1, 2, 3, 5)),
    ("consistent-hash", 5, 7): ((), (), (1, 2), (4,), (0,), (), (3,)),
    ("consistent-hash", 16, 4): ((8,), (0, 4, 10, 11, 14), (1, 2, 3, 5, 6, 7, 13), (9, 12, 15)),
    ("consistent-hash", 1, 1): ((0,),),
    ("consistent-hash", 12, 5): ((6,), (4, 8, 9), (1, 2, 3, 5, 11), (7, 10), (0,)),
}


def queues_of(count: int) -> list[MessageQueue]:
    """Half of them on each of two brokers."""
    half = (count + 1) // 2
    return sorted(
        MessageQueue("orders", "broker-a" if number < half else "broker-b", number % half)
        for number in range(count)
    )


def ids_of(count: int) -> list[str]:
    return sorted(f"{4000 + number * 7}@host-{chr(ord('a') + number)}" for number in range(count))


@pytest.mark.parametrize(("name", "queue_count", "member_count"), ROCKETMQ)
def test_shares_are_rocketmqs(name: str, queue_count: int, member_count: int) -> None:
    queues, ids = queues_of(queue_count), ids_of(member_count)
    shares = tuple(
        tuple(queues.index(queue) for queue in STRATEGIES[name](queues, ids, one)) for one in ids
    )
    assert shares == ROCKETMQ[name, queue_count, member_count]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("member_count", [1, 2, 3, 7, 40])
def test_every_queue_is_exactly_one_members(name: str, member_count: int) -> None:
    queues, ids = queues_of(24), ids_of(member_count)
    dealt = [queue for one in ids for queue in STRATEGIES[name](queues, ids, one)]
    assert sorted(dealt) == queues


def test_consistent_hash_moves_only_the_queues_of_who_came() -> None:
    queues, ids = queues_of(64), ids_of(6)
    before = {queue: one for one in ids[:-1] for queue in consistent_hash(queues, ids[:-1], one)}
    after = {queue: one for one in ids for queue in consistent_hash(queues, ids, one)}
    moved = {queue for queue in queues if before[queue] != after[queue]}
    assert moved == set(consistent_hash(queues, ids, ids[-1]))
    assert moved


def test_config_gives_what_was_listed_as_far_as_it_exists() -> None:
    queues = queues_of(4)
    gone = MessageQueue("orders", "broker-z", 0)
    assert by_config([queues[2], gone, queues[0]])(queues, ids_of(3), "any") == [
        queues[0],
        queues[2],
    ]


def test_strategy_is_asked_for_by_name_as_queues_or_as_a_function() -> None:
    queues = queues_of(4)
    assert strategy_of("circle", what="consume t") is STRATEGIES["circle"]
    assert strategy_of(queues[:1], what="consume t")(queues, ["a"], "a") == queues[:1]
    assert strategy_of(consistent_hash, what="consume t") is consistent_hash
    for wrong in ("fair", [1], 3):
        with pytest.raises(ConfigError, match="consume t: allocation .*average, circle, consist"):
            strategy_of(wrong, what="consume t")  # type: ignore[arg-type] # it is wrong
