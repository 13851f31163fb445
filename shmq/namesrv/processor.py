"""The NameServer's processor table: requests to the state machines, their answers to responses.

Everybody who may connect may ask; who may administrate the ACL file says, without one everybody
too; only processes of the NameServer's own uid (or root) register brokers, since a route sends
every client to a socket. The last sign of a broker is the end of the connection through which it
registered.

In the NameServer, in its loop's thread. Writes nothing but what RouteInfo and KvConfig keep.
"""

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

from shmq.acl import AclFile, Action
from shmq.clock import Clock
from shmq.errors import ConfigError, PermissionDeniedError, ShmqError, TopicNotExistError
from shmq.namesrv.kv_config import ORDER_TOPIC_CONFIG, KvConfig
from shmq.namesrv.route_info import MASTER_ID, TOPIC_COUNT_MAX, RouteInfo, Version
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command, Scalar, response_to
from shmq.remoting.namesrv_requests import BrokerAddress
from shmq.remoting.server import Connection, Processor
from shmq.topic import TOPIC_LENGTH_MAX_INTERNAL, TopicConfig

__all__ = ["NamesrvProcessor"]

_log = logging.getLogger("shmq.namesrv")

_SOCKET_NAME: Final = re.compile(r"broker-[A-Za-z0-9_-]{1,72}")
_BROKER_NAME: Final = re.compile(r"[^\s/\x00-\x1f\x7f]{1,127}")
_EXPIRY_MS_LEAST: Final = 1_000
_EXPIRY_MS_MOST: Final = 600_000
_AWAIT_MS_MOST: Final = 60_000


@dataclass(slots=True)
class _Chunks:
    """A registration of which not all has come."""

    address: BrokerAddress
    version: Version
    count: int
    topics: dict[str, TopicConfig] = field(default_factory=dict)
    next_index: int = 0


