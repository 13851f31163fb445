"""A slave's side: finds its master, follows its log, copies its topics, groups and offsets.

What lives here: `HAClient` (RocketMQ's name): one task. It looks for the master among the sockets
of its broker_name in the runtime folder, hands over the store's control segment, has the store
follow what it gets, and asks for the configuration each slaveSyncInterval, and when it is told that
topics or groups changed, while the connection lasts. When it ends, nothing is followed until a
master answers again.

The loop's thread owns it; writes through the store and the tables. Never raises for what a master
does: it logs, and tries again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING, Final

import orjson

from shmq.broker.resend import Resent
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ConfigError, OffsetIllegalError, ShmqError
from shmq.remoting.aio_client import AsyncClient
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command, Scalar
from shmq.remoting.loop_thread import in_background
from shmq.remoting.runtime_folder import broker_socket_name
from shmq.service import Phase
from shmq.status import BrokerRole
from shmq.store.common_log import (
    LogFacts,
    LogSpan,
    comparable,
    find_common_end,
    has_begun_anew,
    plan_cut,
)
from shmq.store.config_files import DataVersion, DelayOffsets, numbers_by_number
from shmq.store.consume_queue_files import QueueKey
from shmq.store.delay_marks import DELAY_MARKS_KEY
from shmq.store.epochs import Epoch
from shmq.store.replica import LogBegin, MasterLog, ReplicaState
from shmq.subscription import SubscriptionGroupConfig
from shmq.topic import TopicConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from shmq.broker.broker import Broker
    from shmq.config import BrokerConfig
    from shmq.remoting.runtime_folder import RuntimeFolder
    from shmq.store.cuts import CutPart

__all__ = ["HAClient", "MasterFinder", "facts_of"]

_log = logging.getLogger("shmq.broker")

_TIMEOUT_S: Final = 5.0
_RESEND_TIMEOUT_S: Final = 600.0
"""Some messages, each of which the master may have to wait with for its disk, or its slaves."""
_CONNECT_TIMEOUT_S: Final = 1.0
_BACK_OFF_S: Final = 0.02
_BACK_OFF_MAX_S: Final = 0.5
_PATIENCE_NS: Final = 10_000_000_000
_GATHER_S: Final = 0.02
"""After a notice that topics or groups changed: others that follow are copied with it."""
_PAGE_COUNT: Final = 500
_REPORT_COUNT: Final = 2_000
"""Offsets of one request: names of the greatest length and they fit a frame."""
_FD_COUNT: Final = 3
"""Descriptors that the answer to ATTACH_REPLICA brings: control, log, event."""


class MasterFinder:
    """Finds the master of a broker_name for another member of it.

    Args:
        config: of that member.
        folder: the runtime folder; used as long as this lives.
    """

    def __init__(self, config: BrokerConfig, folder: RuntimeFolder) -> None:
        self._broker_name = config.broker_name
        self.membership: Final[Mapping[str, Scalar]] = {
            "clusterName": config.cluster_name,
            "brokerName": config.broker_name,
            "controllerMode": config.enable_controller_mode,
        }
        """What the member says to a master of whose slave it is, and who elects."""
        self._folder = folder
        self.own_name = broker_socket_name(config.broker_name, config.broker_id)
        """The member's own socket."""
        self._prefix = broker_socket_name(config.broker_name, 0).removesuffix("0")
        self._alone_ns = 0
        self._has_warned = False
        self.problem: str | None = None
        """Why there is no master, for people."""
        self.master_id = 0
        """The own broker_id of the master that was found last."""

    async def await_begin(self) -> LogBegin:
        """Where the log of a slave begins, once a master serves; waits for one."""
        back_off_s = _BACK_OFF_S
        while True:  # until the member stops, or is master itself
            try:
                client = await self.connect()
                try:
                    answer = await self.ask_begin(client)
                finally:
                    client.close()
                take = answer.fields()
                self.problem = None
                return LogBegin(
                    take.number("fileSizeBytes"),
                    take.number("minPosition"),
                    take.number("recordCrcPosition"),
                )
            except (ShmqError, OSError) as error:  # OSError: no descriptor left, say
                self.say(error)
            await asyncio.sleep(back_off_s)
            back_off_s = min(2 * back_off_s, _BACK_OFF_MAX_S)

    async def ask_begin(self, client: AsyncClient) -> Command:
        """The answer to GET_REPLICA_BEGIN.

        Raises:
            ShmqError: it does not answer, or it is no master of our replica set.
        """
        command = Command(RequestCode.GET_REPLICA_BEGIN, self.membership)
        return await client.call(command, timeout_s=_TIMEOUT_S)

    def say(self, error: ShmqError | OSError) -> None:
        """Note why there is none; each reason is logged once, and as a warning once there has been
        none for longer than a takeover or a start takes.
        """
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        if self.problem is None:
            self._alone_ns, self._has_warned = now_ns, False
        is_long = now_ns - self._alone_ns >= _PATIENCE_NS
        if self.problem != str(error) or (is_long and not self._has_warned):
            self.problem = str(error)
            self._has_warned |= is_long
            _log.log(logging.WARNING if is_long else logging.INFO, "no master: %s", error)

    async def connect(self) -> AsyncClient:
        """A connection to the master.

        Raises:
            ShmqError: none answers as one.
        """
        names = [
            name
            for name in self._folder.socket_names("broker")
            if name != self.own_name
            and name.startswith(self._prefix)
            and name.removeprefix(self._prefix).isdigit()
        ]
        reason: ShmqError = ConfigError(
            f"find the master of {self._broker_name}: no other broker of that name "
            f"listens in {self._folder.path}; start it"
        )
        for name in names:
            try:
                client = await AsyncClient.connect(
                    self._folder, name, role="broker", timeout_s=_CONNECT_TIMEOUT_S
                )
            except ShmqError as error:
                reason = error
                continue
            try:
                status = await client.call(
                    Command(RequestCode.GET_BROKER_STATUS), timeout_s=_TIMEOUT_S
                )
                said = status.ext_fields
                if said.get("role") != BrokerRole.SLAVE and said.get("phase") == Phase.RUNNING:
                    self.master_id = status.fields().number("brokerId")
                    return client
            except ShmqError as error:
                reason = error
            client.close()
        raise reason


