"""The store's process dies at every instruction of a turn, of an adoption and of a resumption.

The append thread of a real store process is held by the stepper while clients have records in their
rings, taken so many instructions through drain, append, commit, publish, complete and settle, and
killed there with its process. The successor adopts, the clients bring their rings back, and Scene
judges: nothing completed is lost, nothing doubled, nothing torn, each ring record appended once.
Opening from files is killed at every system call. Everything in a full run; a stride by default.
"""

from __future__ import annotations

import threading
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash.crowd import read_log
from tests.crash.ledger import BODY_MIN, Sent, body_of
from tests.crash.scene import LARGE, REFUSED, Scene, generations, wipe
from tests.crash.stepping import Stepper, address_of
from tests.support.scale import is_full_run, scaled
from tests.support.store_process import StoreClient, wait_until
from tests.support.zygote import ForkedStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmq.config import StoreConfig
    from tests.support.zygote import Zygote

pytestmark = [pytest.mark.crash, pytest.mark.timeout(scaled(120, 7200))]

BLOCK_ENTRIES = 165
SYS_RECVMSG = 47


def put_some(scene: Scene) -> None:
    """Rings of three sessions, three queues, a level, a refusal, a body in chunk memory."""
    scene.put(0, 0)
    scene.put(0, 1)
    scene.put(0, 2, 100, lane=1)
    scene.put(1, 0)
    scene.put(1, REFUSED)
    scene.put(2, 0, LARGE)


def put_a_few(scene: Scene) -> None:
    """The same for less: a turn of few instructions."""
    scene.put(0, 1)
    scene.put(1, 0)


def before_a_roll(scene: Scene) -> None:
    scene.pad(400)


def before_a_block(scene: Scene) -> None:
    """Two queues are about to begin a block."""
    queues = {topic: offsets for topic, _, _, offsets in scene.store.facts()["queues"]}
    for number, topic in enumerate(("async", "sync")):
        room = -(queues[topic]["max_queue_offset"] + 1) % BLOCK_ENTRIES
        for _ in range(room):
            scene.put(1, number)
            if len(scene.under_way) == 32:
                scene.settle()
    scene.settle()


TURNS: dict[str, tuple[Callable[[Scene], None], Callable[[Scene], None], int]] = {
    # name: (before, records of the turn, instructions between two deaths by default)
    "a turn": (lambda _scene: None, put_some, 400),
    "a turn that rolls": (before_a_roll, put_some, 900),
    "a turn that begins blocks": (before_a_block, put_some, 900),
}


def hold_append_thread(stepper: Stepper, store: ForkedStore) -> None:
    """The append thread stands still where it had nothing to do."""
    stepper.seize(store.call("threads")[0]["shmq-append"])
    stepper.interrupt()


def step_through_turn(stepper: Stepper, scene: Scene, count: int) -> tuple[int, bool]:
    """So many instructions from where it stands: through the turn, and then, when the flusher is
    done, through what settles levels.
    """
    taken, is_over = stepper.step(count)
    if is_over and taken < count:
        wait_until(lambda: scene.flushed() == scene.log_end())
        taken, is_over = stepper.step(count - taken)
    return taken, is_over


def die_in_a_turn(scene: Scene, at: int) -> None:
    """Leave a successor something to redo: the store dies at some instruction of a turn."""
    with Stepper() as stepper:
        hold_append_thread(stepper, scene.store)
        put_some(scene)
        step_through_turn(stepper, scene, at)
        stepper.kill()
    scene.store.process.wait()
    scene.look()


def deaths_in_turns() -> Iterator[int]:
    """Instructions of a turn to die at, spread over all of it."""
    return (number * 1709 % 9000 for number in count())


