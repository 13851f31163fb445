"""Admin: what people and tools ask a cluster, and have it do, beside sending and receiving.

What lives here: `Admin`, RocketMQ's MQAdmin in shmq's words. It talks to NameServers and brokers
over their sockets only: no session, no shared memory, unless a message is sent again. Which
process: any of the cluster's group. Writes: what a verb says, at the brokers. May fail:
ServiceNotAvailableError where nobody answers, and whatever a broker refuses; a change that several
brokers share is made one broker at a time, in order of names, and stops at the first that refuses.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from shmq.client import broker_settings, ha
from shmq.client.arguments import check_count
from shmq.client.closable import Closable
from shmq.client.message_finder import MESSAGE_COUNT_DEFAULT, MessageFinder
from shmq.client.route_cache import ORDER_TOPIC_CONFIG, RouteCache, no_broker
from shmq.config import default_namesrv_folder
from shmq.errors import (
    ClosedError,
    ConfigError,
    ServiceNotAvailableError,
    ShmqError,
    SubscriptionGroupNotExistError,
    TopicNotExistError,
)
from shmq.remoting.client import Client as Connection
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
from shmq.remoting.controller_requests import clean_broker_data
from shmq.remoting.namesrv_requests import (
    add_write_perm,
    delete_kv_config,
    kv_list,
    put_kv_config,
    supervisor_status,
    wipe_write_perm,
)
from shmq.remoting.runtime_folder import RuntimeFolder, broker_socket_name
from shmq.subscription import SubscriptionGroupConfig, check_group
from shmq.topic import QUEUE_NUMS_MAX, Permission, TopicConfig, check_topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from shmq.client.broker_settings import BrokerSetting
    from shmq.client.ha import HaMember
    from shmq.client.instance import Client
    from shmq.client.producer import Producer
    from shmq.client.stored_message import StoredMessage
    from shmq.remoting.command import Scalar
    from shmq.remoting.controller_requests import SyncStateData
    from shmq.remoting.namesrv_requests import ClusterInfo
    from shmq.result import SendResult

__all__ = ["Admin", "BrokerState", "GroupMember", "QueueLag", "QueueStats"]

_TIMEOUT_S = 5.0
_LIST_COUNT = 1000
"""Topics in one request."""
_LONG_MAX = (1 << 63) - 1
_ORDER_CONF = re.compile(r"[^:;\s]+:[1-9]\d{0,9}(;[^:;\s]+:[1-9]\d{0,9})*")


class BrokerState(NamedTuple):
    """One broker that the NameServers know, and what it says of itself."""

    cluster_name: str
    """Its cluster."""
    broker_name: str
    """The name that master and slaves share."""
    broker_id: int
    """0 is the master."""
    phase: str
    """STARTING, RUNNING or DRAINING; SILENT if it did not answer."""
    problem: str
    """What is wrong with it; empty if nothing is."""
    pid: int
    """Its process; 0 if it did not answer."""
    session_count: int
    """Clients that have shared memory of it."""
    committed_position: int
    """Bytes of its CommitLog so far."""
    flush_behind_bytes: int
    """How much of that is not on disk yet."""
    version: str
    """The shmq that it runs; empty if it did not answer."""
    store_path: str
    """Its store's folder, as it sees it; empty if it did not answer."""


class QueueStats(NamedTuple):
    """One queue of a topic."""

    broker_name: str
    """The broker."""
    queue_id: int
    """The queue, from 0."""
    min_offset: int
    """First queue_offset kept."""
    max_offset: int
    """The next queue_offset to be assigned."""
    last_update_ms: int
    """Store time of its newest message, ms since 1970; 0: none."""


class QueueLag(NamedTuple):
    """One queue as a group has consumed it."""

    topic: str
    """The topic."""
    broker_name: str
    """The broker."""
    queue_id: int
    """The queue, from 0."""
    broker_offset: int
    """The next queue_offset that a message becomes visible at."""
    consumer_offset: int
    """The queue_offset that the group consumes next; -1: none stored."""
    lag: int
    """Messages in between."""
    client_id: str
    """Who has it now; empty if nobody has."""
    last_consumed_ms: int
    """Store time of the message consumed last, ms since 1970; 0: none."""
    lag_ms: int
    """How long ago the next message was stored, ms; 0 without lag."""
    locked_by: str
    """Who has it to itself, to consume it in order; empty if nobody has. Another than client_id
    where a member that gives it up is in the middle of a message."""


class GroupMember(NamedTuple):
    """A member of a group, as one broker sees it."""

    client_id: str
    """The client's id; the same on all brokers."""
    broker_names: tuple[str, ...]
    """Brokers that it heartbeats to."""


