"""What a NameServer is asked, as commands: the one place that spells its fields.

Brokers register here, clients and tools ask here, the NameServer's processor takes apart what these
functions put together. Fields and bodies are RocketMQ's where it has the request; a registration
that is larger than a frame goes in chunks, each told how many there are (RocketMQ sends such tables
topic by topic). A broker's address is the name of its socket in the runtime folder, never a path.

Pure: nothing is sent, nothing blocks. An answer of another shape raises ConfigError.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from shmq.errors import ConfigError
from shmq.json_fields import Fields
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command, Scalar
from shmq.topic import BrokerData, TopicConfig, TopicRouteData

__all__ = [
    "BrokerAddress",
    "CHUNK_BYTES",
    "ClusterInfo",
    "add_write_perm",
    "await_route_change",
    "broker_heartbeat",
    "broker_member_group",
    "cluster_info",
    "cluster_of",
    "delete_kv_config",
    "get_kv_config",
    "kv_list",
    "member_group_of",
    "put_kv_config",
    "put_kv_configs",
    "query_data_version",
    "register_broker",
    "register_topics",
    "route_change_of",
    "route_info",
    "route_of",
    "supervisor_status",
    "topic_list",
    "topics_by_cluster",
    "topics_of",
    "unregister_broker",
    "wipe_write_perm",
]

CHUNK_BYTES: Final = 512 << 10
"""Topic configurations in one command of a registration; half of what a frame may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """Which broker speaks."""

    cluster_name: str
    """Its cluster."""
    broker_name: str
    """The name that master and slaves share."""
    broker_id: int
    """0 is the master."""
    socket_name: str
    """Its socket in the runtime folder (runtime_folder.broker_socket_name)."""
    master_epoch: int = 0
    """Of its mastership: a registration with a lower one than is known is refused."""

    def to_fields(self) -> dict[str, Scalar]:
        """As requests carry it."""
        return {
            "clusterName": self.cluster_name,
            "brokerName": self.broker_name,
            "brokerId": self.broker_id,
            "brokerAddr": self.socket_name,
            "masterEpoch": self.master_epoch,
        }

    @classmethod
    def from_fields(cls, take: Fields) -> "BrokerAddress":
        """From the fields of a request; ConfigError names the one that is not as wanted."""
        return cls(
            cluster_name=take.text("clusterName"),
            broker_name=take.text("brokerName"),
            broker_id=take.number("brokerId"),
            socket_name=take.text("brokerAddr"),
            master_epoch=take.number("masterEpoch", 0),
        )


# ---- a broker says -------------------------------------------------------------------------------


def register_broker(
    address: BrokerAddress,
    topics: Mapping[str, TopicConfig],
    data_version: Mapping[str, object],
    *,
    heartbeat_timeout_ms: int | None = None,
) -> Iterator[Command]:
    """A broker's registration with all its topics, in one command or several, in order.

    Send each when the one before was answered; the last one's answer counts: its `masterAddr`
    field names the master's socket, if the name has one.

    Args:
        address: who registers.
        topics: all of them; a topic that is not among them leaves the route.
        data_version: RocketMQ's dataVersion as a dict; equal versions mean equal topics.
        heartbeat_timeout_ms: silence after which it leaves the routes; None: as the NameServer
            is set (120 s).
    """
    chunks = list(_chunks(topics))
    for index, chunk in enumerate(chunks):
        fields = address.to_fields()
        fields |= {"chunkIndex": index, "chunkCount": len(chunks)}
        if heartbeat_timeout_ms is not None:
            fields["heartbeatTimeoutMillis"] = heartbeat_timeout_ms
        body = {"topicConfigTable": chunk, "dataVersion": data_version}
        yield Command(RequestCode.REGISTER_BROKER, fields, orjson.dumps(body))


def register_topics(
    address: BrokerAddress,
    changed: Mapping[str, TopicConfig],
    deleted: Sequence[str],
    *,
    previous_version: Mapping[str, object],
    data_version: Mapping[str, object],
) -> Command:
    """What changed since `previous_version`, so that one new topic does not send them all.

    Answered BROKER_NOT_EXIST where the NameServer does not have the broker at that version:
    register in full then.
    """
    body = {
        "topicConfigTable": {name: config.to_dict() for name, config in changed.items()},
        "deletedTopics": list(deleted),
        "previousVersion": previous_version,
        "dataVersion": data_version,
    }
    return Command(RequestCode.REGISTER_TOPIC_IN_NAMESRV, address.to_fields(), orjson.dumps(body))


def unregister_broker(address: BrokerAddress) -> Command:
    """A broker leaves: its routes are gone when this is answered."""
    return Command(RequestCode.UNREGISTER_BROKER, address.to_fields())


def query_data_version(address: BrokerAddress, data_version: Mapping[str, object]) -> Command:
    """Whether the NameServer lacks this version (field `changed`); a sign of life too."""
    return Command(RequestCode.QUERY_DATA_VERSION, address.to_fields(), orjson.dumps(data_version))


def broker_heartbeat(address: BrokerAddress) -> Command:
    """A sign of life; answered BROKER_NOT_EXIST where the broker is not registered (any more)."""
    return Command(RequestCode.BROKER_HEARTBEAT, address.to_fields())


# ---- anybody asks --------------------------------------------------------------------------------


