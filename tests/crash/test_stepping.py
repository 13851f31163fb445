"""The stepper's short cuts: a leap must stand where so many single steps have led."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.crash.stepping import SEEK_TRIES, Points, Stepper, address_of
from tests.crash.victims import SCENES, Victims
from tests.support.zygote import ForkedStore

if TYPE_CHECKING:
    from shmq.config import StoreConfig
    from tests.support.zygote import Zygote

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("loan", range(0, 1200, 171)),
        # A copy of 6000 bytes: some leaps end in the midst of an instruction that repeats itself.
        ("put through chunk memory", (1000, 2200, 5000, 7900, 8200)),
    ],
)
def test_leap_stands_where_so_many_steps_have_led(
    zygote: Zygote, config: StoreConfig, name: str, counts: tuple[int, ...]
) -> None:
    with ForkedStore(zygote, config) as store, Stepper() as stepper:
        victims = Victims(zygote, store, store.add_queue("victims"), SCENES[name])
        way = victims.points(stepper, 1, {}).ways[-1]
        for count in counts:
            with victims.victim(stepper):
                assert stepper.leap(count) == (count, False)
                assert stepper.stands_at == way[count]
                following = itertools.takewhile(way[count].__eq__, way[count:])
                assert stepper.repetitions_left in (0, len(list(following)))
                stepper.kill()


def test_what_no_victim_stood_at_is_sought_step_by_step_and_named_if_nobody_ever_comes_there(
    zygote: Zygote, config: StoreConfig
) -> None:
    with ForkedStore(zygote, config) as store, Stepper() as stepper:
        victims = Victims(zygote, store, store.add_queue("victims"), SCENES["loan"])
        way = victims.points(stepper, 1, {}).ways[-1]
        wanted = [way[0], way[300], way[700]]
        with victims.victim(stepper) as victim:
            elsewhere = address_of(victim.worker.pid, "lane_put")
            stepper.kill()
        never = Points(stepper, [[*wanted, elsewhere]], [0], is_every=True)
        stood = []
        while not never.is_over:
            with victims.victim(stepper):
                never.reach()
                stood.append(stepper.stands_at)
                stepper.kill()
        assert set(wanted) < set(stood)
        assert len(stood) == 3 + SEEK_TRIES
        with pytest.raises(AssertionError, match=r"none stood at 1:\nlane_put at lane\.c:"):
            never.report("killed")