class Admin(Closable):
    """Asks and changes one cluster. A context manager; one thread at a time.

    Example:
        with shmq.Admin() as admin:
            admin.create_topic("orders", queues=4)
    """

    def __init__(self, namesrv: str | Path | None = None) -> None:
        """Connect to nobody yet.

        Args:
            namesrv: the runtime folder; None: SHMQ_NAMESRV, else the default runtime folder.

        Raises:
            ServiceNotAvailableError: there is no such folder; nothing runs there.
        """
        self._folder = RuntimeFolder.open(Path(namesrv or default_namesrv_folder()))
        self._routes = RouteCache(self._folder)
        self._connections: dict[str, Connection] = {}
        self._is_closed = False
        self._namesrv = namesrv
        self._client: Client | None = None
        self._producer: Producer
        self._finder = MessageFinder(self._invoke, self._readable)

    def close(self) -> None:
        """Leave everybody. Twice does nothing."""
        self._is_closed = True
        if self._client is not None:
            self._client.close()
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._routes.close()
        self._folder.close()

    # ---- brokers ---------------------------------------------------------------------------------

    def cluster(self) -> ClusterInfo:
        """All clusters and brokers that a NameServer knows."""
        self._check()
        return self._routes.cluster()

    def brokers(self) -> list[BrokerState]:
        """All brokers that a NameServer knows, masters and slaves, and how they are."""
        info = self.cluster()
        states = []
        for data in sorted(info.brokers.values(), key=lambda data: data.broker_name):
            for broker_id, socket_name in sorted(data.broker_addrs.items()):
                states.append(self._state(data.cluster, data.broker_name, broker_id, socket_name))
        return states

    def _state(
        self, cluster_name: str, broker_name: str, broker_id: int, socket_name: str
    ) -> BrokerState:
        try:
            answer = self._call(socket_name, Command(RequestCode.GET_BROKER_STATUS))
        except ShmqError as error:
            return BrokerState(
                cluster_name, broker_name, broker_id, "SILENT", str(error), 0, 0, 0, 0, "", ""
            )
        said = answer.fields()
        committed = said.number("committedPosition")
        return BrokerState(
            cluster_name,
            broker_name,
            broker_id,
            said.text("phase"),
            str(answer.ext_fields.get("problem") or ""),
            said.number("pid"),
            said.number("sessionCount"),
            committed,
            committed - said.number("flushedPosition"),
            said.text("brokerVersionDesc", ""),
            said.text("storePath", ""),
        )

    def ha_members(self, broker_name: str | None = None) -> list[HaMember]:
        """The members of a replica set, or of all: master, and those that wait; a broker on its own
        is one too. Without those that do not answer.
        """
        self._check()
        return ha.members(self._call, self._folder.socket_names("broker"), broker_name)

    def ha_progress(self, broker_name: str | None = None) -> list[HaMember]:
        """As `ha_members`, with the time until each has caught up with its master, and whether that
        counts it as in sync; blocks for half a second where one is behind.
        """
        found = ha.progress(lambda: self.ha_members(broker_name))
        return ha.with_standing(self._call, found)

    def epochs(self, broker_name: str, broker_id: int) -> list[tuple[int, int]]:
        """(master_epoch, start_position) of the masterships under which a member's log was written
        (RocketMQ's GET_BROKER_EPOCH_CACHE).

        Raises:
            ServiceNotAvailableError: it does not answer.
        """
        try:
            return ha.epochs_of(self._call, broker_socket_name(broker_name, broker_id))
        except ServiceNotAvailableError as error:
            raise ServiceNotAvailableError(
                f"{broker_name}: broker_id {broker_id} does not answer: {error}",
                hint="shmq ha status lists the members that do",
            ) from error

    def switch_master(
        self, broker_name: str, broker_id: int | None = None, *, is_unclean: bool = False
    ) -> HaMember:
        """Have another member become master, in order: no send fails. Blocks until it serves.

        Args:
            broker_name: of the replica set.
            broker_id: which member; None: of those that wait and are no learners the one whose log
                goes furthest, and of equals the lowest id.
            is_unclean: also a member whose log the last master's memory does not continue: what
                only that memory has is given up; and, where nobody is master, one whose log ends
                before that of another that waits.

        Raises:
            ConfigError: there is no such member that waits and answers, or it lacks messages.
            ServiceNotAvailableError: it did not become master; the old one was told to go on.
        """
        known = self.ha_members(broker_name)
        controller = self._controller_of(broker_name)
        if controller is None:
            return ha.switch(self._call, known, broker_name, broker_id, is_unclean=is_unclean)
        if is_unclean:
            raise ConfigError(
                f"switch over {broker_name}: its Controller decides what may be given up:"
                " enableElectUncleanMaster"
            )
        if broker_id is None:
            broker_id = ha.chosen(known, broker_name, None, is_led=True).broker_id
        return ha.elect(self._call, controller, known, broker_name, broker_id)

    def _controller_of(self, broker_name: str) -> str | None:
        """The Controller that says who is master of a replica set; None: none does."""
        names = self._folder.socket_names("controller")
        try:
            controller = ha.controller_of(self._call, names)
        except ServiceNotAvailableError:
            return None
        return controller if ha.sync_states(self._call, controller, broker_name) else None

    def sync_states(self, broker_name: str | None = None) -> list[SyncStateData]:
        """What the Controller says of a replica set, or of all: who is master and in sync
        (RocketMQ's getSyncStateSet).

        Raises:
            ServiceNotAvailableError: there is no Controller.
        """
        self._check()
        controller = ha.controller_of(self._call, self._folder.socket_names("controller"))
        return ha.sync_states(self._call, controller, broker_name)

    def elect_master(self, broker_name: str, broker_id: int | None = None) -> HaMember:
        """Have the Controller elect a member by hand (RocketMQ's electMaster): the master hands
        over, no send fails. Blocks until the elected one serves.

        Args:
            broker_name: of the replica set.
            broker_id: which member; None: whom the Controller would, where there is no master.

        Raises:
            ServiceNotAvailableError: there is no Controller, or the elected one did not become
                master.
            ShmqError: the Controller refuses, and why.
        """
        known = self.ha_members(broker_name)
        controller = ha.controller_of(self._call, self._folder.socket_names("controller"))
        return ha.elect(self._call, controller, known, broker_name, broker_id)

    def clean_broker_data(
        self, broker_name: str, broker_ids: Iterable[int] = (), *, is_living_cleaned: bool = False
    ) -> None:
        """Have the Controller forget members, or with none named the whole replica set (RocketMQ's
        cleanBrokerMetadata). Their stores stay.

        Raises:
            ServiceNotAvailableError: there is no Controller.
            ShmqError: the Controller refuses, and why.
        """
        self._check()
        controller = ha.controller_of(self._call, self._folder.socket_names("controller"))
        command = clean_broker_data(broker_name, broker_ids, is_living_cleaned=is_living_cleaned)
        self._call(controller, command)

    def namesrvs(self) -> list[str]:
        """Names of the sockets of NameServers that answer."""
        self._check()
        found = []
        for name in self._folder.socket_names("namesrv"):
            try:
                self._call(name, supervisor_status())
            except ShmqError:
                continue
            found.append(name)
        return found

    def supervised(self) -> list[dict[str, Any]]:
        """What supervising NameServers say of the brokers they start: name, phase, pid,
        restartCount, isAdopted, problem.
        """
        return [
            ward
            for name in self.namesrvs()
            for ward in _rows(self._call(name, supervisor_status()), "brokers")
        ]

    def runtime_info(self, broker_name: str) -> dict[str, str]:
        """What a master tells of itself, as RocketMQ's brokerStatus.

        Raises:
            ServiceNotAvailableError: it is not there.
        """
        answer = self._ask(broker_name, RequestCode.GET_BROKER_RUNTIME_INFO)
        table: dict[str, str] = orjson.loads(answer.body)["table"]
        return table

    def broker_config(self, broker_name: str, broker_id: int | None = None) -> list[BrokerSetting]:
        """The settings of a broker: of its file and command line, and what was changed since
        (RocketMQ's getBrokerConfig).

        Args:
            broker_name: which.
            broker_id: which member; None: the master.

        Raises:
            ServiceNotAvailableError: it is not there.
        """
        return broker_settings.get(self._call, self._member(broker_name, broker_id))

    def change_broker_config(
        self, broker_name: str, changes: Mapping[str, str], broker_id: int | None = None
    ) -> dict[str, str]:
        """Give settings of a running broker other values, all or none, until it ends. RocketMQ's
        updateBrokerConfig writes them into its file, too.

        Args:
            broker_name: which.
            changes: by own names or RocketMQ's, as a file would have them.
            broker_id: which member; None: the master.

        Returns:
            what they are now, by own names.

        Raises:
            ConfigError: a key or value cannot be used, or counts from a start only.
            ServiceNotAvailableError: it is not there.
        """
        return broker_settings.change(self._call, self._member(broker_name, broker_id), changes)

    def _member(self, broker_name: str, broker_id: int | None) -> str:
        """The socket of a member, or of the first that there is."""
        self._check()
        if broker_id is None:
            return self._first(broker_name)
        return broker_socket_name(broker_name, broker_id)

    def delete_expired_commit_log(self, broker_name: str) -> None:
        """Have a broker remove the log files that have expired now, not at its deleteWhen; returns
        before they are gone (RocketMQ's deleteExpiredCommitLog).

        Raises:
            ServiceNotAvailableError: it is not there.
        """
        self._ask(broker_name, RequestCode.DELETE_EXPIRED_COMMITLOG)

    def wipe_write_perm(self, broker_name: str) -> int:
        """Have producers leave a broker: at all NameServers its topics' routes lose the write
        permission; of how many topics. Running producers notice within 30 s; an order topic's keep
        its queues there. It lasts as long as the NameServer and the broker do.

        Raises:
            ServiceNotAvailableError: there is no such broker, or no NameServer answers.
        """
        return self._set_write_perm(broker_name, wipe_write_perm(broker_name), "wipeTopicCount")

    def add_write_perm(self, broker_name: str) -> int:
        """Undo `wipe_write_perm`; of how many topics. Errors are the same."""
        return self._set_write_perm(broker_name, add_write_perm(broker_name), "addTopicCount")

    def _set_write_perm(self, broker_name: str, command: Command, field: str) -> int:
        if broker_name not in self.cluster().brokers:
            raise ServiceNotAvailableError(
                f"change the write permission of broker {broker_name}: no NameServer knows it",
                hint="see what there is: shmq broker list",
            )
        answers = self._tell_all(command)
        return max(answer.fields().number(field) for answer in answers.values())

    # ---- the NameServers' configuration ----------------------------------------------------------

    def kv_put(self, namespace: str, key: str, value: str) -> list[str]:
        """Keep a value at all NameServers; their names.

        Raises:
            ConfigError: a name or the value is too long; or it is no "broker:queues;..." in
                ORDER_TOPIC_CONFIG.
            ServiceNotAvailableError: no NameServer answers.
        """
        if namespace == ORDER_TOPIC_CONFIG and not (
            _ORDER_CONF.fullmatch(value)
            and all(int(part.split(":")[1]) <= QUEUE_NUMS_MAX for part in value.split(";"))
        ):
            raise ConfigError(
                f"put {namespace}/{key}: {value[:80]!r}, wanted broker:queues;broker:queues, "
                f"queues up to {QUEUE_NUMS_MAX}"
            )
        return sorted(self._tell_all(put_kv_config(namespace, key, value)))

    def kv_get(self, namespace: str, key: str) -> str:
        """A value, from the first NameServer that has it.

        Raises:
            ConfigError: none has it.
            ServiceNotAvailableError: no NameServer answers.
        """
        value = self.kv_list(namespace).get(key)
        if value is None:
            raise ConfigError(f"get {namespace}/{key}: no NameServer has such a value")
        return value

    def kv_list(self, namespace: str) -> dict[str, str]:
        """All keys and values of a namespace, whichever NameServer has them.

        Raises:
            ServiceNotAvailableError: no NameServer answers.
        """
        found: dict[str, str] = {}
        for answer in self._tell_all(kv_list(namespace)).values():
            table: dict[str, str] = orjson.loads(answer.body)["table"]
            found = table | found
        return found

    def kv_delete(self, namespace: str, key: str) -> list[str]:
        """Forget a value at all NameServers, where there is one; their names.

        Raises:
            ServiceNotAvailableError: no NameServer answers.
        """
        return sorted(self._tell_all(delete_kv_config(namespace, key)))

    def _tell_all(self, command: Command) -> dict[str, Command]:
        """Tell every NameServer that answers; their answers by name."""
        answers = {}
        for name in self.namesrvs():
            copy = Command(command.code, dict(command.ext_fields), command.body)
            answers[name] = self._call(name, copy)
        if not answers:
            raise ServiceNotAvailableError(
                f"{command.name}: no NameServer in {self._folder.path} answers",
                hint="start one: shmq-namesrv, or shmq dev",
            )
        return answers

    # ---- topics ----------------------------------------------------------------------------------

    def topics(self) -> dict[str, dict[str, TopicConfig]]:
        """All topics: for each name its configuration by broker_name."""
        found: dict[str, dict[str, TopicConfig]] = {}
        for name in self._readable():
            table = self._table(name, RequestCode.GET_ALL_TOPIC_CONFIG, "topicConfigTable")
            for topic, config in table:
                found.setdefault(topic, {})[name] = TopicConfig.from_dict(config)
        return dict(sorted(found.items()))

    def topic(self, topic: str) -> dict[str, TopicConfig]:
        """A topic's configuration by broker_name.

        Raises:
            TopicNotExistError: no broker has it.
        """
        found = {}
        for name in self._readable():
            try:
                answer = self._ask(name, RequestCode.GET_TOPIC_CONFIG, {"topic": topic})
            except TopicNotExistError:
                continue
            found[name] = TopicConfig.from_dict(answer.json())
        if not found:
            raise TopicNotExistError(
                f"topic {topic}: no broker has it", hint="see what there is: shmq topic list"
            )
        return found

    def create_topic(
        self,
        topic: str,
        *,
        queues: int | None = None,
        read_queues: int | None = None,
        write_queues: int | None = None,
        perm: Permission | None = None,
        order: bool | None = None,
        attributes: Mapping[str, str | None] | None = None,
        brokers: Iterable[str] | None = None,
        force: bool = False,
    ) -> dict[str, TopicConfig]:
        """Create or change a topic; what is None stays as it is, or is the broker's default.

        To shrink a topic take write queues first, let the groups drain, then read queues.

        Args:
            topic: the topic.
            queues: queues on each broker, for reading and writing.
            read_queues: queues that are read; None: as `queues`.
            write_queues: queues that are written; None: as `queues`.
            perm: what the topic allows.
            order: whether its routes stay fixed while a broker is down.
            attributes: RocketMQ's, "shmq.flush.disk.type" and "shmq.broker.role"; a value of None
                takes one away.
            brokers: names of masters; None: those that have it, or all if none has.
            force: drop queues although they are not drained.

        Returns:
            The configuration by broker_name.

        Raises:
            IllegalTopicError: the name.
            ConfigError: a number of queues; or queues that are not drained would be dropped.
            ServiceNotAvailableError: a broker is away; those before it have changed.
        """
        check_topic(topic)
        numbers = {"queues": queues, "read_queues": read_queues, "write_queues": write_queues}
        for key, number in numbers.items():
            if number is not None:
                check_count(f"create topic {topic}", key, number, most=QUEUE_NUMS_MAX)
        if brokers is None:
            try:
                names = list(self.topic(topic))
            except TopicNotExistError:
                names = self._some_masters(f"create topic {topic}")
        else:
            names = self._known(f"create topic {topic}", brokers)
        fields: dict[str, Scalar] = {"topic": topic, "isForce": force}
        if read_queues is not None or queues is not None:
            fields["readQueueNums"] = read_queues or queues or 0
        if write_queues is not None or queues is not None:
            fields["writeQueueNums"] = queues or 0 if write_queues is None else write_queues
        if perm is not None:
            fields["perm"] = int(perm)
        if order is not None:
            fields["order"] = order
        if attributes:
            fields["attributes"] = ",".join(
                f"-{key}" if value is None else f"+{key}={value}"
                for key, value in attributes.items()
            )
        made = {
            name: TopicConfig.from_dict(
                self._ask(name, RequestCode.UPDATE_AND_CREATE_TOPIC, fields).json()
            )
            for name in sorted(names)
        }
        self._configure(topic)
        return made

    def create_topics(
        self, topics: Iterable[str], *, queues: int = 8, brokers: Iterable[str] | None = None
    ) -> None:
        """Create many topics alike; those that exist get so many queues. It costs a few writes of
        the brokers' files, where as many calls of `create_topic` write them as many times.

        Args:
            topics: their names.
            queues: queues of each on each broker, for reading and writing.
            brokers: names of masters; None: all.

        Raises:
            IllegalTopicError: a name; of its thousand nothing has changed.
            ConfigError: queues that are not drained would be dropped.
            ServiceNotAvailableError: a broker is away; those before it have changed.
        """
        names = list(topics)
        for name in names:
            check_topic(name)
        where = self._some_masters("create topics") if brokers is None else sorted(brokers)
        for begin in range(0, len(names), _LIST_COUNT):
            some = names[begin : begin + _LIST_COUNT]
            configs = [
                TopicConfig(topic_name=name, read_queue_nums=queues, write_queue_nums=queues)
                for name in some
            ]
            body = orjson.dumps({"topicConfigList": [config.to_dict() for config in configs]})
            for broker in where:
                self._ask(broker, RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, {}, body)
            self._routes.configure_all(dict.fromkeys(some, dict.fromkeys(where, queues)))

    def delete_topic(self, topic: str, *, brokers: Iterable[str] | None = None) -> list[str]:
        """Delete a topic and its messages; the names of the brokers that had it.

        Raises:
            TopicNotExistError: no broker has it.
            IllegalTopicError: it is one of the system's.
        """
        names = sorted(self.topic(topic) if brokers is None else brokers)
        for name in names:
            self._ask(name, RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": topic})
        self._configure(topic)
        return names

    def _configure(self, topic: str) -> None:
        """Tell the NameServers which queues there are: a key keeps its queue while a broker is
        down.
        """
        try:
            table = self.topic(topic)
        except TopicNotExistError:
            table = {}
        self._routes.configure(topic, {name: one.write_queue_nums for name, one in table.items()})

    def topic_stats(self, topic: str) -> list[QueueStats]:
        """The queues of a topic and what is in them.

        Raises:
            TopicNotExistError: no broker has it.
        """
        rows = []
        for name in self.topic(topic):
            answer = self._ask(name, RequestCode.GET_TOPIC_STATS_INFO, {"topic": topic})
            rows += [
                QueueStats(
                    name,
                    queue["queueId"],
                    queue["minOffset"],
                    queue["maxOffset"],
                    queue["lastUpdateTimestamp"],
                )
                for queue in _rows(answer, "queues")
            ]
        return rows

    # ---- groups ----------------------------------------------------------------------------------

    def groups(self) -> dict[str, dict[str, SubscriptionGroupConfig]]:
        """All consumer groups: for each name its configuration by broker_name."""
        found: dict[str, dict[str, SubscriptionGroupConfig]] = {}
        for name in self._readable():
            table = self._table(
                name, RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG, "subscriptionGroupTable"
            )
            for group, config in table:
                found.setdefault(group, {})[name] = SubscriptionGroupConfig.from_dict(config)
        return dict(sorted(found.items()))

    def group(self, group: str) -> dict[str, SubscriptionGroupConfig]:
        """A group's configuration by broker_name.

        Raises:
            SubscriptionGroupNotExistError: no broker has it.
        """
        check_group(group)
        found = {}
        for name in self._readable():
            try:
                answer = self._ask(name, RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": group})
            except SubscriptionGroupNotExistError:
                continue
            found[name] = SubscriptionGroupConfig.from_dict(answer.json())
        if not found:
            raise _no_group(group)
        return found

    def update_group(
        self, group: str, *, brokers: Iterable[str] | None = None, **changes: Any
    ) -> dict[str, SubscriptionGroupConfig]:
        """Change a group; what is not named stays as each broker has it.

        Args:
            group: the group.
            brokers: names of masters; None: all that have it.
            changes: fields of shmq.SubscriptionGroupConfig, e.g. retry_max_times=3.

        Returns:
            The configuration by broker_name.

        Raises:
            SubscriptionGroupNotExistError: no broker has it.
            ConfigError: there is no such field, a value is out of range, or has no effect here.
        """
        unknown = changes.keys() - _GROUP_FIELDS
        if unknown:
            raise ConfigError(
                f"change group {group}: {sorted(unknown)[0]}, wanted one of "
                f"{', '.join(sorted(_GROUP_FIELDS))}"
            )
        known = self.group(group)
        wanted = {
            name: replace(known.get(name, SubscriptionGroupConfig(group_name=group)), **changes)
            for name in sorted(known if brokers is None else brokers)
        }
        for name, config in wanted.items():
            self.create_group(config, brokers=[name])
        return wanted

    def create_group(
        self, config: SubscriptionGroupConfig, *, brokers: Iterable[str] | None = None
    ) -> list[str]:
        """Create or replace a group on brokers (None: all masters); their names."""
        check_group(config.group_name)
        what = f"create group {config.group_name}"
        names = sorted(self._some_masters(what) if brokers is None else brokers)
        body = orjson.dumps(config.to_dict())
        for name in names:
            self._ask(name, RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, None, body)
        return names

    def delete_group(self, group: str, *, forget_offsets: bool = False) -> list[str]:
        """Delete a group and its retry topic; the names of the brokers that had it.

        Raises:
            SubscriptionGroupNotExistError: no broker has it.
        """
        names = sorted(self.groups().get(group, ()))
        if not names:
            raise _no_group(group)
        fields: dict[str, Scalar] = {"groupName": group, "cleanOffset": forget_offsets}
        for name in names:
            self._ask(name, RequestCode.DELETE_SUBSCRIPTIONGROUP, fields)
        return names

    def lag(self, group: str, *, topic: str | None = None) -> list[QueueLag]:
        """How far a group is in each queue that it consumes.

        Raises:
            SubscriptionGroupNotExistError: no broker has it.
        """
        rows: list[QueueLag] = []
        fields: dict[str, Scalar] = {"consumerGroup": group}
        if topic is not None:
            fields["topic"] = topic
        is_known = False
        for name in self._readable():
            try:
                answer = self._ask(name, RequestCode.GET_CONSUME_STATS, fields)
            except SubscriptionGroupNotExistError:
                continue
            is_known = True
            rows += [
                QueueLag(
                    queue["topic"],
                    queue["brokerName"],
                    queue["queueId"],
                    queue["brokerOffset"],
                    queue["consumerOffset"],
                    queue["lag"],
                    queue["clientId"] or "",
                    queue["lastTimestamp"],
                    queue["lagMs"],
                    queue["lockedBy"] or "",
                )
                for queue in _rows(answer, "queues")
            ]
        if not is_known:
            raise _no_group(group)
        return sorted(rows)

    def members(self, group: str) -> list[GroupMember]:
        """Who is in a group now; nobody, if it sleeps."""
        brokers: dict[str, list[str]] = {}
        for name in self._readable():
            answer = self._ask(
                name, RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": group}
            )
            for client_id in orjson.loads(answer.body)["consumerIdList"]:
                brokers.setdefault(client_id, []).append(name)
        return [
            GroupMember(client_id, tuple(names)) for client_id, names in sorted(brokers.items())
        ]

    def reset_offset(
        self,
        group: str,
        topic: str,
        *,
        whence: str,
        timestamp: int = 0,
        queue_offset: int = 0,
        queue_id: int = -1,
        brokers: Iterable[str] | None = None,
    ) -> list[tuple[str, int, int]]:
        """Have a group go on elsewhere; its members are told at once.

        Args:
            group: the group.
            topic: the topic.
            whence: "first", "last", "timestamp" or "offset".
            timestamp: ms since 1970: the first message stored at or after it.
            queue_offset: for "offset".
            queue_id: -1: all queues.
            brokers: names of masters; None: all that have the topic.

        Returns:
            (broker_name, queue_id, queue_offset) of each queue.

        Raises:
            TopicNotExistError, SubscriptionGroupNotExistError, OffsetIllegalError.
        """
        fields: dict[str, Scalar] = {
            "group": group,
            "topic": topic,
            "queueId": queue_id,
            "whence": whence,
        }
        if whence == "timestamp":
            fields["timestamp"] = timestamp
        if whence == "offset":
            fields["offset"] = queue_offset
        done = []
        for name in sorted(self.topic(topic) if brokers is None else brokers):
            answer = self._ask(name, RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, fields)
            done += [
                (name, queue["queueId"], queue["offset"]) for queue in _rows(answer, "offsetTable")
            ]
        return done

    def skip_backlog(self, group: str, *, topic: str | None = None) -> list[tuple[str, str, int]]:
        """Have a group go on behind everything that is there now; its members are told at once.

        Args:
            group: the group.
            topic: only this topic; None: all that it consumes, its retries included.

        Returns:
            (topic, broker_name, queue_id) of each queue.

        Raises:
            TopicNotExistError, SubscriptionGroupNotExistError.
        """
        topics = {row.topic for row in self.lag(group)} if topic is None else {topic}
        return [
            (name, broker_name, queue_id)
            for name in sorted(topics)
            for broker_name, queue_id, _ in self.reset_offset(group, name, whence="last")
        ]

    def clone_offsets(
        self, source: str, group: str, *, topic: str | None = None
    ) -> list[tuple[str, str, int, int]]:
        """Have a group go on where another one is; its members are told at once.

        Args:
            source: the group that stays as it is.
            group: the one that is set; on every broker that has both.
            topic: only this topic; None: all that `source` consumes, its retries not.

        Returns:
            (topic, broker_name, queue_id, queue_offset) of each queue.

        Raises:
            SubscriptionGroupNotExistError: no broker has both.
            ConfigError: they are the same.
        """
        fields: dict[str, Scalar] = {"srcGroup": source, "destGroup": group, "topic": topic or ""}
        done: list[tuple[str, str, int, int]] = []
        missing: SubscriptionGroupNotExistError | None = None
        is_known = False
        for name in self._some_masters(f"clone the offsets of group {source}"):
            try:
                answer = self._ask(name, RequestCode.CLONE_GROUP_OFFSET, fields)
            except SubscriptionGroupNotExistError as error:
                missing = error
                continue
            is_known = True
            done += [
                (row["topic"], name, row["queueId"], row["offset"])
                for row in _rows(answer, "offsetTable")
            ]
        if missing is not None and not is_known:
            raise missing
        return done

    # ---- looking back ----------------------------------------------------------------------------

    def get_message(
        self, message_id: str, *, topic: str | None = None, broker: str | None = None
    ) -> StoredMessage:
        """A message by its id; of several with one id (retries) the one that was stored first.

        Args:
            message_id: what a send gave or a consumer saw (UNIQ_KEY), or an offsetMsgId.
            topic: only of this topic; None: of any.
            broker: only there; None: on all masters.

        Raises:
            MessageNotFoundError: nobody has it, or any more.
            TopicNotExistError: no broker has the topic.
            ConfigError: several brokers have a message with this offsetMsgId.
            SystemBusyError: the search takes too long; name a topic, or ask again.
            CorruptMessageError: its record is damaged.
        """
        return self._finder.get(message_id, topic=topic, broker=broker)

    def message_at(self, broker: str, physical_offset: int) -> StoredMessage:
        """The message whose record begins at a place of a broker's CommitLog. Errors as
        `get_message`.
        """
        return self._finder.at(broker, physical_offset)

    def find_messages(
        self,
        topic: str,
        *,
        key: str | None = None,
        begin_ms: int = 0,
        end_ms: int = _LONG_MAX,
        queue_id: int | None = None,
        broker: str | None = None,
        max_count: int = MESSAGE_COUNT_DEFAULT,
    ) -> list[StoredMessage]:
        """The newest messages of a topic with a key, or of a span of time, the newest first.

        Args:
            topic: the topic.
            key: one of the words that a message was sent with (keys=); None: by time alone.
            begin_ms: stored then or later, ms since 1970.
            end_ms: stored then or before.
            queue_id: only of this queue; None: of all.
            broker: only there; None: on all masters.
            max_count: at most so many, up to 1,024.

        Raises:
            TopicNotExistError: no broker has it, or none such a queue of it.
            ConfigError: a key that no message can have; or the time ends before it begins.
            ServiceNotAvailableError: a broker keeps no index (message_index_enable), or is away.
            SystemBusyError: the search takes too long; ask for a shorter span of time.
            CorruptMessageError: a record is damaged.
        """
        return self._finder.find(
            topic,
            key=key,
            begin_ms=begin_ms,
            end_ms=end_ms,
            queue_id=queue_id,
            broker=broker,
            message_count=max_count,
        )

    def read_messages(
        self,
        topic: str,
        queue_id: int,
        queue_offset: int,
        *,
        broker: str,
        max_count: int = MESSAGE_COUNT_DEFAULT,
    ) -> list[StoredMessage]:
        """Messages of a queue in order, from a queue_offset on, or from the first that is kept.

        Args:
            topic: the topic.
            queue_id: the queue.
            queue_offset: of the first.
            broker: whose queue.
            max_count: at most so many, up to 1,024.

        Raises:
            TopicNotExistError: the broker does not have it.
            CorruptMessageError: a record is damaged.
        """
        return self._finder.read(
            topic, queue_id, queue_offset, broker=broker, message_count=max_count
        )

    def resend_message(
        self, message: StoredMessage, *, topic: str | None = None, timeout: float = 3.0
    ) -> SendResult:
        """Send a message once more, as a new one: body, tag, keys, flag and properties of the user
        are the same, its id is not, and no delay.

        Args:
            message: as it was found.
            topic: where to; None: the topic it was sent to first.
            timeout: seconds.

        Raises:
            As `Producer.send`.
        """
        self._check()
        if self._client is None:
            from shmq.client.instance import connect  # most tools never send: they start faster

            self._client = connect(self._namesrv)
            self._producer = self._client.producer()
        return self._producer.send(
            topic or message.origin_topic,
            message.body,
            tag=message.tag,
            keys=message.keys,
            properties=message.sendable_properties(),
            flag=message.flag,
            timeout=timeout,
        )

    # ---- asking ----------------------------------------------------------------------------------

    def _masters(self) -> list[str]:
        return sorted(
            name for name, data in self.cluster().brokers.items() if 0 in data.broker_addrs
        )

    def _readable(self) -> list[str]:
        """Names that have a master, or at least a slave, which tells what it has copied."""
        return sorted(name for name, data in self.cluster().brokers.items() if data.broker_addrs)

    def _some_masters(self, what: str) -> list[str]:
        names = self._masters()
        if not names:
            raise no_broker(what)
        return names

    def _known(self, what: str, brokers: Iterable[str]) -> list[str]:
        """The masters that were named, all of which the NameServers know."""
        if isinstance(brokers, str):
            raise TypeError(f"{what}: brokers is a text, wanted [{brokers!r}]")
        names, known = list(brokers), self._masters()
        unknown = [str(name) for name in names if name not in known]
        if unknown:
            raise ServiceNotAvailableError(
                f"{what} on {', '.join(unknown)}: no NameServer knows it",
                hint=f"those that are known: {', '.join(known) or 'none'}",
            )
        return names

    def _ask(
        self,
        broker_name: str,
        code: RequestCode,
        fields: Mapping[str, Scalar] | None = None,
        body: bytes = b"",
    ) -> Command:
        """Ask a master, or where there is none its first slave, which refuses what changes
        something.
        """
        return self._call(self._first(broker_name), Command(code, dict(fields or {}), body))

    def _first(self, broker_name: str) -> str:
        """The socket of the member that is master, else of its first slave; of the first member
        where no NameServer says.
        """
        try:
            members = self.cluster().brokers[broker_name].broker_addrs
        except (ServiceNotAvailableError, KeyError):
            members = {}
        return members[min(members)] if members else broker_socket_name(broker_name, 0)

    def _table(
        self, broker_name: str, code: RequestCode, key: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The entries of a table that comes in pages."""
        after, is_last = "", False
        while not is_last:
            answer = self._ask(broker_name, code, {"after": after})
            table: dict[str, dict[str, Any]] = orjson.loads(answer.body)[key]
            yield from table.items()
            after = max(table, default=after)
            is_last = answer.fields().flag("isLast", True) or not table

    def _check(self) -> None:
        if self._is_closed:
            raise ClosedError("ask the cluster: this Admin is closed")

    def _call(self, socket_name: str, command: Command) -> Command:
        return self._connection(socket_name).call(command, timeout_s=_TIMEOUT_S)

    def _invoke(self, broker_name: str, command: Command) -> Command:
        """As `_ask`, but any answer is given back, whatever its code."""
        name = self._first(broker_name)
        return self._connection(name).invoke(command, timeout_s=_TIMEOUT_S)

    def _connection(self, socket_name: str) -> Connection:
        self._check()
        connection = self._connections.get(socket_name)
        if connection is not None and not connection.is_ended():
            return connection
        if connection is not None:
            connection.close()
        try:
            connection = Connection(self._folder, socket_name, role="admin", timeout_s=_TIMEOUT_S)
        except ServiceNotAvailableError as error:
            there = self._folder.socket_names("broker")
            if not there or socket_name in there:
                raise
            names = ", ".join(name.removeprefix("broker-") for name in there)
            raise ServiceNotAvailableError(
                str(error), hint=f"those there, as name-id: {names}; shmq cluster list says more"
            ) from error
        self._connections[socket_name] = connection
        return connection


_GROUP_FIELDS = SubscriptionGroupConfig.__dataclass_fields__.keys() - {"group_name", "other"}


def _rows(answer: Command, key: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = orjson.loads(answer.body)[key]
    return rows


def _no_group(group: str) -> SubscriptionGroupNotExistError:
    return SubscriptionGroupNotExistError(
        f"group {group}: no broker has it", hint="see what there is: shmq group list"
    )
