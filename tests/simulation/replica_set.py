"""A replica set, its Controllers and the kernel between them, simulated from one seed.

Real: `Controller`, `ReplicasInfoTable`, the journal's codec. Made here: brokers that follow the
rules of controller.py, a network that delays, loses and doubles, a disk that tears the last line,
locks that a death frees, memory that outlives its process until somebody wipes it.

Checked at each step: an epoch has one master; whoever begins has every confirmed message; epochs of
the journal only grow; a journal replayed is the state that was applied; a learner never begins.

A message is the (master_epoch, place) under which it was appended. A message is confirmed once the
files of all that its master counts as in sync hold it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from shmq.controller.controller import Controller, Heartbeat, Outcome
from shmq.controller.journal import encode_records, encode_snapshot, replay
from shmq.controller.replicas import Record, ReplicasInfo, ReplicasInfoTable
from shmq.remoting.codes import ResponseCode
from shmq.status import Elected

NAME = "broker-a"
STEP_NS = 100_000_000
HEARTBEAT_NS = 1_000_000_000
LEARNER = 4
BROKERS = (1, 2, 3, LEARNER)

Message = tuple[int, int]
Log = list[Message]


class ViolationError(AssertionError):
    """Something that must never be was."""


@dataclass
class Kernel:
    """What outlives processes: who holds mastership, and the memory of the last master."""

    holder: int | None = None
    memory: Log | None = None

    def mastership_holder(self, broker_name: str) -> int | None:
        assert broker_name == NAME
        return self.holder

    def has_memory(self, broker_name: str) -> bool:
        assert broker_name == NAME
        return self.memory is not None


@dataclass
class Broker:
    """One member. Its files outlive it; the rest does not."""

    broker_id: int
    files: Log = field(default_factory=list)
    is_running: bool = False
    is_stopped: bool = False
    incarnation: int = 0
    last_beat_ns: int = 0
    info: ReplicasInfo | None = None
    taking_epoch: int = 0
    serving_epoch: int = 0
    refused_epoch: int = 0
    in_sync: frozenset[int] = frozenset()
    sync_state_set_epoch: int = 0
    asked: frozenset[int] = frozenset()

    @property
    def is_active(self) -> bool:
        return self.is_running and not self.is_stopped

    def end(self) -> None:
        self.is_running = self.is_stopped = False
        self.incarnation += 1
        self.info = None
        self.taking_epoch = self.serving_epoch = self.refused_epoch = 0
        self.in_sync = self.asked = frozenset()
        self.sync_state_set_epoch = 0


class Cluster:
    """Everything. `step` does one thing at random; `heal` stops all faults."""

    def __init__(self, seed: int, *, is_unclean_allowed: bool = False) -> None:
        self.random = random.Random(seed)
        self.kernel = Kernel()
        self.brokers = {each: Broker(each) for each in BROKERS}
        self.disk = encode_snapshot(ReplicasInfoTable(), 0)
        self.number = 0
        self.now_ns = 0
        self.is_unclean_allowed = is_unclean_allowed
        self.controller: Controller | None = None
        self.table = ReplicasInfoTable()
        self.doubtful: tuple[Record, ...] = ()
        self.network: list[tuple[int, Callable[[], None]]] = []
        self.is_faulty = True
        # Often enough that faults meet each other, or seldom enough that much happens between.
        self.fault_share = self.random.choice((0.005, 0.02, 0.06))
        self.loss_share = self.random.choice((0.02, 0.1, 0.3))
        self.confirmed: Log = []
        self.masters: dict[int, int] = {}
        self.last_epochs = (0, 0)
        self.counts = dict.fromkeys(
            ("begun", "confirmed", "killed", "fenced", "refused", "taken over", "handed over"), 0
        )

    # ---- the world

    def step(self) -> None:
        """One thing that happens, and what must hold behind it."""
        dice = self.random.random()
        broker = self.brokers[self.random.choice(BROKERS)]
        if self.is_faulty and dice < self.fault_share:
            self._fault(broker)
        elif dice < 0.12:
            self._pass_time()
        elif dice < 0.50:
            self._deliver()
        elif dice < 0.70:
            self._copy(broker)
        else:
            self._serve(broker)
        self._check()

    def heal(self) -> None:
        """No faults from here on; everything runs."""
        self.is_faulty = False
        for broker in self.brokers.values():
            broker.is_stopped = False
            self._start(broker)

    @property
    def master(self) -> Broker | None:
        """Who serves in the journal's newest epoch."""
        info = self.table.get(NAME)
        for broker in self.brokers.values():
            if info is not None and broker.serving_epoch == info.master_epoch > 0:
                return broker
        return None

    def _fault(self, broker: Broker) -> None:
        what = self.random.choice(("kill", "kill", "stop", "wipe", "wipe", "controller", "elect"))
        if what == "kill" and broker.is_running:
            self._kill(broker)
        elif what == "stop" and broker.is_running:
            broker.is_stopped = True
        elif what == "wipe" and self.kernel.holder is None:
            self.kernel.memory = None
        elif what == "controller":
            self.controller = None
        elif what == "elect" and self.controller is not None:
            now_ns, broker_id = self.now_ns, broker.broker_id
            self._obey(
                self.controller.elect_master(broker_name=NAME, broker_id=broker_id, now_ns=now_ns)
            )

    def _pass_time(self) -> None:
        while self.network and not self.is_faulty:  # what waits for nothing comes in time
            self._deliver()
            if all(at_ns > self.now_ns for at_ns, _ in self.network):
                break
        self.now_ns += STEP_NS * self.random.choice((1, 1, 5, 20))
        for broker in self.brokers.values():
            if not broker.is_running and self.random.random() < 0.3:
                self._start(broker)
            elif broker.is_stopped and self.random.random() < 0.05:
                broker.is_stopped = False
            if self.now_ns - broker.last_beat_ns >= HEARTBEAT_NS:
                broker.last_beat_ns = self.now_ns
                self._heartbeat(broker)
        if self.controller is None:
            self._take_over()
        controller = self.controller
        assert controller is not None
        self._obey(controller.tick(now_ns=self.now_ns))

    def _kill(self, broker: Broker) -> None:
        self.counts["killed"] += 1
        broker.end()
        if self.kernel.holder == broker.broker_id:
            self.kernel.holder = None
        if self.controller is not None:
            self._obey(self.controller.broker_ended(NAME, broker.broker_id, now_ns=self.now_ns))

    def _start(self, broker: Broker) -> None:
        if not broker.is_running:
            broker.is_running = True
            self._register(broker)

    # ---- the Controller and its disk

    def _take_over(self) -> None:
        self.counts["taken over"] += 1
        replayed = replay(self.disk, what="the simulated disk")
        if replayed.number == self.number + 1:  # the line that it died over is whole
            for record in self.doubtful:
                self.table.apply(record)
            self.number += 1
        if (replayed.number, replayed.table) != (self.number, self.table):
            raise ViolationError("the journal says something else than what was applied")
        self.table, self.number = replayed.table, replayed.number
        self.disk = encode_snapshot(self.table, self.number)
        self.controller = Controller(
            self.table,
            self.kernel,
            now_ns=self.now_ns,
            is_unclean_allowed=self.is_unclean_allowed,
        )

    def _obey(self, outcome: Outcome, reply: Callable[[Outcome], None] | None = None) -> None:
        assert self.controller is not None
        if outcome.records and not self._is_durable(outcome.records):
            self.controller = None
            return
        self.controller.apply(outcome.records)
        for fence in outcome.fences:
            victim = self.brokers[fence.broker_id]
            if self.kernel.holder != fence.broker_id:
                raise ViolationError(f"{fence}: it does not hold mastership")
            self.counts["fenced"] += 1
            self._kill(victim)
            if self.controller is None:
                return
        for notice in outcome.notices:
            self._send_info(self.brokers[notice.broker_id], notice.info)
        if reply is not None:
            self._send(lambda: reply(outcome))

    def _is_durable(self, records: tuple[Record, ...]) -> bool:
        line = encode_records(records, self.number + 1)
        if self.is_faulty and self.random.random() < 0.03:  # it dies in the middle of it
            written = self.random.randrange(len(line) + 1)
            self.disk += line[:written]
            self.doubtful = records
            return False
        self.disk += line
        self.number += 1
        return True

    # ---- the network

    def _send(self, arrive: Callable[[], None]) -> None:
        if self.is_faulty and self.random.random() < self.loss_share:
            return
        for _ in range(2 if self.is_faulty and self.random.random() < 0.05 else 1):
            delay = self.random.choice((0, 0, 1, 30)) if self.is_faulty else 0
            self.network.append((self.now_ns + delay * STEP_NS, arrive))

    def _deliver(self) -> None:
        for _ in range(self.random.randrange(1, 8)):
            due = [place for place, (at_ns, _) in enumerate(self.network) if at_ns <= self.now_ns]
            if due:
                _, arrive = self.network.pop(self.random.choice(due))
                arrive()

    def _send_info(self, broker: Broker, info: ReplicasInfo) -> None:
        incarnation = broker.incarnation
        self._send(lambda: self._learn(broker, incarnation, info))

    def _ask(
        self,
        broker: Broker,
        ask: Callable[[Controller], Outcome],
        answered: Callable[[Outcome], None] | None = None,
    ) -> None:
        incarnation = broker.incarnation

        def arrive() -> None:
            if self.controller is not None:
                self._obey(ask(self.controller), reply)

        def reply(outcome: Outcome) -> None:
            if outcome.info is not None:
                self._learn(broker, incarnation, outcome.info)
            if answered is not None and broker.incarnation == incarnation:
                answered(outcome)

        self._send(arrive)

    # ---- brokers

    def _register(self, broker: Broker) -> None:
        broker_id, is_learner = broker.broker_id, broker.broker_id == LEARNER

        def register(controller: Controller) -> Outcome:
            return controller.apply_broker_id(
                cluster_name="c",
                broker_name=NAME,
                broker_id=broker_id,
                address=f"socket-{broker_id}",
                register_check_code=f"code-{broker_id}",
                is_async_learner=is_learner,
            )

        self._ask(broker, register)

    def _heartbeat(self, broker: Broker) -> None:
        if not broker.is_active:
            return
        log = self._log(broker)
        beat = Heartbeat(
            broker_name=NAME,
            broker_id=broker.broker_id,
            master_epoch=max(log[-1][0] if log else 0, broker.serving_epoch),
            log_epoch=log[-1][0] if log else 0,
            log_end=len(log),
            refused_epoch=broker.refused_epoch,
        )

        def answered(outcome: Outcome) -> None:
            if outcome.code == ResponseCode.CONTROLLER_BROKER_NEED_TO_BE_REGISTERED:
                self._register(broker)

        self._ask(broker, lambda c: c.heartbeat(beat, now_ns=self.now_ns), answered)

    def _learn(self, broker: Broker, incarnation: int, info: ReplicasInfo) -> None:
        """A member hears how its replica set is; old news is no news."""
        if broker.incarnation != incarnation or not broker.is_active:
            return
        known = broker.info
        if known is not None and _age(info) < _age(known):
            return
        broker.info = info
        is_mine = info.master_broker_id == broker.broker_id
        if is_mine and not info.is_begun and info.master_epoch > broker.taking_epoch:
            if info.master_epoch != broker.refused_epoch:
                broker.serving_epoch, broker.taking_epoch = 0, info.master_epoch
        elif is_mine and info.is_begun and info.master_epoch == broker.taking_epoch:
            self._begin(broker, info)
        elif not is_mine and (broker.serving_epoch or broker.taking_epoch):
            self._hand_over(broker)

    def _hand_over(self, broker: Broker) -> None:
        if self.kernel.holder == broker.broker_id:
            assert self.kernel.memory is not None
            self.counts["handed over"] += 1
            broker.files = list(self.kernel.memory)
            self.kernel.holder = None
        broker.serving_epoch = broker.taking_epoch = 0

    def _begin(self, broker: Broker, info: ReplicasInfo) -> None:
        """The Controller knows that it began: from the answer or from any later news."""
        if broker.serving_epoch != info.master_epoch:
            if self.kernel.holder != broker.broker_id:
                return
            broker.serving_epoch = info.master_epoch
            self._check_begun(broker)
        if info.sync_state_set_epoch > broker.sync_state_set_epoch:
            broker.asked = frozenset()
        broker.in_sync = info.sync_state_set
        broker.sync_state_set_epoch = info.sync_state_set_epoch

    def _serve(self, broker: Broker) -> None:
        if not broker.is_active or broker.info is None:
            return
        if broker.taking_epoch and not broker.serving_epoch:
            self._take_up(broker, broker.info)
        elif broker.serving_epoch and self.kernel.memory is not None:
            memory = self.kernel.memory
            for _ in range(self.random.randrange(3)):
                memory.append((broker.serving_epoch, len(memory)))
            if self.random.random() < 0.5:
                broker.files.extend(memory[len(broker.files) :])
            self._confirm(broker, memory)
            if self.random.random() < 0.2:
                self._alter(broker, broker.info)

    def _take_up(self, broker: Broker, info: ReplicasInfo) -> None:
        kernel, epoch = self.kernel, broker.taking_epoch
        if info.master_epoch != epoch or info.is_begun:
            return
        if kernel.holder not in (None, broker.broker_id):
            return
        if kernel.holder is None:
            is_adoptable = (
                kernel.memory is not None
                and kernel.memory[: len(broker.files)] == broker.files
                and not (self.is_faulty and self.random.random() < 0.05)  # damaged, too far behind
            )
            if not is_adoptable and not self._may_do_without_memory(info):
                self.counts["refused"] += 1
                broker.refused_epoch, broker.taking_epoch = epoch, 0
                return
            kernel.holder = broker.broker_id
            if not is_adoptable or kernel.memory is None:
                kernel.memory = list(broker.files)
        self._flush_adopted(broker)
        request = self._alteration(broker, info, frozenset({broker.broker_id}))
        self._ask(broker, request)

    def _may_do_without_memory(self, info: ReplicasInfo) -> bool:
        return info.elected != Elected.MEMORY

    def _flush_adopted(self, broker: Broker) -> None:
        assert self.kernel.memory is not None
        broker.files = list(self.kernel.memory)

    def _alteration(
        self, broker: Broker, info: ReplicasInfo, wanted: frozenset[int]
    ) -> Callable[[Controller], Outcome]:
        return lambda controller: controller.alter_sync_state_set(
            broker_name=NAME,
            master_broker_id=broker.broker_id,
            master_epoch=info.master_epoch,
            sync_state_set=wanted,
            sync_state_set_epoch=info.sync_state_set_epoch,
            now_ns=self.now_ns,
        )

    def _alter(self, broker: Broker, info: ReplicasInfo) -> None:
        if not info.is_begun or info.master_epoch != broker.serving_epoch:
            return
        able = {
            each.broker_id
            for each in self.brokers.values()
            if each.broker_id in info.electable and each.is_active and self._is_caught_up(each)
        }
        wanted = frozenset(able | {broker.broker_id})
        if wanted != broker.in_sync:
            self._count_as_in_sync(broker, wanted)
            self._ask(broker, self._alteration(broker, info, wanted))

    def _count_as_in_sync(self, broker: Broker, wanted: frozenset[int]) -> None:
        broker.asked |= wanted

    def _is_caught_up(self, broker: Broker) -> bool:
        return broker.files[: len(self.confirmed)] == self.confirmed

    def _confirm(self, master: Broker, memory: Log) -> None:
        ends = []
        for each in master.in_sync | master.asked | {master.broker_id}:
            files = self.brokers[each].files
            ends.append(_common_end(files, memory))
        new = memory[len(self.confirmed) : min(ends)]
        self.counts["confirmed"] += len(new)
        self.confirmed.extend(new)

    def _copy(self, broker: Broker) -> None:
        """A slave takes what its master has; what it had alone it cuts first."""
        master = self.master
        if not broker.is_active or master is None or self.kernel.holder != master.broker_id:
            return
        if broker is master or broker.taking_epoch or broker.serving_epoch:
            return
        memory = self.kernel.memory
        assert memory is not None
        end = _common_end(broker.files, memory)
        del broker.files[end:]
        broker.files.extend(memory[end : end + self.random.randrange(8)])

    def _log(self, broker: Broker) -> Log:
        if self.kernel.holder == broker.broker_id and self.kernel.memory is not None:
            return self.kernel.memory
        return broker.files

    # ---- what must hold

    def _check_begun(self, broker: Broker) -> None:
        self.counts["begun"] += 1
        epoch = broker.serving_epoch
        if self.masters.setdefault(epoch, broker.broker_id) != broker.broker_id:
            raise ViolationError(f"epoch {epoch}: {self.masters[epoch]} and {broker.broker_id}")
        if broker.broker_id == LEARNER:
            raise ViolationError("a learner is master")
        memory = self.kernel.memory
        assert memory is not None
        if memory[: len(self.confirmed)] != self.confirmed:
            if not self.is_unclean_allowed:
                raise ViolationError(
                    f"epoch {epoch}: master {broker.broker_id} lacks confirmed messages:"
                    f" {len(self.confirmed)} confirmed, {_common_end(memory, self.confirmed)} there"
                )
            del self.confirmed[_common_end(memory, self.confirmed) :]

    def _check(self) -> None:
        info = self.table.get(NAME)
        if info is None or self.controller is None:
            return
        epochs = (info.master_epoch, info.sync_state_set_epoch)
        if epochs[0] < self.last_epochs[0] or epochs[1] < self.last_epochs[1]:
            raise ViolationError(f"epochs went back: {self.last_epochs}, {epochs}")
        self.last_epochs = epochs


def _age(info: ReplicasInfo) -> tuple[int, bool, int]:
    return (info.master_epoch, info.is_begun, info.sync_state_set_epoch)


def _common_end(ours: Log, theirs: Log) -> int:
    """Behind the last message that both have at the same place: all before it are the same."""
    end = min(len(ours), len(theirs))
    while end and ours[end - 1] != theirs[end - 1]:
        end -= 1
    return end
