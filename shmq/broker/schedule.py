"""Delayed messages: kept in SCHEDULE_TOPIC_XXXX, one queue for each level, until they are due.

What lives here: `ScheduleService`, RocketMQ's ScheduleMessageService. The append thread put a
delayed message into the queue of its level, with the queue it was sent to in REAL_TOPIC and
REAL_QID; here it is read when it is due and put there, through a StoreService: the message and how
far its level is are committed by one turn, so that nothing is lost or doubled by a death. What is
due is decided by shmq.store.delay_marks, on CLOCK_BOOTTIME: setting the wall clock does nothing.

How far each level is goes to config/delayOffset.json, as RocketMQ has it, never ahead of the disk;
the marks go to shmq/delay_marks.json. Memory that outlives the broker knows better than either.

Which process: the broker, a thread of its own; `start` and `stop` are the main thread's. Writes:
its ring, the two files. May fail: a store that takes no more ends it; anything else is logged and
tried again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from shmq.core import core
from shmq.errors import ClosedError, ShmqError, StoreCorruptError, TopicNotExistError
from shmq.shm.incarnation import boot_id
from shmq.store.config_files import ConfigFiles, DataVersion, DelayOffsets
from shmq.store.delay_marks import DELAY_MARKS_FILE, DelayMarks
from shmq.threads import NamedThread
from shmq.topic import SCHEDULE_TOPIC

if TYPE_CHECKING:
    from shmq.clock import Clock
    from shmq.config import BrokerConfig
    from shmq.store.message_store import MessageStore
    from shmq.store.queues import QueueHandle
    from shmq.store.services import StoreService
    from shmq.topic import TopicConfig

__all__ = ["SCHEDULE_SERVICE_ID", "ScheduleService"]

_log = logging.getLogger("shmq.broker")

SCHEDULE_SERVICE_ID = 32
"""First of the 64 progress words of the levels; those below are for other services."""
_BATCH = 256
"""Messages of a level put at once."""
_COLD_BATCH = 256
_IDLE_S = 3600.0
"""Without a delayed message the thread sleeps until the bell rings."""
_LOOK_NS = 1_000_000_000
"""With one it looks at the clock at least so often: a sleep does not count suspend, delays do."""
_GATHER_S = 0.004
"""Between two looks while delayed messages stream in: less than a mark's slice."""
_RETRY_S = 0.2
_MARKS_INTERVAL_NS = 1_000_000_000
"""Between two writes of the marks: what came within it waits anew after a death."""
_FLUSH_LOOK_NS = 10_000_000
"""Between two looks whether the flusher has come far enough: its own interval."""
_PUT_TIMEOUT_S = 1.0
_STOP_TIMEOUT_S = 10.0
_TRANSACTION_BITS = 0xC
_OK = core.STATUS["OK"][0]
_EMPTY = core.STATUS["EMPTY"][0]
_TIMED_OUT = core.STATUS["TIMED_OUT"][0]
_FULL = core.STATUS["FULL"][0]
_TOO_SMALL = core.STATUS["OFFSET_TOO_SMALL"][0]
_CLOSED = core.STATUS["CLOSED"][0]
_FLUSH_FAILED = core.STATUS["FLUSH_FAILED"][0]
_STORED = frozenset(
    core.STATUS[name][0]
    for name in ("OK", "FLUSH_DISK_TIMEOUT", "FLUSH_SLAVE_TIMEOUT", "SLAVE_NOT_AVAILABLE")
)
_NAMES = {value: name for name, (value, _) in core.STATUS.items()}
_OWN_PROPERTIES = ("DELAY", "REAL_TOPIC", "REAL_QID")


class _Waiting(NamedTuple):
    """A message that is in the ring."""

    sequence: int
    queue_offset: int
    message: core.Message


class _Snapshot(NamedTuple):
    """How far the levels were, and where the log had to be on disk for that to hold."""

    offsets: dict[int, int]
    position: int