def route_info(topic: str) -> Command:
    """The route to a topic; answered TopicNotExistError where none leads there."""
    return Command(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": topic})


def route_of(response: Command) -> TopicRouteData:
    """The route in an answer to `route_info`."""
    return TopicRouteData.from_dict(response.json())


def cluster_info() -> Command:
    """All clusters and brokers."""
    return Command(RequestCode.GET_BROKER_CLUSTER_INFO)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterInfo:
    """All clusters and brokers, as one NameServer knows them."""

    brokers: Mapping[str, BrokerData] = field(default_factory=dict)
    """By broker_name."""
    clusters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The broker_names of each cluster, sorted."""


def cluster_of(response: Command) -> ClusterInfo:
    """What an answer to `cluster_info` says."""
    data = response.json()
    brokers = _object(data.get("brokerAddrTable"), "brokerAddrTable")
    clusters = _object(data.get("clusterAddrTable"), "clusterAddrTable")
    return ClusterInfo(
        brokers={
            name: BrokerData.from_dict(_object(item, f"broker {name}"))
            for name, item in brokers.items()
        },
        clusters={name: _texts(item, f"cluster {name}") for name, item in clusters.items()},
    )


def broker_member_group(cluster_name: str, broker_name: str) -> Command:
    """The master and slaves that share a name."""
    fields: dict[str, Scalar] = {"clusterName": cluster_name, "brokerName": broker_name}
    return Command(RequestCode.GET_BROKER_MEMBER_GROUP, fields)


def member_group_of(response: Command) -> BrokerData:
    """What an answer to `broker_member_group` says; without members if there are none."""
    data = response.json()
    return BrokerData.from_dict(_object(data.get("brokerMemberGroup"), "brokerMemberGroup"))


def topic_list() -> Command:
    """The names of all topics that have a route."""
    return Command(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)


def topics_by_cluster(cluster_name: str) -> Command:
    """The names of all topics that have a route to brokers of one cluster."""
    return Command(RequestCode.GET_TOPICS_BY_CLUSTER, {"cluster": cluster_name})


def topics_of(response: Command) -> tuple[str, ...]:
    """The names in an answer to `topic_list` or `topics_by_cluster`, sorted."""
    return _texts(response.json().get("topicList"), "topicList")


def supervisor_status() -> Command:
    """Which brokers the NameServer watches and how they are; body {"brokers": [...]}."""
    return Command(RequestCode.GET_SUPERVISOR_STATUS)


def await_route_change(change_number: int | None, *, timeout_ms: int) -> Command:
    """Answer when the routes have changed.

    Args:
        change_number: what the last answer of this connection gave; None: answer at once.
        timeout_ms: answer then, whatever was; 0 to 60,000.
    """
    fields: dict[str, Scalar] = {"timeoutMillis": timeout_ms}
    if change_number is not None:
        fields["changeNumber"] = change_number
    return Command(RequestCode.AWAIT_ROUTE_CHANGE, fields)


def route_change_of(response: Command) -> int:
    """The number in an answer to `await_route_change`: another one where routes are others."""
    return response.fields().number("changeNumber")


# ---- an administrator says -----------------------------------------------------------------------


def wipe_write_perm(broker_name: str) -> Command:
    """Let no route lead producers to a broker; field `wipeTopicCount` tells of how many topics."""
    return Command(RequestCode.WIPE_WRITE_PERM_OF_BROKER, {"brokerName": broker_name})


def add_write_perm(broker_name: str) -> Command:
    """Undo `wipe_write_perm`; field `addTopicCount`."""
    return Command(RequestCode.ADD_WRITE_PERM_OF_BROKER, {"brokerName": broker_name})


def put_kv_config(namespace: str, key: str, value: str) -> Command:
    """Keep a value, such as the queues of an order topic (namespace ORDER_TOPIC_CONFIG)."""
    fields: dict[str, Scalar] = {"namespace": namespace, "key": key, "value": value}
    return Command(RequestCode.PUT_KV_CONFIG, fields)


def put_kv_configs(namespace: str, values: Mapping[str, str]) -> Iterator[Command]:
    """Keep many values by key: in each command as many as a frame carries."""
    fields: dict[str, Scalar] = {"namespace": namespace}
    for chunk in _by_size(values):
        yield Command(RequestCode.PUT_KV_CONFIG_LIST, fields, orjson.dumps({"table": chunk}))


def get_kv_config(namespace: str, key: str) -> Command:
    """A value, in field `value`; answered QUERY_NOT_FOUND where there is none."""
    return Command(RequestCode.GET_KV_CONFIG, {"namespace": namespace, "key": key})


def delete_kv_config(namespace: str, key: str) -> Command:
    """Forget a value."""
    return Command(RequestCode.DELETE_KV_CONFIG, {"namespace": namespace, "key": key})


def kv_list(namespace: str) -> Command:
    """All keys and values of a namespace: body {"table": {key: value}}."""
    return Command(RequestCode.GET_KVLIST_BY_NAMESPACE, {"namespace": namespace})


# ---- shapes --------------------------------------------------------------------------------------


def _chunks(topics: Mapping[str, TopicConfig]) -> Iterator[dict[str, orjson.Fragment]]:
    """The topic configurations in groups that a frame can carry; at least one group."""
    yield from _by_size({name: config.to_dict() for name, config in topics.items()})


def _by_size(table: Mapping[str, object]) -> Iterator[dict[str, orjson.Fragment]]:
    """The members of an object in groups that a frame can carry; at least one group."""
    chunk: dict[str, orjson.Fragment] = {}
    size = 0
    for name, value in table.items():
        raw = orjson.dumps(value)
        if chunk and size + len(raw) + len(name) > CHUNK_BYTES:
            yield chunk
            chunk, size = {}, 0
        chunk[name] = orjson.Fragment(raw)
        size += len(raw) + len(name)
    yield chunk


def _object(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(f"{what}: {type(value).__name__}, wanted an object")
    return value


def _texts(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{what}: {type(value).__name__}, wanted a list of texts")
    return tuple(value)