class HAClient:
    """The way of one slave to its master.

    Args:
        broker: the slave.
        folder: the runtime folder; used as long as this lives.
    """

    def __init__(self, broker: Broker, folder: RuntimeFolder) -> None:
        self._broker = broker
        self._finder = MasterFinder(broker.config, folder)
        self._ends_known_from = 0
        """minPosition of the master for which `_copy_queue_ends` has all."""
        self.synced = asyncio.Event()
        """Topics, groups and offsets have been copied once from the master at hand."""

    @property
    def problem(self) -> str | None:
        """Why there is no master, for people; None while one is followed."""
        return self._finder.problem

    # ---- following ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow whoever is master; until it is cancelled."""
        back_off_s = _BACK_OFF_S
        while True:  # until the broker stops
            try:
                await self._follow()
            except (ShmqError, OSError) as error:
                self._finder.say(error)
            if self.synced.is_set():
                back_off_s = _BACK_OFF_S
                self.synced.clear()
            await asyncio.sleep(back_off_s)
            back_off_s = min(2 * back_off_s, _BACK_OFF_MAX_S)

    async def _follow(self) -> None:
        """Attach, and copy what is configured until the connection ends."""
        store = self._broker.store
        client = await self._finder.connect()
        news = asyncio.Event()
        settling: asyncio.Task[None] | None = None
        client.when_closed(news.set)
        client.when_notified(news.set)
        try:
            begin = await self._finder.ask_begin(client)
            theirs = facts_of(begin)
            await self._meet(client, theirs)
            # Before the first frame that was written under a new one is copied.
            store.epochs = await asyncio.to_thread(store.epochs.replace, theirs.epochs)
            ours, handed = socket.socketpair()
            with ours:
                answer = await client.call(
                    Command(
                        RequestCode.ATTACH_REPLICA,
                        {
                            **self._finder.membership,
                            "clientId": f"slave@{self._finder.own_name}",
                            "brokerId": self._broker.config.broker_id,
                            "asyncLearner": self._broker.config.async_learner,
                        },
                        fds=[store.open_control(), handed.detach()],
                    ),
                    timeout_s=_TIMEOUT_S,
                    fd_count_max=_FD_COUNT,
                )
                control_fd, log_fd, event_fd = answer.take_fds()
                master = MasterLog(
                    control_fd,
                    log_fd,
                    event_fd,
                    ours.detach(),
                    begin.fields().number("recordCrcPosition"),
                )
            store.wait_for_slaves(
                answer.fields().flag("waitsForSlaves", False), self._broker.topics.broker_role_of
            )
            try:
                store.follow(master)
            except ValueError as error:
                raise ConfigError(f"follow {client.name}: {error}") from None
            self._finder.problem = None
            _log.info("following master=%s", client.name)
            self._broker.follows(self._finder.own_name, self._finder.master_id)
            settling = in_background(self._broker.cuts.settle(_resend_by(client)))
            while not client.is_closed:
                news.clear()
                took_s = await self._copy(client)
                self.synced.set()
                if store.replica.state in (ReplicaState.BEHIND, ReplicaState.DIVERGED):
                    return  # what is to be done about it is decided when they meet again
                try:
                    async with asyncio.timeout(self._broker.config.slave_sync_interval_ms / 1000):
                        await news.wait()
                        if not client.is_closed:
                            await asyncio.sleep(max(_GATHER_S, took_s))
                except TimeoutError:
                    continue
        finally:
            if settling is not None:
                settling.cancel()
                await asyncio.wait([settling])
            client.close()
            store.replica.unfollow()

    # ---- meeting -----------------------------------------------------------------------------

    async def _meet(self, client: AsyncClient, theirs: LogFacts) -> None:
        """Return if our log is the beginning of the master's. Else what of it is not must go
        first: the store is closed for that, and this task ends with it.
        """
        store = self._broker.store
        now = store.positions
        ours = LogFacts(store.epochs.epochs, now.min_position, now.committed_position)
        begin, end = comparable(ours, theirs)
        common: int | None = end
        if end > begin:
            found = await self._find_common(client, LogSpan(begin, end, store.file_size_bytes))
            common = found if found > begin else None
        plan = plan_cut(
            ours, theirs, common, is_resent=self._broker.config.resend_cut_messages_enable
        )
        if plan is None:
            return
        is_known = common is not None and end > begin
        if self._broker.is_adopted and ours.end_position > ours.min_position and not is_known:
            raise ConfigError(
                f"copy the master's log over {self._broker.config.store_path}: this log, from"
                f" {ours.min_position} to {ours.end_position}, has nothing of the master's, and"
                " nothing says that it ever was a copy of it; give this broker its own store, or"
                " an empty folder to copy anew"
            )
        if has_begun_anew(ours, theirs, plan):
            name, own_id = self._broker.config.broker_name, self._broker.config.broker_id
            path = self._broker.config.store_path
            problem = (
                f"copy the master's log over {path}: this log, from {ours.min_position} to"
                f" {ours.end_position}, has nothing of the master's, which begins in master epoch"
                f" {theirs.epochs[0].master_epoch}, this one in {ours.epochs[0].master_epoch}. Has"
                f" the master lost its disk: shmq ha switch {name} --to {own_id} --unclean; what it"
                " has taken since is appended again. Is it this log that is to go: stop this"
                f" broker, move {path}/shmq/epochs.json away, start it; its messages are appended"
                " again"
            )
            store.replica.refuse(problem)
            raise ConfigError(problem)
        self._finder.problem = (
            f"copy the master's log behind {ours.end_position}: the two are the same up to "
            f"{common}, the master keeps it from {theirs.min_position} on: this log is cut at "
            f"{plan.position}"
        )
        _log.warning("%s", self._finder.problem)
        self._broker.on_cut(plan)
        await asyncio.Event().wait()  # until it is stopped for that

    async def _find_common(self, client: AsyncClient, span: LogSpan) -> int:
        lookup = self._broker.store.lookup
        loop = asyncio.get_running_loop()

        def read_ours(physical_offset: int, size: int) -> bytes:
            data = lookup.read_log(physical_offset, size)
            if data is None:
                raise OffsetIllegalError(f"compare logs at {physical_offset}: it is not kept here")
            return data

        def ask_theirs(physical_offset: int, size: int) -> int:
            command = Command(
                RequestCode.GET_LOG_CHECKSUM, {"physicalOffset": physical_offset, "size": size}
            )
            asked = client.call(command, timeout_s=_TIMEOUT_S)
            answer = asyncio.run_coroutine_threadsafe(asked, loop).result(2 * _TIMEOUT_S)
            return answer.fields().number("crc32")

        return await asyncio.to_thread(
            find_common_end, span, read_ours=read_ours, ask_theirs=ask_theirs
        )

    # ---- configuration -----------------------------------------------------------------------

    async def _copy(self, client: AsyncClient) -> float:
        """Topics, groups, consumer offsets and delay offsets, as the master has them now; how many
        seconds it took.
        """
        broker = self._broker
        begin_ns = broker.clock.monotonic_ns()
        topics, version, _ = await self._pages(
            client, RequestCode.GET_ALL_TOPIC_CONFIG, "topicConfigTable"
        )
        wanted = {name: TopicConfig.from_dict(_object(one)) for name, one in topics.items()}
        for topic in [name for name in broker.topics if name not in wanted]:
            if not broker.topics.is_reserved(topic):
                await broker.delete_topic(topic)
        await broker.topics.copy(wanted, version)
        groups, version, _ = await self._pages(
            client, RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG, "subscriptionGroupTable"
        )
        await broker.groups.copy(
            {name: SubscriptionGroupConfig.from_dict(_object(one)) for name, one in groups.items()},
            version,
        )
        await self._report_offsets(client)
        offsets, version, last = await self._pages(
            client, RequestCode.GET_ALL_CONSUMER_OFFSET, "offsetTable"
        )
        broker.offsets.copy(
            {name: numbers_by_number(name, _object(one)) for name, one in offsets.items()},
            version,
            next_claim=last.fields().number("nextClaim"),
        )
        delays = await client.call(
            Command(RequestCode.GET_ALL_DELAY_OFFSET, {"marksAfter": broker.delay_marks_ns}),
            timeout_s=_TIMEOUT_S,
        )
        found = dict(delays.json())
        await broker.copy_delays(found.pop(DELAY_MARKS_KEY, None), DelayOffsets.from_dict(found))
        await self._copy_queue_ends(client)
        return (broker.clock.monotonic_ns() - begin_ns) / 1e9

    async def _copy_queue_ends(self, client: AsyncClient) -> None:
        """Where queues go on of which no message is left to copy; asked for where retention has
        taken something since.
        """
        store = self._broker.store
        answer = await client.call(
            Command(RequestCode.GET_EXPIRED_QUEUES, {"minPosition": self._ends_known_from}),
            timeout_s=_TIMEOUT_S,
        )
        take = answer.fields()
        if store.positions.committed_position < take.number("committedPosition"):
            return  # some of it may still come as messages; it is asked for again
        ends = {
            QueueKey(topic, queue_id): end
            for topic, queues in _object(orjson.loads(answer.body).get("queues")).items()
            for queue_id, end in numbers_by_number(topic, _object(queues)).items()
        }
        if ends:
            await asyncio.to_thread(store.take_queue_ends, ends)
        self._ends_known_from = take.number("minPosition")

    async def _report_offsets(self, client: AsyncClient) -> None:
        """Say what consumers reported here while there was no master."""
        broker = self._broker
        broker.claims.harvest()
        reports = broker.offsets.reports
        for part in _parts(reports.offsets):
            table = {
                key: {str(queue_id): offset for queue_id, offset in queues.items()}
                for key, queues in part.items()
            }
            await client.call(
                Command(
                    RequestCode.MERGE_CONSUMER_OFFSETS,
                    {"nextClaim": reports.copied_claim},
                    orjson.dumps({"offsetTable": table}),
                ),
                timeout_s=_TIMEOUT_S,
            )
            broker.offsets.heard(part)

    async def _pages(
        self, client: AsyncClient, code: RequestCode, key: str
    ) -> tuple[Mapping[str, object], DataVersion, Command]:
        """A whole table of the master, its version before the first page, and the last answer."""
        found: dict[str, object] = {}
        version: DataVersion | None = None
        after = ""
        while True:  # ends: each page begins behind the one before
            answer = await client.call(
                Command(code, {"after": after, "count": _PAGE_COUNT}), timeout_s=_TIMEOUT_S
            )
            body = orjson.loads(answer.body)
            page = _object(body.get(key))
            found |= page
            version = version or DataVersion.from_dict(body.get("dataVersion"))
            if answer.fields().flag("isLast", True) or not page:
                return found, version, answer
            after = max(page)


