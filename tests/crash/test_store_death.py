"""The store's process dies at every instruction of a turn, of an adoption and of a resumption.

The append thread of a real store process is held by the stepper while clients have records in their
rings, taken so many instructions through drain, append, commit, publish, complete and settle, and
killed there with its process. The successor adopts, the clients bring their rings back, and Scene
judges: nothing completed is lost, nothing doubled, nothing torn, each ring record appended once.
Opening from files is killed at every system call. Everything in a full run; a stride by default.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash.crowd import read_log
from tests.crash.ledger import BODY_MIN, Sent, body_of
from tests.crash.scene import LARGE, REFUSED, Scene, generations, wipe
from tests.crash.stepping import (
    AstrayError,
    Points,
    Stepper,
    address_of,
    go_through,
    learn_until_sure,
)
from tests.support.scale import is_full_run, scaled
from tests.support.store_process import StoreClient, wait_until
from tests.support.zygote import ForkedStore

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from shmq.config import StoreConfig
    from tests.support.zygote import Zygote

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.crash, pytest.mark.timeout(scaled(120, 7200))]

BLOCK_ENTRIES = 165
TURN_ENTRIES_MAX = 12
"""More than any queue gets in a turn and what is sent before it."""
ROLL_ROOM_BYTES = 80 * 1024
"""More than a turn and what is sent before it."""
DEATHS_OF_A_STORE = 300
"""Then a new one: a start looks at every file of the log."""
QUIET_STRIDE = 20
SYS_RECVMSG = 47
SYS_EPOLL_WAITS = ("232", "281")
SYS_FUTEX = "202"
FUTEX_WAIT = "0x0"
"""Between processes, as the core waits; Python's locks are private to theirs."""
FUTEX_LOCK = "0x80"
"""As a mutex waits: within a process, and without a time."""
SETTLE_INTERVAL_NS = 10_000_000
"""SHMQ_SETTLE_INTERVAL_NS of turn.h."""


@pytest.fixture
def config(config: StoreConfig) -> StoreConfig:
    """Few slots to look at in each start, and no waiting for the flusher."""
    return replace(config, session_count=8, flush_interval_ms=1)


def put_some(scene: Scene) -> None:
    """Rings of three sessions, three queues, a level, a refusal, a body in chunk memory."""
    scene.put(0, 0)
    scene.put(0, 1)
    scene.put(0, 2, 100, lane=1)
    scene.put(1, 0)
    scene.put(1, REFUSED)
    scene.put(2, 0, LARGE)


def before_a_turn(scene: Scene) -> None:
    """The next turn neither rolls nor begins a block: each one takes the same way."""
    if scene.room() < ROLL_ROOM_BYTES:
        scene.pad(400)
        scene.put(2, 0, 700)
        scene.judge()
    step_over_blocks(scene)


def step_over_blocks(scene: Scene) -> None:
    for queue, offset in enumerate(scene.queue_ends()):
        left = -offset % BLOCK_ENTRIES
        if left < TURN_ENTRIES_MAX:
            for _ in range(left + 1):
                scene.put(1, queue)
    scene.settle()
    scene.put(2, 0)  # the next turn begins at the ring behind this one's
    scene.judge()


def before_a_roll(scene: Scene) -> None:
    scene.pad(8000)
    scene.judge()
    step_over_blocks(scene)
    scene.pad(400)


def before_a_block(scene: Scene) -> None:
    """Two queues are about to begin a block."""
    before_a_turn(scene)
    for queue, offset in enumerate(scene.queue_ends()[:2]):
        for _ in range(-(offset + 1) % BLOCK_ENTRIES):
            scene.put(1, queue)
            if len(scene.under_way) == 32:
                scene.settle()
    scene.settle()


TURNS: dict[str, tuple[Callable[[Scene], None], int]] = {
    # name: (before, instructions between two deaths by default)
    "a turn": (before_a_turn, 400),
    "a turn that rolls": (before_a_roll, 900),
    "a turn that begins blocks": (before_a_block, 900),
}


