"""A real process that owns a MessageStore, for tests from outside: until there is a broker, this is
one.

What lives here: both ends. `python -m tests.support.store_process FD` opens a store and answers
requests on an inherited SOCK_SEQPACKET socket: one JSON object a request, fds by SCM_RIGHTS.
`StoreProcess` starts and kills such a process; `StoreClient` is a client of it with lanes and
readers, as a producer or consumer process would have them. Nothing is faked: memory, rings, files
and threads are the product's.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from shmq.config import StoreConfig
from shmq.core import core
from shmq.errors import ShmqError, for_name
from shmq.shm.incarnation import Incarnation
from shmq.status import FlushDiskType
from shmq.store.message_store import MessageStore
from shmq.store.queues import QueueHandle

ROOT = Path(__file__).parents[2]
ANSWER_TIMEOUT_S = 60.0
PACKET_SIZE = 256 * 1024
FD_MAX = 16
COLD_ENTRIES_MAX = 1024
"""Entries of one answer to read_cold: 48 KiB as hex."""


# ---- the process ---------------------------------------------------------------------------------


def _serve(sock: socket.socket) -> None:
    request, _ = _receive(sock)
    config = StoreConfig(**_config_from_json(request["config"]))
    store = MessageStore(config, on_session_ended=lambda *ended: _ended.append(ended))
    try:
        store.open()
        store.start()
    except ShmqError as error:
        _send(sock, _failure(error), {})
        return
    _send(sock, {"ok": {"is_adopted": store.is_adopted, "lost": store.sessions.lost}}, {})
    keep_memory = False
    try:
        while True:
            try:
                request, fds = _receive(sock)
            except EOFError:
                break
            op = request.pop("op")
            if op == "stop":
                keep_memory = request["keep_memory"]
                break
            try:
                answer, out = _OPERATIONS[op](store, fds, **request)
            except ShmqError as error:
                _send(sock, _failure(error), {})
                continue
            finally:
                for fd in fds.values():
                    os.close(fd)
            _send(sock, {"ok": answer}, out)
            for fd in out.values():
                os.close(fd)
    finally:
        try:
            store.stop(keep_memory=keep_memory)
        except ShmqError as error:
            _send(sock, _failure(error), {})
        else:
            with contextlib.suppress(OSError):
                _send(sock, {"ok": None}, {})


def _failure(error: ShmqError) -> dict[str, object]:
    return {"error": type(error).__name__, "message": str(error)}


def _open_session(store: MessageStore, _fds: dict[str, int], **options: Any) -> tuple[Any, Any]:
    offer = store.sessions.open(**options)
    return _offer(offer)


def _resume(store: MessageStore, fds: dict[str, int], **options: Any) -> tuple[Any, Any]:
    return _offer(store.sessions.resume(fds=fds, **options))


def _offer(offer: Any) -> tuple[Any, Any]:
    fields = asdict(offer)
    fds = fields.pop("fds")
    return fields, fds


def _add_queue(
    store: MessageStore, _fds: dict[str, int], topic: str, queue_id: int, level: str | None
) -> tuple[Any, Any]:
    flags = store.default_flags(FlushDiskType(level) if level else None)
    return list(store.queues.add(topic, queue_id, flags=flags)), {}


def _set_queue(
    store: MessageStore,
    _fds: dict[str, int],
    topic: str,
    queue_id: int,
    level: str,
    is_writable: bool,
) -> tuple[Any, Any]:
    flags = store.default_flags(FlushDiskType(level))
    store.queues.set(topic, queue_id, flags=flags, is_writable=is_writable)
    return None, {}


def _delete_queue(
    store: MessageStore, _fds: dict[str, int], topic: str, queue_id: int
) -> tuple[Any, Any]:
    store.queues.delete(topic, queue_id)
    return None, {}


def _grant(
    store: MessageStore, _fds: dict[str, int], session: int, rows: list[int]
) -> tuple[Any, Any]:
    store.sessions.grant(session, rows)
    return None, {}


def _grant_chunk(
    store: MessageStore, _fds: dict[str, int], session: int, size_bytes: int
) -> tuple[Any, Any]:
    fd = store.sessions.grant_chunk(session, size_bytes)
    return os.fstat(fd).st_size, {"chunk": fd}


def _subscribe(
    store: MessageStore, _fds: dict[str, int], session: int, bell: int, row: int
) -> tuple[Any, Any]:
    store.sessions.subscribe(session, bell, row)
    return None, {}


def _close_session(store: MessageStore, _fds: dict[str, int], session: int) -> tuple[Any, Any]:
    store.sessions.close(session)
    return None, {}


def _read_cold(
    store: MessageStore,
    _fds: dict[str, int],
    topic: str,
    queue_id: int,
    queue_offset: int,
    entry_count: int,
) -> tuple[Any, Any]:
    found = store.read_cold(topic, queue_id, queue_offset, min(entry_count, COLD_ENTRIES_MAX))
    return None if found is None else [found[0], found[1].hex()], {}


_ended: list[tuple[int, str]] = []
"""(session, reason) of the sessions that the store itself has ended."""


def _facts(store: MessageStore, _fds: dict[str, int]) -> tuple[Any, Any]:
    return {
        "positions": store.positions._asdict(),
        "queues": [
            [topic, queue_id, list(handle), store.queues.offsets(handle)._asdict()]
            for topic, queue_id, handle in store.queues
        ],
        "live": store.sessions.live,
        "lost": store.sessions.lost,
        "ended": _ended,
        "failure": str(store.failure) if store.failure else None,
        "state": store.appender_state(),
        "unanswered_bytes": store.channel.unanswered_bytes(),
    }, {}


_OPERATIONS = {
    "open_session": _open_session,
    "resume": _resume,
    "add_queue": _add_queue,
    "set_queue": _set_queue,
    "delete_queue": _delete_queue,
    "grant": _grant,
    "grant_chunk": _grant_chunk,
    "subscribe": _subscribe,
    "close_session": _close_session,
    "read_cold": _read_cold,
    "facts": _facts,
}


# ---- the wire ------------------------------------------------------------------------------------


def _send(sock: socket.socket, message: dict[str, Any], fds: dict[str, int]) -> None:
    packet = orjson.dumps({"message": message, "fds": list(fds)})
    ancillary = []
    if fds:
        rights = array.array("i", fds.values())
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    sock.sendmsg([packet], ancillary)


def _receive(sock: socket.socket) -> tuple[dict[str, Any], dict[str, int]]:
    packet, ancillary, _, _ = sock.recvmsg(
        PACKET_SIZE, socket.CMSG_SPACE(FD_MAX * 4), socket.MSG_CMSG_CLOEXEC
    )
    if not packet:
        raise EOFError
    rights = array.array("i")
    for _level, _kind, data in ancillary:
        rights.frombytes(data[: len(data) - len(data) % rights.itemsize])
    content = orjson.loads(packet)
    return content["message"], dict(zip(content["fds"], rights, strict=True))


def _config_to_json(config: StoreConfig) -> dict[str, Any]:
    fields = asdict(config)
    return {
        key: str(value) if isinstance(value, Path | str) else value for key, value in fields.items()
    }


def _config_from_json(fields: dict[str, Any]) -> dict[str, Any]:
    from shmq.config import WaitingPolicy

    converted = dict(fields)
    for key in ("store_path", "runtime_path"):
        converted[key] = Path(fields[key])
    converted["waiting_policy"] = WaitingPolicy(fields["waiting_policy"])
    converted["flush_disk_type"] = FlushDiskType(fields["flush_disk_type"])
    return converted


# ---- starting and killing one --------------------------------------------------------------------


class StoreProcess:
    """Starts a store process, talks to it, kills it. A context manager: it is stopped at the
    end."""

    def __init__(
        self,
        config: StoreConfig,
        *,
        wrapper: tuple[str, ...] = (),
        environ: dict[str, str] | None = None,
    ) -> None:
        """Start it and wait until it serves.

        Args:
            config: of the store; store_path and runtime_path are set.
            wrapper: a command that runs it (strace, ...).
            environ: added to the environment.

        Raises:
            ShmqError: what the store raised while it opened.
        """
        self.config = config
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(ANSWER_TIMEOUT_S)
        self._lock = threading.Lock()
        assert config.runtime_path is not None
        config.runtime_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with theirs:
            self.process = subprocess.Popen(
                [
                    *wrapper,
                    sys.executable,
                    "-m",
                    "tests.support.store_process",
                    str(theirs.fileno()),
                ],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **(environ or {})},
            )
        _send(self._sock, {"config": _config_to_json(config)}, {})
        answer = self._answer()[0]
        self.is_adopted: bool = answer["is_adopted"]
        self.lost: list[int] = answer["lost"]

    @property
    def pid(self) -> int:
        return self.process.pid

    def call(
        self, op: str, fds: dict[str, int] | None = None, **arguments: Any
    ) -> tuple[Any, dict[str, int]]:
        """One request: the answer and the fds that came with it, which are the caller's."""
        with self._lock:
            _send(self._sock, {"op": op, **arguments}, fds or {})
            return self._answer()

    def _answer(self) -> tuple[Any, dict[str, int]]:
        try:
            message, fds = _receive(self._sock)
        except EOFError:
            self.process.wait()
            raise ConnectionError(
                f"the store process ended with {self.process.returncode}"
            ) from None
        if "error" in message:
            raise for_name(message["error"])(message["message"])
        return message["ok"], fds

    def facts(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("facts")[0]
        return answer

    def add_queue(
        self, topic: str, queue_id: int = 0, *, level: FlushDiskType | None = None
    ) -> QueueHandle:
        return QueueHandle(*self.call("add_queue", topic=topic, queue_id=queue_id, level=level)[0])

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, *, keep_memory: bool = False) -> None:
        """In order: everything flushed."""
        if self.process.poll() is None:
            self.call("stop", keep_memory=keep_memory)
            self.process.wait()
        self._sock.close()

    def restart(self, **options: Any) -> StoreProcess:
        """A successor on the same store, after a death."""
        self._sock.close()
        return StoreProcess(self.config, **options)

    def __enter__(self) -> StoreProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()
        self._sock.close()


