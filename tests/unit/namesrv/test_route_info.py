"""Routes as brokers come, change, go silent and end; time is the test's."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmq.clock import AttendedTime
from shmq.errors import FencedError, OwnerError, QuotaError
from shmq.namesrv import route_info
from shmq.namesrv.route_info import MemberKey, RouteInfo, Version
from shmq.remoting.namesrv_requests import BrokerAddress
from shmq.remoting.runtime_folder import broker_socket_name
from shmq.topic import Permission, TopicConfig, TopicRouteData
from tests.support.clock import SteppedClock

EXPIRY_MS = 120_000
SCAN_MS = 10_000


def address(
    name: str = "a", broker_id: int = 0, *, epoch: int = 0, socket_id: int | None = None
) -> BrokerAddress:
    socket_name = broker_socket_name(name, broker_id if socket_id is None else socket_id)
    return BrokerAddress(
        cluster_name="c",
        broker_name=name,
        broker_id=broker_id,
        socket_name=socket_name,
        master_epoch=epoch,
    )


def topics(*names: str, queues: int = 4) -> dict[str, TopicConfig]:
    return {
        name: TopicConfig(topic_name=name, read_queue_nums=queues, write_queue_nums=queues)
        for name in names
    }


class Routes(RouteInfo):
    """RouteInfo with a stepped clock and short calls."""

    def __init__(self) -> None:
        super().__init__(expiry_ms=EXPIRY_MS, scan_interval_ms=SCAN_MS)
        self.clock = SteppedClock()

    def come(
        self,
        who: BrokerAddress,
        what: dict[str, TopicConfig],
        *,
        version: int = 1,
        owner: object = "connection",
        process: object = "process",
        expiry_ms: int | None = None,
    ) -> bool:
        return self.register(
            who,
            what,
            Version(version, 0, 0),
            owner=owner,
            process=process,
            now_ns=self.clock.monotonic_ns(),
            expiry_ms=expiry_ms,
        )

    def pass_time(self, ms: int) -> list[MemberKey]:
        """Let time pass with a scan each interval; who expired."""
        gone = []
        for _ in range(ms // SCAN_MS):
            self.clock.advance(ms=SCAN_MS)
            gone += [item.key for item in self.scan(now_ns=self.clock.monotonic_ns())]
        return gone

    def shown(self, topic: str) -> dict[str, int] | None:
        """broker_name -> write queues."""
        route = self.route(topic)
        if route is None:
            return None
        return {data.broker_name: data.write_queue_nums for data in route.queue_datas}


@pytest.fixture
def routes() -> Routes:
    return Routes()


def test_route_leads_to_all_brokers_of_a_topic(routes: Routes) -> None:
    assert routes.come(address("a"), topics("t", "only_a"), owner=1)
    assert routes.come(address("b"), topics("t", queues=8), owner=2)
    assert routes.come(address("a", 1), topics("t", "slaves_own"), owner=3)
    route = routes.route("t")
    assert route is not None
    assert routes.shown("t") == {"a": 4, "b": 8}
    assert [dict(data.broker_addrs) for data in route.broker_datas] == [
        {0: "broker-a-0", 1: "broker-a-1"},
        {0: "broker-b-0"},
    ]
    assert routes.shown("only_a") == {"a": 4}
    assert routes.route("slaves_own") is None, "the master's topics count"
    assert routes.route("none") is None
    assert routes.topic_names() == ["only_a", "t"]
    assert routes.clusters() == {"c": ["a", "b"]}
    assert routes.topic_names("c") == ["only_a", "t"]
    assert routes.topic_names("other") == []


def test_answer_has_rocketmqs_words_and_is_the_same_until_something_changes(
    routes: Routes,
) -> None:
    routes.come(address(), topics("t"))
    raw = routes.encoded_route("t")
    assert raw is not None
    assert orjson.loads(raw) == {
        "orderTopicConf": None,
        "queueDatas": [
            {
                "brokerName": "a",
                "readQueueNums": 4,
                "writeQueueNums": 4,
                "perm": 6,
                "topicSysFlag": 0,
            }
        ],
        "brokerDatas": [{"cluster": "c", "brokerName": "a", "brokerAddrs": {"0": "broker-a-0"}}],
        "filterServerTable": {},
    }
    assert TopicRouteData.from_dict(orjson.loads(raw)) == routes.route("t")
    assert routes.encoded_route("t") is raw
    ordered = routes.encoded_route("t", "a:4")
    assert ordered is not None
    assert orjson.loads(ordered)["orderTopicConf"] == "a:4"
    assert routes.encoded_route("t") == raw
    routes.come(address(), topics("t", queues=5))
    assert routes.encoded_route("t") != raw
    assert routes.encoded_route("none") is None


def test_registration_replaces_what_was_there(routes: Routes) -> None:
    routes.come(address(), topics("t", "u"))
    assert not routes.come(address(), topics("u", "v", queues=2), version=2)
    assert routes.shown("t") is None
    assert routes.shown("u") == {"a": 2}
    assert routes.topic_names() == ["u", "v"]


def test_change_is_taken_on_top_of_the_version_it_follows_only(routes: Routes) -> None:
    routes.come(address("a"), topics("t", "u"), owner=1)
    routes.come(address("b"), topics("u"), owner=2)

    def change(previous: int, owner: object) -> bool:
        return routes.update_topics(
            address("a"),
            topics("v", queues=9),
            ["u", "unknown"],
            previous=Version(previous, 0, 0),
            version=Version(2, 0, 0),
            owner=owner,
            now_ns=routes.clock.monotonic_ns(),
        )

    assert not change(7, 1)
    assert not change(1, 2), "another's connection"
    assert routes.topic_names() == ["t", "u"]
    assert change(1, 1)
    assert (routes.shown("u"), routes.shown("v")) == ({"b": 4}, {"a": 9})
    assert not change(1, 1), "the version has moved on"
    version = routes.beat(address("a"), owner=1, now_ns=routes.clock.monotonic_ns())
    assert version == Version(2, 0, 0)


def test_change_of_a_slave_shows_once_it_is_first(routes: Routes) -> None:
    routes.come(address("a", 0), topics("t"), owner=0)
    routes.come(address("a", 1), topics("t"), owner=1)
    routes.update_topics(
        address("a", 1),
        topics("new"),
        ["t"],
        previous=Version(1, 0, 0),
        version=Version(2, 0, 0),
        owner=1,
        now_ns=0,
    )
    assert routes.topic_names() == ["t"]
    routes.release(0)
    assert routes.topic_names() == ["new"]


def test_broker_that_leaves_or_whose_connection_ends_is_gone_at_once(routes: Routes) -> None:
    routes.come(address("a"), topics("t"), owner=1)
    routes.come(address("b"), topics("t"), owner=2)
    routes.come(address("d"), topics("t"), owner=2)
    assert not routes.unregister(address("a"), owner=2), "not its own"
    assert routes.unregister(address("a"), owner=1)
    assert not routes.unregister(address("a"), owner=1)
    assert routes.shown("t") == {"b": 4, "d": 4}
    assert routes.release(2) == [MemberKey("b", 0), MemberKey("d", 0)]
    assert routes.release(2) == []
    assert routes.route("t") is None
    assert routes.members() == {}
    assert routes.clusters() == {}


def test_slave_leads_readers_on_while_there_is_no_master(routes: Routes) -> None:
    routes.come(address("a", 1), topics("t", queues=3), owner="slave")
    assert routes.shown("t") == {"a": 3}
    routes.come(address("a", 0), topics("t", queues=4), owner="master")
    assert routes.shown("t") == {"a": 4}
    routes.release("master")
    assert routes.shown("t") == {"a": 3}
    assert dict(routes.broker_data("a").broker_addrs) == {1: "broker-a-1"}


def test_new_connection_of_the_same_process_takes_over(routes: Routes) -> None:
    routes.come(address(), topics("t"), owner="old")
    assert not routes.come(address(), topics("t"), owner="new")
    assert routes.release("old") == [], "it speaks through the new one"
    assert routes.shown("t") == {"a": 4}
    assert routes.beat(address(), owner="old", now_ns=0) is None


def test_second_process_under_the_same_name_is_refused_while_the_first_lives(
    routes: Routes,
) -> None:
    routes.come(address(), topics("t"), owner=1, process="pid 1")
    with pytest.raises(OwnerError, match="register a:0: pid 1 is registered under it and lives"):
        routes.come(address(), topics("u"), owner=2, process="pid 2")
    assert routes.topic_names() == ["t"]
    routes.release(1)
    assert routes.come(address(), topics("u"), owner=2, process="pid 2")


def test_newer_mastership_takes_the_place_and_an_older_one_is_fenced(routes: Routes) -> None:
    """A master that hangs, a slave promoted, the old one awake again."""
    routes.come(address("a", 0, epoch=1), topics("t"), owner=1, process=1)
    routes.come(address("a", 1, epoch=1), topics("t"), owner=2, process=2)
    promoted = address("a", 0, epoch=2, socket_id=1)
    assert not routes.come(promoted, topics("t", queues=7), owner=2, process=2)
    assert routes.shown("t") == {"a": 7}
    assert dict(routes.broker_data("a").broker_addrs) == {0: "broker-a-1"}, "one socket, one place"
    with pytest.raises(FencedError, match="master epoch 1; 2 is registered already"):
        routes.come(address("a", 0, epoch=1), topics("old"), owner=1, process=1)
    assert routes.release(1) == []
    assert routes.shown("t") == {"a": 7}


# ---- time ----------------------------------------------------------------------------------------


def test_silent_broker_expires_after_its_time_and_one_that_speaks_does_not(routes: Routes) -> None:
    for number, name in enumerate(("silent", "beats", "registers", "own_time")):
        routes.come(
            address(name),
            topics("t"),
            owner=number,
            expiry_ms=30_000 if name == "own_time" else None,
        )
    gone = []
    for _ in range(4):
        gone += routes.pass_time(30_000)
        assert routes.beat(address("beats"), owner=1, now_ns=routes.clock.monotonic_ns())
        routes.come(address("registers"), topics("t"), owner=2)
    assert gone == [MemberKey("own_time", 0)]
    assert routes.pass_time(10_000) == [MemberKey("silent", 0)]
    assert routes.shown("t") == {"beats": 4, "registers": 4}
    assert routes.pass_time(200_000) == [MemberKey("beats", 0), MemberKey("registers", 0)]
    assert routes.route("t") is None


def test_own_pause_expires_nobody(routes: Routes) -> None:
    """The NameServer was stopped for an hour: it has not seen anybody for an hour."""
    routes.come(address(), topics("t"))
    routes.pass_time(60_000)
    routes.clock.advance(ms=3_600_000)
    assert routes.scan(now_ns=routes.clock.monotonic_ns()) == []
    assert routes.shown("t") == {"a": 4}
    assert routes.pass_time(120_000) == [MemberKey("a", 0)]


def test_wall_clock_is_of_no_account(routes: Routes) -> None:
    routes.come(address(), topics("t"))
    routes.clock.jump_wall(ms=10**12)
    assert routes.pass_time(110_000) == []


@given(st.lists(st.integers(0, 10**7), max_size=50))
def test_attended_time_never_runs_ahead_of_the_clock_and_never_back(steps_ms: list[int]) -> None:
    time = AttendedTime(pause_ms_max=1_000)
    now_ns = 5
    assert time.look(now_ns) == 0
    attended = 0
    for step_ms in steps_ms:
        now_ns += step_ms * 1_000_000
        before, attended = attended, time.look(now_ns)
        assert attended - before == min(step_ms, 1_000) * 1_000_000


# ---- administrators and bounds -------------------------------------------------------------------


def test_wiped_broker_gets_no_producers_until_it_is_undone(routes: Routes) -> None:
    routes.come(address("a"), topics("t", "u"), owner=1)
    routes.come(address("b"), topics("t"), owner=2)
    assert routes.encoded_route("t")
    assert routes.wipe_write_perm("a") == 2
    assert routes.wipe_write_perm("nobody") == 0

    def perms() -> dict[str, Permission]:
        route = routes.route("t")
        assert route is not None
        return {data.broker_name: data.perm for data in route.queue_datas}

    both = Permission.READ | Permission.WRITE
    assert perms() == {"a": Permission.READ, "b": both}
    routes.come(address("a"), topics("t", "u", "new"), version=2, owner=1)
    assert perms()["a"] == Permission.READ, "registering anew does not undo it"
    assert orjson.loads(routes.encoded_route("new") or b"")["queueDatas"][0]["perm"] == 4
    assert routes.add_write_perm("a") == 3
    assert routes.add_write_perm("a") == 0
    assert perms() == {"a": both, "b": both}


def test_numbers_are_bounded(routes: Routes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_info, "MEMBER_COUNT_MAX", 2)
    monkeypatch.setattr(route_info, "TOPIC_COUNT_MAX", 2)
    with pytest.raises(QuotaError, match="3 topics"):
        routes.come(address("a"), topics("t", "u", "v"))
    routes.come(address("a"), topics("t", "u"))
    routes.come(address("b"), topics("t"))
    with pytest.raises(QuotaError, match="2 brokers are registered already"):
        routes.come(address("d"), topics("t"))
    routes.come(address("b"), topics("u"), version=2)
    with pytest.raises(QuotaError, match="more than 2 topics"):
        routes.update_topics(
            address("a"),
            topics("w"),
            [],
            previous=Version(1, 0, 0),
            version=Version(2, 0, 0),
            owner="connection",
            now_ns=0,
        )
    assert routes.members().keys() == {MemberKey("a", 0), MemberKey("b", 0)}


@given(st.data())
def test_routes_are_what_the_living_members_say(data: st.DataObject) -> None:
    """Any course of events against the plain truth: per name, the topics of the lowest id."""
    routes = Routes()
    truth: dict[tuple[str, int], tuple[int, dict[str, TopicConfig]]] = {}
    for _ in range(data.draw(st.integers(0, 25))):
        name = data.draw(st.sampled_from("ab"))
        broker_id = data.draw(st.integers(0, 2))
        owner = data.draw(st.integers(0, 3))
        key = (name, broker_id)
        match data.draw(st.sampled_from(["register", "register", "unregister", "release", "ask"])):
            case "register":
                names = data.draw(st.sets(st.sampled_from("tuvw")))
                what = topics(*names, queues=data.draw(st.integers(1, 3)))
                routes.come(address(name, broker_id), what, owner=owner)
                truth[key] = (owner, what)
            case "unregister":
                was_there = key in truth and truth[key][0] == owner
                assert routes.unregister(address(name, broker_id), owner=owner) == was_there
                if was_there:
                    del truth[key]
            case "release":
                routes.release(owner)
                truth = {key: value for key, value in truth.items() if value[0] != owner}
            case "ask":
                routes.encoded_route("t")
    for topic in "tuvw":
        wanted = {}
        for name in "ab":
            ids = sorted(i for n, i in truth if n == name)
            if ids and topic in truth[name, ids[0]][1]:
                wanted[name] = truth[name, ids[0]][1][topic].write_queue_nums
        assert (routes.shown(topic) or {}) == wanted
        route = routes.route(topic)
        raw = routes.encoded_route(topic)
        assert (route is None) == (raw is None) == (not wanted)
        if raw is not None:
            assert TopicRouteData.from_dict(orjson.loads(raw)) == route
