"""Client: one program's way to a cluster: its sessions, routes, heartbeats, and who follows a
restart.

What lives here: `Client` and `connect`. A client has one session per broker, shared by all its
producers and consumers; a keeper thread that sends heartbeats and has lost sessions followed; and,
with consumers, a rebalance thread. Which process: the program's; not usable after a fork. Writes
nothing in shared memory. May fail: ServiceNotAvailableError where no NameServer or broker answers.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shmq.client.arguments import check_count, member
from shmq.client.broker_link import BrokerLink
from shmq.client.closable import Closable
from shmq.client.consumer import Consumer
from shmq.client.deadline import held, within
from shmq.client.lite_pull_consumer import (
    AUTO_COMMIT_INTERVAL_S,
    PULL_BATCH_SIZE,
    LitePullConsumer,
)
from shmq.client.membership import Membership
from shmq.client.orderly import SUSPEND_S
from shmq.client.producer import Producer
from shmq.client.pull_consumer import PullConsumer
from shmq.client.push_consumer import PushConsumer
from shmq.client.rebalance import RebalanceService
from shmq.client.route_cache import RouteCache, no_broker
from shmq.client.route_watch import RouteWatch
from shmq.client.slave_links import SlaveLinks
from shmq.clock import SYSTEM_CLOCK
from shmq.config import WaitingPolicy, default_namesrv_folder
from shmq.core import core
from shmq.errors import (
    ClosedError,
    ForkError,
    ServiceNotAvailableError,
    ShmqError,
    TopicNotExistError,
)
from shmq.remoting.codes import RequestCode
from shmq.remoting.runtime_folder import RuntimeFolder
from shmq.subscription import ConsumeFromWhere, MessageModel, check_group
from shmq.threads import NamedThread
from shmq.topic import QUEUE_NUMS_MAX, check_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shmq.allocation import Allocation
    from shmq.client.orderly import OrderlyListener
    from shmq.client.push_consumer import Listener
    from shmq.remoting.command import Command

    _Member = Consumer | PushConsumer | PullConsumer | LitePullConsumer

__all__ = ["Client", "connect"]

_log = logging.getLogger("shmq.client")

HEARTBEAT_S = 30.0
"""RocketMQ's heartbeatBrokerInterval, and its pollNameServerInterval."""
SAVE_OFFSETS_S = 5.0
"""RocketMQ's persistConsumerOffsetInterval, for offsets in a local file."""
MASTER_LOOK_S = 1.0
"""Between two looks for a master, where there is none and a slave is read."""
_RECONNECT_FIRST_S = 0.01
_RECONNECT_MAX_S = 1.0
_RECONNECT_SHARE = 8
"""Between two looks for a broker goes an eighth of the time that it has been away: its return is
noticed late by no more than that, and one that stays away is asked for once a second."""
_ROUTE_TIMEOUT_S = 0.2
"""To learn which member of a replica set is master now, before each look for a broker."""
_REFRESHER = ""
"""Among the followers, which have the names of brokers."""
DEFAULT_PRODUCER = "DEFAULT_PRODUCER"
"""RocketMQ's default producer group."""

_POLICIES = {
    WaitingPolicy.BLOCKING: core.WAIT_BLOCKING,
    WaitingPolicy.ADAPTIVE: core.WAIT_ADAPTIVE,
    WaitingPolicy.BUSY_SPIN: core.WAIT_BUSY_SPIN,
}


def connect(
    namesrv: str | Path | None = None, *, policy: WaitingPolicy = WaitingPolicy.ADAPTIVE
) -> Client:
    """A Client of the cluster whose NameServers listen in the folder `namesrv`.

    Args:
        namesrv: the runtime folder; None: SHMQ_NAMESRV, else the default runtime folder.
        policy: what threads do while they wait.

    Raises:
        ServiceNotAvailableError: there is no such folder, or no NameServer answers there.
        PermissionDeniedError: this user may not go there.
    """
    client = Client(namesrv, policy=policy)
    try:
        client.routes.brokers()  # whether anybody is there is told now, not at the first send
    except BaseException:
        client.close()
        raise
    return client