class ScheduleService:
    """Delivers what is due. All its work is its thread's.

    Args:
        store: open, with the queues of SCHEDULE_TOPIC_XXXX.
        files: config/ of the store.
        config: of the broker.
        clock: what says how long a message has waited.
        topics: the topics of the broker, by name; only looked at.
    """

    def __init__(
        self,
        store: MessageStore,
        files: ConfigFiles,
        config: BrokerConfig,
        clock: Clock,
        topics: Mapping[str, TopicConfig],
    ) -> None:
        self._store = store
        self._files = files
        self._config = config
        self._clock = clock
        self._topics = topics
        delays_ms = config.delay_levels_ms
        # Levels that were taken away may have messages left: they wait as the last one's do.
        more = topics[SCHEDULE_TOPIC].write_queue_nums - len(delays_ms)
        delays_ms += delays_ms[-1:] * more
        self._levels = range(1, len(delays_ms) + 1)
        self._delays_ms = delays_ms
        self._marks = DelayMarks([delay_ms * 1_000_000 for delay_ms in delays_ms])
        self._marks_path = store.config.store_path / "shmq" / DELAY_MARKS_FILE
        self._boot_id = boot_id().hex()
        self._handles: dict[int, QueueHandle] = {}
        self._next: dict[int, int] = {}
        """By level the queue_offset to deliver next: everything below it is in the log."""
        self._other: Mapping[str, object] = {}
        self._data_version = DataVersion()
        self._saved: dict[int, int] = {}
        self._snapshot: _Snapshot | None = None
        self._offsets_due_ns = 0
        self._marks_due_ns = 0
        self._are_marks_changed = False
        self.saved_marks: dict[str, object] = {}
        """As delay_marks.json has them since it was written last; never changed. Any thread."""
        self._service: StoreService | None = None
        self._stopping = threading.Event()
        self._thread = NamedThread(target=self._run, name="shmq-schedule", daemon=True)
        self.delivered_count = 0
        """Messages delivered by this broker."""
        self.dropped_count = 0
        """Messages whose topic was deleted while they waited."""
        self.expired_count = 0
        """Messages that retention took while they waited: it waits for nobody."""

    # ---- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up where the predecessor was; begin to deliver. Blocks for the files.

        Raises:
            ConfigError: delayOffset.json and its backup cannot be read.
            QuotaError, ShmError: no session for it.
        """
        self._open()
        found = self._files.load_delay_offsets()
        self._other, self._data_version = found.other, found.data_version
        self._saved = {level: n for level, n in found.offsets.items() if n >= 0}
        for level in self._levels:
            handle = self._store.queues.find(SCHEDULE_TOPIC, level - 1)
            self._handles[level] = handle
            now = self._store.queues.offsets(handle)
            known = max(self._saved.get(level, 0), self._require().progress_of(level - 1))
            self._next[level] = min(max(known, now.min_queue_offset), now.max_queue_offset)
            self._require().subscribe(handle)
        self._restore_marks()
        self._thread.start()

    def stop(self) -> None:
        """Deliver nothing more; what is in the ring is appended or not, as ever. Main thread."""
        self._stopping.set()
        service = self._service
        if service is not None:
            service.reader.wake()
        if self._thread.ident is not None:
            self._thread.join(_STOP_TIMEOUT_S)
        if service is not None:
            self._service = None
            service.close()

    def is_delivered(self, level: int, queue_offset: int) -> bool:
        """Whether the message there was delivered by now, or dropped. Any thread."""
        return queue_offset < self._next.get(level, 0)

    def save_flushed(self) -> None:
        """Write how far the levels are, once the store has stopped and all is flushed. Blocks."""
        if self._is_ahead():
            self._write(dict(self._next))
        if self._are_marks_changed:
            self._save_marks()

    def _open(self) -> None:
        self._service = self._store.open_service(SCHEDULE_SERVICE_ID, is_reading=True)

    def _require(self) -> StoreService:
        if self._service is None:
            raise ClosedError("schedule: it has stopped")
        return self._service

    # ---- marks -------------------------------------------------------------------------------

    def _restore_marks(self) -> None:
        now_ns = self._clock.boottime_ns()
        is_same_boot: bool | None = None
        try:
            is_same_boot = self._marks.load(
                self._marks_path,
                boot_id=self._boot_id,
                now_ns=now_ns,
                wall_ms=self._clock.wall_ms(),
            )
        except StoreCorruptError as error:
            _log.error("delay marks lost, messages wait by the wall clock: %s", error)
        recovered = self._store.recovered
        is_foreign = recovered is not None and recovered.is_foreign
        for level in self._levels:
            end = self._store.queues.offsets(self._handles[level]).max_queue_offset
            self._marks.cut(level, end)
            if not is_same_boot or is_foreign:
                self._cover_by_wall(level, end, now_ns)
            self._marks.cover(level, end, now_ns)
            self._marks.forget(level, self._next[level])
        self._are_marks_changed = True
        self._marks_due_ns = now_ns  # the thread's first deed: clients of a successor wait now
        left = sum(self._marks.covered(level) - at for level, at in self._next.items())
        _log.info(
            "schedule levels=%d waiting=%d same_boot=%s foreign=%s",
            len(self._levels),
            left,
            is_same_boot,
            is_foreign,
        )

    def _cover_by_wall(self, level: int, end: int, now_ns: int) -> None:
        """Messages that no mark covers, of another boot or of RocketMQ: nothing but the wall clock
        says how long they have waited. They wait no longer than their delay, whatever it says.
        """
        at = max(self._next[level], self._marks.covered(level))
        wall_ms, delay_ms = self._clock.wall_ms(), self._delays_ms[level - 1]
        while at < end:
            messages, following = self._read(level, at, min(_BATCH, end - at))
            if following <= at:
                return
            at = following
            if (
                messages
            ):  # the last one's time, for all of them, and a time in whole ms: never early
                waited_ms = min(max(wall_ms - messages[-1].store_timestamp - 1, 0), delay_ms)
                self._marks.cover(level, at, now_ns - waited_ms * 1_000_000)

    def _save_marks(self) -> None:
        self._are_marks_changed = False
        try:
            self.saved_marks = self._marks.save(
                self._marks_path,
                boot_id=self._boot_id,
                now_ns=self._clock.boottime_ns(),
                wall_ms=self._clock.wall_ms(),
            )
        except ShmqError as error:
            self._are_marks_changed = True
            self._marks_due_ns = self._clock.boottime_ns() + _MARKS_INTERVAL_NS
            _log.error("delay marks not written, trying again: %s", error)

    # ---- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set() and self._store.failure is None:  # as long as it can
            try:
                has_news = self._observe()
                has_more = self._deliver()
                self._save()
                if has_more:
                    continue
                if has_news:
                    self._stopping.wait(_GATHER_S)
                else:
                    self._sleep()
            except ClosedError as error:
                self._reopen(error)
            except Exception:  # noqa: BLE001 # the outermost loop of a service must not end
                _log.exception("schedule: trying again")
                self._stopping.wait(_RETRY_S)

    def _reopen(self, reason: ClosedError) -> None:
        """The store ended the session: begin a new one where the committed progress is."""
        if self._stopping.wait(_RETRY_S):
            return
        _log.warning("schedule: beginning a new session: %s", reason)
        if self._service is not None:
            self._service.close()
        try:
            self._open()
        except ShmqError as error:
            _log.error("schedule: no session, trying again: %s", error)
            self._service = None
            return
        for level, handle in self._handles.items():
            progress = self._require().progress_of(level - 1)
            self._next[level] = max(self._next[level], progress)
            self._require().subscribe(handle)

    def _observe(self) -> bool:
        """Mark what has come; whether something has."""
        now_ns = self._clock.boottime_ns()
        has_news = False
        for level, handle in self._handles.items():
            now = self._store.queues.offsets(handle)
            visible_max = now.visible_max
            if now.min_queue_offset > self._next[level]:
                self._skip_expired(level, now.min_queue_offset)
            if visible_max > self._marks.covered(level):
                # It was there before this moment, so it is not due before this moment's due time.
                self._marks.cover(level, visible_max, self._clock.boottime_ns())
                has_news = self._are_marks_changed = True
        if has_news and not self._marks_due_ns:
            self._marks_due_ns = now_ns + _MARKS_INTERVAL_NS
        return has_news

    def _skip_expired(self, level: int, min_queue_offset: int) -> None:
        """The log files of messages that still waited are gone. It is not done in silence."""
        count = min_queue_offset - self._next[level]
        _log.warning("expired delayed level=%d messages=%d", level, count)
        self.expired_count += count
        self._next[level] = min_queue_offset

    def _sleep(self) -> None:
        """Until something comes, is due, or is to be written."""
        reader = self._require().reader
        now_ns = self._clock.boottime_ns()
        wakes = [due for due in (self._marks_due_ns, self._offsets_due_ns) if due]
        for level, handle in self._handles.items():
            covered = self._marks.covered(level)
            reader.watch(handle.row, handle.generation, covered)
            if self._next[level] < covered:
                due_ns = self._marks.due_ns(level, self._next[level])
                wakes += [now_ns + _LOOK_NS] + ([due_ns] if due_ns is not None else [])
        timeout_s = (min(wakes) - now_ns) / 1e9 if wakes else _IDLE_S
        reader.wait(max(timeout_s, 0.0))

    # ---- delivering --------------------------------------------------------------------------

    def _deliver(self) -> bool:
        """Put what is due; whether there is more of it."""
        has_more = False
        for level in self._levels:
            end = self._marks.due_end(level, self._clock.boottime_ns())
            if self._next[level] < end:
                before = self._next[level]
                self._deliver_batch(level, min(end, before + _BATCH))
                if self._next[level] == before:
                    self._stopping.wait(_RETRY_S)  # the log is full, or the disk in the way
                self._marks.forget(level, self._next[level])
                has_more |= self._next[level] < end
        if not self._offsets_due_ns and self._is_ahead():
            self._offsets_due_ns = (
                self._clock.boottime_ns() + self._config.flush_delay_offset_interval_ms * 1_000_000
            )
        return has_more and not self._stopping.is_set()

    def _deliver_batch(self, level: int, end: int) -> None:
        messages, following = self._read(level, self._next[level], end - self._next[level])
        waiting: list[_Waiting] = []
        for message in messages:
            sequence = self._put(level, message)
            if sequence is None:
                following = message.queue_offset
                break
            if sequence >= 0:
                waiting.append(_Waiting(sequence, message.queue_offset, message))
        for item in waiting:
            status = self._finish(item.sequence)
            if status is None:
                return  # stopping: the committed progress says what was appended
            if status not in _STORED:
                self._give_up(item.message, f"status {_NAMES.get(status, status)}")
            else:
                self.delivered_count += 1
            self._next[level] = item.queue_offset + 1
        self._next[level] = max(self._next[level], following)

    def _read(self, level: int, first: int, count: int) -> tuple[list[core.Message], int]:
        """Messages of a level from there on, and where to go on."""
        handle = self._handles[level]
        reader = self._require().reader
        first = max(first, self._store.queues.offsets(handle).min_queue_offset)
        status, messages, following = reader.read(handle.row, handle.generation, first, count)
        if status == _TOO_SMALL:
            found = self._store.read_cold(SCHEDULE_TOPIC, level - 1, first, min(count, _COLD_BATCH))
            if found is None:
                return [], first
            at, entries = found
            status, messages, following = reader.read_entries(entries, at, count)
        if status not in (_OK, _EMPTY):
            _log.warning("read delay level=%d queue_offset=%d status=%d", level, first, status)
            return [], first
        return messages, following

    def _put(self, level: int, message: core.Message) -> int | None:
        """Put a message where it belongs; its sequence, -1: it belongs nowhere; None: not now."""
        try:
            sequence = self._begin(level, message)
        except ClosedError:
            raise
        except ShmqError as error:  # a record that nobody can send, of a foreign store
            self._give_up(message, str(error))
            return -1
        if sequence in (_FULL, _TIMED_OUT):
            return None
        if sequence < 0:
            self._give_up(message, f"status {_NAMES.get(sequence, sequence)}")
            return -1
        return sequence

    def _begin(self, level: int, message: core.Message) -> int:
        properties = message.properties
        topic = properties.get("REAL_TOPIC")
        handle = self._find(topic, properties.get("REAL_QID", "0"))
        if handle is None:
            raise TopicNotExistError(f"topic {topic} is not there any more")
        for name in _OWN_PROPERTIES:
            properties.pop(name, None)
        return self._require().begin(
            handle,
            message.body,
            progress=message.queue_offset + 1,
            progress_index=level - 1,
            properties=properties,
            flag=message.flag,
            sys_flag=message.sys_flag & ~_TRANSACTION_BITS,
            reconsume_times=message.reconsume_times,
            born_timestamp=message.born_timestamp,
            timeout_s=_PUT_TIMEOUT_S,
        )

    def _finish(self, sequence: int) -> int | None:
        """What became of it; None if that cannot be known before a restart."""
        while not self._stopping.is_set():  # until it is known: it must not be put again before
            status = self._require().finish(sequence, _PUT_TIMEOUT_S)[0]
            if status == _CLOSED:
                raise ClosedError("schedule: the session has ended")
            if status == _FLUSH_FAILED:
                return None
            if status != _TIMED_OUT:
                return status
        return None

    def _find(self, topic: str | None, queue_id: str) -> QueueHandle | None:
        """The queue a message was sent to, or, where the topic has fewer now, one that it has."""
        if topic is None or not queue_id.isdecimal():
            return None
        config = self._topics.get(topic)
        if config is None:
            return None
        wanted = int(queue_id)
        if wanted >= config.read_queue_nums:
            wanted %= config.write_queue_nums
        try:
            return self._store.queues.find(topic, wanted)
        except TopicNotExistError:
            return None

    def _give_up(self, message: core.Message, reason: str) -> None:
        self.dropped_count += 1
        _log.warning(
            "delayed message not delivered message=%s physical_offset=%d reason=%s",
            message.message_id,
            message.physical_offset,
            reason,
        )

    # ---- the files ---------------------------------------------------------------------------

    def offsets(self) -> DelayOffsets:
        """How far the levels are, as delayOffset.json has it. Any thread."""
        return DelayOffsets(
            data_version=self._data_version,
            offsets={**self._saved, **self._next},
            other=self._other,
        )

    def _save(self) -> None:
        now_ns = self._clock.boottime_ns()
        if self._are_marks_changed and now_ns >= self._marks_due_ns:
            self._marks_due_ns = 0
            self._save_marks()
        snapshot = self._snapshot
        if snapshot is not None:
            if self._store.positions.flushed_position >= snapshot.position:
                self._snapshot = None
                try:
                    self._write(snapshot.offsets)
                except ShmqError as error:
                    self._offsets_due_ns = now_ns + _MARKS_INTERVAL_NS
                    _log.error("delay offsets not written, trying again: %s", error)
            elif self._store.failure is None:
                self._offsets_due_ns = now_ns + _FLUSH_LOOK_NS
        elif self._offsets_due_ns and now_ns >= self._offsets_due_ns:
            self._offsets_due_ns = 0
            if self._is_ahead():
                position = self._store.positions.committed_position
                self._snapshot = _Snapshot(dict(self._next), position)
                self._offsets_due_ns = now_ns + _FLUSH_LOOK_NS

    def _is_ahead(self) -> bool:
        return any(self._saved.get(level, 0) != at for level, at in self._next.items())

    def _write(self, levels: dict[int, int]) -> None:
        offsets = {**self._saved, **levels}
        self._data_version = self._data_version.following(wall_ms=self._clock.wall_ms())
        self._files.store(
            DelayOffsets(data_version=self._data_version, offsets=offsets, other=self._other)
        )
        self._saved = offsets
        self._offsets_due_ns = 0