class TurnStepper(contextlib.ExitStack):
    """Holds the append thread of one store after another where it sleeps for want of work: each
    turn begins there. With it two threads stand that would now and then come into a turn, the more
    often the slower it is stepped: the flusher, whose flush may end in its midst, and the keeper,
    who asks for the role once a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stepper = self.enter_context(Stepper())
        self._keeper = self.enter_context(Stepper())
        self._flusher = self.enter_context(Stepper())
        self._is_flusher_held = False

    def hold(self, scene: Scene) -> None:
        """All of them, when there is nothing to do; so long that the next turn looks for answers
        that waited too long, which it does every so many milliseconds.
        """
        wait_until(lambda: scene.flushed() == scene.log_end())
        threads = scene.store.call("threads")[0]
        hold_asleep(self._keeper, scene.store.pid, threads["shmq-keeper"], is_waiting)
        hold_asleep(self._flusher, scene.store.pid, threads["shmq-flush"], is_waiting)
        hold_asleep(self.stepper, scene.store.pid, threads["shmq-append"], is_polling)
        self._is_flusher_held = True
        due_ns = time.monotonic_ns() + SETTLE_INTERVAL_NS
        wait_until(lambda: time.monotonic_ns() >= due_ns)

    def flush(self, scene: Scene) -> None:
        """Behind the end of a turn: the flusher goes on, and what settles levels can follow."""
        self._flusher.go()
        self._is_flusher_held = False
        wait_until(lambda: scene.flushed() == scene.log_end())

    def kill(self) -> None:
        """SIGKILL to the store's process."""
        self.stepper.kill()
        self._keeper.kill()
        if self._is_flusher_held:
            self._flusher.kill()


def hold_asleep(
    stepper: Stepper, pid: int, tid: int, is_asleep: Callable[[list[str]], bool]
) -> None:
    """Hold a thread in the system call that it sleeps in, when it comes there."""
    place = Path(f"/proc/{pid}/task/{tid}/syscall")

    def try_hold() -> bool:
        if not is_asleep(place.read_text(encoding="ascii").split()):
            return False
        stepper.seize(tid)
        stepper.interrupt()
        if is_asleep(place.read_text(encoding="ascii").split()):
            return True
        stepper.go()  # it woke up meanwhile
        return False

    wait_until(try_hold)


def is_polling(call: list[str]) -> bool:
    """Whether this is where the append thread sleeps; the number and the arguments of a call."""
    return call[0] in SYS_EPOLL_WAITS


def is_waiting(call: list[str]) -> bool:
    """Whether this is a wait of the core, not one for a lock of Python."""
    return call[0] == SYS_FUTEX and call[2] == FUTEX_WAIT


def learn_turn(
    turns: TurnStepper, scene: Scene, before: Callable[[Scene], None]
) -> list[list[int]]:
    """The ways of turns that die at their ends, so that others can be leapt through."""

    def learn() -> list[int]:
        before(scene)
        turns.hold(scene)
        put_some(scene)
        way = turns.stepper.learn()
        turns.flush(scene)
        way += turns.stepper.learn()
        turns.kill()
        scene.succeed()
        scene.judge()
        return way

    return learn_until_sure(learn)


def scenes(zygote: Zygote, config: StoreConfig) -> Generator[Scene]:
    """The scene of each death: a new store every so many, for a start looks at every file."""
    while True:
        with Scene(zygote, config) as scene:
            while scene.deaths < DEATHS_OF_A_STORE:
                yield scene
            scene.finish()
        shutil.rmtree(config.store_path)


class Dying:
    """Leaves successors something to redo: the store dies at some instruction of a turn."""

    def __init__(self, turns: TurnStepper, scene: Scene) -> None:
        self._turns = turns
        self.turn_length = min(map(len, learn_turn(turns, scene, before_a_turn)))
        # A prime number of instructions on each time: all over the turn, in the end at each of it.
        self._spread = (number * 1709 % self.turn_length for number in itertools.count())

    def die(self, scene: Scene, at: int | None = None) -> tuple[bool, bool]:
        """At this instruction, or at one after the other spread over the turn; whether it came
        there (else it went astray and died somewhere behind), and whether the turn was committed.
        """
        before_a_turn(scene)
        self._turns.hold(scene)
        turn_number = scene.turn_number()
        put_some(scene)
        at = next(self._spread) if at is None else at
        is_there = False
        with contextlib.suppress(AstrayError):
            go_through(self._turns.stepper.leap, at, lambda: self._turns.flush(scene))
            is_there = True
        self._turns.kill()
        scene.store.process.wait()
        scene.look()
        return is_there, scene.turn_number() != turn_number

    def find_commit(self, following: Iterator[Scene]) -> int:
        """How many instructions of a turn it takes to commit it."""
        before, behind = 0, self.turn_length
        while behind - before > 1:
            middle = (before + behind) // 2
            scene = next(following)
            is_there, has_committed = self.die(scene, middle)
            if not has_committed:
                before = middle
            elif is_there:
                behind = middle
            scene.succeed()
            scene.judge()
        return behind