def _parts(reports: Mapping[str, Mapping[int, int]]) -> Iterator[dict[str, dict[int, int]]]:
    """In parts that a frame holds."""
    items = [
        (key, queue_id, offset)
        for key, queues in reports.items()
        for queue_id, offset in queues.items()
    ]
    for begin in range(0, len(items), _REPORT_COUNT):
        part: dict[str, dict[int, int]] = {}
        for key, queue_id, offset in items[begin : begin + _REPORT_COUNT]:
            part.setdefault(key, {})[queue_id] = offset
        yield part


def facts_of(begin: Command) -> LogFacts:
    """What the answer to GET_REPLICA_BEGIN says of the master's log."""
    take = begin.fields()
    epochs = tuple(Epoch(*pair) for pair in orjson.loads(begin.body)["epochs"])
    return LogFacts(epochs, take.number("minPosition"), take.number("maxPosition"))


def _resend_by(client: AsyncClient) -> Callable[[int, CutPart, int], Awaitable[Resent]]:
    """Hands parts of a cut to the master that `client` is connected to."""

    async def resend(fd: int, part: CutPart, begin: int) -> Resent:
        fields: dict[str, Scalar] = {
            "position": part.position,
            "size": part.size,
            "fileName": part.file_name,
            "begin": begin,
        }
        command = Command(RequestCode.RESEND_MESSAGES, fields, fds=[os.dup(fd)])
        take = (await client.call(command, timeout_s=_RESEND_TIMEOUT_S)).fields()
        return Resent(
            take.number("nextPosition"),
            take.number("resentCount"),
            take.number("presentCount"),
            take.number("lostCount"),
            take.text("reason"),
        )

    return resend


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(f"the master's configuration: {value!r:.80}, wanted an object")
    return value
