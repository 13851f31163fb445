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
from typing import TYPE_CHECKING, Any

import orjson

from shmq.config import StoreConfig
from shmq.core import core
from shmq.errors import ShmqError, for_name
from shmq.shm.incarnation import Incarnation
from shmq.shm.mastership import Mastership
from shmq.status import BrokerRole, FlushDiskType
from shmq.store.message_store import MessageStore
from shmq.store.queues import QueueHandle
from shmq.store.replica import LogBegin, MasterLog

if TYPE_CHECKING:
    from types import FrameType

ROOT = Path(__file__).parents[2]
ANSWER_TIMEOUT_S = 60.0
_MASTERSHIP_TIMEOUT_MS = 10_000
PACKET_SIZE = 256 * 1024
FD_MAX = 16
COLD_ENTRIES_MAX = 1024
"""Entries of one answer to read_cold: 48 KiB as hex."""


# ---- the process ---------------------------------------------------------------------------------


def serve(sock: socket.socket) -> None:
    """Open the store that the first request describes, and answer requests until one says stop."""
    request, _ = receive_packet(sock)
    config = StoreConfig(**_config_from_json(request["config"]))
    try:
        mastership = None
        if request["is_member"]:
            assert config.runtime_path is not None
            mastership = Mastership.take(config.runtime_path, timeout_ms=_MASTERSHIP_TIMEOUT_MS)
        begin = request["begin"]
        store = MessageStore(
            config,
            on_session_ended=lambda *ended: _ended.append(ended),
            mastership=mastership,
            is_slave=begin is not None,
            begin=LogBegin(*begin) if begin else None,
        )
        with Steps(request["dies_at"]) as steps:
            store.open()
        store.start()
    except ShmqError as error:
        send_packet(sock, _failure(error), {})
        return
    opened = {
        "is_adopted": store.is_adopted,
        "is_inherited": store.is_inherited,
        "master_epoch": store.master_epoch,
        "step_count": steps.count,
        "lost": store.sessions.lost,
    }
    send_packet(sock, {"ok": opened}, {})
    keep_memory = False
    try:
        while True:
            try:
                request, fds = receive_packet(sock)
            except EOFError:
                break
            op = request.pop("op")
            if op == "stop":
                keep_memory = request["keep_memory"]
                break
            try:
                answer, out = _OPERATIONS[op](store, fds, **request)
            except ShmqError as error:
                send_packet(sock, _failure(error), {})
                continue
            finally:
                for fd in fds.values():
                    os.close(fd)
            send_packet(sock, {"ok": answer}, out)
            for fd in out.values():
                os.close(fd)
    finally:
        try:
            store.stop(keep_memory=keep_memory)
        except ShmqError as error:
            send_packet(sock, _failure(error), {})
        else:
            if mastership is not None:
                mastership.release()
            with contextlib.suppress(OSError):
                send_packet(sock, {"ok": None}, {})


_STEPPED = (
    "store/message_store.py",
    "store/adoption.py",
    "shm/mastership.py",
    "shm/manifest.py",
    "store/epochs.py",
)
"""Where the lines are that say whose a store and its memory are."""


class Steps:
    """Counts the lines of those files that this thread runs, and dies (SIGKILL) at one of them."""

    def __init__(self, dies_at: int | None) -> None:
        self.count = 0
        self._dies_at = dies_at

    def __enter__(self) -> Steps:
        if self._dies_at is not None:
            sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self._dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._trace if frame.f_code.co_filename.endswith(_STEPPED) else None


def _failure(error: ShmqError) -> dict[str, object]:
    return {"error": error.name, "message": str(error)}


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
    store: MessageStore,
    _fds: dict[str, int],
    topic: str,
    queue_id: int,
    level: str | None,
    first_queue_offset: int,
) -> tuple[Any, Any]:
    flags = store.default_flags(FlushDiskType(level) if level else None)
    handle = store.queues.add(topic, queue_id, flags=flags, first_queue_offset=first_queue_offset)
    return list(handle), {}


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


def _grant_socket(store: MessageStore, _fds: dict[str, int], session: int) -> tuple[Any, Any]:
    return None, {"socket": store.sessions.grant_socket(session)}


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