class NamesrvProcessor:
    """Serves one NameServer's requests.

    Args:
        routes: who has what.
        kv_config: what administrators keep.
        clock: where time comes from.
        supervised: gives what the supervisor watches, as JSON objects.
        on_registered: called with each registration that was taken.
        acl_file: who may administrate; None: everybody.
    """

    def __init__(
        self,
        routes: RouteInfo,
        kv_config: KvConfig,
        *,
        clock: Clock,
        supervised: Callable[[], Iterable[Mapping[str, object]]],
        on_registered: Callable[[Connection, BrokerAddress], None],
        acl_file: AclFile | None = None,
    ) -> None:
        self._routes = routes
        self._kv_config = kv_config
        self._clock = clock
        self._supervised = supervised
        self._on_registered = on_registered
        self._acl_file = acl_file
        self._chunks: dict[Connection, _Chunks] = {}
        self._speakers: set[Connection] = set()
        self._change = asyncio.Event()
        routes.on_change = self._changed

    def table(self) -> dict[int, Processor]:
        """By code."""
        code = RequestCode
        handlers = {
            code.REGISTER_BROKER: self._register,
            code.REGISTER_TOPIC_IN_NAMESRV: self._register_topics,
            code.UNREGISTER_BROKER: self._unregister,
            code.QUERY_DATA_VERSION: self._query_data_version,
            code.BROKER_HEARTBEAT: self._heartbeat,
            code.GET_ROUTEINFO_BY_TOPIC: self._route,
            code.GET_BROKER_CLUSTER_INFO: self._cluster_info,
            code.GET_BROKER_MEMBER_GROUP: self._member_group,
            code.GET_ALL_TOPIC_LIST_FROM_NAMESERVER: self._topic_list,
            code.GET_TOPICS_BY_CLUSTER: self._topics_by_cluster,
            code.WIPE_WRITE_PERM_OF_BROKER: self._wipe_write_perm,
            code.ADD_WRITE_PERM_OF_BROKER: self._add_write_perm,
            code.PUT_KV_CONFIG: self._put_kv_config,
            code.PUT_KV_CONFIG_LIST: self._put_kv_configs,
            code.GET_KV_CONFIG: self._get_kv_config,
            code.DELETE_KV_CONFIG: self._delete_kv_config,
            code.GET_KVLIST_BY_NAMESPACE: self._kv_list,
            code.GET_SUPERVISOR_STATUS: self._supervisor_status,
        }
        return {
            **{number: Processor(handler=handler) for number, handler in handlers.items()},
            code.AWAIT_ROUTE_CHANGE: Processor(handler=self._await_change, is_concurrent=True),
        }

    # ---- brokers -----------------------------------------------------------------------------

    def _register(self, connection: Connection, command: Command) -> Command | None:
        _check_may_register(connection, command)
        address = _address(command)
        take = command.fields()
        index, count = take.number("chunkIndex", 0), take.number("chunkCount", 1)
        expiry_ms = take.number("heartbeatTimeoutMillis", 0) or None
        if expiry_ms is not None and not _EXPIRY_MS_LEAST <= expiry_ms <= _EXPIRY_MS_MOST:
            raise ConfigError(
                f"{command.name}: heartbeatTimeoutMillis: {expiry_ms}, wanted {_EXPIRY_MS_LEAST} to"
                f" {_EXPIRY_MS_MOST}"
            )
        body = command.json()
        version = Version.from_dict(_object(body, "dataVersion"))
        topics = _topics(body)
        chunks = self._collected(connection, _Chunks(address, version, count), index, topics)
        if chunks is None:
            return None
        is_new = self._routes.register(
            address,
            chunks.topics,
            version,
            owner=connection,
            process=connection.identity,
            now_ns=self._clock.monotonic_ns(),
            expiry_ms=expiry_ms,
        )
        self._hear_end_of(connection)
        self._on_registered(connection, address)
        level = logging.INFO if is_new else logging.DEBUG
        _log.log(
            level,
            "registered broker=%s:%d socket=%s topics=%d peer=%s",
            address.broker_name, address.broker_id, address.socket_name,
            len(chunks.topics), connection.identity,
        )  # fmt: skip
        fields: dict[str, Scalar] = {}
        master = self._routes.broker_data(address.broker_name).broker_addrs.get(MASTER_ID)
        if master is not None:
            fields["masterAddr"] = master
        return response_to(command, ext_fields=fields)

    def _collected(
        self, connection: Connection, wanted: _Chunks, index: int, topics: dict[str, TopicConfig]
    ) -> _Chunks | None:
        """All topics of the registration, None while chunks of it are to come."""
        chunks = self._chunks.pop(connection, wanted) if index else wanted
        is_next = (
            chunks.next_index == index < chunks.count
            and (chunks.address, chunks.version) == (wanted.address, wanted.version)
            and chunks.count == wanted.count
        )
        if not is_next or len(chunks.topics) + len(topics) > TOPIC_COUNT_MAX:
            raise ConfigError(
                f"register {wanted.address.broker_name}: chunk {index} of {wanted.count} with"
                f" {len(topics)} topics behind chunk {chunks.next_index - 1} of {chunks.count} with"
                f" {len(chunks.topics)}; wanted all chunks of one version, in order"
            )
        chunks.topics.update(topics)
        chunks.next_index += 1
        if chunks.next_index == chunks.count:
            return chunks
        self._chunks[connection] = chunks
        self._hear_end_of(connection)
        return None

    def _register_topics(self, connection: Connection, command: Command) -> Command:
        _check_may_register(connection, command)
        body = command.json()
        deleted = body.get("deletedTopics", [])
        if not isinstance(deleted, list) or not all(isinstance(name, str) for name in deleted):
            raise ConfigError(f"{command.name}: deletedTopics: wanted a list of texts")
        is_known = self._routes.update_topics(
            _address(command),
            _topics(body),
            deleted,
            previous=Version.from_dict(_object(body, "previousVersion")),
            version=Version.from_dict(_object(body, "dataVersion")),
            owner=connection,
            now_ns=self._clock.monotonic_ns(),
        )
        return response_to(command) if is_known else _unknown_broker(command)

    def _unregister(self, connection: Connection, command: Command) -> Command | None:
        _check_may_register(connection, command)
        address = _address(command)
        if self._routes.unregister(address, owner=connection):
            _log.info("unregistered broker=%s:%d", address.broker_name, address.broker_id)
        return None

    def _query_data_version(self, connection: Connection, command: Command) -> Command:
        _check_may_register(connection, command)
        version = Version.from_dict(command.json())
        known = self._beat(connection, command)
        return response_to(command, ext_fields={"changed": known != version})

    def _heartbeat(self, connection: Connection, command: Command) -> Command | None:
        _check_may_register(connection, command)
        return _unknown_broker(command) if self._beat(connection, command) is None else None

    def _beat(self, connection: Connection, command: Command) -> Version | None:
        now_ns = self._clock.monotonic_ns()
        return self._routes.beat(_address(command), owner=connection, now_ns=now_ns)

    def _hear_end_of(self, connection: Connection) -> None:
        if connection not in self._speakers:
            self._speakers.add(connection)
            connection.on_close(self._ended)

    def _ended(self, connection: Connection, error: ShmqError) -> None:
        self._speakers.discard(connection)
        self._chunks.pop(connection, None)
        for key in self._routes.release(connection):
            _log.warning("gone broker=%s reason=%s", key, error)

    # ---- whoever asks ------------------------------------------------------------------------

    def _route(self, _connection: Connection, command: Command) -> Command:
        topic = command.fields().text("topic")
        raw = self._routes.encoded_route(topic, self._kv_config.get(ORDER_TOPIC_CONFIG, topic))
        if raw is None:
            # The text is RocketMQ's: clients look for it.
            raise TopicNotExistError(
                f"No topic route info in name server for the topic: {topic[:255]}"
            )
        return response_to(command, body=raw)

    async def _await_change(self, _connection: Connection, command: Command) -> Command:
        take = command.fields()
        known, timeout_ms = take.number("changeNumber", -1), take.number("timeoutMillis")
        if not 0 <= timeout_ms <= _AWAIT_MS_MOST:
            raise ConfigError(
                f"{command.name}: timeoutMillis: {timeout_ms}, wanted 0 to {_AWAIT_MS_MOST}"
            )
        if known == self._routes.change_number:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_ms / 1e3):
                    await self._change.wait()
        return response_to(command, ext_fields={"changeNumber": self._routes.change_number})

    def _changed(self) -> None:
        self._change.set()  # those that wait now
        self._change = asyncio.Event()

    def _cluster_info(self, _connection: Connection, command: Command) -> Command:
        names = {key.broker_name for key in self._routes.members()}
        body = {
            "brokerAddrTable": {
                name: self._routes.broker_data(name).to_dict() for name in sorted(names)
            },
            "clusterAddrTable": self._routes.clusters(),
        }
        return response_to(command, body=orjson.dumps(body))

    def _member_group(self, _connection: Connection, command: Command) -> Command:
        take = command.fields()
        cluster = take.text("clusterName")
        data = self._routes.broker_data(take.text("brokerName")).to_dict()
        if data["cluster"] != cluster:
            data["brokerAddrs"] = {}
        body = {"brokerMemberGroup": {**data, "cluster": cluster}}
        return response_to(command, body=orjson.dumps(body))

    def _topic_list(self, _connection: Connection, command: Command) -> Command:
        return _topic_names(command, self._routes.topic_names())

    def _topics_by_cluster(self, _connection: Connection, command: Command) -> Command:
        return _topic_names(command, self._routes.topic_names(command.fields().text("cluster")))

    def _supervisor_status(self, _connection: Connection, command: Command) -> Command:
        return response_to(command, body=orjson.dumps({"brokers": list(self._supervised())}))

    # ---- administrators ----------------------------------------------------------------------

    def _require_admin(self, connection: Connection, command: Command) -> None:
        """Return if a peer may administrate.

        Raises:
            PermissionDeniedError: it may not; names the rule.
        """
        identity = connection.identity
        if self._acl_file is None or identity.uid in (os.geteuid(), 0):
            return
        said = self._acl_file.acl.explain(identity.uid, identity.gids, Action.ADMIN, "")
        if not said.is_allowed:
            raise PermissionDeniedError(f"{command.name}: denied to {identity} by {said.rule}")

    def _wipe_write_perm(self, connection: Connection, command: Command) -> Command:
        self._require_admin(connection, command)
        name = command.fields().text("brokerName")
        count = self._routes.wipe_write_perm(name)
        _log.info("write perm wiped broker=%s topics=%d by=%s", name, count, connection.identity)
        return response_to(command, ext_fields={"wipeTopicCount": count})

    def _add_write_perm(self, connection: Connection, command: Command) -> Command:
        self._require_admin(connection, command)
        name = command.fields().text("brokerName")
        count = self._routes.add_write_perm(name)
        _log.info("write perm added broker=%s topics=%d by=%s", name, count, connection.identity)
        return response_to(command, ext_fields={"addTopicCount": count})

    def _put_kv_config(self, connection: Connection, command: Command) -> None:
        self._require_admin(connection, command)
        take = command.fields()
        namespace, key = take.text("namespace"), take.text("key")
        self._kv_config.put(namespace, key, take.text("value"))
        _log.info("kv put namespace=%s key=%s by=%s", namespace, key, connection.identity)

    def _put_kv_configs(self, connection: Connection, command: Command) -> None:
        self._require_admin(connection, command)
        namespace = command.fields().text("namespace")
        values = {}
        for key, value in _object(command.json(), "table").items():
            if not isinstance(value, str):
                raise ConfigError(f"{command.name}: {key[:40]!r}: wanted a text")
            values[key] = value
        self._kv_config.put_all(namespace, values)
        _log.info("kv put namespace=%s keys=%d by=%s", namespace, len(values), connection.identity)

    def _get_kv_config(self, _connection: Connection, command: Command) -> Command:
        take = command.fields()
        namespace, key = take.text("namespace"), take.text("key")
        value = self._kv_config.get(namespace, key)
        if value is None:
            return response_to(
                command,
                code=ResponseCode.QUERY_NOT_FOUND,
                remark=f"no value for {key} in namespace {namespace}",
            )
        return response_to(command, ext_fields={"value": value})

    def _delete_kv_config(self, connection: Connection, command: Command) -> None:
        self._require_admin(connection, command)
        take = command.fields()
        namespace, key = take.text("namespace"), take.text("key")
        self._kv_config.delete(namespace, key)
        _log.info("kv delete namespace=%s key=%s by=%s", namespace, key, connection.identity)

    def _kv_list(self, _connection: Connection, command: Command) -> Command:
        table = self._kv_config.namespace(command.fields().text("namespace"))
        return response_to(command, body=orjson.dumps({"table": table}))