# ---- a client of it ------------------------------------------------------------------------------


@dataclass
class Offer:
    """SessionOffer as it came over the socket."""

    session: int
    generation: int
    lane_count: int
    lane_capacity_bytes: int
    completion_capacity: int
    claim_capacity: int
    file_size_bytes: int
    sizes: dict[str, int]


class StoreClient:
    """One session: its mappings, its lanes, its reader. A context manager."""

    def __init__(
        self,
        store: StoreProcess,
        *,
        producer: bool = True,
        consumer: bool = True,
        policy: int = core.WAIT_ADAPTIVE,
        **options: Any,
    ) -> None:
        self.store = store
        self._policy = policy
        own = Incarnation.current()
        answer, self.fds = store.call(
            "open_session",
            uid=os.getuid(),
            pid=own.pid,
            pid_start_time=own.start_time,
            producer=producer,
            consumer=consumer,
            **options,
        )
        self.offer = Offer(**answer)
        self._map()
        self.ingress = self._mapping("ingress", writable=True) if producer else None
        self.consumer = self._mapping("consumer", writable=True) if consumer else None
        self.log_map = core.LogMap(file_size=self.offer.file_size_bytes)
        self.log_map.start(self.fds["log"])
        self.lanes = [
            core.Lane(
                self.control,
                self.ingress,
                self.completion,
                session=self.offer.session,
                lane=lane,
                event_fd=self.fds["event"],
                policy=policy,
            )
            for lane in range(self.offer.lane_count)
        ]
        self.reader = core.Reader(
            self.control,
            self.arena,
            self.log_map,
            consumer=self.consumer,
            completion=self.completion,
            session=self.offer.session,
            policy=policy,
        )

    def _mapping(self, name: str, *, writable: bool = False) -> core.Mapping:
        size = os.fstat(self.fds[name]).st_size
        reserve = self.offer.sizes.get(name, size)
        return core.Mapping(self.fds[name], size, writable=writable, reserve=max(size, reserve))

    def _map(self) -> None:
        self.control = self._mapping("control")
        self.topics = self._mapping("topics")
        self.arena = self._mapping("arena")
        self.completion = self._mapping("completion")

    def grant(self, *handles: QueueHandle) -> None:
        self.store.call(
            "grant", session=self.offer.session, rows=[handle.row for handle in handles]
        )

    def subscribe(self, handle: QueueHandle, *, bell: int = 0) -> None:
        self.store.call("subscribe", session=self.offer.session, bell=bell, row=handle.row)

    def close(self) -> None:
        """Leave; the store process is told if it lives."""
        self.log_map.stop()
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
        if self.store.process.poll() is None:
            with contextlib.suppress(ShmqError, OSError, ConnectionError):
                self.store.call("close_session", session=self.offer.session)

    def __enter__(self) -> StoreClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_until(condition: Any, *, timeout_s: float = 30.0) -> None:
    """Poll `condition` every millisecond until it holds; AssertionError when the time is over."""
    waiting = threading.Event()
    for _ in range(int(timeout_s * 1000)):
        if condition():
            return
        waiting.wait(0.001)
    raise AssertionError(f"{condition} did not come true in {timeout_s} s")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="store_process %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        _serve(inherited)
