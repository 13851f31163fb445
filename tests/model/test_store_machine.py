"""A store process under a random sequence of everything that can be done to it, against a model.

Rules send (singly, in batches, large, lent, with and without waiting), read (all, by tag, again),
roll files, make and delete queues, keep views, stop a reader, and kill, stop, restart the store or
take its memory away. After each the store must agree with tests/model/truth.py; at the end the log
on disk is decoded by the independent decoder and fsck has nothing to say.

3,000 steps by default, 100,000 in a full run; SHMQ_SEED replays a run's choices.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import invariant, precondition

from shmq.config import StoreConfig
from shmq.core import core
from shmq.errors import ShmError
from shmq.status import FlushDiskType
from shmq.store.queues import QueueHandle
from shmq.tools.fsck import fsck
from tests.conftest import SEED
from tests.model.reported_machine import ReportedMachine, initialize, rule, run_reported
from tests.model.truth import QueueName, Sent, Truth
from tests.support import rocketmq_decoder
from tests.support.client_process import ClientProcess
from tests.support.dev_shm import DEV_SHM, RUN_TOKEN
from tests.support.queue_reader import QueueReader
from tests.support.scale import is_full_run, scaled
from tests.support.store_process import StoreClient, StoreProcess, wait_until
from tests.support.zygote import ForkedStore, Zygote

OK = core.STATUS["OK"][0]
FILE_SIZE = 128 << 10
MESSAGE_SIZE_MAX = 48 << 10
CHUNK_BYTES = 256 << 10
PRODUCERS = 2
LANES = 2
TIMEOUT_S = 60.0
NAMES: list[QueueName] = [("a", 0), ("a", 1), ("b", 0), ("%RETRY%c", 7)]
VIEWS_MAX = 20
STEPS = 150
STORES = 20
STEPS_IN_ALL = scaled(3_000, 100_000)

SMALL_MIN, SMALL_MAX = 8, 600

small = st.integers(SMALL_MIN, SMALL_MAX)
queue_numbers = st.integers(0, len(NAMES) - 1)
lanes = st.integers(0, PRODUCERS * LANES - 1)

LAST_WORDS = 10

zygote: Zygote
zygote_log: Path
"""What all stores have said, most of it about memory that the test took away."""
happened: Counter[str] = Counter()
"""What was done to all stores so far, shown at the end."""


class StoreMachine(ReportedMachine):
    """One store, from its first start to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.truth = Truth()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{RUN_TOKEN}model", dir=DEV_SHM))
        self.cluster_name = f"{RUN_TOKEN}m{random.getrandbits(24):x}"
        self.config = StoreConfig(
            store_path=self.folder / "store",
            runtime_path=self.folder / "run",
            cluster_name=self.cluster_name,
            commit_log_file_size_bytes=FILE_SIZE,
            max_message_size_bytes=MESSAGE_SIZE_MAX,
            hot_segment_count=4,
            session_count=8,
            ring_bytes=128 << 10,
            lane_count=LANES,
            completion_count=64,
            arena_bytes=1 << 20,
            retired_bytes_max=1 << 30,  # hoarders have tests of their own
        )
        self.store: StoreProcess = ForkedStore(zygote, self.config)
        self.handles: dict[QueueName, QueueHandle] = {}
        self.views: list[tuple[core.Message, Sent]] = []
        self.frozen: ClientProcess | None = None
        self.frozen_wanted: list[str] = []
        self.clients: list[StoreClient] = []
        self._connect()

    # ---- helpers ---------------------------------------------------------------------------------

    def _connect(self) -> None:
        """New clients with a right to every queue."""
        self.clients = [StoreClient(self.store) for _ in range(PRODUCERS)]
        for client in self.clients:
            client.grant_chunk(CHUNK_BYTES)
            if self.handles:
                client.grant(*self.handles.values())

    def _disconnect(self) -> None:
        for client in self.clients:
            client.close()
        self.clients = []

    def _lane(self, number: int) -> core.Lane:
        return self.clients[number // LANES].lanes[number % LANES]

    @property
    def reader(self) -> core.Reader:
        return self.clients[0].reader

    def _level(self, *, is_sync: bool) -> FlushDiskType:
        return FlushDiskType.SYNC_FLUSH if is_sync else FlushDiskType.ASYNC_FLUSH

    def _name(self, number: int) -> QueueName | None:
        """The number-th queue that there is, counted round."""
        names = sorted(self.handles)
        return names[number % len(names)] if names else None

    def _settle(self) -> None:
        """Wait until all that was put is appended and visible, then read it."""
        for number in range(PRODUCERS * LANES):
            assert self._lane(number).drain(TIMEOUT_S) == OK
        for name, handle in self.handles.items():
            row = handle.row
            wait_until(lambda row=row: self._is_visible(row))
            self._read_on(name)
        self.truth.settled()

    def _is_visible(self, row: int) -> bool:
        return self.reader.visible_max(row) == self.reader.max_queue_offset(row)

    def _read_on(self, name: QueueName) -> None:
        """What is new in a queue."""
        reader = self._queue_reader(name, self.truth.queues[name].end)
        while messages := reader.read():
            self._check(name, messages)

    def _queue_reader(self, name: QueueName, queue_offset: int) -> QueueReader:
        return QueueReader(
            self.store, self.clients[0], self.handles[name], *name, queue_offset=queue_offset
        )

    def _check(self, name: QueueName, messages: list[core.Message]) -> None:
        for message in messages:
            assert (message.topic, message.queue_id) == name
            self.truth.read(
                name,
                message.queue_offset,
                message.body_bytes,
                message.tag,
                message.physical_offset,
            )

    def _sizes(self, count: int) -> list[int]:
        """Sizes of small messages; not drawn, for hypothesis ends a run early that draws much."""
        begin = self.truth.sent_count
        spread = SMALL_MAX + 1 - SMALL_MIN
        return [SMALL_MIN + number * 7919 % spread for number in range(begin, begin + count)]

    def _put(self, lane: int, name: QueueName, size: int, **options: Any) -> Sent:
        """One message into a ring; not waited for."""
        sent = self.truth.new_message(size)
        sequence = self._lane(lane).put(
            *self.handles[name], sent.body(), tag=sent.tag, timeout=TIMEOUT_S, **options
        )
        assert sequence >= 0, sequence
        self.truth.put(lane, name, sent)
        return sent

    # ---- sending ---------------------------------------------------------------------------------

    @initialize(is_sync=st.booleans())
    def first_queue(self, is_sync: bool) -> None:
        self._add_queue(NAMES[0], is_sync=is_sync)

    @rule(lane=lanes, number=queue_numbers, size=small, wait=st.booleans())
    def send(self, lane: int, number: int, size: int, wait: bool) -> None:
        name = self._name(number)
        if name is None:
            return
        sent = self.truth.new_message(size)
        status, _, queue_offset, *_ = self._lane(lane).send(
            *self.handles[name], sent.body(), tag=sent.tag, wait=wait, timeout=TIMEOUT_S
        )
        assert status == OK
        assert queue_offset >= self.truth.queues[name].end
        self.truth.put(lane, name, sent)
        if wait:
            self.truth.acknowledge(name, sent)

    @rule(lane=lanes, number=queue_numbers, count=st.integers(1, 60))
    def put_some(self, lane: int, number: int, count: int) -> None:
        name = self._name(number)
        if name is None:
            return
        for size in self._sizes(count):
            self._put(lane, name, size, wait=size % 2 == 0)

    @rule(lane=lanes, number=queue_numbers, count=st.integers(1, 200))
    def put_batch(self, lane: int, number: int, count: int) -> None:
        name = self._name(number)
        if name is None:
            return
        batch = [self.truth.new_message(size) for size in self._sizes(count)]
        messages = [core.Message(name[0], sent.body(), tag=sent.tag) for sent in batch]
        status, _, count = self._lane(lane).put_many(
            *self.handles[name], messages, timeout=TIMEOUT_S
        )
        assert (status, count) == (OK, len(batch))
        for sent in batch:
            self.truth.put(lane, name, sent)

    @rule(lane=lanes, number=queue_numbers, size=st.integers(9_000, MESSAGE_SIZE_MAX))
    def put_large(self, lane: int, number: int, size: int) -> None:
        name = self._name(number)
        if name is not None:
            self._put(lane, name, size)

    @rule(lane=lanes, number=queue_numbers, size=small, is_kept=st.booleans())
    def lend(self, lane: int, number: int, size: int, is_kept: bool) -> None:
        """A loan that is filled and committed, or given back."""
        name = self._name(number)
        if name is None:
            return
        sent = self.truth.new_message(size)
        loan = self._lane(lane).loan(*self.handles[name], size, tag=sent.tag, timeout=TIMEOUT_S)
        assert not isinstance(loan, int)
        with loan.view as view:
            view[:] = sent.body()
        if is_kept:
            loan.commit()
            self.truth.put(lane, name, sent)
        else:
            loan.abort()

    @rule(number=queue_numbers, count=st.integers(1, 12))
    def roll_files(self, number: int, count: int) -> None:
        """Enough large messages to fill a file or more."""
        name = self._name(number)
        if name is not None:
            for _ in range(count):
                self._put(0, name, 30_000)

    # ---- reading ---------------------------------------------------------------------------------

    @rule(number=queue_numbers)
    def read_on(self, number: int) -> None:
        name = self._name(number)
        if name is not None:
            self._read_on(name)

    @rule()
    def settle(self) -> None:
        self._settle()

    @rule(number=queue_numbers, back=st.integers(0, 2000))
    def read_again(self, number: int, back: int) -> None:
        """From anywhere: memory, files, and the seam between them."""
        name = self._name(number)
        if name is None:
            return
        truth = self.truth.queues[name]
        reader = self._queue_reader(name, max(truth.floor, truth.end - back))
        while reader.queue_offset < truth.end:
            messages = reader.read(64)
            assert messages, (name, reader.queue_offset, truth.end)
            self._check(name, messages)

    @rule(number=queue_numbers, tag=st.sampled_from(["a", "b"]))
    def read_by_tag(self, number: int, tag: str) -> None:
        """What is in memory, filtered before the messages are touched."""
        name = self._name(number)
        if name is None:
            return
        self._read_on(name)
        truth = self.truth.queues[name]
        begin = max(truth.floor, self.reader.hot_min_queue_offset(self.handles[name].row))
        wanted = [seen.sent.body() for seen in truth.seen[begin:] if seen.sent.tag == tag]
        codes = frozenset([rocketmq_decoder.java_hash(tag)])
        found: list[bytes] = []
        at = begin
        while at < truth.end:
            status, messages, reached = self.reader.read(
                *self.handles[name], at, 100, tag_codes=codes, timeout=TIMEOUT_S
            )
            if status == core.STATUS["OFFSET_TOO_SMALL"][0]:
                return  # it has left memory meanwhile
            found += [message.body_bytes for message in messages]
            assert reached > at
            at = reached
        assert found[: len(wanted)] == wanted

    @rule(number=queue_numbers)
    def keep_a_view(self, number: int) -> None:
        """A slow consumer: its message must hold its bytes whatever happens to the segment."""
        name = self._name(number)
        if name is None or not self.truth.queues[name].end > self.truth.queues[name].floor:
            return
        truth = self.truth.queues[name]
        _, messages, _ = self.reader.read(*self.handles[name], truth.end - 1, 1)
        for message in messages:
            self.views.append((message, truth.seen[message.queue_offset].sent))
        del self.views[:-VIEWS_MAX]

    @rule()
    def look_at_views(self) -> None:
        for message, sent in self.views:
            assert message.body_bytes == sent.body()

    @precondition(lambda self: self.frozen is None)
    @rule(number=queue_numbers, dice=st.integers(0, 7))
    def stop_a_reader(self, number: int, dice: int) -> None:
        """A process with views of messages stands still from now on."""
        name = self._name(number)
        if dice or name is None or self.truth.queues[name].end <= self.truth.queues[name].floor:
            return
        truth = self.truth.queues[name]
        self.frozen = ClientProcess(
            self.store,
            "tests.model.frozen_reader",
            session={"producer": False},
            handle=list(self.handles[name]),
            queue_offset=max(truth.floor, truth.end - 10),
            max_count=10,
        )
        answer = self.frozen.hear()
        self.frozen_wanted = [
            truth.seen[queue_offset].sent.body()[:64].hex()
            for queue_offset in answer["queue_offsets"]
            if queue_offset < truth.end
        ]
        self.frozen.stop()
        happened["stopped readers"] += 1

    @precondition(lambda self: self.frozen is not None)
    @rule(dice=st.integers(0, 3))
    def let_the_reader_go_on(self, dice: int) -> None:
        """Whatever happened meanwhile, even to its session: its views hold their bytes."""
        if dice == 0:
            self._end_frozen()

    def _end_frozen(self) -> None:
        frozen, self.frozen = self.frozen, None
        if frozen is None:
            return
        with frozen:
            frozen.go_on()
            frozen.say()
            bodies = frozen.hear()["bodies"]
            assert bodies[: len(self.frozen_wanted)] == self.frozen_wanted
            frozen.say()
            assert frozen.end() == 0
        with contextlib.suppress(ShmError):
            self.store.call("close_session", session=frozen.offer.session)
        # If a successor waits for it to be resumed: nobody will.
        self.store.call("forget_lost", session=frozen.offer.session)

    # ---- queues ----------------------------------------------------------------------------------

    @rule(number=queue_numbers, is_sync=st.booleans())
    def add_queue(self, number: int, is_sync: bool) -> None:
        if NAMES[number] not in self.handles:
            self._add_queue(NAMES[number], is_sync=is_sync)

    def _add_queue(self, name: QueueName, *, is_sync: bool) -> None:
        first = self.truth.add_queue(name, is_sync=is_sync)
        handle = self.store.add_queue(
            *name, level=self._level(is_sync=is_sync), first_queue_offset=first
        )
        self.handles[name] = handle
        for client in self.clients:
            client.grant(handle)

    @rule(number=queue_numbers, is_sync=st.booleans())
    def change_level(self, number: int, is_sync: bool) -> None:
        """What was promised under the old level is settled first."""
        name = self._name(number)
        if name is None:
            return
        self._settle()
        level = self._level(is_sync=is_sync)
        self.store.call("set_queue", topic=name[0], queue_id=name[1], level=level, is_writable=True)
        if is_sync and not self.truth.queues[name].is_sync:
            self._wait_flushed()  # what it has already must count as SYNC, too
        self.truth.queues[name].is_sync = is_sync

    @rule(number=queue_numbers, dice=st.integers(0, 4))
    def delete_queue(self, number: int, dice: int) -> None:
        """Sends and reads by the old handle are refused."""
        name = self._name(number)
        if dice or name is None or len(self.handles) < 2:
            return
        self._settle()
        happened["deleted queues"] += 1
        self.store.call("delete_queue", topic=name[0], queue_id=name[1])
        self.truth.delete_queue(name)
        stale = self.handles.pop(name)
        status = self._lane(0).send(*stale, b"stale....", timeout=TIMEOUT_S)[0]
        assert status in (core.STATUS["NO_TOPIC"][0], core.STATUS["NOT_GRANTED"][0])
        assert self.reader.read(*stale, 0)[0] == core.STATUS["FENCED"][0]

    # ---- what happens to the store ---------------------------------------------------------------

    @rule()
    def wait_flushed(self) -> None:
        self._wait_flushed()

    def _wait_flushed(self) -> None:
        end = self.store.facts()["positions"]["committed_position"]
        wait_until(lambda: self.store.facts()["positions"]["flushed_position"] >= end)

    @rule(
        dice=st.integers(0, 3),
        lane=lanes,
        number=queue_numbers,
        count=st.integers(0, 20),
        again_ms=st.sampled_from([None, None, 0, 5, 20, 60]),
    )
    def crash(self, dice: int, lane: int, number: int, count: int, again_ms: int | None) -> None:
        """The process dies at any moment, perhaps again while its successor opens; producers go on
        sending into their rings. Nothing is lost.
        """
        if dice:
            return
        happened["crashes"] += 1
        self.store.kill()
        if (name := self._name(number)) is not None:
            for _ in range(count):
                sent = self.truth.new_message(100)
                sequence = self._lane(lane).put(
                    *self.handles[name], sent.body(), tag=sent.tag, timeout=0
                )
                if sequence >= 0:
                    self.truth.put(lane, name, sent)
        if again_ms is not None:
            self._kill_while_it_opens(again_ms)
        self.store = self.store.restart()
        assert self.store.is_adopted
        for client in self.clients:
            client.resume(self.store)

    def _kill_while_it_opens(self, after_ms: int) -> None:
        self.store = self.store.restart(opens=False)
        self.store.begin_open()
        # When it is killed is random and meant to be: nothing waits for this moment.
        threading.Event().wait(after_ms / 1000)
        self.store.kill()

    @rule(dice=st.integers(0, 7))
    def hand_over(self, dice: int) -> None:
        """An orderly stop that leaves memory and rings to a successor."""
        if dice:
            return
        happened["handovers"] += 1
        self.store.stop(keep_memory=True)
        self.store = self.store.restart()
        assert self.store.is_adopted
        for client in self.clients:
            client.resume(self.store)

    @rule(dice=st.integers(0, 7))
    def stop_and_start(self, dice: int) -> None:
        """An orderly stop: what was appended is on disk, what was not is dropped."""
        if dice:
            return
        happened["orderly restarts"] += 1
        self._end_frozen()
        self.store.stop()
        self._start_from_files(flushed=1 << 62)

    @rule(dice=st.integers(0, 3), again_ms=st.sampled_from([None, None, 0, 5, 20, 60]))
    def reboot(self, dice: int, again_ms: int | None) -> None:
        """The process dies and its memory is gone. ASYNC queues may lose what was not flushed."""
        if dice:
            return
        happened["losses of memory"] += 1
        self._end_frozen()
        flushed = self.store.facts()["positions"]["flushed_position"]
        self.store.kill()
        self._remove_memory()
        if again_ms is not None:
            self._kill_while_it_opens(again_ms)
            self._remove_memory()
        self._start_from_files(flushed=flushed)

    def _remove_memory(self) -> None:
        for name in os.listdir(DEV_SHM):
            if name.startswith(f"shmq.{self.cluster_name}."):
                (DEV_SHM / name).unlink()

    def _start_from_files(self, *, flushed: int) -> None:
        self._disconnect()
        self.store = self.store.restart()
        assert not self.store.is_adopted
        facts = self.store.facts()
        found = {
            (topic, queue_id): (QueueHandle(*handle), offsets)
            for topic, queue_id, handle, offsets in facts["queues"]
        }
        self.handles = {}
        contents = {}
        with StoreClient(self.store, producer=False) as client:
            for name, (handle, offsets) in found.items():
                assert offsets["visible_max"] == offsets["max_queue_offset"]
                messages = QueueReader(self.store, client, handle, *name).read_all(verify=True)
                contents[name] = [
                    (m.queue_offset, m.body_bytes, m.physical_offset) for m in messages
                ]
                assert len(messages) == offsets["max_queue_offset"]
            assert client.reader.lost_count == 0
        end = facts["positions"]["committed_position"]
        self.truth.lose_memory(contents, flushed, end)
        for name, truth in self.truth.queues.items():
            level = self._level(is_sync=truth.is_sync)
            handle = found[name][0] if name in found else self.store.add_queue(*name, level=level)
            self.store.call(
                "set_queue", topic=name[0], queue_id=name[1], level=level, is_writable=True
            )
            self.handles[name] = handle
        for name in found.keys() - self.truth.queues.keys():  # the log still has them
            self.store.call("delete_queue", topic=name[0], queue_id=name[1])
        self._connect()

    # ---- always ----------------------------------------------------------------------------------

    @invariant()
    def store_lives(self) -> None:
        happened["steps"] += 1
        assert self.store.process.poll() is None

    def last_words(self) -> list[str]:
        lines = zygote_log.read_text(errors="replace").splitlines()[-LAST_WORDS:]
        return ["the stores' last words:", *(f"  {line}" for line in lines)]

    def release(self) -> None:
        if self.frozen is not None:
            self.frozen.close()
        self._disconnect()
        self.store.abandon()
        self._remove_memory()
        shutil.rmtree(self.folder)

    def end(self) -> None:
        """Everything once more, from the start, then from the disk."""
        self._settle()
        for name, truth in self.truth.queues.items():
            for message in self._queue_reader(name, truth.floor).read_all(verify=True):
                self._check(name, [message])
        self.look_at_views()
        self._end_frozen()
        self._disconnect()
        assert self.store.facts()["ended"] == []
        self.store.stop()
        happened["messages"] += self.truth.sent_count
        files = (self.config.store_path / "commitlog").iterdir()
        happened["files rolled"] += max(int(file.name) for file in files) // FILE_SIZE
        log = iter(self.truth.log())
        for frame in rocketmq_decoder.decode_commit_log(self.config.store_path / "commitlog"):
            position, name, queue_offset, sent = next(log)
            assert frame.physical_offset == position
            assert (frame.topic, frame.queue_id, frame.queue_offset) == (*name, queue_offset)
            assert frame.body == sent.body()
            assert frame.properties.get("TAGS") == sent.tag
        assert next(log, None) is None
        report = fsck(self.config.store_path)
        assert report.exit_code == 0, report.findings


@pytest.mark.slow
@pytest.mark.stress
@pytest.mark.timeout(7200 if is_full_run() else 400)
def test_store_agrees_with_the_model(tmp_path: Path) -> None:
    global zygote, zygote_log
    happened.clear()
    zygote_log = tmp_path / "stores.log"
    with zygote_log.open("wb") as log, Zygote(stderr=log.fileno()) as zygote:
        for number in range(STEPS_IN_ALL // STEPS):
            if happened["steps"] >= STEPS_IN_ALL:
                break
            run_reported(
                StoreMachine,
                with_seed=SEED + number,
                how=settings(
                    max_examples=STORES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                ),
            )
            print(f"SHMQ_SEED={SEED + number:#x}: {dict(happened)}")
    assert happened["steps"] >= STEPS_IN_ALL
