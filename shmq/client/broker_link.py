"""One session with one broker: the connection, and the memory that it granted.

What lives here: `BrokerLink`. It attaches, follows the broker through a restart (RESUME with the
same rings, or a new session where the broker had to make new memory), and asks for grants, claims
and cold entries. Which process: the program's; the keeper thread of the Client reconnects. Writes:
nothing in shared memory itself; the lanes and readers do. May fail: ServiceNotAvailableError while
the broker is away; what its brokers answer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import orjson

from shmq.client.deadline import at_most
from shmq.client.wake_fd import SharedSocket
from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.core.fields import control_place
from shmq.errors import (
    ClosedError,
    QuotaError,
    RequestTimeoutError,
    ServiceNotAvailableError,
    ShmError,
    ShmqError,
    SystemBusyError,
)
from shmq.remoting.client import Client as Connection
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from shmq.client.process_queue import ProcessQueue
    from shmq.remoting.command import Scalar
    from shmq.remoting.runtime_folder import RuntimeFolder
    from shmq.result import MessageQueue

__all__ = ["BrokerLink", "ColdEntries", "Handle", "Pulled"]

_log = logging.getLogger("shmq.client")

Handle = tuple[int, int]
"""Row and generation of a queue."""

CONNECT_TIMEOUT_S = 2.0
CALL_TIMEOUT_S = 5.0
_FD_MAX = 16
_STORE_STATUS_PLACE = control_place("append_positions", "store_status")
_HOT_MIN_PLACE = control_place("append_positions", "hot_min_position")
_PULL_COUNT_MAX = 1024
_PULL_BYTES_MAX = 1 << 20
"""Of one pull request; the broker's bounds."""


class ColdEntries(NamedTuple):
    """What READ_ENTRIES gave."""

    queue_offset: int
    """Of the first entry; without entries, of the first that is kept."""
    entries: bytes
    """24 bytes each."""
    broker_id: int
    """From whom to read next."""
    is_in_memory: bool = False
    """They are to be read there; only the messages may have left it."""


class Pulled(NamedTuple):
    """What PULL_MESSAGE gave."""

    messages: list[core.Message]
    """Copies."""
    next_offset: int
    """Where to go on."""
    broker_id: int
    """From whom to read next."""


