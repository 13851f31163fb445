"""Hostile clients beside honest ones: the store lives, the honest lose nothing, the log is whole.

A hostile client writes into every word it can reach of its own ring, consumer page and chunk memory
while the broker reads them. The store process runs the core under AddressSanitizer and UBSan: a
byte read out of bounds ends it, and the test.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shmq.config import StoreConfig
from shmq.core import core
from shmq.errors import ShmqError
from shmq.shm import memfd
from shmq.store.queues import QueueHandle
from tests.stress import honest_producer
from tests.stress.hostile_client import MODES
from tests.support import rocketmq_decoder
from tests.support.client_process import ClientProcess
from tests.support.queue_reader import QueueReader
from tests.support.require import require_root
from tests.support.sanitized import FLAGS, sanitized_environ, sanitized_tree
from tests.support.scale import scaled
from tests.support.store_process import Offer, StoreClient, StoreProcess, wait_until

OK = core.STATUS["OK"][0]
CHUNK_BYTES = 4 << 20
ROUNDS = {"file_tricks": 1, "flipping_sizes": 20}
ALWAYS_ENDS = {"tail_jump"}
"""What no reader of a ring may take for an accident."""
NEVER_ENDS = {"consumer_page", "chunk_memory"}
"""What harms nobody but the client itself."""


@pytest.fixture
def config(tmp_path: Path, cluster_name: str) -> StoreConfig:
    return StoreConfig(
        store_path=tmp_path / "store",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=2 << 20,
        hot_segment_count=3,
        session_count=8,
        max_message_size_bytes=512 << 10,
        retired_bytes_max=256 << 20,  # slowness is not what is tried here
    )


@pytest.fixture
def sanitized(config: StoreConfig, tmp_path: Path) -> Iterator[StoreProcess]:
    """A store process whose core watches its own steps."""
    tree = sanitized_tree(tmp_path / "sanitized")
    with StoreProcess(
        config, wrapper=("env", f"--chdir={tree}"), environ=sanitized_environ()
    ) as store:
        assert store.facts()["core"] == " ".join(FLAGS)
        yield store


# ---- attacks -------------------------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hostile_clients_harm_nobody_but_themselves(
    sanitized: StoreProcess, config: StoreConfig, rng: random.Random
) -> None:
    store = sanitized
    prey = [store.add_queue("honest", queue_id) for queue_id in range(2)]
    target = store.add_queue("hostile")
    with ExitStack() as undo:
        honest = [
            undo.enter_context(
                ClientProcess(
                    store,
                    "tests.stress.honest_producer",
                    rows=(handle.row,),
                    chunk_bytes=CHUNK_BYTES,
                    producer=producer,
                    handle=list(handle),
                )
            )
            for producer, handle in enumerate(prey)
        ]
        client = undo.enter_context(StoreClient(store, producer=False))
        readers = [
            QueueReader(store, client, handle, "honest", queue_id)
            for queue_id, handle in enumerate(prey)
        ]
        counts = [0, 0]
        for _ in range(scaled(3, 200)):
            for mode in MODES:
                before = tuple(counts)
                _attack(store, mode, target, rng.getrandbits(32))
                wait_until(lambda before=before: _read_on(readers, counts, before))
        for producer, process in enumerate(honest):
            process.say()
            sent = process.hear()["sent"]
            assert process.end() == 0
            while counts[producer] < sent:
                _read(readers[producer], producer, counts)
            assert counts[producer] == sent
        assert client.reader.lost_count == 0
        ended = {session for session, _ in store.facts()["ended"]}
        assert ended.isdisjoint(process.offer.session for process in honest)
        assert client.offer.session not in ended
        store.stop()
    assert store.process.returncode == 0
    _check_log(config, {f"honest:{queue_id}": count for queue_id, count in enumerate(counts)})


def _attack(store: StoreProcess, mode: str, target: QueueHandle, seed: int) -> None:
    """One hostile session from beginning to end."""
    known = len(store.facts()["ended"])
    with ClientProcess(
        store,
        "tests.stress.hostile_client",
        rows=(target.row,),
        chunk_bytes=CHUNK_BYTES,
        mode=mode,
        seed=seed,
        rounds=ROUNDS.get(mode, 200),
        handle=list(target),
    ) as attacker:
        session = attacker.offer.session
        attacker.hear()
        if mode in ALWAYS_ENDS:
            wait_until(lambda: len(store.facts()["ended"]) > known)
        attacker.say()
        is_ended = attacker.hear()["ended"]
    ended = [(who, why) for who, why in store.facts()["ended"][known:] if who == session]
    if mode in ALWAYS_ENDS:
        assert is_ended, mode
        assert ended, mode
    if mode in NEVER_ENDS:
        assert not ended, (mode, ended)
    assert all(why for _, why in ended)
    if not ended:
        store.call("close_session", session=session)
    wait_until(lambda: session not in store.facts()["live"])


def _read(reader: QueueReader, producer: int, counts: list[int]) -> None:
    """Each honest message once, in order, as it was sent."""
    for message in reader.read(512):
        assert message.body_bytes == honest_producer.body(producer, counts[producer])
        counts[producer] += 1


def _read_on(readers: list[QueueReader], counts: list[int], before: tuple[int, ...]) -> bool:
    """Both honest producers and the reader have gone on."""
    for producer, reader in enumerate(readers):
        _read(reader, producer, counts)
    return all(now > then for now, then in zip(counts, before, strict=True))


def _check_log(config: StoreConfig, wanted: dict[str, int]) -> None:
    """Every frame on disk holds, whatever was sent: what hostile clients got in is well-formed."""
    found = dict.fromkeys(wanted, 0)
    for frame in rocketmq_decoder.decode_commit_log(config.store_path / "commitlog"):
        if frame.topic == "honest":
            found[f"honest:{frame.queue_id}"] += 1
            continue
        assert (frame.topic, frame.queue_id) == ("hostile", 0)
        assert frame.reconsume_times == 0
        assert frame.prepared_transaction_offset == 0
        assert frame.sys_flag & 0xC == 0, "no transaction"
        assert not {"__CRC32#", "PGROUP", "REAL_TOPIC"} & (
            frame.properties.keys() - {"__CRC32#"}
        ), "no property that only services may set"
    assert found == wanted


# ---- memory that is not what it was, at RESUME ---------------------------------------------------


class Lost:
    """A store whose process was killed and came back, and two sessions that wait to be resumed."""

    def __init__(self, config: StoreConfig, undo: ExitStack) -> None:
        first = StoreProcess(config)
        undo.callback(self._stop)
        self.handle = first.add_queue("orders")
        self.clients = [undo.enter_context(StoreClient(first)) for _ in range(2)]
        for client in self.clients:
            client.grant(self.handle)
            assert client.lanes[0].send(*self.handle, b"before")[0] == OK
        self.old_fds = {name: os.dup(fd) for name, fd in self.clients[0].fds.items()}
        undo.callback(lambda: [os.close(fd) for fd in self.old_fds.values()])
        first.kill()
        self.store = first.restart()
        assert self.store.is_adopted
        assert self.store.lost == [client.offer.session for client in self.clients]

    def _stop(self) -> None:
        self.store.stop()

    def resume(self, fds: dict[str, int], **changes: Any) -> tuple[Offer, dict[str, int]]:
        """RESUME of the first client's session with other memory, or other words."""
        offer = self.clients[0].offer
        options = {
            "session": offer.session,
            "generation": offer.generation,
            "uid": os.getuid(),
            "send_rows": [self.handle.row],
        }
        answer, out = self.store.call("resume", fds, **(options | changes))
        return Offer(**answer), out


