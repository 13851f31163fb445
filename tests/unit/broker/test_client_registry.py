"""Who is a client and a member, on a clock that stands still: no sockets, no store."""

from dataclasses import dataclass
from typing import cast

import pytest

from shmq.broker.client_registry import ClientRegistry, ConsumerMember
from shmq.errors import OwnerError, SubscriptionError
from shmq.remoting.identity import Identity
from shmq.remoting.server import Connection
from shmq.shm.incarnation import Incarnation
from shmq.subscription import MessageModel, SubscriptionData
from tests.support.clock import SteppedClock


@dataclass(eq=False)
class Peer:
    """What the registry sees of a connection: who it is, and that it is no other."""

    identity: Identity


def connection(pid: int = 1) -> Connection:
    return cast("Connection", Peer(Identity(1000, 1000, pid, Incarnation(pid, 7))))


def member(group: str = "g", expression: str = "*") -> ConsumerMember:
    return ConsumerMember(group=group, subscriptions={"t": SubscriptionData.parse("t", expression)})


class Registry:
    """A registry, its clock, and the groups it told of."""

    def __init__(self) -> None:
        self.clock = SteppedClock()
        self.told: list[str] = []
        self.registry = ClientRegistry(self.clock, lambda group, _members: self.told.append(group))

    def come(self, client_id: str, *groups: str, pid: int = 1) -> Connection:
        made = connection(pid)
        self.registry.bind(made, client_id)
        self.beat(made, *groups)
        return made

    def beat(self, made: Connection, *groups: str) -> None:
        self.registry.heartbeat(
            made, producer_groups=[], consumers=[member(group) for group in groups]
        )

    def taken(self) -> list[str]:
        told, self.told = self.told, []
        return told


@pytest.fixture
def world() -> Registry:
    return Registry()


def test_members_are_given_out_sorted(world: Registry) -> None:
    for client_id in ("b", "c", "a"):
        world.come(client_id, "g")
    assert world.registry.consumer_ids("g") == ["a", "b", "c"]
    assert world.taken() == ["g", "g", "g"]


def test_heartbeat_is_the_whole_truth(world: Registry) -> None:
    one = world.come("a", "g", "h")
    world.taken()
    world.beat(one, "h", "i")
    assert world.taken() == ["g", "i"]
    assert [world.registry.consumer_ids(group) for group in "ghi"] == [[], ["a"], ["a"]]
    world.beat(one, "h", "i")
    assert world.taken() == []


def test_part_of_a_heartbeat_is_the_whole_truth_about_what_it_names(world: Registry) -> None:
    one = world.come("a", "g", "h")
    world.taken()

    def say(*groups: str, named: set[str], producer_groups: tuple[str, ...] = ()) -> list[str]:
        members = [member(group) for group in groups]
        world.registry.heartbeat(
            one, producer_groups=producer_groups, consumers=members, named=named
        )
        return world.taken()

    assert say("i", named={"i"}) == ["i"]
    assert [world.registry.consumer_ids(group) for group in "ghi"] == [["a"]] * 3
    assert say(named={"h"}) == ["h"], "named and not taken: left"
    assert say(named={"p"}, producer_groups=("p",)) == []
    assert say("i", named={"i"}) == []
    assert len(world.registry.producers("p")) == 1
    assert say("p", named={"p"}) == ["p"]
    assert world.registry.producers("p") == []
    assert [world.registry.consumer_ids(group) for group in "ghip"] == [["a"], [], ["a"], ["a"]]


def test_topic_is_subscribed_to_as_long_as_a_member_does(world: Registry) -> None:
    one, two = world.come("a", "g", "h"), world.come("b", "g")
    assert world.registry.groups_subscribed_to("t") == {"g", "h"}
    world.beat(one, "h")
    world.beat(one, "h")
    world.registry.unregister(one, "", "h")
    assert world.registry.groups_subscribed_to("t") == {"g"}
    elsewhere = ConsumerMember(group="g", subscriptions={"u": SubscriptionData.parse("u", "*")})
    world.registry.heartbeat(two, producer_groups=[], consumers=[elsewhere])
    assert world.registry.groups_subscribed_to("t") == set()
    world.registry.remove(two)
    assert world.registry.groups_subscribed_to("u") == set()


