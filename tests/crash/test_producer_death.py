"""A producer dies, or is stopped for good, at every instruction of a send of the shipped extension.

The victim is a real Python process; the stepper holds its thread from the first instruction of the
verb to its return. Two other producers and a reader go on meanwhile: their progress is awaited
while the victim stands or is gone. What the victim had published is in the log once, what it had
not is nowhere. Every instruction in a full run, evenly spread ones by default.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from tests.crash.crowd import Crowd, read_log
from tests.crash.stepping import Stepper
from tests.crash.victims import SCENES, Fates, Scene, Victims
from tests.support.scale import scaled
from tests.support.standing_still import is_stopped
from tests.support.store_process import wait_until
from tests.support.zygote import ForkedStore, Zygote

if TYPE_CHECKING:
    from shmq.config import StoreConfig

pytestmark = [pytest.mark.crash, pytest.mark.timeout(scaled(120, 7200))]

ROUND = 60  # victims that stand still at a time
scenes = pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)


def check_log(store: ForkedStore, fates: Fates, sent: list[int]) -> None:
    """The log holds what was published, once and in order, and nothing else."""
    store.stop()
    sequences: dict[int, list[int]] = defaultdict(list)
    for message in read_log(store.config.store_path):
        sequences[message.sent.producer].append(message.sent.sequence)
    for number, (before, has_published) in fates.items():
        count = len(sequences[number])
        assert sequences.pop(number) == list(range(count)), f"victim {number}"
        assert (count > before) == has_published, f"victim {number}: {count} of {before}"
        assert count >= before
    assert sequences == {number + 1: list(range(count)) for number, count in enumerate(sent)}


@scenes
def test_producer_killed_at_any_instruction_of_a_send_has_sent_or_not(
    zygote: Zygote, config: StoreConfig, scene: Scene
) -> None:
    learnt: Fates = {}
    fates: Fates = {}
    with (
        ForkedStore(zygote, config) as store,
        Crowd(zygote, store) as crowd,
        Stepper() as stepper,
    ):
        victims = Victims(zygote, store, store.add_queue("victims"), scene)
        points = victims.points(stepper, scaled(scene.stride, 1), learnt)
        while not points.is_over:
            with victims.victim(stepper) as victim:
                points.reach()
                stepper.kill()
                crowd.await_progress()
                fates[victim.number] = victim.sent, victim.has_published()
        sent = crowd.finish()
        check_log(store, learnt | fates, sent)
    points.report("killed")
    assert {has_published for _, has_published in fates.values()} == scene.outcomes


@scenes
def test_producer_stopped_at_any_instruction_of_a_send_delays_nobody(
    zygote: Zygote, config: StoreConfig, scene: Scene
) -> None:
    """One victim stands at one instruction after the other while the others go on."""
    with ForkedStore(zygote, config) as store, Crowd(zygote, store, pause_ms=0.1) as crowd:
        victims = Victims(zygote, store, store.add_queue("victims"), scene)
        with Stepper() as stepper, victims.victim(stepper) as victim:
            is_over = False
            while not is_over:
                _, is_over = stepper.walk(scaled(max(5, scene.stride // 8), 1))
                crowd.await_progress()
            stepper.go()
            victim.worker.answer()
            assert victim.worker.call("drain") == 0
            fates = {victim.number: (victim.sent, victim.has_published())}
        sent = crowd.finish()
        check_log(store, fates, sent)


@scenes
def test_producers_stopped_for_the_rest_of_the_run_delay_nobody(
    zygote: Zygote, config: StoreConfig, scene: Scene
) -> None:
    fates: Fates = {}
    with (
        ForkedStore(zygote, config) as store,
        Crowd(zygote, store) as crowd,
        Stepper() as stepper,
    ):
        victims = Victims(zygote, store, store.add_queue("victims"), scene)
        points = victims.points(stepper, scaled(scene.stride * 8, 1), fates)
        while not points.is_over:
            with contextlib.ExitStack() as standing:
                for _ in range(ROUND):
                    victim = standing.enter_context(victims.victim(stepper))
                    points.reach()
                    stepper.stop()
                    wait_until(lambda pid=victim.worker.pid: is_stopped(pid))
                    fates[victim.number] = victim.sent, victim.has_published()
                    if points.is_over:
                        break
                    crowd.await_progress()
                crowd.await_progress()
        sent = crowd.finish()
        check_log(store, fates, sent)
    points.report("stopped for good")