@pytest.mark.parametrize(("before", "stride"), TURNS.values(), ids=TURNS)
def test_store_killed_at_any_instruction_of_a_turn_loses_doubles_and_tears_nothing(
    zygote: Zygote,
    config: StoreConfig,
    before: Callable[[Scene], None],
    stride: int,
) -> None:
    with TurnStepper() as turns, contextlib.closing(scenes(zygote, config)) as following:
        stride = scaled(stride, 1)
        ways = learn_turn(turns, next(following), before)
        points = Points(turns.stepper, ways, itertools.count(0, stride), is_every=stride == 1)
        for scene in following:
            if points.is_over:
                scene.finish()
                break
            before(scene)
            turns.hold(scene)
            put_some(scene)
            points.reach(functools.partial(turns.flush, scene))
            turns.kill()
            scene.succeed()
            scene.judge()
    assert points.count > 10
    points.report("killed in a turn")


def test_store_killed_where_the_append_thread_stands_aside_for_a_verb_loses_nothing(
    zygote: Zygote, config: StoreConfig
) -> None:
    """A control verb asks for the role at the end of a turn, and waits for it behind that end."""
    with TurnStepper() as turns, contextlib.closing(scenes(zygote, config)) as following:
        firsts = []

        def learn() -> list[int]:
            with asking(turns, next(following)) as ask:
                firsts.append(len(turns.stepper.learn()))
                ask()
                return turns.stepper.learn()

        ways = learn_until_sure(learn)
        first, stride = firsts[-1], scaled(100, 1)
        points = Points(
            turns.stepper, ways, itertools.count(first, stride), first=first, is_every=stride == 1
        )
        while not points.is_over:
            with asking(turns, next(following)) as ask:
                points.reach(ask)
        next(following).finish()
    points.report("killed where it stands aside")


@contextlib.contextmanager
def asking(turns: TurnStepper, scene: Scene) -> Iterator[Callable[[], None]]:
    """The append thread is about to begin a turn; what it gives lets a control verb ask for the
    role, which that thread has. Then it is killed, succeeded and judged.
    """
    before_a_turn(scene)
    turns.hold(scene)
    put_some(scene)
    verb = threading.Thread(target=ask_in_vain, args=(scene.store,))

    def ask() -> None:
        verb.start()
        place = Path(f"/proc/{scene.store.pid}/syscall")
        wait_until(lambda: is_locked_out(place.read_text(encoding="ascii").split()))

    yield ask
    turns.kill()
    if verb.ident is not None:
        verb.join()
    scene.succeed()
    scene.judge()


def ask_in_vain(store: ForkedStore) -> None:
    with contextlib.suppress(ConnectionError):  # if it was answered before the store died
        store.call("is_drained", session=0)


def is_locked_out(call: list[str]) -> bool:
    """Whether this is a wait for a mutex of the core."""
    return call[0] == SYS_FUTEX and call[2] == FUTEX_LOCK


ADOPTION = {
    # name: (C function, which call of it, how many of its instructions by default)
    "what was being appended": ("appender_adopt", 1, 20),
    "a segment of the log": ("appender_adopt_hot", 1, 10),
    "the head of the topics segment": ("mapping_init_header", 1, 20),
    "the head of the control segment": ("mapping_init_header", 3, 20),
}