def _is_drained(store: MessageStore, _fds: dict[str, int], session: int) -> tuple[Any, Any]:
    return store.sessions.is_drained(session), {}


def _forget_lost(store: MessageStore, _fds: dict[str, int], session: int) -> tuple[Any, Any]:
    store.sessions.forget_lost(session)
    return None, {}


def _threads(_store: MessageStore, _fds: dict[str, int]) -> tuple[Any, Any]:
    return {thread.name: thread.native_id for thread in threading.enumerate()}, {}


def _check(store: MessageStore, _fds: dict[str, int]) -> tuple[Any, Any]:
    store.check()
    return None, {}


def _open_control(store: MessageStore, _fds: dict[str, int]) -> tuple[Any, Any]:
    return list(store.log_begin), {"control": store.open_control()}


def _add_replica(store: MessageStore, fds: dict[str, int]) -> tuple[Any, Any]:
    return store.replica_set.add(fds["control"], fds["socket"]), {}


def _set_in_sync(
    store: MessageStore, _fds: dict[str, int], index: int, is_in_sync: bool
) -> tuple[Any, Any]:
    return store.replica_set.set_in_sync(index, is_in_sync), {}


def _confirm(
    store: MessageStore, _fds: dict[str, int], needed: int, by_flushed: bool
) -> tuple[Any, Any]:
    store.replica_set.confirm(True, needed=needed, by_flushed=by_flushed)
    return None, {}


def _remove_replica(store: MessageStore, _fds: dict[str, int], index: int) -> tuple[Any, Any]:
    store.replica_set.remove(index)
    return None, {}


def _follow(store: MessageStore, fds: dict[str, int], record_crc_position: int) -> tuple[Any, Any]:
    names = ("control", "log", "event", "socket")
    store.follow(MasterLog(*(fds.pop(name) for name in names), record_crc_position))
    return None, {}


def _unfollow(store: MessageStore, _fds: dict[str, int]) -> tuple[Any, Any]:
    store.replica.unfollow()
    return None, {}


_ended: list[tuple[int, str]] = []
"""(session, reason) of the sessions that the store itself has ended."""


def _facts(store: MessageStore, _fds: dict[str, int]) -> tuple[Any, Any]:
    return {
        "core": core.BUILD_FLAGS,
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
        "replica": [store.replica.state, store.replica.problem],
    }, {}


_OPERATIONS = {
    "open_session": _open_session,
    "resume": _resume,
    "add_queue": _add_queue,
    "set_queue": _set_queue,
    "delete_queue": _delete_queue,
    "grant": _grant,
    "grant_chunk": _grant_chunk,
    "grant_socket": _grant_socket,
    "subscribe": _subscribe,
    "close_session": _close_session,
    "is_drained": _is_drained,
    "forget_lost": _forget_lost,
    "read_cold": _read_cold,
    "threads": _threads,
    "check": _check,
    "open_control": _open_control,
    "add_replica": _add_replica,
    "set_in_sync": _set_in_sync,
    "confirm": _confirm,
    "remove_replica": _remove_replica,
    "follow": _follow,
    "unfollow": _unfollow,
    "facts": _facts,
}


# ---- the wire ------------------------------------------------------------------------------------


def send_packet(sock: socket.socket, message: dict[str, Any], fds: dict[str, int]) -> None:
    """One message and copies of the fds that go with it."""
    packet = orjson.dumps({"message": message, "fds": list(fds)})
    ancillary = []
    if fds:
        rights = array.array("i", fds.values())
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    sock.sendmsg([packet], ancillary)


