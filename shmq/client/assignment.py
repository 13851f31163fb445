"""Which queues are a consumer's: shared out, claimed, released, revoked.

What lives here: `Assignment`, a consumer's half that talks to brokers. Each member computes the
shares on its own, over the same sorted queues and client ids, and claims its own at their brokers.
Which process: the program's: rounds in the client's rebalance thread, notices in the threads that
read the connections, which never wait for anybody here. Writes: claims, through the links. May
fail: what brokers refuse; rounds are repeated.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from shmq.allocation import strategy_of
from shmq.client.arguments import check_filter, check_time, member
from shmq.client.offset_store import LocalOffsetStore
from shmq.client.process_queue import ProcessQueue, QueueOwner
from shmq.client.queue_locks import QueueLocks
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import (
    ConfigError,
    OffsetIllegalError,
    PermissionDeniedError,
    ServiceNotAvailableError,
    ShmqError,
    TopicNotExistError,
)
from shmq.remoting.codes import RequestCode
from shmq.result import MessageQueue
from shmq.subscription import ConsumeFromWhere, MessageModel, SubscriptionData, check_group
from shmq.topic import Permission, check_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shmq.allocation import Allocation
    from shmq.client.broker_link import BrokerLink
    from shmq.client.instance import Client
    from shmq.core import core
    from shmq.remoting.command import Command

__all__ = ["Assignment"]

_log = logging.getLogger("shmq.client")

AWAY_NS = 120_000_000_000
"""Queues of a broker that left the routes stay where they are so long: it is being restarted."""
_REJOIN_NS = 2_000_000_000
"""A broker that is back lists who came back to it before us: for so long the members from before
count as well. Else who is first takes all queues, and what it was given comes again to their
owners."""
_REVOKED_NS = 1_000_000_000
"""A queue that another member took from us is not taken back sooner, unless members changed."""


class _Owner(QueueOwner, Protocol):
    def wake(self) -> None: ...


class Assignment:
    """The queues of one consumer."""

    def __init__(
        self,
        client: Client,
        owner: _Owner,
        topic: str,
        group: str,
        *,
        expression: str | None,
        from_where: ConsumeFromWhere,
        from_time: float | None,
        allocation: Allocation,
        model: MessageModel,
        offset_file: str | Path | None,
        queues: frozenset[MessageQueue] | None = None,
        is_orderly: bool = False,
    ) -> None:
        """Of a consumer that is being made; nothing is asked yet. `queues`: just these, by hand."""
        check_group(group)
        check_topic(topic)
        what = f"consume {topic}"
        model = member(what, "model", MessageModel, model)
        check_filter(topic, expression)
        strategy = strategy_of(allocation, what=f"consume {topic}")
        if offset_file is not None and model is not MessageModel.BROADCASTING:
            raise ConfigError(
                f"consume {topic}: offset_file in CLUSTERING, where the brokers keep the offsets; "
                "leave it out, or use BROADCASTING"
            )
        self.topic = topic
        self.group = group
        self.model = model
        self.subscription = SubscriptionData.parse(topic, expression)
        """The filter, parsed."""
        self.queues: tuple[ProcessQueue, ...] = ()
        """What is consumed now; replaced as a whole."""
        self.is_complete = False
        """Whether the last round got all that is ours."""
        self._client = client
        self._owner = owner
        self._from_where = member(what, "from_where", ConsumeFromWhere, from_where)
        self._from_ms = 0
        if from_time is not None:
            check_time(what, from_time)
            self._from_where = ConsumeFromWhere.CONSUME_FROM_TIMESTAMP
            self._from_ms = int(from_time * 1000)
        self._strategy = strategy
        self._chosen = queues
        self.is_shared = queues is None
        """Whether the queues are shared out in the group, of which this is a member then."""
        self.locks: QueueLocks | None = None
        """Where each queue is consumed in order."""
        if is_orderly:
            is_asked = model is MessageModel.CLUSTERING
            self.locks = QueueLocks(SYSTEM_CLOCK, self.want_rebalance, is_asked=is_asked)
        self._table: dict[MessageQueue, ProcessQueue] = {}
        self._readers: dict[BrokerLink, tuple[int, core.Reader]] = {}
        self._bell = client.next_bell()
        self._known: dict[str, tuple[int, int]] = {}
        self._at: dict[str, BrokerLink] = {}
        """Of the round that is on: in which session a broker's queues are consumed."""
        self._carried: dict[MessageQueue, int] = {}
        """How far queues were that are claimed anew at another member of their replica set."""
        self._reported: dict[MessageQueue, int] = {}
        """What a slave was told last of queues whose master is away."""
        self._members: list[str] = []
        self._awaits_members = False
        """Some were there before their broker was away, and are not back yet."""
        self._revoked: dict[tuple[BrokerLink, int, int], None] = {}
        self._revoked_ns: dict[MessageQueue, int] = {}
        self.denial: PermissionDeniedError | None = None
        """What a broker denied in the last round."""
        self._is_closed = False
        self._busy = threading.Lock()
        """Held for whole rounds, with requests in them; never by who takes notices."""
        self._lock = threading.Lock()
        """Held for a look at the tables."""
        self._store = None if offset_file is None else LocalOffsetStore(Path(offset_file), topic)

    def __str__(self) -> str:
        return f"group={self.group} topic={self.topic}"

    def describe(self) -> dict[str, object]:
        """The subscription as a heartbeat tells it."""
        subscription = self.subscription
        return {
            "topic": self.topic,
            "subString": subscription.sub_string,
            "tagsSet": sorted(subscription.tags_set),
            "codeSet": sorted(subscription.code_set),
            "subVersion": 1,
            "expressionType": "TAG",
        }

    @property
    def from_where(self) -> ConsumeFromWhere:
        """Where a new group starts."""
        return self._from_where

    @property
    def bell(self) -> int:
        """The bell of the sessions that is rung for its queues."""
        return self._bell

    # ---- a round ---------------------------------------------------------------------------------

    def told(self, denial: PermissionDeniedError | None) -> None:
        """How the last round ended: what a broker denies; None: it denies nothing (any more)."""
        if denial is not None or self.denial is not None:
            self.denial = denial
            self._owner.wake()

    def assign(self, queues: frozenset[MessageQueue]) -> None:
        """Have other queues from the next round on, where they are assigned by hand."""
        self._chosen = queues

    def want_rebalance(self) -> None:
        """Have a round soon. Any thread; never blocks."""
        self._client.rebalancer.request(self)

    def rebalance(self) -> None:
        """Give up what is no longer ours, claim what is.

        Raises:
            TopicNotExistError, ServiceNotAvailableError and others: as much as could be was done.
        """
        with self._busy:
            if self._is_closed:
                return
            self.is_complete = False
            self._renew_locks()
            try:
                self._round()
            finally:
                self._unlock_rest()

    def _round(self) -> None:
        """One round; under `_busy`."""
        queues = self._all_queues()
        away = self._greet({queue.broker_name for queue in queues})
        members, is_new = self._ask_members({queue.broker_name for queue in queues} - away)
        if self._chosen is None:
            mine = self._share(queues, members)
        else:
            mine = set(self._chosen)
            self._check_chosen(queues)
        self._leave_slaves(mine)
        with self._lock:
            gone = [queue for key, queue in self._table.items() if key not in mine]
            wanted = sorted(mine - self._table.keys())
        self._release(self._let_go(gone, mine))
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        free = [
            key
            for key in wanted
            if key.broker_name not in away
            and (is_new or now_ns - self._revoked_ns.get(key, -_REVOKED_NS) >= _REVOKED_NS)
        ]
        failure = self._take(free)
        self.save()
        with self._lock:
            has_all = mine <= self._table.keys()
        self.is_complete = has_all and failure is None and not away and not self._awaits_members
        if failure is not None:
            raise failure

    def _share(self, queues: list[MessageQueue], members: list[str]) -> set[MessageQueue]:
        """What the strategy says is ours; one of the program's own may say anything."""
        given = self._strategy(queues, members, self._client.client_id)
        if isinstance(given, Iterable):
            mine = set(given)
            if mine <= set(queues):
                return mine
        raise ConfigError(
            f"consume {self.topic}: the allocation gave {given!r}, wanted a list of those "
            f"{len(queues)} queues that are this member's"
        )

    def _check_chosen(self, queues: list[MessageQueue]) -> None:
        """A queue that was assigned by hand and is none may be made later; who asks is told."""
        missing = sorted(self._chosen.difference(queues)) if self._chosen is not None else []
        if missing:
            raise TopicNotExistError(
                f"assign queue {missing[0].queue_id} of {missing[0].topic} at "
                f"{missing[0].broker_name}: there is no such read queue",
                hint="take some of LitePullConsumer.fetch_queues(topic)",
            )

    def _all_queues(self) -> list[MessageQueue]:
        """All queues of the topic, those of brokers that are away for a moment included: else the
        others would be dealt out anew for a restart.
        """
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        route = self._client.routes.route(self.topic, is_fresh=True)
        self._client.slaves.learn(route.broker_datas)
        for data in route.queue_datas:
            if Permission.READ in data.perm:
                self._known[data.broker_name] = data.read_queue_nums, now_ns
            else:
                self._known.pop(data.broker_name, None)
        for name, (_, seen_ns) in tuple(self._known.items()):
            if now_ns - seen_ns > AWAY_NS:
                del self._known[name]
        return sorted(
            MessageQueue(self.topic, name, queue_id)
            for name, (count, _) in self._known.items()
            for queue_id in range(count)
        )

    def _greet(self, names: Iterable[str]) -> set[str]:
        """See that these brokers know us; those that are away. Their slaves hear of us, too: where
        the master dies, they know who is in the group.
        """
        away = set()
        self._at = {}
        for name in sorted(names):  # of two members that disagree, all brokers refuse the same one
            try:
                link = self._reading_link(name)
                self._client.greet(link, self.group)
                self._at[name] = link
            except ServiceNotAvailableError as error:
                _log.debug("greet %s: %s", name, error)
                away.add(name)
            self._client.slaves.greet(name, self.group)
        return away

    def _reading_link(self, name: str) -> BrokerLink:
        """Where the queues of a broker are consumed; in order at its master alone, which locks."""
        if self.locks is not None:
            return self._client.link(name)
        return self._client.reading_link(name)

    def _ask_members(self, names: Iterable[str]) -> tuple[list[str], bool]:
        """The sorted client ids of the group, and whether they are others than before."""
        self._awaits_members = False
        if self.model is MessageModel.BROADCASTING or not self.is_shared:
            return [self._client.client_id], False
        members = {self._client.client_id}
        is_known = False
        for name in sorted(names):
            link = self._at[name]
            answer = link.call(
                RequestCode.GET_CONSUMER_LIST_BY_GROUP,
                {"consumerGroup": self.group, "topic": self.topic},
            )
            listed = answer.json()["consumerIdList"]
            assert isinstance(listed, list)
            members.update(str(item) for item in listed)
            back_ns = link.reconnected_ns
            is_known |= back_ns is None or SYSTEM_CLOCK.monotonic_ns() - back_ns > _REJOIN_NS
        if not is_known:  # no broker was there all the time, which knows who is left
            self._awaits_members = not members.issuperset(self._members)
            members.update(self._members)
        known, self._members = self._members, sorted(members)
        return self._members, known != self._members

    # ---- taking ----------------------------------------------------------------------------------

    def _take(self, keys: list[MessageQueue]) -> ShmqError | None:
        failure = None
        for name in sorted({key.broker_name for key in keys}):
            ids = [key.queue_id for key in keys if key.broker_name == name]
            try:
                link = self._at[name]
                if self.model is MessageModel.BROADCASTING or not self.is_shared:
                    self._adopt(link, ids)
                else:
                    self._claim(link, ids)
            except ShmqError as error:
                failure = error
        return failure

    def _claim(self, link: BrokerLink, ids: list[int]) -> None:
        if self.locks is not None:
            ids = sorted(self._lock_queues(link, ids))
            if not ids:
                return
        reader = self._reader(link)
        claims = link.claim(
            self.group,
            self.topic,
            ids,
            from_where=str(self._from_where.value),
            timestamp=self._from_ms,
            is_locked=self.locks is not None,
        )
        made = [
            self._process_queue(
                link,
                reader,
                facts,
                begin_offset=max(
                    facts["consumerOffset"],
                    facts["minOffset"],
                    min(self._carry(link, facts["queueId"]) or 0, facts["visibleMax"]),
                ),
                slot=facts["slot"],
                claim=facts["claim"],
            )
            for facts in claims
        ]
        self._enter(link, made)
        for queue, facts in zip(made, claims, strict=True):
            if queue.settled_offset > facts["consumerOffset"]:
                queue.report()

    def _carry(self, link: BrokerLink, queue_id: int) -> int | None:
        """How far a queue was that comes from another member of its replica set."""
        return self._carried.pop(MessageQueue(self.topic, link.broker_name, queue_id), None)

    def _adopt(self, link: BrokerLink, ids: list[int]) -> None:
        """Broadcasting, or assigned by hand: nobody is asked for these queues."""
        reader = self._reader(link)
        made = []
        for facts in link.read_queues(self.topic):
            if facts["queueId"] not in ids:
                continue
            key = MessageQueue(self.topic, link.broker_name, facts["queueId"])
            begin_offset = self._store.offset(key) if self._store is not None else None
            if not self.is_shared:
                begin_offset = link.consumer_offset(self.group, self.topic, key.queue_id)
            carried = self._carry(link, key.queue_id)
            if carried is not None:
                begin_offset = carried
            if begin_offset is None:
                begin_offset = self._first_offset(link, facts)
            begin_offset = min(max(begin_offset, facts["minOffset"]), facts["visibleMax"])
            made.append(self._process_queue(link, reader, facts, begin_offset=begin_offset))
        self._enter(link, made)

    def _first_offset(self, link: BrokerLink, facts: Mapping[str, int]) -> int:
        if self._from_where is ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET:
            return facts["minOffset"]
        if self._from_where is ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET:
            return facts["visibleMax"]
        return link.search_offset(self.topic, facts["queueId"], self._from_ms)

    def _process_queue(
        self,
        link: BrokerLink,
        reader: core.Reader,
        facts: Mapping[str, int],
        *,
        begin_offset: int,
        slot: int = -1,
        claim: int = 0,
    ) -> ProcessQueue:
        return ProcessQueue(
            self._owner,
            link,
            reader,
            MessageQueue(self.topic, link.broker_name, facts["queueId"]),
            facts["row"],
            facts["generation"],
            slot=slot,
            claim=claim,
            begin_offset=begin_offset,
        )

    def _enter(self, link: BrokerLink, made: list[ProcessQueue]) -> None:
        """Begin to consume them, but for those that were revoked before we knew we had them."""
        with self._lock:
            for queue in made:
                key = link, queue.message_queue.queue_id, queue.claim
                if key in self._revoked:
                    queue.drop()
                else:
                    self._table[queue.message_queue] = queue
            self._revoked.clear()
            self.queues = tuple(self._table.values())
        for queue in made:
            if queue.is_dropped:
                link.forget_claim(queue.slot, queue.claim)
        link.subscribe_bell(self._bell, [(queue.row, queue.generation) for queue in made])
        self._owner.wake()

    def _reader(self, link: BrokerLink) -> core.Reader:
        known = self._readers.get(link)
        if known is None or known[0] != link.generation:
            for old in [old for old in self._readers if old.broker_id and not old.is_up]:
                self._readers.pop(old)[1].close()  # a slave's, whose session has ended
            self._readers[link] = known = link.share_reader(self._bell)
        return known[1]

    def readers(self) -> list[core.Reader]:
        """All that the consumer may be waiting on."""
        return [reader for _, reader in tuple(self._readers.values())]

    # ---- slaves ----------------------------------------------------------------------------------

    def is_read_from(self, link: BrokerLink) -> bool:
        """Whether queues of ours are consumed in this session."""
        return any(queue.link is link for queue in self.queues)

    def _leave_slaves(self, mine: set[MessageQueue]) -> None:
        """Let go of what is consumed at a slave whose master is back, or which is gone; what stays
        ours goes on elsewhere where it was. What a listener has in hand just now comes again.
        """
        moved = [
            queue
            for queue in self.queues
            if queue.link.broker_id
            and self._at.get(queue.message_queue.broker_name, queue.link) is not queue.link
        ]
        self._release(moved)
        self._carried = {
            queue.message_queue: queue.settled_offset
            for queue in moved
            if queue.message_queue in mine
        }

    def report_to_slave(self, broker_name: str) -> None:
        """The master of this broker is away, and what is mapped of it is consumed on: say to the
        slave in its place how far, for whoever goes on if we die before it is back.
        """
        queues = [queue for queue in self.queues if queue.message_queue.broker_name == broker_name]
        self._report_away(queues)

    def _report_away(self, queues: Iterable[ProcessQueue]) -> None:
        for queue in queues:
            key, offset = queue.message_queue, queue.settled_offset
            if queue.link.is_up or queue.slot < 0 or self._reported.get(key) == offset:
                continue
            slave = self._client.slaves.in_place_of_master(key.broker_name)
            if slave is None:
                continue
            try:
                slave.set_consumer_offset(self.group, key.topic, key.queue_id, offset)
                self._reported[key] = offset
            except ShmqError as error:
                _log.debug("report %s of group %s to a slave: %s", key, self.group, error)

    # ---- giving up -------------------------------------------------------------------------------

    def _release(self, queues: list[ProcessQueue]) -> None:
        self._drop(queues)
        self._report_away(queues)
        for link in {queue.link for queue in queues}:
            ours = [queue for queue in queues if queue.link is link]
            try:
                link.unsubscribe_bell(self._bell, [(q.row, q.generation) for q in ours])
                for queue in ours:
                    queue.reader.unwatch(queue.row)
                if self.model is MessageModel.CLUSTERING and self.is_shared:
                    claims = [(q.message_queue.queue_id, q.slot, q.claim) for q in ours]
                    link.release(self.group, self.topic, claims)
            except ShmqError as error:
                _log.debug("release %s at %s: %s", self, link.broker_name, error)

    def _let_go(self, gone: list[ProcessQueue], mine: set[MessageQueue]) -> list[ProcessQueue]:
        """Of what is no longer ours, what may go now: where a listener is in the middle of a
        message the others wait until it has returned, which has a round come at once.
        """
        if self.locks is None:
            return gone
        self.locks.stay(mine)
        idle = self.locks.leave(queue.message_queue for queue in gone)
        return [queue for queue in gone if queue.message_queue in idle]

    # ---- locks -----------------------------------------------------------------------------------

    def _lock_queues(self, link: BrokerLink, ids: list[int]) -> set[int]:
        """Have queues to ourselves; those that we have."""
        assert self.locks is not None
        asked_ns = SYSTEM_CLOCK.monotonic_ns()
        locked = link.lock(self.group, self.topic, ids)
        self.locks.locked(
            (MessageQueue(self.topic, link.broker_name, queue_id) for queue_id in locked), asked_ns
        )
        return locked

    def _renew_locks(self) -> None:
        """Keep what we have; what the broker says is another's is dropped."""
        if self.locks is None:
            return
        due = self.locks.due()
        for name in sorted({key.broker_name for key in due}):
            ids = [key.queue_id for key in due if key.broker_name == name]
            try:
                locked = self._lock_queues(self._client.link(name), ids)
            except ShmqError as error:
                _log.debug("renew locks %s at %s: %s", self, name, error)
                continue
            lost = {MessageQueue(self.topic, name, queue_id) for queue_id in set(ids) - locked}
            if lost:
                _log.warning("locks lost %s at %s: %d queues", self, name, len(lost))
                self._release([queue for queue in self.queues if queue.message_queue in lost])
                self.locks.forget(lost)

    def _unlock_rest(self) -> None:
        """Let others have what we do not consume and are not in the middle of."""
        locks = self.locks
        if locks is None:
            return
        with self._lock:
            rest = [key for key in locks.known() if key not in self._table]
        rest = [key for key in rest if not locks.is_calling(key)]
        for name in sorted({key.broker_name for key in rest}):
            keys = [key for key in rest if key.broker_name == name]
            try:
                ids = [key.queue_id for key in keys]
                self._client.link(name).unlock(self.group, self.topic, ids)
            except ShmqError as error:
                _log.debug("unlock %s at %s, trying again: %s", self, name, error)
            else:
                locks.forget(keys)

    def _drop(self, queues: Iterable[ProcessQueue]) -> None:
        with self._lock:
            for queue in queues:
                queue.drop()
                if self._table.get(queue.message_queue) is queue:
                    del self._table[queue.message_queue]
            self.queues = tuple(self._table.values())

    def _drop_where(self, is_gone: Callable[[ProcessQueue], bool]) -> None:
        self._drop([queue for queue in self.queues if is_gone(queue)])

    @property
    def keeps_offsets(self) -> bool:
        """Whether this member keeps its offsets itself: broadcasting, with a file for them."""
        return self._store is not None

    def save(self) -> None:
        """Keep the offsets, if there is a file for them. What a disk refuses is told, and tried
        again the next time.
        """
        if self._store is None:
            return
        try:
            self._store.save({q.message_queue: q.settled_offset for q in self.queues})
        except OSError as error:
            _log.warning("save offsets %s: %s", self, error)

    def close(self) -> None:
        """Give up everything."""
        with self._busy:
            if self._is_closed:
                return
            self._is_closed = True
            self.save()
            if self._store is not None:
                self._store.close()
            self._release(list(self.queues))
            self._unlock_rest()
            for _, reader in self._readers.values():
                reader.close()
            self._readers.clear()

    # ---- elsewhere -------------------------------------------------------------------------------

    def seek(
        self,
        key: MessageQueue,
        queue_offset: int | None,
        where: ConsumeFromWhere | None,
        time: float | None,
    ) -> int:
        """As Consumer.seek."""
        with self._busy:
            old = self._table.get(key)
            if old is None:
                raise OffsetIllegalError(
                    f"seek in queue {key.queue_id} of {key.topic} at {key.broker_name}: it is not "
                    "assigned to this consumer; see Consumer.assigned"
                )
            first = old.reader.min_queue_offset(old.row)
            last = old.reader.visible_max(old.row)
            if time is not None:
                queue_offset = old.link.search_offset(key.topic, key.queue_id, int(time * 1000))
            elif where is not None:
                queue_offset = _place(where, first, last)
            assert queue_offset is not None, "Consumer.seek saw to it"
            if not first <= queue_offset <= last:
                raise OffsetIllegalError(
                    f"seek in queue {key.queue_id} of {key.topic} at {key.broker_name} to "
                    f"{queue_offset}: it has {first} to {last}"
                )
            new = ProcessQueue(
                self._owner,
                old.link,
                old.reader,
                key,
                old.row,
                old.generation,
                slot=old.slot,
                claim=old.claim,
                begin_offset=queue_offset,
            )
            with self._lock:
                old.drop()
                if self._table.get(key) is old:  # else it was revoked this moment
                    self._table[key] = new
                self.queues = tuple(self._table.values())
            new.report()
        self._owner.wake()
        return queue_offset

    # ---- what the client tells, in threads that must not wait ------------------------------------

    def notified(self, link: BrokerLink, command: Command) -> None:
        """A broker's notice."""
        code, fields = command.code, command.ext_fields
        if code == RequestCode.NOTIFY_CONSUMER_IDS_CHANGED:
            if fields.get("consumerGroup") == self.group:
                self.want_rebalance()
        elif code == RequestCode.NOTIFY_TOPIC_CHANGED:
            if fields.get("topic") == self.topic:
                self.want_rebalance()
        elif code == RequestCode.NOTIFY_CLAIMS_REVOKED:
            if (fields.get("consumerGroup"), fields.get("topic")) == (self.group, self.topic):
                self._revoke(link, command)
        elif code == RequestCode.RESET_CONSUMER_CLIENT_OFFSET and (
            (fields.get("group"), fields.get("topic")) == (self.group, self.topic)
        ):
            self._reset(link, command)

    def _reset(self, link: BrokerLink, command: Command) -> None:
        """Offsets were set by hand: what was fetched does not count."""
        table = command.json()["offsetTable"]
        assert isinstance(table, list)
        ids = {int(row["queueId"]) for row in table}
        gone = [q for q in self.queues if q.link is link and q.message_queue.queue_id in ids]
        self._drop(gone)
        for queue in gone:
            link.forget_claim(queue.slot, queue.claim)
            self._revoked_ns.pop(queue.message_queue, None)
        self.want_rebalance()

    def _revoke(self, link: BrokerLink, command: Command) -> None:
        claims = command.json()["claims"]
        assert isinstance(claims, list)
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        revoked = {(link, int(claim["queueId"]), int(claim["claim"])) for claim in claims}
        with self._lock:
            self._revoked.update(dict.fromkeys(revoked))
        for _, queue_id, _ in revoked:
            self._revoked_ns[MessageQueue(self.topic, link.broker_name, queue_id)] = now_ns
        self._drop_where(lambda q: (q.link, q.message_queue.queue_id, q.claim) in revoked)
        for claim in claims:
            link.forget_claim(int(claim["slot"]), int(claim["claim"]))
        self.want_rebalance()

    def reconnected(self, link: BrokerLink) -> None:
        """A broker is back; what it does not know of us any more is dropped and claimed anew."""
        self._revoked_ns.clear()
        self._reported.clear()
        reader = self._readers.get(link)
        if reader is not None and reader[0] != link.generation:
            self._drop_where(lambda queue: queue.link is link)
            if self.locks is not None:
                self.locks.forget_broker(link.broker_name)
            reader[1].close()  # who waits on it gets up
        else:
            self._drop_where(
                lambda queue: (
                    queue.link is link
                    and (
                        (queue.row, queue.generation) in link.stale_handles
                        or (queue.slot >= 0 and not link.has_claim(queue.slot, queue.claim))
                    )
                )
            )
        self.want_rebalance()
        self._owner.wake()


def _place(where: ConsumeFromWhere, first: int, last: int) -> int:
    """The end of a queue that is meant, between its first queue_offset and the one behind all."""
    if member("seek", "where", ConsumeFromWhere, where) is ConsumeFromWhere.CONSUME_FROM_TIMESTAMP:
        raise TypeError(f"seek: where {where}: give the time itself, time=...")
    return last if where == ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET else first
