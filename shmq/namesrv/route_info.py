"""Which broker has which topic: what brokers registered, and the routes that follow from it.

A member is one broker, (broker_name, broker_id), as it registered: its cluster, its socket, its
topics with their version, and the owner under which it speaks (its connection). The topics of a
broker_name are those of its living member with the lowest id: the master's, and, as long as there
is no master, a slave's, so that consumers still find what can be read.

    register   a member comes or speaks anew; a newer mastership or a new connection of the same
               process takes its place, any other process is refused while the first one lives
    release    the owner has ended: its members are gone at once
    scan       a member that is alive and has said nothing for its time is gone

A state machine: time and owners come in with each call, nothing is waited for, nothing fails but
what is refused (FencedError, OwnerError, QuotaError). In the NameServer, in its loop's thread; the
routes live as long as the process (RocketMQ RouteInfoManager).
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import orjson

from shmq.clock import AttendedTime
from shmq.errors import FencedError, OwnerError, QuotaError
from shmq.json_fields import Fields
from shmq.remoting.namesrv_requests import BrokerAddress
from shmq.topic import BrokerData, Permission, QueueData, TopicConfig, TopicRouteData

__all__ = ["MemberKey", "Removed", "RouteInfo", "Version"]

MASTER_ID: Final = 0
MEMBER_COUNT_MAX: Final = 1_024
"""Brokers in all; one host runs a few."""
TOPIC_COUNT_MAX: Final = 262_144
"""Topics of one broker; a broker's own limit is 65,536 by default."""
_ROUTE_COUNT_MAX: Final = 65_536  # encoded answers that are kept


class Version(NamedTuple):
    """RocketMQ's DataVersion: equal versions mean equal topics."""

    counter: int
    """Counts changes."""
    state_version: int
    """Of the cluster state."""
    timestamp: int
    """Of the last change, ms since 1970."""

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Version":
        """From RocketMQ's JSON; ConfigError names the key that is not as wanted."""
        take = Fields(data, what="dataVersion")
        return cls(
            take.number("counter", 0), take.number("stateVersion", 0), take.number("timestamp", 0)
        )


class MemberKey(NamedTuple):
    """Which broker."""

    broker_name: str
    """The name that master and slaves share."""
    broker_id: int
    """0 is the master."""

    def __str__(self) -> str:
        return f"{self.broker_name}:{self.broker_id}"


class Removed(NamedTuple):
    """A member that is gone."""

    key: MemberKey
    """Which."""
    silence_ms: int
    """How long it had said nothing."""


@dataclass(slots=True)
class _Member:
    address: BrokerAddress
    owner: Hashable
    process: Hashable
    version: Version
    topics: dict[str, QueueData]
    expiry_ns: int
    last_ns: int


@dataclass(slots=True)
class _Name:
    """One broker_name: its members, and what of them is in the routes."""

    members: dict[int, _Member] = field(default_factory=dict)
    shown: dict[str, QueueData] = field(default_factory=dict)


