"""Sessions: ATTACH, RESUME, DETACH, GRANT_CHUNK, GRANT_SOCKET.

In the loop's thread. What the answers pass on, they close here once it is sent.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import orjson

from shmq.broker.claims import ClaimedQueue
from shmq.broker.processors.fields import client_id_of, handles_of, items_of, pairs, ranged
from shmq.broker.rights import Action
from shmq.core import core
from shmq.errors import (
    ClosedError,
    ConfigError,
    PermissionDeniedError,
    ShmError,
    ShmqError,
    TopicNotExistError,
)
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command, Scalar, response_to
from shmq.remoting.server import Connection, Processor
from shmq.shm.budget import FDS_PER_SESSION
from shmq.shm.fds import require_descriptors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shmq.broker.broker import Broker
    from shmq.broker.sessions import ClientSession
    from shmq.store.queues import QueueHandle
    from shmq.store.sessions import SessionOffer

__all__ = ["AttachProcessor", "FD_ORDER"]

FD_ORDER = ("control", "topics", "arena", "completion", "event", "ingress", "consumer", "log")
"""In which order descriptors come with an answer; those that there are."""
RESUME_ORDER = ("ingress", "consumer", "chunk")
"""In which order a client hands its own back."""

_CHUNK_SIZE_LEAST = 1 << 20
_CHUNK_SIZE_MOST = 1 << 30
_CHUNK_SIZE_DEFAULT = 32 << 20
_WORD_MAX = (1 << 32) - 1
_LONG_MAX = (1 << 63) - 1


class AttachProcessor:
    """Serves the requests about sessions."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def table(self) -> dict[int, Processor]:
        """By code."""
        return {
            RequestCode.ATTACH_SESSION: Processor(handler=self._attach),
            RequestCode.RESUME_SESSION: Processor(
                handler=self._resume, fd_count_max=len(RESUME_ORDER)
            ),
            RequestCode.DETACH_SESSION: Processor(handler=self._detach),
            RequestCode.GRANT_CHUNK: Processor(handler=self._grant_chunk),
            RequestCode.GRANT_SOCKET: Processor(handler=self._grant_socket),
        }

    # ---- beginning ---------------------------------------------------------------------------

    def _attach(self, connection: Connection, command: Command) -> Command:
        take = command.fields()
        client_id = client_id_of(take, "clientId")
        producer, consumer = take.flag("isProducer", True), take.flag("isConsumer", True)
        if producer:
            self._broker.require_master()
        require_descriptors(f"attach client {client_id}", FDS_PER_SESSION)
        self._broker.bind(connection, client_id)
        cost = self._broker.store.sessions.memory_bytes(producer=producer, consumer=consumer)
        self._broker.quotas.require_session(connection.identity, cost)
        offer = self._broker.sessions.attach(
            connection,
            client_id,
            producer=producer,
            consumer=consumer,
            map_log=self._broker.rights.may(connection.identity, Action.MAP, ""),
        )
        return self._offer(command, offer)

    def _resume(self, connection: Connection, command: Command) -> Command:
        take = command.fields()
        client_id = client_id_of(take, "clientId")
        session = ranged(take, "session", 0, _WORD_MAX)
        generation = ranged(take, "generation", 0, _WORD_MAX)
        names = [name for name in take.text("fds").split(",") if name]
        if names != [name for name in RESUME_ORDER if name in names] or len(names) != len(
            command.fds
        ):
            raise ConfigError(
                f"{take.what}: fds {','.join(names)!r} with {len(command.fds)} descriptors; wanted "
                f"those of {','.join(RESUME_ORDER)} that the session has, in this order"
            )
        require_descriptors(f"resume session {session}", FDS_PER_SESSION)
        is_mapped = take.flag("isMapped", True)
        said = self._broker.rights.explain(connection.identity, Action.MAP, "")
        if is_mapped and not said.is_allowed:
            raise ShmError(
                f"resume session {session}: it maps the log, now denied by {said.rule}; "
                "open a new session"
            )
        body = command.json() if command.body else {}
        good, stale = self._known(handles_of(body.get("sends"), f"{take.what}: sends"), connection)
        self._broker.bind(connection, client_id)
        offer = self._broker.sessions.resume(
            connection,
            client_id,
            session=session,
            generation=generation,
            fds=dict(zip(names, command.fds, strict=True)),
            map_log=is_mapped,
            send_rows=[handle.row for handle in good],
        )
        connection.refuse_fds()
        resumed = self._broker.sessions.require(connection)
        try:
            stale += self._resume_bells(resumed, body, take.what)
            stale_claims = self._resume_claims(resumed, body, take.what)
        except ShmqError as error:
            offer.close()
            connection.close(error)  # half of it holds: the client begins anew
            raise
        answer = {"staleQueues": pairs(stale), "staleClaims": stale_claims}
        return self._offer(command, offer, body=orjson.dumps(answer))

    def _known(
        self, handles: list[QueueHandle], connection: Connection
    ) -> tuple[list[QueueHandle], list[QueueHandle]]:
        """Handles that stand for a queue the peer may send to, and the others."""
        good, stale = [], []
        for handle in handles:
            topic = self._broker.topic_of(handle)
            if topic is not None and self._broker.rights.may(
                connection.identity, Action.SEND, topic
            ):
                good.append(handle)
            else:
                stale.append(handle)
        return good, stale

    def _resume_bells(
        self, session: ClientSession, body: Mapping[str, object], what: str
    ) -> list[QueueHandle]:
        stale = []
        for bell in items_of(body, "bells", what):
            number = ranged(bell, "bell", 0, core.CONSUMER_BELL_MAX - 1)
            for handle in handles_of(bell.rest().get("queues"), bell.what):
                topic = self._broker.topic_of(handle)
                if (
                    topic is None
                    or not session.claim_capacity
                    or not self._broker.rights.may(session.connection.identity, Action.PULL, topic)
                ):
                    stale.append(handle)
                else:
                    self._broker.sessions.subscribe(session, number, handle.row)
        return stale

    def _resume_claims(
        self, session: ClientSession, body: Mapping[str, object], what: str
    ) -> list[dict[str, object]]:
        broker, identity = self._broker, session.connection.identity
        wanted = []
        for item in items_of(body, "claims", what):
            queue = ClaimedQueue(
                item.text("consumerGroup"),
                item.text("topic"),
                ranged(item, "queueId", 0, _WORD_MAX),
            )
            slot = ranged(item, "slot", 0, _WORD_MAX)
            number = ranged(item, "claim", 1, _LONG_MAX)
            wanted.append((queue, slot, number, item.flag("isLocked", False)))
        broker.claims.check_slots(session, [(queue, slot) for queue, slot, _, _ in wanted])
        stale: list[dict[str, object]] = []
        for queue, slot, number, is_locked in wanted:
            try:
                broker.rights.require(identity, Action.CONSUME, queue.group)
                broker.rights.require(identity, Action.PULL, queue.topic)
                handle = broker.topics.read_queue(queue.topic, queue.queue_id)
                claim = None
                if broker.locks.is_free_for(queue, session.client_id):
                    claim = broker.claims.resume(session, queue, slot, handle, number)
                if claim is not None and is_locked:
                    broker.locks.try_lock(queue, session.client_id)
            except (TopicNotExistError, PermissionDeniedError):
                claim = None
            if claim is None:
                stale.append(
                    {
                        "consumerGroup": queue.group,
                        "topic": queue.topic,
                        "queueId": queue.queue_id,
                        "claim": number,
                    }
                )
        return stale

    def _offer(self, command: Command, offer: SessionOffer, *, body: bytes = b"") -> Command:
        config = self._broker.config
        names = [name for name in FD_ORDER if name in offer.fds]
        fields: dict[str, Scalar] = {
            "session": offer.session,
            "generation": offer.generation,
            "laneCount": offer.lane_count,
            "laneCapacityBytes": offer.lane_capacity_bytes,
            "completionCapacity": offer.completion_capacity,
            "claimCapacity": offer.claim_capacity,
            "fileSizeBytes": offer.file_size_bytes,
            "messageSizeMax": config.max_message_size_bytes,
            "clusterName": config.cluster_name,
            "brokerName": config.broker_name,
            "brokerId": config.broker_id,
            "masterEpoch": self._broker.store.master_epoch,
            "storeGeneration": self._broker.store.generation,
            "isMapped": "log" in offer.fds,
            "fds": ",".join(names),
        }
        fields |= {f"{name}Bytes": size for name, size in offer.sizes.items()}
        fds = [offer.fds.pop(name) for name in names]
        return response_to(command, ext_fields=fields, body=body, fds=fds)

    # ---- changing and ending -----------------------------------------------------------------

    def _grant_chunk(self, connection: Connection, command: Command) -> Command:
        session = self._broker.sessions.require(connection)
        size = ranged(
            command.fields(), "sizeBytes", _CHUNK_SIZE_LEAST, _CHUNK_SIZE_MOST, _CHUNK_SIZE_DEFAULT
        )
        self._broker.quotas.require_memory(connection.identity, size, "grant chunk memory")
        fd = self._broker.sessions.grant_chunk(session, size)
        fields: dict[str, Scalar] = {"chunkBytes": os.fstat(fd).st_size, "fds": "chunk"}
        return response_to(command, ext_fields=fields, fds=[fd])

    def _grant_socket(self, connection: Connection, command: Command) -> Command:
        session = self._broker.sessions.require(connection)
        fd = self._broker.store.sessions.grant_socket(session.session)
        return response_to(command, ext_fields={"fds": "socket"}, fds=[fd])

    async def _detach(self, connection: Connection, command: Command) -> Command:
        session = self._broker.sessions.find(connection)
        task = self._broker.sessions.end(connection)
        if session is None or task is None:
            raise ClosedError(f"{connection}: it has no session")
        self._broker.locks.unlock_all(session.client_id)  # it says itself that it is done
        await task
        return response_to(command)