class Client(Closable):
    """A program's sessions with the brokers of one cluster. A context manager; threads may share
    it.

    Example:
        with shmq.connect() as client:
            client.producer().send("orders", b"one")
    """

    def __init__(
        self,
        namesrv: str | Path | None = None,
        *,
        policy: WaitingPolicy = WaitingPolicy.ADAPTIVE,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """As `connect`, but nobody is asked yet; `on_close` is called once, last thing."""
        self._policy = _POLICIES[member("connect", "policy", WaitingPolicy, policy)]
        self._folder = RuntimeFolder.open(Path(namesrv) if namesrv else default_namesrv_folder())
        self._on_close = on_close
        self._on_session: Callable[[BrokerLink], None] | None = None
        self._pid = os.getpid()
        self.client_id = f"{os.getpid()}@{uuid.uuid4().hex[:12]}"
        """Unique among living clients; members of a group are told apart by it."""
        self.routes = RouteCache(self._folder)
        self.route_watch = RouteWatch(self._folder)
        """For who waits for a broker to come."""
        self.rebalancer = RebalanceService()
        """The thread that shares queues out."""
        self._links: dict[str, BrokerLink] = {}
        self._link_locks: dict[str, threading.Lock] = {}
        self._followers: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()
        self._producers: dict[Producer, None] = {}
        self._membership = Membership(self.client_id)
        self._keeper_wanted = threading.Event()
        self.slaves = SlaveLinks(
            self._make_slave_link,
            self.routes,
            self._membership,
            on_place=self._keeper_wanted.set,
        )
        """Its way to slaves."""
        self._closing: dict[_Member, None] = {}
        self._save_ns = 0
        self._report_ns = 0
        self._bell_count = 0
        self._is_closed = False
        self._closed = threading.Event()
        self._keeper = NamedThread(target=self._keep, name="shmq-client", daemon=True)
        self._keeper.start()

    # ---- what programs use -----------------------------------------------------------------------

    @property
    def namesrv(self) -> Path:
        """The runtime folder, for `connect` in other processes."""
        return self._folder.path

    def producer(self, group: str = DEFAULT_PRODUCER) -> Producer:
        """A producer; threads may share it.

        Raises:
            IllegalGroupError: the group's name.
        """
        self.check("make a producer")
        check_group(group)
        made = Producer(self, group)
        with self._lock:
            self._producers[made] = None
        self._membership.add_producer(group)
        return made

    def consumer(
        self,
        topic: str,
        group: str,
        *,
        filter: str | None = None,  # what RocketMQ's and our users call it
        from_where: ConsumeFromWhere = ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET,
        from_time: float | None = None,
        allocation: Allocation = "average",
        model: MessageModel = MessageModel.CLUSTERING,
        auto_settle: bool = True,
        offset_file: str | Path | None = None,
    ) -> Consumer:
        """A member of a group that consumes a topic. Blocks while it gets its share of the queues.

        Args:
            topic: the topic; one that does not exist yet is waited for.
            group: the group; made where the brokers make groups.
            filter: tags, "a || b"; None: all messages.
            from_where: where a group starts in a queue that it never consumed.
            from_time: start at the first message stored at or after it; seconds since 1970.
            allocation: "average" (neighbouring queues to each member), "circle" (dealt out in
                turn), "consistent-hash" (few queues move when a member comes or goes), a function,
                or a list of the queues that this member is to have; the same for all members.
            model: CLUSTERING shares the queues out, BROADCASTING gives every member all of them.
            auto_settle: a message is settled when the next one is asked for; False: only by
                message.process() or message.settle().
            offset_file: in BROADCASTING, where this member keeps how far it is; None: it begins by
                from_where each time.

        Raises:
            IllegalTopicError, IllegalGroupError, SubscriptionError, ConfigError: an argument
                cannot be used.
            PermissionDeniedError and others: a broker refused for good.
        """
        self.check("make a consumer")
        made = Consumer(
            self,
            topic,
            group,
            filter=filter,
            from_where=from_where,
            from_time=from_time,
            allocation=allocation,
            model=model,
            auto_settle=auto_settle,
            offset_file=offset_file,
        )
        self.join(made)
        return made

    def push_consumer(
        self,
        group: str,
        listener: Listener | OrderlyListener,
        *,
        threads: int = 20,
        max_reconsume_times: int = -1,
        orderly: bool = False,
        suspend: float = SUSPEND_S,
        allocation: Allocation = "average",
    ) -> PushConsumer:
        """A member of a group that has its messages handed to a function, in several threads.

        Args:
            group: the group.
            listener: called with each message; what it returns and raises says whether the message
                is settled (see PushConsumer).
            threads: calls that may be on at once.
            max_reconsume_times: failures of a message after the first before it is a dead letter;
                -1: as the group is configured, which is 16; orderly: never.
            orderly: one message of a queue at a time, in order, through every change of members;
                the listener is called with (message, ConsumeOrderlyContext). The same for all
                members of a group.
            suspend: orderly: seconds until a message that failed comes again, 0.01 to 30; those
                behind it in its queue wait.
            allocation: as for `consumer`, of all its topics; `subscribe` may say otherwise.

        Raises:
            IllegalGroupError: the group's name.
            ConfigError: no thread, or a number out of range, or no such allocation.
            TypeError: a listener that cannot be called so; no number.
        """
        self.check("make a push consumer")
        made = PushConsumer(
            self,
            group,
            listener,
            threads=threads,
            max_reconsume_times=max_reconsume_times,
            orderly=orderly,
            suspend=suspend,
            allocation=allocation,
        )
        with self._lock:
            self._closing[made] = None
        return made

    def pull_consumer(self, topic: str, *, filter: str | None = None) -> PullConsumer:
        """Reads any queue of a topic at any queue_offset; belongs to no group.

        Raises:
            TopicNotExistError: no broker has the topic.
            IllegalTopicError, SubscriptionError: an argument cannot be used.
        """
        self.check("make a pull consumer")
        made = PullConsumer(self, topic, expression=filter)
        with suppress(ServiceNotAvailableError):  # one that is away may have it
            made.queues()
        with self._lock:
            self._closing[made] = None
        return made

    def lite_pull_consumer(
        self,
        group: str,
        *,
        auto_commit: bool = True,
        auto_commit_interval: float = AUTO_COMMIT_INTERVAL_S,
        batch_size: int = PULL_BATCH_SIZE,
        from_where: ConsumeFromWhere = ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET,
        from_time: float | None = None,
        allocation: Allocation = "average",
    ) -> LitePullConsumer:
        """A program that polls: of topics that it subscribes to, or of queues that it assigns to
        itself; with seek, pause, and commits by hand or by the clock.

        Args:
            group: the group.
            auto_commit: commit what earlier polls gave; else only by commit().
            auto_commit_interval: seconds between commits.
            batch_size: messages of one poll at most.
            from_where: where a group starts in a queue that it never consumed.
            from_time: start at the first message stored at or after it; seconds since 1970.
            allocation: as for `consumer`.

        Raises:
            ConfigError: an argument cannot be used.
        """
        self.check("make a lite pull consumer")
        made = LitePullConsumer(
            self,
            group,
            auto_commit=auto_commit,
            auto_commit_interval=auto_commit_interval,
            batch_size=batch_size,
            from_where=from_where,
            from_time=from_time,
            allocation=allocation,
        )
        with self._lock:
            self._closing[made] = None
        return made

    def create_topic(
        self, topic: str, *, queues: int = 8, brokers: Sequence[str] | None = None
    ) -> None:
        """Create a topic with `queues` queues on each of the brokers (None: on all of them).

        The NameServers are told which queues there are, so that a key keeps its queue also for
        producers that start while a broker is away.

        Raises:
            IllegalTopicError: the name.
            ConfigError: the number of queues.
            ServiceNotAvailableError: a broker is away, or no NameServer knows it; nothing was made.
        """
        self.check("create a topic")
        check_topic(topic)
        check_count(f"create topic {topic}", "queues", queues, most=QUEUE_NUMS_MAX)
        if isinstance(brokers, str):
            raise TypeError(f"create topic {topic}: brokers is a text, wanted [{brokers!r}]")
        known_names = sorted(self.routes.brokers())
        names = known_names if brokers is None else sorted(brokers)
        unknown = [name for name in names if name not in known_names and name not in self._links]
        if unknown:
            raise ServiceNotAvailableError(
                f"create topic {topic} on {', '.join(map(str, unknown))}: no NameServer knows it",
                hint=f"those that are known: {', '.join(known_names) or 'none'}",
            )
        if not names:
            raise no_broker(f"create topic {topic}")
        for name in names:
            self.link(name).call(
                RequestCode.UPDATE_AND_CREATE_TOPIC,
                {"topic": topic, "readQueueNums": queues, "writeQueueNums": queues},
            )
        try:
            known = self.routes.configured(topic)
        except TopicNotExistError:
            known = {}  # made this moment: no route has it yet
        self.routes.configure(topic, {**known, **dict.fromkeys(names, queues)})

    def close(self) -> None:
        """Close producers and consumers, then leave the brokers. Twice does nothing."""
        if self.is_forked:
            return  # all of it is the parent's, locks included
        with self._lock:
            if self._is_closed:
                return
            closing, producers = list(self._closing), list(self._producers)
        for consumer in closing:
            consumer.close()
        for producer in producers:
            producer.close()
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            links, followers = list(self._links.values()), list(self._followers.values())
        self.rebalancer.close()
        self._closed.set()
        self._keeper_wanted.set()
        self.route_watch.close()
        for link in links:
            link.close()
        self.slaves.close()
        for thread in (self._keeper, *followers):
            if thread is not threading.current_thread():
                thread.join()
        self.routes.close()
        self._folder.close()
        if self._on_close is not None:
            self._on_close()

    # ---- what producers and consumers use --------------------------------------------------------

    def check(self, what: str) -> None:
        """Return if the client may be used.

        Raises:
            ClosedError, ForkError.
        """
        if self._is_closed:
            raise ClosedError(f"{what}: this client is closed")
        if self.is_forked:
            raise ForkError(f"{what}: connected by process {self._pid}; connect in this process")

    @property
    def is_forked(self) -> bool:
        """Whether this is a child of the process that connected."""
        return os.getpid() != self._pid

    def on_session(self, listener: Callable[[BrokerLink], None]) -> None:
        """Call `listener`, in any thread, whenever a session began, ended or was resumed, and now
        for each that there is.
        """
        self._on_session = listener
        for link in self.links():
            listener(link)

    def links(self) -> list[BrokerLink]:
        """All sessions there are."""
        with self._lock:
            return list(self._links.values())

    def link(self, broker_name: str) -> BrokerLink:
        """The session with a broker, attached now if there is none.

        Raises:
            ServiceNotAvailableError: it is away, or the NameServers do not know it.
        """
        link = self._links.get(broker_name)
        if link is not None:
            return link
        self.check(f"attach to broker {broker_name}")
        with self._lock:
            lock = self._link_locks.setdefault(broker_name, threading.Lock())
        with held(lock, f"attach to broker {broker_name}"):
            link = self._links.get(broker_name)
            if link is not None:
                return link
            socket_name = self.routes.brokers().get(broker_name)
            if socket_name is None:
                raise ServiceNotAvailableError(
                    f"attach to broker {broker_name}: no NameServer knows it; is it running?"
                )
            link = self._make_link(socket_name, broker_name, 0, self._ended)
            with self._lock:
                is_ours = not self._is_closed
                if is_ours:
                    self._links[broker_name] = link
            if is_ours:
                self._tell_session(link)
                return link
            link.close()  # nobody else would: the client was closed meanwhile
            raise ClosedError(f"attach to broker {broker_name}: this client is closed")

    def _make_link(
        self, socket_name: str, name: str, broker_id: int, on_end: Callable[[BrokerLink], None]
    ) -> BrokerLink:
        return BrokerLink(
            self._folder,
            socket_name,
            name,
            client_id=self.client_id,
            policy=self._policy,
            on_notify=self._notified,
            on_end=on_end,
            broker_id=broker_id,
        )

    def _make_slave_link(self, socket_name: str, name: str, broker_id: int) -> BrokerLink:
        return self._make_link(socket_name, name, broker_id, self._slave_ended)

    def reading_link(self, broker_name: str) -> BrokerLink:
        """The session in which a broker's queues are consumed: with the master, or with a slave
        where that has been gone for a while and no member has become master.

        Raises:
            ServiceNotAvailableError: there is none, and there was no session with a master.
        """
        link = self._links.get(broker_name)
        if link is None and broker_name not in self.slaves.without_master:
            try:
                link = self.link(broker_name)
            except ServiceNotAvailableError:
                slave = self.slaves.in_place_of_master(broker_name)
                if slave is None:
                    raise
                return slave
        if link is not None and link.is_up:
            self.slaves.master_is_there(broker_name)
            return link
        return self.slaves.in_place_of_master(broker_name) or link or self.link(broker_name)

    def greet(self, link: BrokerLink, group: str) -> None:
        """See that a broker knows us, and what this client is in a group.

        Raises:
            ServiceNotAvailableError: it is away.
            PermissionDeniedError, SubscriptionError and others: it refuses us in this group.
        """
        self._membership.greet(link, group)

    def next_bell(self) -> int:
        """A bell of the sessions for one more consumer; those that are many share them."""
        with self._lock:
            self._bell_count += 1
            return (self._bell_count - 1) % core.CONSUMER_BELL_MAX

    def join(self, consumer: Consumer) -> None:
        """A consumer was made: have it take its share.

        Raises:
            ConfigError: this client is that member already.
            ShmqError: a broker refused for good.
        """
        assignment = consumer.assignment
        try:
            self._membership.add(assignment)
        except ShmqError:
            assignment.close()  # its offset file is free for others
            raise
        with self._lock:
            self._closing[consumer] = None
        if assignment.keeps_offsets:
            self._keeper_wanted.set()
        try:
            assignment.rebalance()
        except ShmqError as error:
            if not error.retryable:
                consumer.close()
                raise
        except BaseException:
            consumer.close()
            raise
        self.rebalancer.add(assignment)

    def leave(self, member: _Member | Producer) -> None:
        """It is being closed."""
        if isinstance(member, Producer):
            with self._lock:
                is_known = member in self._producers
                self._producers.pop(member, None)
            if is_known:
                self._membership.remove_producer(member.group)
            return
        with self._lock:
            self._closing.pop(member, None)
        if not isinstance(member, Consumer):
            return
        assignment = member.assignment
        self.rebalancer.remove(assignment)
        assignment.close()
        self._membership.remove(assignment)
        for link in self.links():
            if link.is_up:
                with suppress(ShmqError):
                    self._membership.tell(link, assignment.group)
        for link in self.slaves.links():
            with suppress(ShmqError):
                self._membership.tell(link, assignment.group)

    # ---- following -------------------------------------------------------------------------------

    def _notified(self, link: BrokerLink, command: Command) -> None:
        fields = command.ext_fields
        group = fields.get("consumerGroup", fields.get("group"))
        for assignment in self._membership.concerned(group, fields.get("topic")):
            assignment.notified(link, command)
        for producer in tuple(self._producers):
            producer.notified(link, command)

    def _ended(self, link: BrokerLink) -> None:
        """In the thread that read the connection: a broker went, or we closed it."""
        for producer in tuple(self._producers):
            producer.lost(link)
        self._tell_session(link)
        self._keeper_wanted.set()

    def _slave_ended(self, link: BrokerLink) -> None:
        """In the thread that read the connection: a slave went, or we left it."""
        self._tell_session(link)
        for assignment in self._membership.assignments:
            if assignment.is_read_from(link):
                assignment.want_rebalance()

    def _tell_session(self, link: BrokerLink) -> None:
        if self._on_session is not None:
            self._on_session(link)

    def _keep(self) -> None:
        heartbeat_ns = SYSTEM_CLOCK.monotonic_ns() + int(HEARTBEAT_S * 1e9)
        away: dict[str, BrokerLink] = {}
        while not self._is_closed:  # as long as the client lives
            next_ns = min(heartbeat_ns, self._save_offsets(), self._look_for_masters(away))
            left_s = (next_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9
            # A follower may be about to end while its link goes once more: look again, then.
            self._keeper_wanted.wait(max(0.0, min(left_s, 1.0) if away else left_s))
            self._keeper_wanted.clear()
            with self._lock:
                away = {name: link for name, link in self._links.items() if not link.is_up}
            for name, link in away.items():
                self._follow(name, link)
            if SYSTEM_CLOCK.monotonic_ns() >= heartbeat_ns:
                heartbeat_ns = SYSTEM_CLOCK.monotonic_ns() + int(HEARTBEAT_S * 1e9)
                self._refresh()
                self._heartbeat()

    def _heartbeat(self) -> None:
        """Tell all brokers which groups this client is in."""
        for link in self.links():
            if link.is_up:
                with suppress(ShmqError):
                    self._membership.heartbeat(link)
        self.slaves.heartbeat()

    def _look_for_masters(self, away: Iterable[str]) -> int:
        """Have consumers of masters that are away tell a slave how far they are, and go back to a
        master that is there again; when to come again, monotonic ns.
        """
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        before = set(self.slaves.without_master)
        assignments = self._membership.assignments
        names = before.union(away) if assignments else before
        if not names:
            return now_ns + int(HEARTBEAT_S * 1e9)
        is_due = now_ns >= self._report_ns
        if is_due:
            self._report_ns = now_ns + int(SAVE_OFFSETS_S * 1e9)
        for name in names:
            slave = self.slaves.in_place_of_master(name)
            for assignment in assignments:
                if slave is not None and is_due:
                    assignment.report_to_slave(name)
                if (slave is not None) != (name in before):
                    assignment.want_rebalance()
        return now_ns + int(MASTER_LOOK_S * 1e9)

    def _save_offsets(self) -> int:
        """Have those that keep their own offsets keep them; when to come again, monotonic ns."""
        savers = [one for one in self._membership.assignments if one.keeps_offsets]
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        if savers and now_ns >= self._save_ns:
            for assignment in savers:
                assignment.save()
            self._save_ns = now_ns + int(SAVE_OFFSETS_S * 1e9)
        return self._save_ns if savers else now_ns + int(HEARTBEAT_S * 1e9)

    def _refresh(self) -> None:
        """In a thread of its own: a broker that hangs does not keep us from following others."""
        with self._lock:
            known = self._followers.get(_REFRESHER)
            if self._is_closed or (known is not None and known.is_alive()):
                return
            producers = tuple(self._producers)

            def look() -> None:
                for producer in producers:
                    producer.refresh()

            self._followers[_REFRESHER] = thread = NamedThread(
                target=look, name="shmq-refresh", daemon=True
            )
            thread.start()

    def _follow(self, name: str, link: BrokerLink) -> None:
        """A thread for each broker that went: one that hangs does not hold the others up."""
        with self._lock:
            known = self._followers.get(name)
            if self._is_closed or (known is not None and known.is_alive()):
                return
            self._followers[name] = thread = NamedThread(
                target=self._reconnect, args=(name, link), name="shmq-follow", daemon=True
            )
        thread.start()

    def _master_of(self, name: str) -> str | None:
        """Where the master of a broker_name is now; None: nobody says, as where it was."""
        try:
            with within(_ROUTE_TIMEOUT_S):  # a NameServer that hangs holds up no return
                return self.routes.brokers().get(name)
        except (ShmqError, OSError):
            return None

    def _reconnect(self, name: str, link: BrokerLink) -> None:
        delay_s = 0.0
        away_ns = SYSTEM_CLOCK.monotonic_ns()
        while not self._closed.wait(delay_s):
            try:
                is_resumed = link.reconnect(self._master_of(name))
                self._membership.heartbeat(link)
            except (ShmqError, OSError) as error:
                _log.debug("reconnect broker=%s: %s", name, error)
                share_s = (SYSTEM_CLOCK.monotonic_ns() - away_ns) / 1e9 / _RECONNECT_SHARE
                delay_s = min(max(share_s, _RECONNECT_FIRST_S), _RECONNECT_MAX_S)
                continue
            _log.info("reconnected broker=%s resumed=%s", name, is_resumed)
            for assignment in self._membership.assignments:
                assignment.reconnected(link)
            for producer in tuple(self._producers):
                producer.reconnected(link, is_resumed)
            self._tell_session(link)
            if link.is_up:
                return
            delay_s, away_ns = _RECONNECT_FIRST_S, SYSTEM_CLOCK.monotonic_ns()