@pytest.fixture
def lost(config: StoreConfig) -> Iterator[Lost]:
    with ExitStack() as undo:
        yield Lost(config, undo)


def _file(undo: ExitStack, fd: int) -> int:
    undo.callback(os.close, fd)
    return fd


def _other_memfd(undo: ExitStack, lost: Lost) -> dict[str, int]:
    size = os.fstat(lost.old_fds["ingress"]).st_size
    return {"ingress": _file(undo, memfd.create_sealed("shmq-ingress", size_bytes=size))}


def _other_size(undo: ExitStack, lost: Lost) -> dict[str, int]:
    size = os.fstat(lost.old_fds["ingress"]).st_size
    return {"ingress": _file(undo, memfd.create_sealed("shmq-ingress", size_bytes=size // 2))}


def _unsealed(undo: ExitStack, lost: Lost) -> dict[str, int]:
    fd = _file(undo, os.memfd_create("shmq-ingress", os.MFD_ALLOW_SEALING))
    os.truncate(fd, os.fstat(lost.old_fds["ingress"]).st_size)
    return {"ingress": fd}


def _regular_file(undo: ExitStack, lost: Lost) -> dict[str, int]:
    path = lost.store.config.store_path.parent / "plain"
    path.write_bytes(bytes(os.fstat(lost.old_fds["ingress"]).st_size))
    return {"ingress": _file(undo, os.open(path, os.O_RDWR))}


def _read_only(undo: ExitStack, lost: Lost) -> dict[str, int]:
    path = f"/proc/self/fd/{lost.old_fds['ingress']}"
    return {"ingress": _file(undo, os.open(path, os.O_RDONLY))}


def _path_only(undo: ExitStack, lost: Lost) -> dict[str, int]:
    path = f"/proc/self/fd/{lost.old_fds['ingress']}"
    return {"ingress": _file(undo, os.open(path, os.O_PATH))}


def _neighbours(_undo: ExitStack, lost: Lost) -> dict[str, int]:
    return {"ingress": lost.clients[1].fds["ingress"]}


def _swapped(_undo: ExitStack, lost: Lost) -> dict[str, int]:
    return {"ingress": lost.old_fds["consumer"], "consumer": lost.old_fds["ingress"]}


def _control_segment(_undo: ExitStack, lost: Lost) -> dict[str, int]:
    return {"ingress": lost.old_fds["control"]}


def _socket(undo: ExitStack, _lost: Lost) -> dict[str, int]:
    ours, theirs = socket.socketpair()
    undo.callback(theirs.close)
    return {"ingress": _file(undo, ours.detach())}


def _device(undo: ExitStack, _lost: Lost) -> dict[str, int]:
    return {"ingress": _file(undo, os.open("/dev/zero", os.O_RDWR))}


def _folder(undo: ExitStack, _lost: Lost) -> dict[str, int]:
    return {"ingress": _file(undo, os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY))}


FOREIGN: dict[str, Callable[[ExitStack, Lost], dict[str, int]]] = {
    "another memfd, sealed and of the right size": _other_memfd,
    "a memfd of another size": _other_size,
    "an unsealed memfd": _unsealed,
    "a regular file": _regular_file,
    "the ring, read-only": _read_only,
    "the ring, as a path": _path_only,
    "another session's ring": _neighbours,
    "ring and page swapped": _swapped,
    "the control segment": _control_segment,
    "a socket": _socket,
    "a device": _device,
    "a folder": _folder,
}


def _assert_refused(lost: Lost, fds: dict[str, int], **changes: Any) -> None:
    """One line says why, and the session waits as before."""
    before = lost.store.facts()
    with pytest.raises(ShmqError) as raised:
        lost.resume(fds, **changes)
    assert len(str(raised.value).splitlines()) == 1
    assert str(raised.value)
    after = lost.store.facts()
    assert (after["lost"], after["live"]) == (before["lost"], before["live"])
    assert after["state"]["log_end"] == before["state"]["log_end"]
    assert after["queues"] == before["queues"]


def _assert_resumes(lost: Lost) -> None:
    """The right client with the right memory goes on."""
    for client in lost.clients:
        client.resume(lost.store)
        assert client.lanes[0].send(*lost.handle, b"after")[0] == OK
    reader = lost.clients[0].reader
    bodies = [message.body_bytes for message in reader.read(*lost.handle, 0)[1]]
    assert bodies == [b"before", b"before", b"after", b"after"]


def test_foreign_memory_is_refused_at_resume(lost: Lost) -> None:
    with ExitStack() as undo:
        for make in FOREIGN.values():
            fds = {name: lost.old_fds[name] for name in ("ingress", "consumer")}
            made = make(undo, lost)
            _assert_refused(lost, fds | made)
            if made["ingress"] != fds["consumer"]:
                _assert_refused(lost, fds | {"consumer": made["ingress"]})
        _assert_resumes(lost)


def test_memory_that_is_missing_or_unasked_for_is_refused_at_resume(lost: Lost) -> None:
    right = {name: lost.old_fds[name] for name in ("ingress", "consumer")}
    _assert_refused(lost, {})
    for name in right:
        _assert_refused(lost, {name: right[name]})
    _assert_refused(lost, right | {"chunk": right["ingress"]})
    _assert_resumes(lost)


@pytest.mark.parametrize(
    "changes",
    [
        {"generation": 0},
        {"generation": 2},
        {"generation": 1 << 32},
        {"session": 1},
        {"session": 7},
        {"session": 8},
        {"session": 1 << 32},
        {"session": -1},
        {"uid": 12345},
    ],
    ids=str,
)
def test_words_of_another_session_are_refused_at_resume(
    lost: Lost, changes: dict[str, int]
) -> None:
    right = {name: lost.old_fds[name] for name in ("ingress", "consumer")}
    _assert_refused(lost, right, **changes)
    _assert_resumes(lost)


def test_memory_of_the_slots_last_session_is_refused_at_resume(config: StoreConfig) -> None:
    """The slot is the same and so are the sizes: the inode and the generation tell."""
    with ExitStack() as undo:
        store = StoreProcess(config)
        handle = store.add_queue("orders")
        old = StoreClient(store)
        old_offer = old.offer
        fds = {name: os.dup(old.fds[name]) for name in ("ingress", "consumer")}
        for fd in fds.values():
            undo.callback(os.close, fd)
        old.close()
        new = undo.enter_context(StoreClient(store))
        assert new.offer.session == old_offer.session
        new.grant(handle)
        store.kill()
        store = store.restart()
        undo.callback(store.stop)
        for generation in (old_offer.generation, new.offer.generation):
            with pytest.raises(ShmqError):
                store.call(
                    "resume",
                    fds,
                    session=new.offer.session,
                    generation=generation,
                    uid=os.getuid(),
                    send_rows=[handle.row],
                )
        new.resume(store)
        assert new.lanes[0].send(*handle, b"mine")[0] == OK


def test_session_is_resumed_once(lost: Lost) -> None:
    _assert_resumes(lost)
    right = {name: lost.old_fds[name] for name in ("ingress", "consumer")}
    _assert_refused(lost, right)
    assert lost.clients[0].lanes[0].send(*lost.handle, b"unhurt")[0] == OK


def test_ring_owned_by_another_uid_is_refused_at_resume(lost: Lost) -> None:
    require_root()
    with ExitStack() as undo:
        size = os.fstat(lost.old_fds["ingress"]).st_size
        fd = _file(undo, memfd.create_sealed("shmq-ingress", size_bytes=size))
        os.chown(fd, 65534, 65534)
        right = {name: lost.old_fds[name] for name in ("ingress", "consumer")}
        _assert_refused(lost, right | {"ingress": fd})
        _assert_resumes(lost)


def test_ring_scribbled_over_while_the_broker_was_dead_ends_its_session_only(lost: Lost) -> None:
    """The memory is the right one, its contents are not: the successor checks them as ever."""
    victim, honest = lost.clients
    assert victim.ingress is not None
    with memoryview(victim.ingress) as view:
        for place in range(core.LANES_PLACE, core.LANES_PLACE + 8):
            view[place] = 0xFF  # the first lane's tail
    _, fds = lost.store.resume_session(victim.offer, victim.kept_fds, send_rows=[])
    for fd in fds.values():
        os.close(fd)
    wait_until(lambda: lost.store.facts()["ended"])
    ((session, reason),) = lost.store.facts()["ended"]
    assert session == victim.offer.session
    assert "rule" in reason
    honest.resume(lost.store)
    assert honest.lanes[0].send(*lost.handle, b"unhurt")[0] == OK
