"""What was cut of a returning member's log is appended to the master's again, or counted as lost.

What lives here: `ResendService`, the master's side: it takes frames of another log and appends
those messages that its own lacks; `CutSettler`, the side of the member whose log was cut (cuts.py):
it hands over its cuts, part by part, and writes down what became of them.

A message is the same as one that the master has if UNIQ_KEY, topic and reconsumeTimes are: a retry
has the UNIQ_KEY of what failed. A delayed message is in its level's queue, and later in its topic:
it is there if the master has it in its topic, or has still to deliver it. So what is handed over
again, since an answer was lost or one of the two died, is found to be there.

Which process: a broker; the loop's thread, and worker threads that wait for the disk. Writes: the
log, through the Putter; shmq/cuts.json. May fail: ShmqError where it is worth another try: nothing
is counted then.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from shmq.broker.putting import properties_of
from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.errors import (
    ClosedError,
    MessageError,
    ShmqError,
    StoreError,
    TopicNotExistError,
)
from shmq.store.consume_queue_files import topic_text
from shmq.store.cuts import Cut, CutList, CutPart, read_frames
from shmq.topic import SCHEDULE_TOPIC

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from shmq.broker.putting import Putter
    from shmq.broker.schedule import ScheduleService
    from shmq.broker.topics import TopicTable
    from shmq.remoting.command import Scalar
    from shmq.store.cuts import CutFrame
    from shmq.store.message_store import MessageStore
    from shmq.store.queues import QueueHandle

__all__ = ["CutSettler", "ResendService", "Resent"]

_log = logging.getLogger("shmq.broker")

_BATCH = 64
"""Frames looked at between two answers."""
_BATCH_NS = 1_000_000_000
"""And so long, one frame at least: each may wait for the disk, or for slaves."""
_COUNT_BATCH = 10_000
_SAME_KEY_MAX = 64
"""Messages with one UNIQ_KEY that are looked at: a message and its retries."""
_RETRY_S = 1.0
_EVER_MS = 1 << 62
_OK = core.STATUS["OK"][0]
_LOST_FOR_GOOD = (TopicNotExistError, MessageError)
_PLACE_PROPERTIES = ("DELAY", "REAL_TOPIC", "REAL_QID")


class Resent(NamedTuple):
    """What became of some frames."""

    next_position: int
    """physical_offset behind the last of them, in the log that they were cut from."""
    resent_count: int = 0
    """Appended again."""
    present_count: int = 0
    """There already."""
    lost_count: int = 0
    """Neither, for good."""
    reason: str = ""
    """Why the first of those was lost."""


# ---- the master's side ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Message:
    """A message, whatever queue it waits in."""

    topic: str
    queue_id: int
    unique_key: str
    reconsume_times: int
    level: int
    """Of the delay it waits for in SCHEDULE_TOPIC_XXXX; 0: it is in its topic."""

    def is_same(self, other: _Message) -> bool:
        return (self.topic, self.unique_key, self.reconsume_times) == (
            other.topic,
            other.unique_key,
            other.reconsume_times,
        )


class _LostError(Exception):
    """A message cannot be appended, now or later."""


class ResendService:
    """Appends messages of another log that ours lacks.

    Args:
        store: running.
        topics: of the broker.
        putter: of the broker.
        schedule: of the broker.
    """

    def __init__(
        self, store: MessageStore, topics: TopicTable, putter: Putter, schedule: ScheduleService
    ) -> None:
        self._store = store
        self._topics = topics
        self._putter = putter
        self._schedule = schedule
        self._lock = asyncio.Lock()
        """Between the look and the append: two members may have the same message."""

    async def resend(self, fd: int, part: CutPart, begin: int) -> Resent:
        """Take the next frames of a part from `begin` on, `_BATCH` of them and a second at most.

        Raises:
            ShmqError: try again; those before are appended, and will be found.
        """
        frames = await asyncio.to_thread(_some_frames, fd, part, begin, _BATCH)
        if not frames:
            return Resent(part.position + part.size)
        done = Resent(begin)
        end_ns = SYSTEM_CLOCK.monotonic_ns() + _BATCH_NS
        for frame in frames:
            if done.next_position > begin and SYSTEM_CLOCK.monotonic_ns() >= end_ns:
                break
            done = done._replace(next_position=frame.end_position)
            async with self._lock:
                try:
                    is_new = await self._take(frame)
                except _LostError as error:
                    done = done._replace(
                        lost_count=done.lost_count + 1, reason=done.reason or str(error)
                    )
                    continue
            if is_new:
                done = done._replace(resent_count=done.resent_count + 1)
            else:
                done = done._replace(present_count=done.present_count + 1)
        return done

    async def _take(self, frame: CutFrame) -> bool:
        """Append the message of a frame; False: it is there."""
        if not frame.frame:
            raise _LostError(f"the frame at {frame.physical_offset} is damaged")
        properties = properties_of(frame.said)
        message = _message_of(frame.said, properties)
        if not message.unique_key:
            raise _LostError(f"the message at {frame.physical_offset} has no UNIQ_KEY")
        if not self._store.config.message_index_enable:
            raise _LostError("the master keeps no index (message_index_enable is false)")
        if await asyncio.to_thread(self._has, message):
            return False
        for name in _PLACE_PROPERTIES:
            properties.pop(name, None)
        if message.level:
            properties["DELAY"] = str(message.level)
        try:
            await self._putter.put(
                await self._queue_of(message),
                frame.said,
                properties,
                reconsume_times=message.reconsume_times,
                what=f"resend to {message.topic}",
            )
        except _LOST_FOR_GOOD as error:
            raise _LostError(str(error)) from error
        return True

    def _has(self, wanted: _Message) -> bool:
        """Whether the log has a message, or will have it once its delay is over. Blocks."""
        lookup = self._store.lookup
        for found in self._store.message_lookup.by_key(
            None,
            wanted.unique_key,
            begin_ms=0,
            end_ms=_EVER_MS,
            message_count=_SAME_KEY_MAX,
            is_unique_key=True,
        ):
            frame = lookup.read_log(found.physical_offset, found.size)
            if frame is None:
                continue
            status, _, said = core.parse_frame(frame, physical_offset=found.physical_offset)
            if status != _OK or said is None:
                continue
            there = _message_of(said, properties_of(said))
            if there.is_same(wanted) and not (
                there.level and self._schedule.is_delivered(there.level, found.queue_offset)
            ):
                return True
        return False

    async def _queue_of(self, message: _Message) -> QueueHandle:
        topic = message.topic
        if topic not in self._topics:
            await self._topics.ensure(topic, message.queue_id + 1)
        queues = self._topics.send_queues(topic)
        if not queues:
            raise TopicNotExistError(f"resend to {topic}: it has no queue that takes messages")
        same = [handle for queue_id, handle in queues if queue_id == message.queue_id]
        return same[0] if same else queues[message.queue_id % len(queues)][1]


def _some_frames(fd: int, part: CutPart, begin: int, count: int) -> list[CutFrame]:
    frames = []
    for frame in read_frames(fd, part, begin):
        frames.append(frame)
        if len(frames) == count:
            break
    return frames


def _message_of(said: Mapping[str, Any], properties: Mapping[str, str]) -> _Message:
    topic = topic_text(said["topic"])
    queue_id: int = said["queueId"]
    level = 0
    if topic == SCHEDULE_TOPIC:
        level = queue_id + 1
        topic = properties.get("REAL_TOPIC", "")
        real = properties.get("REAL_QID", "")
        queue_id = int(real) if real.isdecimal() else 0
    return _Message(topic, queue_id, properties.get("UNIQ_KEY", ""), said["reconsumeTimes"], level)


# ---- the side of the member whose log was cut ----------------------------------------------------


class CutSettler:
    """The cuts of one store, until each of their messages is counted. The loop's, once it runs.

    Args:
        store_path: folder of the store, open.
    """

    def __init__(self, store_path: Path) -> None:
        self._list = CutList.load(store_path).forget_removed()
        self._folder = store_path / "shmq" / "quarantine"

    def counts(self) -> dict[str, int]:
        """Messages of all cuts by what became of them, and the bytes not looked at yet."""
        cuts = self._list.cuts
        return {
            "cutResentTotal": sum(cut.resent_count for cut in cuts),
            "cutPresentTotal": sum(cut.present_count for cut in cuts),
            "cutLostTotal": sum(cut.lost_count for cut in cuts),
            "cutPendingBytes": sum(max(0, cut.end_position - cut.next_position) for cut in cuts),
        }

    def status(self) -> dict[str, Scalar]:
        """The same, and what a person should know of, for GET_BROKER_STATUS."""
        return {**self.counts(), "cutProblem": self.problem}

    @property
    def problem(self) -> str | None:
        """What was lost, for people; None where nothing was."""
        lost = [cut for cut in self._list.cuts if cut.lost_count]
        if not lost:
            return None
        return (
            f"{sum(cut.lost_count for cut in lost)} messages that only this member had were not "
            f"appended again ({lost[0].reason}); they are in {self._folder} "
            f"({lost[0].parts[0].file_name} ...): remove these files once that is seen to"
        )

    async def settle(self, resend: Callable[[int, CutPart, int], Awaitable[Resent]]) -> None:
        """Hand over what is left, until all is counted, or until whoever takes it is gone; tries
        again where it cannot be now.

        Args:
            resend: as ResendService.resend, of the master.
        """
        while (cut := self._list.unsettled) is not None:
            try:
                done = await self._next(cut, resend)
                changed = replace(
                    cut,
                    next_position=done.next_position,
                    resent_count=cut.resent_count + done.resent_count,
                    present_count=cut.present_count + done.present_count,
                    lost_count=cut.lost_count + done.lost_count,
                    reason=cut.reason or done.reason,
                )
                self._list = await asyncio.to_thread(self._list.save, changed)
            except ClosedError:
                return  # the connection has ended, or the broker stops: somebody begins anew
            except (ShmqError, OSError) as error:  # OSError: the file of the cut cannot be read
                _log.warning("messages that were cut wait to be appended again: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            if changed.is_settled:
                _log.log(
                    logging.ERROR if changed.lost_count else logging.WARNING,
                    "cut settled position=%d end=%d resent=%d present=%d lost=%d reason=%s",
                    cut.position,
                    cut.end_position,
                    changed.resent_count,
                    changed.present_count,
                    changed.lost_count,
                    changed.reason or "-",
                )

    async def _next(
        self, cut: Cut, resend: Callable[[int, CutPart, int], Awaitable[Resent]]
    ) -> Resent:
        """The next frames of a cut."""
        part = next((p for p in cut.parts if cut.next_position < p.position + p.size), None)
        if part is None:
            return Resent(cut.end_position)
        begin = max(part.position, cut.next_position)
        try:
            fd = os.open(self._folder / part.file_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            reason = f"{part.file_name} was removed before all of it was appended again"
            return Resent(part.position + part.size, lost_count=1, reason=reason)
        except OSError as error:
            raise StoreError(f"open {part.file_name}: {error}") from error
        try:
            if cut.is_resent:
                return await resend(fd, part, begin)
            return await asyncio.to_thread(_count, fd, part, begin)
        finally:
            os.close(fd)


def _count(fd: int, part: CutPart, begin: int) -> Resent:
    """Count frames as lost that are not to be resent."""
    frames = _some_frames(fd, part, begin, _COUNT_BATCH)
    end = frames[-1].end_position if frames else part.position + part.size
    return Resent(end, lost_count=len(frames), reason="resend_cut_messages_enable is false")