@pytest.mark.parametrize(("function", "call", "count"), ADOPTION.values(), ids=ADOPTION)
def test_successor_killed_at_any_instruction_of_adopting_leaves_the_next_one_everything(
    zygote: Zygote, config: StoreConfig, function: str, call: int, count: int
) -> None:
    """Its predecessor dies right behind the commit of a turn, so that all of it is to be redone; in
    a full run also right before it.
    """
    with TurnStepper() as turns, contextlib.closing(scenes(zygote, config)) as following:
        dying = Dying(turns, next(following))
        commit = dying.find_commit(following)
        for death in (commit, commit - 1)[: scaled(1, 2)]:

            def hold(scene: Scene, stepper: Stepper, death: int = death) -> Held:
                return adopting(dying, scene, stepper, death, function, call)

            break_everywhere(following, hold, count, f"killed in {function}")
        next(following).finish()


Held = contextlib.AbstractContextManager[None]
"""While it is entered the victim stands at its work; then it is killed, succeeded and judged."""


def break_everywhere(
    following: Iterator[Scene],
    hold: Callable[[Scene, Stepper], Held],
    count: int,
    what: str,
    *,
    is_alone: bool = True,
) -> None:
    """Kill one victim after another at the chosen instructions of their work.

    Args:
        is_alone: nobody else writes to shared memory meanwhile: it can be seen who did.
    """
    with Stepper() as stepper:

        def learn(*, watches: bool = False) -> list[int]:
            scene = next(following)
            with hold(scene, stepper):
                if watches:
                    watch_memory(stepper, scene.config)
                way = stepper.learn()
                stepper.unwatch()
                return way

        if is_alone:
            learn(watches=True)
        ways = learn_until_sure(learn)
        changes = stepper.changes if is_alone else None
        is_every = is_full_run() and changes is None
        points = Points(stepper, ways, chosen(len(ways[-1]), changes, count), is_every=is_every)
        while not points.is_over:
            with hold(next(following), stepper):
                points.reach()
    points.report(what)


@contextlib.contextmanager
def adopting(
    dying: Dying, scene: Scene, stepper: Stepper, death: int, function: str, call: int
) -> Iterator[None]:
    """The store dies in a turn, its successor stands at that call of a function."""
    dying.die(scene, death)
    scene.store = scene.store.restart(opens=False)
    run_to_call(stepper, scene.store, function, call)
    yield
    stepper.kill()
    scene.succeed()
    scene.judge()


def run_to_call(stepper: Stepper, store: ForkedStore, function: str, call: int) -> None:
    """Let it open the store up to the first instruction of that call of a function."""
    stepper.seize(store.pid)
    stepper.plant(address_of(store.pid, function))
    store.begin_open()
    stepper.hit()
    for _ in range(call - 1):
        stepper.finish()
        stepper.plant(address_of(store.pid, function))
        stepper.hit()
    stepper.begin()


def watch_memory(stepper: Stepper, config: StoreConfig) -> None:
    """Let the stepper look for changes of all shared memory of the store."""
    for path in Path("/dev/shm").glob(f"shmq.{config.cluster_name}.*"):
        stepper.watch(str(path), path.stat().st_size)