class BrokerLink:
    """A session with the broker at one socket. Threads may share it."""

    def __init__(
        self,
        folder: RuntimeFolder,
        socket_name: str,
        broker_name: str,
        *,
        client_id: str,
        policy: int,
        on_notify: Callable[[BrokerLink, Command], None],
        on_end: Callable[[BrokerLink], None],
        broker_id: int = 0,
    ) -> None:
        """Connect and attach; to a slave, whose broker_id is not 0, connect only (`begin`). Blocks
        up to a few seconds.

        Raises:
            ServiceNotAvailableError: the broker is away.
            QuotaError, PermissionDeniedError and others: it refused.
        """
        self.broker_name = broker_name
        self.broker_id = broker_id
        """0: it is the way to the master, whoever that is."""
        self._folder = folder
        self._socket_name = socket_name
        self._client_id = client_id
        self._policy = policy
        self._on_notify = on_notify
        self._on_end = on_end
        self._busy = threading.RLock()
        """Held while the session comes or goes, with requests in it."""
        self._lock = threading.Lock()
        """Held for a look at the tables: whoever takes notices may wait for it."""
        self._handles: set[Handle] = set()
        self._order_topics: set[str] = set()
        self._bells: dict[int, Counter[Handle]] = {}
        self._claims: dict[int, dict[str, object]] = {}
        self._slot = 0
        """Where the next free claim is looked for: behind the last that was taken."""
        self._readers: dict[int, core.Reader] = {}
        self._memfds: dict[str, int] = {}
        self._chunk: core.ChunkMemory | None = None
        self._is_closed = False
        self._shared: SharedSocket | None = None
        self._closing: list[core.Lane | core.Reader | core.LogMap] = []
        self._mappings: list[core.Mapping] = []
        """What they look at, but for what a successor gave; closed behind them."""
        self._mapped: dict[str, tuple[int, core.Mapping]] = {}
        """What was mapped last, by name, with its inode."""
        self.generation = 0
        """Counts sessions: lanes and readers of an older one are of no use any more."""
        self.stale_handles: frozenset[Handle] = frozenset()
        """What did not hold any more when the session was resumed last."""
        self.is_mapped = True
        """Whether this user maps the broker's log; if not, messages are pulled as copies."""
        self.master_epoch = 0
        """Of the mastership that the session was begun or resumed under; never an older one."""
        self.reconnected_ns: int | None = None
        """When its broker was back last, CLOCK_MONOTONIC; None: it was never away."""
        self._changed = threading.Condition(self._lock)
        try:
            self.connection = self._connect()
        except (ClosedError, RequestTimeoutError, SystemBusyError) as error:
            raise self._away("attach", error) from None  # it hangs, as good as gone for us
        if not broker_id:
            self.begin()

    def begin(self) -> None:
        """Have a session; at a slave, one to read in. It is made now if there is none.

        Raises:
            As the constructor; the connection is closed then.
        """
        if self.generation:
            return
        with self._busy:
            if self.generation:
                return
            try:
                self._attach(self.connection)
            except BaseException as error:
                self.connection.close()
                if isinstance(error, ClosedError | RequestTimeoutError | SystemBusyError):
                    raise self._away("attach", error) from None
                raise

    # ---- coming and going ------------------------------------------------------------------------

    def _connect(self) -> Connection:
        return Connection(
            self._folder,
            self._socket_name,
            role="client",
            timeout_s=at_most(CONNECT_TIMEOUT_S),
            on_notify=lambda command: self._on_notify(self, command),
            on_end=lambda: self._on_end(self),
        )

    def _attach(self, connection: Connection) -> None:
        answer = connection.call(
            Command(
                RequestCode.ATTACH_SESSION,
                {"clientId": self._client_id, "isProducer": self.broker_id == 0},
            ),
            timeout_s=at_most(CALL_TIMEOUT_S),
            fd_count_max=_FD_MAX,
        )
        fields = answer.ext_fields
        fds = dict(zip(str(fields["fds"]).split(","), answer.take_fds(), strict=True))
        try:
            self._check_epoch("attach", fields)
            self._close_memory()
            self._fields = dict(fields)
            self._session = _int(fields["session"])
            self._session_generation = _int(fields["generation"])
            self.control = self._map(fds, "control")
            self.is_mapped = "log" in fds
            self.arena = self._map(fds, "arena") if self.is_mapped else None
            completion = self._map(fds, "completion")
            consumer = self._map(fds, "consumer", writable=True)
            kept = [name for name in ("ingress", "consumer") if name in fds]
            self.log_map = core.LogMap(file_size=_int(fields["fileSizeBytes"]))
            if self.is_mapped:
                self.log_map.start(fds["log"])
            self.lanes = self._make_lanes(fds, completion) if "ingress" in fds else []
            self._memfds = {name: fds.pop(name) for name in kept}
            self._consumer, self._completion = consumer, completion
            self.reader = self._new_reader(0)
            self._readers = {0: self.reader}
            self._closing = [*self.lanes, self.reader, self.log_map]
            self._mappings = [mapping for _, mapping in self._mapped.values()]
            with self._lock:
                self._handles.clear()
                self._bells.clear()
                self._claims.clear()
                self.connection = connection  # before anybody who waits for a session asks over it
                self.generation += 1
                self._changed.notify_all()
        finally:
            for fd in fds.values():
                os.close(fd)

    def _make_lanes(self, fds: dict[str, int], completion: core.Mapping) -> list[core.Lane]:
        ingress = self._map(fds, "ingress", writable=True)
        return [
            core.Lane(
                self.control,
                ingress,
                completion,
                session=self._session,
                lane=lane,
                event_fd=fds["event"],
                policy=self._policy,
            )
            for lane in range(_int(self._fields["laneCount"]))
        ]

    def _new_reader(self, bell: int) -> core.Reader:
        return core.Reader(
            self.control,
            self.arena,
            self.log_map,
            consumer=self._consumer,
            completion=self._completion,
            session=self._session,
            bell=bell,
            policy=self._policy,
        )

    def share_reader(self, bell: int) -> tuple[int, core.Reader]:
        """A reader of its own for a thread that waits on one of the session's bells, and the
        generation that it is of.
        """
        with self._busy:
            base = self._readers.get(bell)
            if base is None:
                self._readers[bell] = base = self._new_reader(bell)
                self._closing.append(base)
            return self.generation, base.share()

    def wait_for_session(self, generation: int, timeout_s: float) -> bool:
        """Wait until there is another session than `generation`; whether there is."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.generation != generation or self._is_closed, max(timeout_s, 0.0)
            )

    def _map(self, fds: dict[str, int], name: str, *, writable: bool = False) -> core.Mapping:
        size = os.fstat(fds[name]).st_size
        reserve = max(size, _int(self._fields.get(f"{name}Bytes", size)))
        mapping = core.Mapping(fds[name], size, writable=writable, reserve=reserve)
        self._mapped[name] = os.fstat(fds[name]).st_ino, mapping
        return mapping

    def _map_anew(self, fds: dict[str, int], name: str) -> core.Mapping:
        """What a successor gave; the mapping there is if that is the same object, as it is where
        the successor went on with its predecessor's memory.
        """
        inode, mapping = self._mapped[name]
        return mapping if os.fstat(fds[name]).st_ino == inode else self._map(fds, name)

    def reconnect(self, socket_name: str | None = None) -> bool:
        """After the broker went: resume the session with its successor. True: everything goes on;
        False: the successor has new memory, and the session is a new one.

        Args:
            socket_name: where the master of its broker_name is now; None: where it was.

        Raises:
            ServiceNotAvailableError and others: it is not back yet; try again.
        """
        with self._busy:
            if self._is_closed:
                raise ClosedError(f"reconnect to {self.broker_name}: this client is closed")
            self.connection.close()
            if self._shared is not None:
                self._shared.close()  # it is the session's with the broker that went
            self._socket_name = socket_name or self._socket_name
            # Nobody else asks over it before there is a session: it would be refused, and ended.
            connection = self._connect()
            try:
                is_resumed = self._resumed(connection)
            except BaseException:
                connection.close()
                raise
            self.connection = connection
            self.reconnected_ns = SYSTEM_CLOCK.monotonic_ns()
            return is_resumed

    def _resumed(self, connection: Connection) -> bool:
        """Have a session in a new connection; whether it is the one from before."""
        try:
            self._resume(connection)
        except ShmError as error:
            _log.warning("session not resumed broker=%s: %s", self.broker_name, error)
            self._attach(connection)
            return False
        return True

    def _resume(self, connection: Connection) -> None:
        names = list(self._memfds)
        with self._lock:
            body = {
                "sends": _runs_of(self._handles),
                "bells": [
                    {"bell": bell, "queues": _runs_of(handles)}
                    for bell, handles in self._bells.items()
                ],
                "claims": [claim for claim in self._claims.values() if claim],
            }
        answer = connection.call(
            Command(
                RequestCode.RESUME_SESSION,
                {
                    "session": self._session,
                    "generation": self._session_generation,
                    "clientId": self._client_id,
                    "isMapped": self.is_mapped,
                    "fds": ",".join(names),
                },
                orjson.dumps(body),
                fds=[os.dup(fd) for fd in self._memfds.values()],
            ),
            timeout_s=at_most(CALL_TIMEOUT_S),
            fd_count_max=_FD_MAX,
        )
        fds = dict(zip(str(answer.ext_fields["fds"]).split(","), answer.take_fds(), strict=True))
        try:
            self._check_epoch("resume", answer.ext_fields)
            control = self._map_anew(fds, "control")
            completion = self._map_anew(fds, "completion")
            if self._chunk is not None:
                self._chunk.resume(control)
            for lane in self.lanes:
                lane.resume(control, completion, fds["event"])
            if self.is_mapped:
                self.log_map.stop()
                self.log_map.start(fds["log"])
            self._forget_stale(answer)
        finally:
            for fd in fds.values():
                os.close(fd)

    def _check_epoch(self, what: str, fields: Mapping[str, Scalar]) -> None:
        """Return if the broker's mastership is not older than the last one we knew.

        Raises:
            ServiceNotAvailableError: it is: another is master by now, and this one will learn it.
        """
        epoch = _int(fields.get("masterEpoch", 0))
        if epoch < self.master_epoch:
            raise ServiceNotAvailableError(
                f"{what} to broker {self.broker_name} at {self._socket_name}: master epoch {epoch},"
                f" it was {self.master_epoch} before"
            )
        self.master_epoch = epoch

    def _forget_stale(self, answer: Command) -> None:
        said = answer.json()
        queues, claims = said["staleQueues"], said["staleClaims"]
        assert isinstance(queues, list)
        assert isinstance(claims, list)
        gone = {(str(c["consumerGroup"]), str(c["topic"]), int(c["claim"])) for c in claims}
        with self._lock:
            self.stale_handles = frozenset((int(row), int(number)) for row, number in queues)
            self._handles -= self.stale_handles
            for handles in self._bells.values():
                for handle in self.stale_handles:
                    handles.pop(handle, None)
            for slot, claim in tuple(self._claims.items()):
                if (claim.get("consumerGroup"), claim.get("topic"), claim.get("claim")) in gone:
                    del self._claims[slot]
                    self.reader.drop_claim(slot)

    @property
    def is_up(self) -> bool:
        """Whether the connection stands, as far as anybody has noticed."""
        return not self.connection.is_closed

    def close(self) -> None:
        """Leave the broker; what was put is drained by it."""
        with self._busy:
            with self._lock:
                self._is_closed = True
                self._changed.notify_all()
            with contextlib.suppress(ShmqError):
                if self.is_up and self.generation:
                    self.call(RequestCode.DETACH_SESSION)
            self.connection.close()
            if self._shared is not None:
                self._shared.close()
            self._close_memory()

    def _close_memory(self) -> None:
        """Nothing of a session that is over stays mapped until somebody collects garbage, but for
        what a thread that still waits in it looks at: it is about to get up.
        """
        self._chunk = None
        mapped = [mapping for _, mapping in self._mapped.values()]
        for owner in (*self._closing, *self._mappings, *mapped):
            with contextlib.suppress(ShmqError, BufferError):
                owner.close()
        self._closing = []
        self._mappings = []
        self._mapped = {}
        for fd in self._memfds.values():
            os.close(fd)
        self._memfds = {}

    # ---- requests --------------------------------------------------------------------------------

    def call(
        self,
        code: RequestCode,
        fields: Mapping[str, Scalar] | None = None,
        body: object = None,
        *,
        fd_count_max: int = 0,
    ) -> Command:
        """Ask the broker; the answer, which is SUCCESS.

        Raises:
            ServiceNotAvailableError: it is away just now.
            ShmqError: what it answered.
        """
        command = Command(code, fields or {}, b"" if body is None else orjson.dumps(body))
        try:
            return self.connection.call(
                command, timeout_s=at_most(CALL_TIMEOUT_S), fd_count_max=fd_count_max
            )
        except (ClosedError, RequestTimeoutError) as error:
            raise self._away(code.name, error) from None

    def _away(self, what: str, error: ShmqError) -> ServiceNotAvailableError:
        return ServiceNotAvailableError(
            f"{what} to broker {self.broker_name}: it is away: {error}",
            hint="clients go on by themselves when it is back; see the log of the broker",
        )

    def grant_send(self, topic: str, *, is_auto_create: bool) -> list[tuple[int, Handle]]:
        """The write queues of a topic here: (queue_id, handle); is_auto_create: made here, where
        the broker makes topics.

        Raises:
            TopicNotExistError, PermissionDeniedError, IllegalTopicError.
        """
        answer = self.call(RequestCode.GRANT_SEND, {"topic": topic, "isAutoCreate": is_auto_create})
        queues = _queues(answer)
        is_order = answer.json().get("order") is True
        with self._lock:
            (self._order_topics.add if is_order else self._order_topics.discard)(topic)
            self._handles.update(handle for _, handle in queues)
        return queues

    def is_order(self, topic: str) -> bool:
        """Whether a topic that was granted is an order topic here."""
        with self._lock:
            return topic in self._order_topics

    def read_queues(self, topic: str) -> list[dict[str, int]]:
        """The read queues of a topic here: queueId, row, generation, minOffset, maxOffset,
        visibleMax.
        """
        answer = self.call(RequestCode.GET_TOPIC_QUEUES, {"topic": topic})
        queues: list[dict[str, int]] = answer.json()["queues"]  # type: ignore[assignment]
        return queues

    def search_offset(self, topic: str, queue_id: int, timestamp_ms: int) -> int:
        """The queue_offset of the first message stored at or after a time, ms since 1970."""
        fields: dict[str, Scalar] = {
            "topic": topic,
            "queueId": queue_id,
            "timestamp": timestamp_ms,
        }
        answer = self.call(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, fields)
        return _int(answer.ext_fields["offset"])

    def consumer_offset(self, group: str, topic: str, queue_id: int) -> int | None:
        """How far a group is in a queue; None: it has not said yet."""
        fields: dict[str, Scalar] = {"consumerGroup": group, "topic": topic, "queueId": queue_id}
        answer = self._invoke(Command(RequestCode.QUERY_CONSUMER_OFFSET, fields))
        if answer.code == ResponseCode.QUERY_NOT_FOUND:
            return None
        refusal = error_of(answer)
        if refusal is not None:
            raise refusal
        return _int(answer.ext_fields["offset"])

    def set_consumer_offset(self, group: str, topic: str, queue_id: int, offset: int) -> None:
        """Say how far a group is in a queue that nobody has claimed.

        Raises:
            FencedError: another client consumes it.
            OffsetIllegalError: there is no such place.
        """
        self.call(
            RequestCode.UPDATE_CONSUMER_OFFSET,
            {"consumerGroup": group, "topic": topic, "queueId": queue_id, "commitOffset": offset},
        )

    def _invoke(self, command: Command) -> Command:
        """The answer, whatever it is."""
        try:
            return self.connection.invoke(command, timeout_s=at_most(CALL_TIMEOUT_S))
        except (ClosedError, RequestTimeoutError) as error:
            raise self._away(command.name, error) from None

    def subscribe_bell(self, bell: int, handles: Iterable[Handle]) -> None:
        """Have one of the session's bells rung for these queues."""
        wanted = list(handles)
        with self._lock:
            self._bells.setdefault(bell, Counter()).update(wanted)
        if wanted:
            self.call(RequestCode.SUBSCRIBE_BELL, {"bell": bell}, {"queues": _runs_of(wanted)})

    def unsubscribe_bell(self, bell: int, handles: Iterable[Handle]) -> None:
        """One who subscribed to each of them does not want it any more."""
        unwanted = []
        with self._lock:
            counts = self._bells.setdefault(bell, Counter())
            for handle in handles:
                counts[handle] -= 1
                if counts[handle] <= 0:
                    del counts[handle]
                    unwanted.append(handle)
        if unwanted:
            self.call(RequestCode.UNSUBSCRIBE_BELL, {"bell": bell}, {"queues": _runs_of(unwanted)})

    def claim(
        self,
        group: str,
        topic: str,
        queue_ids: Sequence[int],
        *,
        from_where: str,
        timestamp: int = 0,
        is_locked: bool = False,
    ) -> list[dict[str, int]]:
        """Claim queues for a group; a list of queueId, slot, claim, consumerOffset, row,
        generation, minOffset, visibleMax, without those that another has locked. `is_locked`:
        we have, and lock them again when we come back to the broker's successor.

        The claims stand in the consumer page when this returns.

        Raises:
            QuotaError: the consumer page has no room for so many.
        """
        generation = self.generation
        slots = self._reserve(topic, len(queue_ids))
        try:
            answer = self.call(
                RequestCode.CLAIM_QUEUES,
                {
                    "consumerGroup": group,
                    "topic": topic,
                    "consumeFromWhere": from_where,
                    "consumeTimestamp": timestamp,
                },
                {
                    "claims": [
                        {"queueId": queue_id, "slot": slot}
                        for queue_id, slot in zip(queue_ids, slots, strict=True)
                    ]
                },
            )
            claims: list[dict[str, int]] = answer.json()["claims"]  # type: ignore[assignment]
            if generation != self.generation:
                raise ServiceNotAvailableError(
                    f"claim queues of {topic}: broker {self.broker_name} began anew meanwhile"
                )
        except BaseException:
            with self._lock:
                for slot in slots if generation == self.generation else ():
                    self._claims.pop(slot, None)
            raise
        with self._lock:
            for slot in set(slots) - {claim["slot"] for claim in claims}:
                self._claims.pop(slot, None)
        for claim in claims:
            self.reader.claim(
                claim["slot"],
                claim["claim"],
                claim["row"],
                claim["generation"],
                claim["consumerOffset"],
            )
            with self._lock:
                self._claims[claim["slot"]] = {
                    "consumerGroup": group,
                    "topic": topic,
                    "queueId": claim["queueId"],
                    "slot": claim["slot"],
                    "claim": claim["claim"],
                    "isLocked": is_locked,
                }
        return claims

    def _reserve(self, topic: str, count: int) -> list[int]:
        with self._lock:
            capacity = self.reader.claim_capacity
            from_here = (slot % capacity for slot in range(self._slot, self._slot + capacity))
            free = list(islice((slot for slot in from_here if slot not in self._claims), count))
            if len(free) < count:
                raise QuotaError(
                    f"claim {count} queues of {topic} at {self.broker_name}: this client has "
                    f"{len(self._claims)} of {capacity} claims",
                    hint="add members to the group: processes, or clients of this one",
                )
            self._claims.update({slot: {} for slot in free})
            if free:
                self._slot = free[-1] + 1
            return free

    def release(self, group: str, topic: str, claims: Sequence[tuple[int, int, int]]) -> None:
        """Give claims back, (queue_id, slot, claim) each; their last reported progress counts."""
        try:
            self.call(
                RequestCode.RELEASE_QUEUES,
                {"consumerGroup": group, "topic": topic},
                {
                    "claims": [
                        {"queueId": queue_id, "claim": claim} for queue_id, _, claim in claims
                    ]
                },
            )
        finally:
            for _, slot, claim in claims:
                self.forget_claim(slot, claim)

    def lock(self, group: str, topic: str, queue_ids: Iterable[int]) -> set[int]:
        """Have queues to ourselves, or go on having them; those that we have now."""
        answer = self.call(RequestCode.LOCK_BATCH_MQ, None, self._mq_set(group, topic, queue_ids))
        locked: list[dict[str, int]] = answer.json()["lockOKMQSet"]  # type: ignore[assignment]
        return {queue["queueId"] for queue in locked}

    def unlock(self, group: str, topic: str, queue_ids: Iterable[int]) -> None:
        """Let others have them."""
        self.call(RequestCode.UNLOCK_BATCH_MQ, None, self._mq_set(group, topic, queue_ids))

    def _mq_set(self, group: str, topic: str, queue_ids: Iterable[int]) -> dict[str, object]:
        return {
            "consumerGroup": group,
            "clientId": self._client_id,
            "mqSet": [
                {"topic": topic, "brokerName": self.broker_name, "queueId": queue_id}
                for queue_id in queue_ids
            ],
        }

    def has_claim(self, slot: int, claim: int) -> bool:
        """Whether it holds, as far as we were told."""
        with self._lock:
            return self._claims.get(slot, {}).get("claim") == claim

    def forget_claim(self, slot: int, claim: int) -> None:
        """It is given back, or the broker has revoked it."""
        with self._lock:
            if self._claims.get(slot, {}).get("claim") == claim:
                del self._claims[slot]
                with contextlib.suppress(ClosedError):
                    self.reader.drop_claim(slot)

    def read_entries(
        self, topic: str, queue_id: int, queue_offset: int, count: int, *, group: str
    ) -> ColdEntries:
        """ConsumeQueue entries that have left memory; none where they have not, or where retention
        has taken what was asked for.

        Raises:
            OffsetIllegalError: there is no such offset yet.
        """
        fields: dict[str, Scalar] = {
            "topic": topic,
            "queueId": queue_id,
            "queueOffset": queue_offset,
            "count": count,
            "consumerGroup": group,
        }
        command = Command(RequestCode.READ_ENTRIES, fields)
        answer = self._invoke(command)
        if answer.code == ResponseCode.PULL_RETRY_IMMEDIATELY:
            broker_id = _int(answer.ext_fields["suggestWhichBrokerId"])
            return ColdEntries(queue_offset, b"", broker_id, is_in_memory=True)
        min_offset = answer.ext_fields.get("minOffset")
        if answer.code == ResponseCode.PULL_OFFSET_MOVED and _int(min_offset) > queue_offset:
            return ColdEntries(_int(min_offset), b"", self.broker_id)
        refusal = error_of(answer)
        if refusal is not None:
            raise refusal
        said = answer.ext_fields
        return ColdEntries(
            _int(said["queueOffset"]), answer.body, _int(said["suggestWhichBrokerId"])
        )

    @property
    def hot_min_position(self) -> int:
        """The first physical_offset that is in the broker's memory.

        Raises:
            ShmqError: the session has ended.
        """
        return self.control.load64(_HOT_MIN_PLACE)

    @property
    def store_status(self) -> int:
        """A status of the core for which the broker appends nothing just now; 0 where it does, or
        where nobody knows.
        """
        try:
            return -self.control.load32(_STORE_STATUS_PLACE)
        except (ShmqError, ValueError):  # the session has ended
            return 0

    def store_problem(self) -> str:
        """The same in words, to be put behind a sentence."""
        status = self.store_status
        said = next((text for number, text in core.STATUS.values() if number == status), "")
        return f"; its store waits: {said}" if status and said else ""

    def pull(
        self,
        topic: str,
        queue_id: int,
        queue_offset: int,
        count: int,
        *,
        filter: str | None,  # as in Client.consumer
        group: str,
        keeper: ProcessQueue | None = None,
    ) -> Pulled:
        """Copies of messages, for a session that does not map the log.

        Raises:
            OffsetIllegalError: there is no such offset.
            PermissionDeniedError: this user may not pull from the topic; names the rule.
        """
        log_map = self.log_map
        fields: dict[str, Scalar] = {
            "topic": topic,
            "queueId": queue_id,
            "queueOffset": queue_offset,
            "maxMsgNums": min(count, _PULL_COUNT_MAX),
            "maxMsgBytes": _PULL_BYTES_MAX,
            "subscription": filter or "*",
            "consumerGroup": group,
        }
        command = Command(RequestCode.PULL_MESSAGE, fields)
        try:
            answer = self.connection.invoke(command, timeout_s=at_most(CALL_TIMEOUT_S))
        except (ClosedError, RequestTimeoutError) as error:
            raise self._away(command.name, error) from None
        messages: list[core.Message] = []
        if answer.code not in (ResponseCode.PULL_NOT_FOUND, ResponseCode.PULL_RETRY_IMMEDIATELY):
            refusal = error_of(answer)
            if refusal is not None:
                raise refusal
            messages = log_map.messages(answer.body, keeper)
        said = answer.ext_fields
        return Pulled(messages, _int(said["nextBeginOffset"]), _int(said["suggestWhichBrokerId"]))

    def send_back(
        self,
        group: str,
        queue: MessageQueue,
        queue_offset: int,
        *,
        delay_level: int,
        max_reconsume_times: int,
    ) -> str:
        """Have the broker deliver a message to a group again, later; the topic it is in now."""
        answer = self.call(
            RequestCode.CONSUMER_SEND_MSG_BACK,
            {
                "group": group,
                "topic": queue.topic,
                "queueId": queue.queue_id,
                "queueOffset": queue_offset,
                "delayLevel": delay_level,
                "maxReconsumeTimes": max_reconsume_times,
            },
        )
        return str(answer.ext_fields["topic"])

    def grant_chunk(self) -> bool:
        """Get memory for large bodies, once per session; False if there is some already."""
        with self._busy:
            if self._chunk is not None:
                return False
            answer = self.call(RequestCode.GRANT_CHUNK, fd_count_max=1)
            (fd,) = answer.take_fds()
            size = os.fstat(fd).st_size
            memory = core.Mapping(fd, size, writable=True)
            self._memfds["chunk"] = fd
            self._chunk = core.ChunkMemory(self.control, memory, session=self._session)
            for lane in self.lanes:
                lane.attach_chunk(self._chunk)
            return True

    def shared_socket(self) -> SharedSocket | None:
        """The socket for those who look at the session from loops of their own, granted now if
        there is none; None: its broker is away.
        """
        shared = self._shared
        if shared is not None and not shared.is_ended:
            return shared
        with self._busy:
            if (self._shared is None or self._shared.is_ended) and self.is_up:
                with contextlib.suppress(ServiceNotAvailableError):
                    self._shared = SharedSocket(self.grant_socket())
            shared = self._shared
            return None if shared is None or shared.is_ended else shared

    def grant_socket(self) -> socket.socket:
        """The socket that is readable when a bell of this session was rung: for event loops. One
        that was granted before ends.

        Raises:
            ServiceNotAvailableError: the broker is away; ask again when it is back.
        """
        answer = self.call(RequestCode.GRANT_SOCKET, fd_count_max=1)
        (fd,) = answer.take_fds()
        return socket.socket(fileno=fd)


def _int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ShmqError(f"read a broker's answer: {value!r}, wanted a whole number")
    return value


def _runs_of(handles: Iterable[Handle]) -> list[list[int]]:
    """Handles as they travel, [first row, generation, how many rows]: all of a topic's are one."""
    runs: list[list[int]] = []
    for row, generation in sorted(handles):
        if runs and runs[-1][:2] == [row - runs[-1][2], generation]:
            runs[-1][2] += 1
        else:
            runs.append([row, generation, 1])
    return runs


def _queues(answer: Command) -> list[tuple[int, Handle]]:
    queues: list[dict[str, int]] = answer.json()["queues"]  # type: ignore[assignment]
    return [(queue["queueId"], (queue["row"], queue["generation"])) for queue in queues]
