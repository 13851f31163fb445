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
import threading
from typing import TYPE_CHECKING

import orjson

from shmq.core import core
from shmq.errors import ClosedError, ServiceNotAvailableError, ShmError, ShmqError
from shmq.remoting.client import Client as Connection
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from shmq.remoting.command import Scalar
    from shmq.remoting.runtime_folder import RuntimeFolder

__all__ = ["BrokerLink", "Handle"]

_log = logging.getLogger("shmq.client")

Handle = tuple[int, int]
"""Row and generation of a queue."""

CONNECT_TIMEOUT_S = 2.0
CALL_TIMEOUT_S = 5.0
_FD_MAX = 16


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
    ) -> None:
        """Connect and attach; blocks up to a few seconds.

        Raises:
            ServiceNotAvailableError: the broker is away.
            QuotaError, PermissionDeniedError and others: it refused.
        """
        self.broker_name = broker_name
        self._folder = folder
        self._socket_name = socket_name
        self._client_id = client_id
        self._policy = policy
        self._on_notify = on_notify
        self._lock = threading.RLock()
        self._handles: set[Handle] = set()
        self._bells: dict[int, set[Handle]] = {}
        self._claims: dict[int, dict[str, object]] = {}
        self._memfds: dict[str, int] = {}
        self._is_closed = False
        self._closing: list[core.Lane | core.Reader | core.LogMap] = []
        self.generation = 0
        """Counts sessions: lanes and readers of an older one are of no use any more."""
        self.connection = self._connect()
        self._attach()

    # ---- coming and going ------------------------------------------------------------------------

    def _connect(self) -> Connection:
        return Connection(
            self._folder,
            self._socket_name,
            role="client",
            timeout_s=CONNECT_TIMEOUT_S,
            on_notify=lambda command: self._on_notify(self, command),
        )

    def _attach(self) -> None:
        answer = self.connection.call(
            Command(RequestCode.ATTACH_SESSION, {"clientId": self._client_id}),
            timeout_s=CALL_TIMEOUT_S,
            fd_count_max=_FD_MAX,
        )
        fields = answer.ext_fields
        fds = dict(zip(str(fields["fds"]).split(","), answer.take_fds(), strict=True))
        try:
            self._close_memory()
            self.generation += 1
            self._fields = dict(fields)
            self._session = _int(fields["session"])
            self._session_generation = _int(fields["generation"])
            self.control = self._map(fds, "control")
            self.arena = self._map(fds, "arena")
            completion = self._map(fds, "completion")
            ingress = self._map(fds, "ingress", writable=True)
            consumer = self._map(fds, "consumer", writable=True)
            self._memfds = {"ingress": fds.pop("ingress"), "consumer": fds.pop("consumer")}
            self.log_map = core.LogMap(file_size=_int(fields["fileSizeBytes"]))
            self.log_map.start(fds["log"])
            self.lanes = [
                core.Lane(
                    self.control,
                    ingress,
                    completion,
                    session=self._session,
                    lane=lane,
                    event_fd=fds["event"],
                    policy=self._policy,
                )
                for lane in range(_int(fields["laneCount"]))
            ]
            self._chunk: core.ChunkMemory | None = None
            self.reader = core.Reader(
                self.control,
                self.arena,
                self.log_map,
                consumer=consumer,
                completion=completion,
                session=self._session,
                policy=self._policy,
            )
            self._closing = [*self.lanes, self.reader, self.log_map]
            self._handles.clear()
            self._bells.clear()
            self._claims.clear()
        finally:
            for fd in fds.values():
                os.close(fd)

    def _map(self, fds: dict[str, int], name: str, *, writable: bool = False) -> core.Mapping:
        size = os.fstat(fds[name]).st_size
        reserve = max(size, _int(self._fields.get(f"{name}Bytes", size)))
        return core.Mapping(fds[name], size, writable=writable, reserve=reserve)

    def reconnect(self) -> bool:
        """After the broker went: resume the session with its successor. True: everything goes on;
        False: the successor has new memory, and the session is a new one.

        Raises:
            ServiceNotAvailableError and others: it is not back yet; try again.
        """
        with self._lock:
            if self._is_closed:
                raise ClosedError(f"reconnect to {self.broker_name}: this client is closed")
            self.connection.close()
            self.connection = self._connect()
            try:
                self._resume()
            except ShmError as error:
                _log.warning("session not resumed broker=%s: %s", self.broker_name, error)
                self._attach()
                return False
            return True

    def _resume(self) -> None:
        names = list(self._memfds)
        body = {
            "sends": sorted(self._handles),
            "bells": [
                {"bell": bell, "queues": sorted(handles)} for bell, handles in self._bells.items()
            ],
            "claims": list(self._claims.values()),
        }
        answer = self.connection.call(
            Command(
                RequestCode.RESUME_SESSION,
                {
                    "session": self._session,
                    "generation": self._session_generation,
                    "clientId": self._client_id,
                    "fds": ",".join(names),
                },
                orjson.dumps(body),
                fds=[os.dup(fd) for fd in self._memfds.values()],
            ),
            timeout_s=CALL_TIMEOUT_S,
            fd_count_max=_FD_MAX,
        )
        fds = dict(zip(str(answer.ext_fields["fds"]).split(","), answer.take_fds(), strict=True))
        try:
            control = self._map(fds, "control")
            completion = self._map(fds, "completion")
            if self._chunk is not None:
                self._chunk.resume(control)
            for lane in self.lanes:
                lane.resume(control, completion, fds["event"])
            self.log_map.stop()
            self.log_map.start(fds["log"])
        finally:
            for fd in fds.values():
                os.close(fd)

    @property
    def is_up(self) -> bool:
        """Whether the connection stands, as far as anybody has noticed."""
        return not self.connection.is_closed

    def close(self) -> None:
        """Leave the broker; what was put is drained by it."""
        with self._lock:
            self._is_closed = True
            with contextlib.suppress(ShmqError):
                if self.is_up:
                    self.call(RequestCode.DETACH_SESSION)
            self.connection.close()
            self._close_memory()

    def _close_memory(self) -> None:
        for owner in self._closing:
            with contextlib.suppress(ShmqError, BufferError):
                owner.close()
        self._closing = []
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
                command, timeout_s=CALL_TIMEOUT_S, fd_count_max=fd_count_max
            )
        except ClosedError as error:
            raise ServiceNotAvailableError(
                f"{code.name} to broker {self.broker_name}: it is away: {error}"
            ) from None

    def grant_send(self, topic: str) -> list[tuple[int, Handle]]:
        """The write queues of a topic here: (queue_id, handle), made where the broker makes topics.

        Raises:
            TopicNotExistError, PermissionDeniedError, IllegalTopicError.
        """
        answer = self.call(RequestCode.GRANT_SEND, {"topic": topic})
        queues = _queues(answer)
        with self._lock:
            self._handles.update(handle for _, handle in queues)
        return queues

    def topic_queues(self, topic: str) -> list[tuple[int, Handle]]:
        """The read queues of a topic here."""
        return _queues(self.call(RequestCode.GET_TOPIC_QUEUES, {"topic": topic}))

    def subscribe_bell(self, bell: int, handles: Iterable[Handle]) -> None:
        """Have one of the session's bells rung for these queues."""
        wanted = list(handles)
        with self._lock:
            self._bells.setdefault(bell, set()).update(wanted)
        self.call(RequestCode.SUBSCRIBE_BELL, {"bell": bell}, {"queues": wanted})

    def unsubscribe_bell(self, bell: int, handles: Iterable[Handle]) -> None:
        """Have it rung no more."""
        wanted = list(handles)
        with self._lock:
            self._bells.setdefault(bell, set()).difference_update(wanted)
        self.call(RequestCode.UNSUBSCRIBE_BELL, {"bell": bell}, {"queues": wanted})

    def claim(
        self,
        group: str,
        topic: str,
        queue_ids: Sequence[int],
        *,
        from_where: str,
        timestamp: int = 0,
    ) -> list[dict[str, int]]:
        """Claim queues for a group; a list of queueId, slot, claim, consumerOffset, row,
        generation.

        The claims stand in the consumer page when this returns.
        """
        with self._lock:
            free = [slot for slot in range(self.reader.claim_capacity) if slot not in self._claims]
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
                        for queue_id, slot in zip(queue_ids, free, strict=False)
                    ]
                },
            )
            claims: list[dict[str, int]] = answer.json()["claims"]  # type: ignore[assignment]
            for claim in claims:
                self.reader.claim(
                    claim["slot"],
                    claim["claim"],
                    claim["row"],
                    claim["generation"],
                    claim["consumerOffset"],
                )
                self._claims[claim["slot"]] = {
                    "consumerGroup": group,
                    "topic": topic,
                    "queueId": claim["queueId"],
                    "slot": claim["slot"],
                    "claim": claim["claim"],
                }
            return claims

    def release(self, group: str, topic: str, claims: Sequence[Mapping[str, int]]) -> None:
        """Give claims back; their last reported progress counts."""
        with self._lock:
            for claim in claims:
                self._claims.pop(claim["slot"], None)
            with contextlib.suppress(ServiceNotAvailableError):
                self.call(
                    RequestCode.RELEASE_QUEUES,
                    {"consumerGroup": group, "topic": topic},
                    {
                        "claims": [
                            {"queueId": claim["queueId"], "claim": claim["claim"]}
                            for claim in claims
                        ]
                    },
                )
            for claim in claims:
                self.reader.drop_claim(claim["slot"])

    def forget_claim(self, slot: int) -> None:
        """The broker has revoked it."""
        with self._lock:
            if self._claims.pop(slot, None) is not None:
                self.reader.drop_claim(slot)

    def read_entries(
        self, topic: str, queue_id: int, queue_offset: int, count: int
    ) -> tuple[int, bytes] | None:
        """ConsumeQueue entries that have left memory: (queue_offset of the first, 24 bytes each);
        None: they are in memory after all.

        Raises:
            OffsetIllegalError: there is no such offset.
        """
        command = Command(
            RequestCode.READ_ENTRIES,
            {"topic": topic, "queueId": queue_id, "queueOffset": queue_offset, "count": count},
        )
        answer = self.connection.invoke(command, timeout_s=CALL_TIMEOUT_S)
        if answer.code == ResponseCode.PULL_RETRY_IMMEDIATELY:
            return None
        error = error_of(answer)
        if error is not None:
            raise error
        return _int(answer.ext_fields["queueOffset"]), answer.body

    def grant_chunk(self) -> bool:
        """Get memory for large bodies, once per session; False if there is some already."""
        with self._lock:
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


def _int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ShmqError(f"read a broker's answer: {value!r}, wanted a whole number")
    return value


def _queues(answer: Command) -> list[tuple[int, Handle]]:
    queues: list[dict[str, int]] = answer.json()["queues"]  # type: ignore[assignment]
    return [(queue["queueId"], (queue["row"], queue["generation"])) for queue in queues]