@pytest.mark.parametrize(("before", "put", "stride"), TURNS.values(), ids=TURNS)
def test_store_killed_at_any_instruction_of_a_turn_loses_doubles_and_tears_nothing(
    zygote: Zygote,
    config: StoreConfig,
    before: Callable[[Scene], None],
    put: Callable[[Scene], None],
    stride: int,
) -> None:
    with Scene(zygote, config) as scene:
        killed_at = 0
        is_over = False
        while not is_over:
            before(scene)
            with Stepper() as stepper:
                hold_append_thread(stepper, scene.store)
                put(scene)
                _, is_over = step_through_turn(stepper, scene, killed_at)
                stepper.kill()
            scene.succeed()
            scene.judge()
            killed_at += scaled(stride, 1)
        assert scene.deaths > 10
        scene.finish()


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
    """By default it is killed behind instructions that changed something, all over the function."""
    with Scene(zygote, config) as scene:
        deaths = deaths_in_turns()
        die_in_a_turn(scene, next(deaths))
        scene.store = scene.store.restart(opens=False)
        with Stepper() as stepper:
            run_to_call(stepper, scene.store, function, call)
            watch_memory(stepper, config)
            instruction_count, changes = stepper.survey()
            stepper.go()
        scene.store.await_open()
        scene.resume()
        scene.judge()
        for killed_at in chosen(instruction_count, changes, count):
            die_in_a_turn(scene, next(deaths))
            scene.store = scene.store.restart(opens=False)
            with Stepper() as stepper:
                run_to_call(stepper, scene.store, function, call)
                stepper.step(killed_at)
                stepper.kill()
            scene.succeed()
            scene.judge()
        scene.finish()


def run_to_call(stepper: Stepper, store: ForkedStore, function: str, call: int) -> None:
    """Let it open the store up to the first instruction of that call of a function."""
    stepper.seize(store.pid)
    stepper.plant(address_of(store.pid, function))
    store.begin_open()
    stepper.hit()
    for _ in range(call - 1):
        stepper.step(1_000_000)  # to its return
        stepper.plant(address_of(store.pid, function))
        stepper.hit()
    stepper.begin()


def watch_memory(stepper: Stepper, config: StoreConfig) -> None:
    """Let a survey look for changes of all shared memory of the store."""
    for path in Path("/dev/shm").glob(f"shmq.{config.cluster_name}.*"):
        stepper.watch(str(path), path.stat().st_size)


def chosen(instruction_count: int, changes: list[int], count: int) -> list[int]:
    """Which instructions to die at: all, or by default `count` that changed something."""
    if is_full_run():
        return list(range(instruction_count + 1))
    points = sorted({0, *changes, instruction_count})
    return points[:: -(-len(points) // count)]


def test_successor_killed_at_any_instruction_of_a_resumption_leaves_the_next_one_everything(
    zygote: Zygote, config: StoreConfig
) -> None:
    with Scene(zygote, config) as scene:
        killed_at = 0
        for death in deaths_in_turns():
            die_in_a_turn(scene, death)
            scene.store = scene.store.restart()
            scene.clients[0].resume(scene.store)
            with Stepper() as stepper:
                stepper.seize(scene.store.pid)
                stepper.plant(address_of(scene.store.pid, "appender_attach"))
                resuming = threading.Thread(target=resume_in_vain, args=(scene,))
                resuming.start()
                stepper.hit()
                _, is_over = stepper.step(killed_at)
                stepper.kill()
                resuming.join()
            scene.succeed()
            scene.judge()
            if is_over:
                break
            killed_at += scaled(250, 1)
        assert scene.deaths > 5
        scene.finish()


def resume_in_vain(scene: Scene) -> None:
    with pytest.raises(ConnectionError):
        scene.clients[1].resume(scene.store)


def test_successor_killed_at_any_system_call_of_its_start_leaves_the_next_one_everything(
    zygote: Zygote, config: StoreConfig
) -> None:
    with Scene(zygote, config) as scene:
        killed_at = 0
        for death in deaths_in_turns():
            die_in_a_turn(scene, death)
            scene.store = scene.store.restart(opens=False)
            is_over = start_and_die(scene.store, killed_at)
            scene.succeed()
            scene.judge()
            if is_over:
                break
            killed_at += scaled(20, 1)
        assert scene.deaths > 10
        scene.finish()


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
        store.stop()
        assert not generations(config)
    finally:
        store.abandon()
        wipe(config)