def receive_packet(sock: socket.socket) -> tuple[dict[str, Any], dict[str, int]]:
    """What send_packet sent; EOFError when the other side is gone."""
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
    converted["broker_role"] = BrokerRole(fields["broker_role"])
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
        opens: bool = True,
        is_member: bool = False,
        dies_at: int | None = None,
        begin: LogBegin | None = None,
    ) -> None:
        """Start it and wait until it serves.

        Args:
            config: of the store; store_path and runtime_path are set.
            begin: it is a slave's, whose log begins there if it has none.
            wrapper: a command that runs it (strace, ...).
            environ: added to the environment.
            opens: False leaves `begin_open` and `await_open` to the caller.
            is_member: of a replica set whose folder is runtime_path: it becomes its master.
            dies_at: the step of its opening at which it kills itself (Steps); 0: it counts them.

        Raises:
            ShmqError: what the store raised while it opened.
        """
        self.config = config
        self.is_member = is_member
        self._dies_at = dies_at
        self._begin = begin
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(ANSWER_TIMEOUT_S)
        self._lock = threading.Lock()
        assert config.runtime_path is not None
        config.runtime_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with theirs:
            self.process = self._spawn(theirs.fileno(), wrapper, environ)
        if opens:
            self.begin_open()
            self.await_open()

    def _spawn(
        self, fd: int, wrapper: tuple[str, ...], environ: dict[str, str] | None
    ) -> subprocess.Popen[bytes]:
        """A process that serves `fd` with a store."""
        return subprocess.Popen(
            [*wrapper, sys.executable, "-m", "tests.support.store_process", str(fd)],
            cwd=ROOT,
            pass_fds=[fd],
            env={**os.environ, **(environ or {})},
        )

    def begin_open(self) -> None:
        """Let it open the store: the process has waited for this."""
        request = {
            "config": _config_to_json(self.config),
            "is_member": self.is_member,
            "dies_at": self._dies_at,
            "begin": self._begin and list(self._begin),
        }
        send_packet(self._sock, request, {})

    def await_open(self) -> None:
        """Wait until it serves; errors as in __init__."""
        try:
            answer = self._answer()[0]
        except BaseException:
            self._sock.close()
            self.process.wait()
            raise
        self.is_adopted: bool = answer["is_adopted"]
        self.is_inherited: bool = answer["is_inherited"]
        self.master_epoch: int = answer["master_epoch"]
        self.step_count: int = answer["step_count"]
        self.lost: list[int] = answer["lost"]

    @property
    def pid(self) -> int:
        return self.process.pid

    def call(
        self, op: str, fds: dict[str, int] | None = None, **arguments: Any
    ) -> tuple[Any, dict[str, int]]:
        """One request: the answer and the fds that came with it, which are the caller's."""
        with self._lock:
            send_packet(self._sock, {"op": op, **arguments}, fds or {})
            return self._answer()

    def _answer(self) -> tuple[Any, dict[str, int]]:
        try:
            message, fds = receive_packet(self._sock)
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
        self,
        topic: str,
        queue_id: int = 0,
        *,
        level: FlushDiskType | None = None,
        first_queue_offset: int = 0,
    ) -> QueueHandle:
        answer, _ = self.call(
            "add_queue",
            topic=topic,
            queue_id=queue_id,
            level=level,
            first_queue_offset=first_queue_offset,
        )
        return QueueHandle(*answer)

    def open_session(
        self, *, process: Incarnation | None = None, **options: Any
    ) -> tuple[Offer, dict[str, int]]:
        """Open a session for a process, this one by default; the fds are the caller's."""
        own = process or Incarnation.current()
        answer, fds = self.call(
            "open_session",
            uid=os.getuid(),
            pid=own.pid,
            pid_start_time=own.start_time,
            **options,
        )
        return Offer(**answer), fds

    def resume_session(
        self,
        offer: Offer,
        kept_fds: dict[str, int],
        *,
        send_rows: list[int],
        map_log: bool = True,
    ) -> tuple[Offer, dict[str, int]]:
        """Bring a session of the predecessor back; the fds returned are the caller's."""
        answer, fds = self.call(
            "resume",
            kept_fds,
            session=offer.session,
            generation=offer.generation,
            uid=os.getuid(),
            send_rows=send_rows,
            map_log=map_log,
        )
        return Offer(**answer), fds

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def abandon(self) -> None:
        """Kill it if it lives, and let go of it: no successor comes."""
        self.kill()
        self._sock.close()

    def stop(self, *, keep_memory: bool = False) -> None:
        """In order: everything flushed."""
        if self.process.poll() is None:
            self.call("stop", keep_memory=keep_memory)
            self.process.wait()
        self._sock.close()

    def restart(self, **options: Any) -> StoreProcess:
        """A successor on the same store, after a death."""
        self._sock.close()
        return StoreProcess(self.config, begin=self._begin, **options)

    def __enter__(self) -> StoreProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()
        self._sock.close()


