"""Replication: what a slave asks its master for, and GET_BROKER_HA_STATUS.

In the loop's thread. A slave has its master's uid: it maps the whole log, and the master maps its
control segment, which another uid could shrink under our eyes.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from typing import TYPE_CHECKING

from shmq.broker.claims import ClaimedQueue
from shmq.broker.processors.admin import page_of
from shmq.broker.processors.fields import client_id_of, json_response, ranged
from shmq.broker.rights import Action
from shmq.errors import (
    ConfigError,
    OffsetIllegalError,
    PermissionDeniedError,
    ServiceNotAvailableError,
    TopicNotExistError,
)
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command, Scalar, response_to
from shmq.remoting.server import Connection, Processor
from shmq.status import BrokerRole
from shmq.store.common_log import STRETCH_BYTES
from shmq.store.config_files import numbers_by_number, split_offset_key
from shmq.store.cuts import CutPart
from shmq.topic import BROKER_ID_MAX

if TYPE_CHECKING:
    from shmq.broker.broker import Broker
    from shmq.broker.ha_service import HAService

__all__ = ["GIVEN", "HANDED_OVER", "HAProcessor"]

HANDED_OVER = ("control", "socket")
"""Descriptors that come with ATTACH_REPLICA, in this order."""
GIVEN = ("control", "log", "event")
"""Descriptors that go with its answer."""
_POSITION_MAX = (1 << 62) - 1
_LONG_MAX = (1 << 63) - 1


class HAProcessor:
    """Serves slaves, and whoever asks how they do."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def table(self) -> dict[int, Processor]:
        """By code."""
        return {
            RequestCode.GET_REPLICA_BEGIN: Processor(handler=self._begin),
            RequestCode.ATTACH_REPLICA: Processor(
                handler=self._attach, fd_count_max=len(HANDED_OVER)
            ),
            RequestCode.GET_LOG_CHECKSUM: Processor(handler=self._checksum),
            RequestCode.RESEND_MESSAGES: Processor(
                handler=self._resend, fd_count_max=1, is_concurrent=True
            ),
            RequestCode.GET_EXPIRED_QUEUES: Processor(handler=self._expired_queues),
            RequestCode.GET_BROKER_HA_STATUS: Processor(handler=self._status),
            RequestCode.GET_ALL_CONSUMER_OFFSET: Processor(handler=self._offsets),
            RequestCode.MERGE_CONSUMER_OFFSETS: Processor(handler=self._merge_offsets),
        }

    def _require_slave(self, connection: Connection) -> HAService:
        broker = self._broker
        if connection.identity.uid != os.geteuid():
            raise PermissionDeniedError(
                f"attach a slave: {connection} has uid {connection.identity.uid}, wanted "
                f"{os.geteuid()}, the master's; run it as the same user"
            )
        if broker.ha is None:
            raise ServiceNotAvailableError(
                f"attach a slave: broker {broker.config.broker_name}:{broker.config.broker_id} is "
                "a slave itself; ask the master"
            )
        return broker.ha

    def _require_member(self, connection: Connection, command: Command) -> HAService:
        """Of our replica set, with our arbiter: another's log is not to be cut for ours, nor
        counted as a copy; and a Controller counts no slave that it does not know (decision 0024).
        """
        ha = self._require_slave(connection)
        config, take = self._broker.config, command.fields()
        said = (take.text("clusterName"), take.text("brokerName"))
        if said != (config.cluster_name, config.broker_name):
            raise ConfigError(
                f"{command.name}: a slave of {said[1]} of cluster {said[0]} asks"
                f" {config.broker_name}:{config.broker_id} of cluster {config.cluster_name}; give"
                " it its master's brokerName and brokerClusterName, or a runtime folder of its own"
            )
        is_elected = take.flag("controllerMode", False)
        if is_elected != config.enable_controller_mode:
            raise ConfigError(
                f"{command.name}: a slave with enableControllerMode={_text(is_elected)} asks"
                f" {config.broker_name}:{config.broker_id}, which has"
                f" {_text(config.enable_controller_mode)}: who elects one member elects all; give"
                " both the same enableControllerMode"
            )
        return ha

    def _begin(self, connection: Connection, command: Command) -> Command:
        self._require_member(connection, command)
        begin = self._broker.store.log_begin
        fields: dict[str, Scalar] = {
            "fileSizeBytes": begin.file_size_bytes,
            "minPosition": begin.begin_position,
            "recordCrcPosition": begin.record_crc_position,
            "maxPosition": self._broker.store.positions.committed_position,
        }
        epochs = {"epochs": [list(epoch) for epoch in self._broker.store.epochs.epochs]}
        return json_response(command, epochs, fields)

    def _checksum(self, connection: Connection, command: Command) -> Command:
        self._require_slave(connection)
        take = command.fields()
        store = self._broker.store
        size = ranged(take, "size", 1, STRETCH_BYTES)
        end = store.positions.committed_position
        physical_offset = ranged(take, "physicalOffset", 0, max(0, end - size))
        data = store.lookup.read_log(physical_offset, size)
        if data is None:
            raise OffsetIllegalError(
                f"{command.name}: {size} bytes at {physical_offset}: they are not kept"
            )
        return response_to(command, ext_fields={"crc32": zlib.crc32(data)})

    async def _expired_queues(self, connection: Connection, command: Command) -> Command:
        self._require_slave(connection)
        store = self._broker.store
        known = ranged(command.fields(), "minPosition", 0, _POSITION_MAX, 0)
        now = store.positions  # before the queues: what they say holds for a slave that is so far
        ends: dict[str, dict[int, int]] = {}
        if now.min_position != known:
            ends = await asyncio.to_thread(store.queues.expired_ends)
        return json_response(
            command,
            {
                "queues": {
                    topic: {str(queue_id): end for queue_id, end in queues.items()}
                    for topic, queues in ends.items()
                }
            },
            {"minPosition": now.min_position, "committedPosition": now.committed_position},
        )

    def _attach(self, connection: Connection, command: Command) -> Command:
        ha = self._require_member(connection, command)
        broker = self._broker
        take = command.fields()
        client_id = client_id_of(take, "clientId")
        broker_id = ranged(take, "brokerId", 0, BROKER_ID_MAX)
        if len(command.fds) != len(HANDED_OVER):
            raise ConfigError(
                f"{command.name}: {len(command.fds)} descriptors, wanted {', '.join(HANDED_OVER)}"
            )
        broker.bind(connection, client_id)
        offer = broker.sessions.attach(
            connection, client_id, producer=False, consumer=False, map_log=True
        )
        try:
            is_learner = take.flag("asyncLearner", False)
            ha.add(connection, broker_id, *command.fds, is_async_learner=is_learner)
            fields: dict[str, Scalar] = {
                "waitsForSlaves": broker.config.master_role is BrokerRole.SYNC_MASTER,
                "fds": ",".join(GIVEN),
            }
            fds = [offer.fds.pop(name) for name in GIVEN]
            return response_to(command, ext_fields=fields, fds=fds)
        except BaseException:
            broker.sessions.end(connection)
            raise
        finally:
            offer.close()

    async def _resend(self, connection: Connection, command: Command) -> Command:
        self._require_slave(connection)
        resends = self._broker.resends
        assert resends is not None
        take = command.fields()
        part = CutPart(
            ranged(take, "position", 0, _POSITION_MAX),
            ranged(take, "size", 1, _POSITION_MAX),
            take.text("fileName"),
        )
        begin = ranged(take, "begin", part.position, part.position + part.size)
        (fd,) = command.take_fds() or (-1,)
        if fd < 0:
            raise ConfigError(f"{command.name}: wanted the descriptor of a part")
        try:
            done = await resends.resend(fd, part, begin)
        finally:
            os.close(fd)
        fields: dict[str, Scalar] = {
            "nextPosition": done.next_position,
            "resentCount": done.resent_count,
            "presentCount": done.present_count,
            "lostCount": done.lost_count,
            "reason": done.reason,
        }
        return response_to(command, ext_fields=fields)

    def _status(self, connection: Connection, command: Command) -> Command:
        self._broker.rights.require(connection.identity, Action.ADMIN, "")
        broker = self._broker
        if broker.ha is not None:
            return json_response(command, broker.ha.status())
        replica = broker.store.replica
        now = broker.store.positions
        return json_response(
            command,
            {
                "master": False,
                "state": replica.state,
                "problem": replica.problem,
                "maxOffset": now.committed_position,
                "confirmOffset": now.confirmed_position,
                "masterCommitLogMaxOffset": replica.master_position,
            },
        )

    def _offsets(self, connection: Connection, command: Command) -> Command:
        self._broker.rights.require(connection.identity, Action.ADMIN, "")
        broker = self._broker
        broker.claims.harvest()
        table = broker.offsets.table
        names, is_last = page_of(command, table)
        shown = {
            name: {str(queue_id): offset for queue_id, offset in table[name].items()}
            for name in names
        }
        return json_response(
            command,
            {"dataVersion": broker.offsets.data_version.to_dict(), "offsetTable": shown},
            {"isLast": is_last, "nextClaim": broker.offsets.next_claim},
        )

    def _merge_offsets(self, connection: Connection, command: Command) -> Command:
        """Take what consumers reported to a slave while there was no master."""
        self._require_slave(connection)
        copied_claim = ranged(command.fields(), "nextClaim", 0, _LONG_MAX)
        table = command.json().get("offsetTable")
        if not isinstance(table, dict):
            raise ConfigError(f"{command.name}: offsetTable: {table!r:.80}, wanted an object")
        merged = 0
        for key, queues in table.items():
            names = split_offset_key(key)
            if names is None:
                continue
            topic, group = names
            for queue_id, consumer_offset in numbers_by_number(key, queues).items():
                queue = ClaimedQueue(group, topic, queue_id)
                merged += self._merge(queue, consumer_offset, copied_claim)
        return response_to(command, ext_fields={"mergedCount": merged})

    def _merge(self, queue: ClaimedQueue, consumer_offset: int, copied_claim: int) -> bool:
        broker = self._broker
        try:
            handle = broker.topics.read_queue(queue.topic, queue.queue_id)
        except TopicNotExistError:
            return False
        claim = broker.claims.find(queue)
        if claim is not None:
            broker.claims.harvest([claim])
        end = broker.store.queues.offsets(handle).visible_max
        is_set = broker.offsets.advance(
            *queue, min(consumer_offset, end), copied_claim=copied_claim
        )
        if is_set and claim is not None:
            claim.is_resumed = True  # who claimed it meanwhile began further back
        return is_set


def _text(is_set: bool) -> str:
    return "true" if is_set else "false"