class RouteInfo:
    """All routes of one NameServer.

    Args:
        expiry_ms: silence after which a living broker leaves the routes, unless it says otherwise.
        scan_interval_ms: how often `scan` is called.
    """

    def __init__(self, *, expiry_ms: int, scan_interval_ms: int) -> None:
        self._expiry_ms = expiry_ms
        self._time = AttendedTime(pause_ms_max=3 * scan_interval_ms)
        self._names: dict[str, _Name] = {}
        self._topics: dict[str, dict[str, QueueData]] = {}
        self._wiped: set[str] = set()
        self._encoded: dict[str, bytes] = {}
        self.change_number = 0
        """Another one whenever routes may be others."""
        self.on_change: Callable[[], None] = _nobody
        """Called then; by whoever has clients wait for it."""

    # ---- brokers -----------------------------------------------------------------------------

    def register(
        self,
        address: BrokerAddress,
        topics: Mapping[str, TopicConfig],
        version: Version,
        *,
        owner: Hashable,
        process: Hashable,
        now_ns: int,
        expiry_ms: int | None = None,
    ) -> bool:
        """A broker says what it has.

        Args:
            address: who it is.
            topics: all its topics; what was there and is not among them is gone.
            version: of the topics.
            owner: what ends when the broker does (its connection); see `release`.
            process: the process, equal for two connections of one.
            now_ns: the clock's monotonic time.
            expiry_ms: silence that this broker may keep; None: the default.

        Returns:
            whether it was not known before.

        Raises:
            FencedError: a newer mastership is registered under its name and id.
            OwnerError: another living process is.
            QuotaError: too many brokers, or topics.
        """
        if len(topics) > TOPIC_COUNT_MAX:
            raise QuotaError(f"register {address.broker_name}: {len(topics)} topics")
        key = MemberKey(address.broker_name, address.broker_id)
        before = self._member(key)
        if before is not None:
            _check_successor(key, before, address, process)
        elif sum(len(name.members) for name in self._names.values()) >= MEMBER_COUNT_MAX:
            raise QuotaError(f"register {key}: {MEMBER_COUNT_MAX} brokers are registered already")
        name = self._names.setdefault(key.broker_name, _Name())
        # A slave that became master, or the reverse: one socket has one place.
        for other_id, other in list(name.members.items()):
            if other_id != key.broker_id and other.address.socket_name == address.socket_name:
                del name.members[other_id]
        name.members[key.broker_id] = _Member(
            address,
            owner,
            process,
            version,
            {topic: _queue_data(key.broker_name, config) for topic, config in topics.items()},
            (self._expiry_ms if expiry_ms is None else expiry_ms) * 1_000_000,
            self._time.look(now_ns),
        )
        self._show(key.broker_name)
        return before is None

    def update_topics(
        self,
        address: BrokerAddress,
        changed: Mapping[str, TopicConfig],
        deleted: list[str],
        *,
        previous: Version,
        version: Version,
        owner: Hashable,
        now_ns: int,
    ) -> bool:
        """A registered broker says what changed; False if it is not known at version `previous`."""
        member = self._owned(address, owner)
        if member is None or member.version != previous:
            return False
        if len(member.topics) + len(changed) > TOPIC_COUNT_MAX:
            raise QuotaError(f"register {address.broker_name}: more than {TOPIC_COUNT_MAX} topics")
        added = {name: _queue_data(address.broker_name, item) for name, item in changed.items()}
        member.topics.update(added)
        for topic in deleted:
            member.topics.pop(topic, None)
        member.version = version
        member.last_ns = self._time.look(now_ns)
        name = self._names[address.broker_name]
        if min(name.members) == address.broker_id:
            self._change(address.broker_name, added, set(deleted) & name.shown.keys())
        return True

    def beat(self, address: BrokerAddress, *, owner: Hashable, now_ns: int) -> Version | None:
        """A registered broker gives a sign of life; the version known of it, None if it is not."""
        member = self._owned(address, owner)
        if member is None:
            return None
        member.last_ns = self._time.look(now_ns)
        return member.version

    def unregister(self, address: BrokerAddress, *, owner: Hashable) -> bool:
        """A broker leaves; whether it was there under this owner."""
        if self._owned(address, owner) is None:
            return False
        self._remove(MemberKey(address.broker_name, address.broker_id))
        return True

    def release(self, owner: Hashable) -> list[MemberKey]:
        """An owner has ended: the brokers that spoke through it are gone. Which they were."""
        gone = [key for key, member in self._all() if member.owner == owner]
        for key in gone:
            self._remove(key)
        return gone

    def scan(self, *, now_ns: int) -> list[Removed]:
        """Let the brokers go that said nothing for their time."""
        attended_ns = self._time.look(now_ns)
        gone = [
            Removed(key, (attended_ns - member.last_ns) // 1_000_000)
            for key, member in self._all()
            if attended_ns - member.last_ns > member.expiry_ns
        ]
        for removed in gone:
            self._remove(removed.key)
        return gone

    def members(self) -> dict[MemberKey, BrokerAddress]:
        """All brokers that are registered."""
        return {key: member.address for key, member in self._all()}

    def describe(self) -> str:
        """How much is registered, in one line; from any thread."""
        return f"{len(self._names)} broker names, {len(self._topics)} topics"

    # ---- administrators ----------------------------------------------------------------------

    def wipe_write_perm(self, broker_name: str) -> int:
        """Lead producers to none of the broker's topics, present and future; of how many now."""
        if broker_name not in self._names:
            return 0
        self._wiped.add(broker_name)
        self._changed()
        return len(self._names[broker_name].shown)

    def add_write_perm(self, broker_name: str) -> int:
        """Undo `wipe_write_perm`; of how many topics."""
        if broker_name not in self._wiped:
            return 0
        self._wiped.discard(broker_name)
        self._changed()
        return len(self._names[broker_name].shown)

    # ---- whoever asks ------------------------------------------------------------------------

    def route(self, topic: str, order_topic_conf: str | None = None) -> TopicRouteData | None:
        """The route to a topic; None where none leads there."""
        queues = self._topics.get(topic)
        if not queues:
            return None
        return TopicRouteData(
            queue_datas=tuple(self._permitted(queues[name]) for name in sorted(queues)),
            broker_datas=tuple(self.broker_data(name) for name in sorted(queues)),
            order_topic_conf=order_topic_conf,
        )

    def encoded_route(self, topic: str, order_topic_conf: str | None = None) -> bytes | None:
        """The same as the JSON of an answer; kept until something changes."""
        raw = self._encoded.get(topic)
        if raw is None or order_topic_conf is not None:
            route = self.route(topic, order_topic_conf)
            if route is None:
                return None
            raw = orjson.dumps(route.to_dict())
            if order_topic_conf is None and len(self._encoded) < _ROUTE_COUNT_MAX:
                self._encoded[topic] = raw
        return raw

    def broker_data(self, broker_name: str) -> BrokerData:
        """The members of a broker_name; none of them where it is unknown."""
        name = self._names.get(broker_name, _Name())
        members = sorted(name.members.items())
        return BrokerData(
            cluster=members[0][1].address.cluster_name if members else "",
            broker_name=broker_name,
            broker_addrs={key: member.address.socket_name for key, member in members},
        )

    def clusters(self) -> dict[str, list[str]]:
        """The broker_names of each cluster, sorted."""
        found: dict[str, set[str]] = {}
        for key, member in self._all():
            found.setdefault(member.address.cluster_name, set()).add(key.broker_name)
        return {cluster: sorted(names) for cluster, names in sorted(found.items())}

    def topic_names(self, cluster: str | None = None) -> list[str]:
        """The topics that have a route (to brokers of `cluster`), sorted."""
        if cluster is None:
            return sorted(self._topics)
        names = set(self.clusters().get(cluster, ()))
        return sorted(topic for topic, queues in self._topics.items() if names & queues.keys())

    # ---- inside ------------------------------------------------------------------------------

    def _all(self) -> list[tuple[MemberKey, _Member]]:
        return [
            (MemberKey(broker_name, broker_id), member)
            for broker_name, name in sorted(self._names.items())
            for broker_id, member in sorted(name.members.items())
        ]

    def _member(self, key: MemberKey) -> _Member | None:
        name = self._names.get(key.broker_name)
        return None if name is None else name.members.get(key.broker_id)

    def _owned(self, address: BrokerAddress, owner: Hashable) -> _Member | None:
        member = self._member(MemberKey(address.broker_name, address.broker_id))
        return member if member is not None and member.owner == owner else None

    def _remove(self, key: MemberKey) -> None:
        name = self._names[key.broker_name]
        del name.members[key.broker_id]
        self._show(key.broker_name)
        if not name.members:
            del self._names[key.broker_name]
            self._wiped.discard(key.broker_name)

    def _show(self, broker_name: str) -> None:
        """Bring the routes in line with the topics of the name's first member."""
        name = self._names[broker_name]
        wanted = name.members[min(name.members)].topics if name.members else {}
        self._change(broker_name, wanted, name.shown.keys() - wanted.keys())

    def _change(self, broker_name: str, shown: Mapping[str, QueueData], hidden: set[str]) -> None:
        """Show some topics of a name in the routes and hide others that are shown."""
        name = self._names[broker_name]
        for topic in hidden:
            del name.shown[topic]
            queues = self._topics[topic]
            del queues[broker_name]
            if not queues:
                del self._topics[topic]
        for topic, data in shown.items():
            name.shown[topic] = data
            self._topics.setdefault(topic, {})[broker_name] = data
        self._changed()

    def _changed(self) -> None:
        self._encoded.clear()
        self.change_number += 1
        self.on_change()

    def _permitted(self, data: QueueData) -> QueueData:
        if data.broker_name not in self._wiped:
            return data
        return replace(data, perm=data.perm & ~Permission.WRITE)


def _nobody() -> None:
    """Nobody waits for changes."""


def _check_successor(
    key: MemberKey, before: _Member, address: BrokerAddress, process: Hashable
) -> None:
    """Return if the registration may take the place of the one that is there."""
    if address.master_epoch < before.address.master_epoch:
        raise FencedError(
            f"register {key}: master epoch {address.master_epoch}; {before.address.master_epoch}"
            f" is registered already by {before.process}"
        )
    if process != before.process and address.master_epoch == before.address.master_epoch:
        raise OwnerError(
            f"register {key}: {before.process} is registered under it and lives; stop that one, or"
            " give this one another broker_name or broker_id"
        )


def _queue_data(broker_name: str, config: TopicConfig) -> QueueData:
    return QueueData(
        broker_name=broker_name,
        read_queue_nums=config.read_queue_nums,
        write_queue_nums=config.write_queue_nums,
        perm=config.perm,
        topic_sys_flag=config.topic_sys_flag,
    )