# ---- a client of it ------------------------------------------------------------------------------


KEPT = ("ingress", "consumer", "chunk")
"""What a client keeps over the death of a store process: its own memory."""


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


class ClientSide:
    """A session as its client has it: mappings, lanes, reader, made of an offer and its fds."""

    def __init__(
        self, offer: Offer, fds: dict[str, int], *, policy: int = core.WAIT_ADAPTIVE
    ) -> None:
        """The fds are ours from now on."""
        self.offer = offer
        self.fds = fds
        self._policy = policy
        self._map()
        self.ingress = self._mapping("ingress", writable=True) if "ingress" in fds else None
        self.consumer = self._mapping("consumer", writable=True) if "consumer" in fds else None
        self.log_map = core.LogMap(file_size=self.offer.file_size_bytes)
        if "log" in fds:
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
        if "log" in self.fds:
            self.topics = self._mapping("topics")
        self.arena = self._mapping("arena") if "log" in self.fds else None
        self.completion = self._mapping("completion")

    def attach_chunk(self, fd: int) -> None:
        """Large bodies go through the chunk memory behind `fd`, which is ours from now on."""
        self.fds["chunk"] = fd
        self.chunk = core.ChunkMemory(
            self.control, self._mapping("chunk", writable=True), session=self.offer.session
        )
        for lane in self.lanes:
            lane.attach_chunk(self.chunk)

    @property
    def kept_fds(self) -> dict[str, int]:
        """The memory that a client brings to the successor of its broker."""
        return {name: self.fds[name] for name in KEPT if name in self.fds}

    def resume_with(self, offer: Offer, fds: dict[str, int]) -> None:
        """Go on with a successor that has adopted this session; threads may wait in lanes
        meanwhile. The fds are ours from now on.
        """
        for name, fd in fds.items():
            os.close(self.fds[name])
            self.fds[name] = fd
        self.offer = offer
        self._map()
        if "chunk" in self.fds:
            self.chunk.resume(self.control)
        for lane in self.lanes:
            lane.resume(self.control, self.completion, self.fds["event"])
        if "log" in fds:
            self.log_map.stop()  # it may not have seen yet that its channel has ended
            self.log_map.start(fds["log"])

    def close(self) -> None:
        """Leave."""
        self.log_map.stop()
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


class StoreClient(ClientSide):
    """A client in this process, of a store process that it talks to. A context manager."""

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
        offer, fds = store.open_session(producer=producer, consumer=consumer, **options)
        super().__init__(offer, fds, policy=policy)
        self.send_rows: list[int] = []
        self._bells: list[tuple[int, QueueHandle]] = []

    def grant(self, *handles: QueueHandle) -> None:
        self.send_rows += [handle.row for handle in handles]
        self.store.call("grant", session=self.offer.session, rows=self.send_rows)

    def grant_chunk(self, size_bytes: int) -> None:
        _, fds = self.store.call("grant_chunk", session=self.offer.session, size_bytes=size_bytes)
        self.attach_chunk(fds["chunk"])

    def subscribe(self, handle: QueueHandle, *, bell: int = 0) -> None:
        self._bells.append((bell, handle))
        self.store.call("subscribe", session=self.offer.session, bell=bell, row=handle.row)

    def resume(self, store: StoreProcess) -> None:
        """Hand the same memory to the successor of a store process that died, and go on.

        Raises:
            ShmError: it does not want it (it recovered from files, or took another for lost).
        """
        self.store = store
        self.resume_with(
            *store.resume_session(
                self.offer, self.kept_fds, send_rows=self.send_rows, map_log="log" in self.fds
            )
        )
        for bell, handle in self._bells:
            store.call("subscribe", session=self.offer.session, bell=bell, row=handle.row)

    def close(self) -> None:
        """Leave; the store process is told if it lives."""
        super().close()
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
        serve(inherited)