def test_changed_subscription_is_told(world: Registry) -> None:
    one = world.come("a", "g")
    world.taken()
    world.registry.heartbeat(one, producer_groups=[], consumers=[member("g", "x || y")])
    assert world.taken() == ["g"]
    assert world.registry.groups_subscribed_to("t") == {"g"}


def test_client_is_gone_with_its_connection(world: Registry) -> None:
    one, two = world.come("a", "g"), world.come("b", "g")
    world.registry.heartbeat(two, producer_groups=["p"], consumers=[member()])
    world.taken()
    world.registry.remove(two)
    world.registry.remove(two)
    assert world.taken() == ["g"]
    assert world.registry.consumer_ids("g") == ["a"]
    assert world.registry.producers("p") == []
    world.registry.remove(one)
    assert len(world.registry) == 0


def test_only_who_says_nothing_is_silent(world: Registry) -> None:
    quiet, loud = world.come("quiet", "g"), world.come("loud", "g")
    world.clock.advance(ms=119_999)
    assert world.registry.silent(120_000) == []
    world.beat(loud, "g")
    world.clock.advance(ms=1)
    assert [client.connection for client in world.registry.silent(120_000)] == [quiet]


def test_wall_clock_makes_nobody_silent(world: Registry) -> None:
    world.come("a", "g")
    world.clock.jump_wall(ms=10 * 365 * 86_400_000)
    assert world.registry.silent(120_000) == []


def test_id_is_one_process_s(world: Registry) -> None:
    world.come("a", "g", pid=1)
    with pytest.raises(OwnerError, match="unique"):
        world.registry.bind(connection(pid=2), "a")
    mine = connection(pid=2)
    world.registry.bind(mine, "b")
    with pytest.raises(OwnerError, match="already"):
        world.registry.bind(mine, "c")


def test_newer_connection_of_a_process_takes_the_client_over_without_a_gap(
    world: Registry,
) -> None:
    old = world.come("a", "g")
    world.taken()
    new = connection()
    assert world.registry.bind(new, "a") is old
    assert world.registry.consumers("g")[0].connection is new
    world.registry.remove(old)  # its end is noticed later
    assert world.registry.consumer_ids("g") == ["a"]
    world.beat(new, "g")
    assert world.taken() == []


def test_unregistered_group_is_left(world: Registry) -> None:
    one = world.come("a", "g")
    world.taken()
    world.registry.unregister(one, "", "g")
    world.registry.unregister(one, "nothing", "g")
    assert world.taken() == ["g"]
    assert world.registry.consumer_ids("g") == []
    world.registry.unregister(connection(), "", "g")


def several(**expressions: str) -> ConsumerMember:
    """A member that subscribes to several topics."""
    return ConsumerMember(
        group="g",
        subscriptions={t: SubscriptionData.parse(t, text) for t, text in expressions.items()},
    )


def test_later_of_two_members_that_filter_differently_is_refused_by_both_names(world: Registry):
    first, second = world.come("first"), world.come("second", pid=2)
    alike = several(t="a || b")
    world.registry.heartbeat(first, producer_groups=[], consumers=[alike])
    world.registry.check_alike(first, [several(t="c")])  # nobody else is there
    world.registry.check_alike(second, [several(t="b||a", other="c")])
    with pytest.raises(SubscriptionError) as caught:
        world.registry.check_alike(second, [several(t="a")])
    said = str(caught.value)
    assert "second has filter of t 'a', and first" in said
    assert "has 'a || b'" in said
    broadcasts = ConsumerMember(group="g", message_model=MessageModel.BROADCASTING)
    with pytest.raises(SubscriptionError, match="'BROADCASTING', and first.*'CLUSTERING'"):
        world.registry.check_alike(second, [broadcasts])
    world.registry.remove(first)
    world.registry.check_alike(second, [several(t="a")])


def test_queues_of_a_topic_are_shared_by_those_who_subscribe_to_it(world: Registry):
    first, second = world.come("first"), world.come("second", pid=2)
    world.registry.heartbeat(first, producer_groups=[], consumers=[several(t="*", u="*")])
    world.registry.heartbeat(second, producer_groups=[], consumers=[several(t="*")])
    assert world.registry.consumer_ids("g", "t") == ["first", "second"]
    assert world.registry.consumer_ids("g", "u") == ["first"]
    assert world.registry.consumer_ids("g", "v") == []
    assert world.registry.consumer_ids("g", "%RETRY%g") == ["first", "second"]