def _check_may_register(connection: Connection, command: Command) -> None:
    uid = connection.identity.uid
    if uid not in (os.geteuid(), 0):
        raise PermissionDeniedError(
            f"{command.name}: {connection.identity}; wanted uid {os.geteuid()}, who owns the routes"
        )


def _address(command: Command) -> BrokerAddress:
    address = BrokerAddress.from_fields(command.fields())
    if not _SOCKET_NAME.fullmatch(address.socket_name):
        raise ConfigError(
            f"{command.name}: brokerAddr: {address.socket_name[:100]!r}, wanted the name of a"
            " broker's socket"
        )
    for name in (address.cluster_name, address.broker_name):
        if not _BROKER_NAME.fullmatch(name):
            raise ConfigError(
                f"{command.name}: name {name[:130]!r}, wanted 1 to 127 printable characters without"
                " blanks and /"
            )
    if not 0 <= address.broker_id < 1 << 31:
        raise ConfigError(f"{command.name}: brokerId: {address.broker_id}, wanted 0 to 2**31 - 1")
    return address


def _topics(body: Mapping[str, object]) -> dict[str, TopicConfig]:
    topics = {}
    for name, data in _object(body, "topicConfigTable").items():
        if not 0 < len(name) <= TOPIC_LENGTH_MAX_INTERNAL or not isinstance(data, dict):
            raise ConfigError(f"topicConfigTable: {name[:40]!r}: wanted a topic's configuration")
        topics[name] = TopicConfig.from_dict(data)
    return topics


def _object(body: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = body.get(key)
    if not isinstance(value, dict):
        raise ConfigError(f"{key}: {type(value).__name__}, wanted an object")
    return value


def _topic_names(command: Command, names: list[str]) -> Command:
    return response_to(command, body=orjson.dumps({"topicList": names}))


def _unknown_broker(command: Command) -> Command:
    return response_to(
        command,
        code=ResponseCode.BROKER_NOT_EXIST,
        remark=f"{command.name}: not registered through this connection; register in full",
    )