def chosen(length: int, changes: list[int] | None, count: int) -> Iterable[int]:
    """At how many instructions to die.

    Who is killed leaves what is shared, and the kernel's objects: two deaths with neither a change
    of memory nor a system call between them leave the same. So where it is known which
    instructions these are, a full run has a death before and behind each of them, and every so
    many instructions of the others; where it is not known, at all.
    """
    if not is_full_run():
        points = sorted({*(changes or ()), *range(0, length + 1, length // count)})
        return points[:: max(1, len(points) // count)]
    if changes is None:
        return range(length + 1)
    around = {number + side for number in changes for side in (-1, 0)}
    return sorted(around | {*range(0, length, QUIET_STRIDE), length})


def test_successor_killed_at_any_instruction_of_a_resumption_leaves_the_next_one_everything(
    zygote: Zygote, config: StoreConfig
) -> None:
    with TurnStepper() as turns, contextlib.closing(scenes(zygote, config)) as following:
        dying = Dying(turns, next(following))

        def hold(scene: Scene, stepper: Stepper) -> Held:
            return resuming(dying, scene, stepper)

        break_everywhere(following, hold, 30, "killed in appender_attach", is_alone=False)
        next(following).finish()


@contextlib.contextmanager
def resuming(dying: Dying, scene: Scene, stepper: Stepper) -> Iterator[None]:
    """The store dies in a turn, its successor resumes one client and stands at the next one."""
    dying.die(scene)
    scene.store = scene.store.restart()
    scene.clients[0].resume(scene.store)
    stepper.seize(scene.store.pid)
    stepper.plant(address_of(scene.store.pid, "appender_attach"))
    thread = threading.Thread(target=resume_in_vain, args=(scene,))
    thread.start()
    stepper.hit()
    yield
    stepper.kill()
    thread.join()
    scene.succeed()
    scene.judge()


def resume_in_vain(scene: Scene) -> None:
    with pytest.raises(ConnectionError):
        scene.clients[1].resume(scene.store)


def test_successor_killed_at_any_system_call_of_its_start_leaves_the_next_one_everything(
    zygote: Zygote, config: StoreConfig
) -> None:
    with TurnStepper() as turns, contextlib.closing(scenes(zygote, config)) as following:
        dying = Dying(turns, next(following))
        for call_number, scene in zip(itertools.count(0, scaled(20, 1)), following, strict=False):
            dying.die(scene)
            scene.store = scene.store.restart(opens=False)
            is_over = start_and_die(scene.store, call_number)
            scene.succeed()
            scene.judge()
            if is_over:
                break
        assert call_number > 200
        scene.finish()
    logger.info("killed at system calls of a start: %d", call_number)


def start_and_die(store: ForkedStore, call_count: int) -> bool:
    """Let the process open the store up to that system call; whether it was open before."""
    waiting_place = Path(f"/proc/{store.pid}/syscall")
    wait_until(lambda: waiting_place.read_text(encoding="ascii").startswith(f"{SYS_RECVMSG} "))
    with Stepper() as stepper:
        stepper.seize(store.pid)
        stepper.interrupt()
        store.begin_open()
        _, is_over = stepper.calls(call_count)
        stepper.kill()
    store.process.wait()
    return is_over


class Ledger:
    """A store that is opened from files again and again, and what must be in it."""

    def __init__(self, zygote: Zygote, config: StoreConfig) -> None:
        self._zygote = zygote
        self._config = config
        self._count = 0

    def start(self, *, opens: bool = True) -> ForkedStore:
        return ForkedStore(self._zygote, self._config, opens=opens)

    def send(self, store: ForkedStore, count: int, size: int = BODY_MIN) -> None:
        """Send on; each message gets the next queue_offset."""
        queue = store.add_queue("ledger")
        with StoreClient(store, consumer=False, map_log=False) as client:
            client.grant(queue)
            for _ in range(count):
                body = body_of(Sent(1, 0, self._count), size)
                status, _, queue_offset, _, _, _ = client.lanes[0].send(*queue, body)
                assert (status, queue_offset) == (0, self._count)
                self._count += 1
        wait_until(lambda: self._is_flushed(store))

    @staticmethod
    def _is_flushed(store: ForkedStore) -> bool:
        positions = store.facts()["positions"]
        return bool(positions["flushed_position"] == positions["committed_position"])

    def check(self, store: ForkedStore) -> None:
        """Everything is there, in memory as in the files, nothing else is, and it goes on."""
        assert len(generations(self._config)) == 1, "memory of a store that never was is left"
        if self._count:
            (queue,) = store.facts()["queues"]
            assert queue[3]["min_queue_offset"] == 0
            assert queue[3]["visible_max"] == self._count
        assert [message.sent.sequence for message in read_log(self._config.store_path)] == list(
            range(self._count)
        )
        self.send(store, 1)


@pytest.mark.parametrize("message_count", [0, 3, 700], ids=["empty", "one file", "files"])
def test_store_killed_at_any_system_call_of_a_start_from_files_is_recovered_by_the_next(
    zygote: Zygote, config: StoreConfig, message_count: int
) -> None:
    ledger = Ledger(zygote, config)
    killed_at = 0
    is_over = False
    store = ledger.start()
    try:
        ledger.send(store, message_count, 400)
        while not is_over:
            store.abandon()
            wipe(config)
            store = ledger.start(opens=False)
            is_over = start_and_die(store, killed_at)
            store.abandon()
            store = ledger.start()
            ledger.check(store)
            killed_at += scaled(15, 1)
        assert killed_at > 100
        logger.info("killed at system calls of a start from files: %d", killed_at)
        store.stop()
        assert not generations(config)
    finally:
        store.abandon()
        wipe(config)
