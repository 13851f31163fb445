"""A master dies, and another member of its replica set goes on with the memory that it left.

Two members, each with a folder of its own, the second one's begun as a copy of what the first had
flushed. The master is killed under load; the other takes over, the clients resume, and so on in
turn. In the end the last master's folder holds every message once and in order, at the offset that
its producer was told: also what had been in no file of any member when the master died.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from shmq.shm.manifest import load as load_manifest
from shmq.shm.manifest import manifest_path
from shmq.shm.names import ObjectKind, parse
from shmq.shm.reaper import Finding, Verdict, reap
from shmq.store.epochs import EpochFile
from tests.crash.crowd import read_log
from tests.crash.load import Load, check_log
from tests.support.scale import scaled

if TYPE_CHECKING:
    from shmq.config import StoreConfig
    from tests.support.zygote import Zygote

pytestmark = [
    pytest.mark.crash,
    pytest.mark.stress,
    pytest.mark.timeout(scaled(120, 7200)),
]


def copy_prefix(master: StoreConfig, broker_id: int) -> StoreConfig:
    """Another member, with a copy of what the stopped master has in files."""
    path = master.store_path.with_name(f"member-{broker_id}")
    unwanted = shutil.ignore_patterns("manifest.json", "lock")
    shutil.copytree(master.store_path, path, ignore=unwanted)
    return replace(master, store_path=path, broker_id=broker_id)


def reaped(members: list[StoreConfig]) -> list[Finding]:
    """What `shmq shm clean` removes now."""
    runtime_path = members[0].runtime_path
    assert runtime_path is not None
    lists = [manifest_path(member.store_path) for member in members]
    findings = reap([runtime_path], lists, dry_run=False)
    return [finding for finding in findings if finding.verdict is Verdict.REMOVED]


def _listed_numbers(members: list[StoreConfig]) -> set[int]:
    """Of the hot segments that a member's list names."""
    lists = [load_manifest(manifest_path(member.store_path)) for member in members]
    names = [entry.name for one in lists if one is not None for entry in one.objects]
    return {name.n for name in names if name.kind is ObjectKind.HOT}


def _hot_number(finding: Finding) -> int:
    name = parse(finding.name)
    assert name is not None, finding
    assert name.kind is ObjectKind.HOT, finding
    return name.n


def test_members_that_take_over_from_each_other_lose_and_double_nothing(
    zygote: Zygote, config: StoreConfig, rng: random.Random
) -> None:
    with Load(zygote, config, rng, is_member=True) as load:
        load.pass_time()
        load.store.stop(keep_memory=True)
        other = copy_prefix(config, 1)
        load.succeed(config)
        assert not load.store.is_inherited
        members = [config, other]
        epoch = load.store.master_epoch
        for number in range(1, scaled(8, 500)):
            load.pass_time()
            load.store.kill()
            load.succeed(members[number % 2], and_mortal=number % 3 == 1)
            assert load.store.is_inherited
            epoch += 1
            assert load.store.master_epoch == epoch
        load.pass_time()
        reports = load.finish()
        last = load.store.config.store_path
        check_log(load, read_log(last), reports)
        assert EpochFile.load(last).last_epoch == epoch


def test_takeover_killed_at_any_step_is_taken_over_again(
    zygote: Zygote, config: StoreConfig, rng: random.Random
) -> None:
    """The one that was taking over dies at a step of it, and whoever comes next, it or the old
    master, dies at another; whose the memory is follows from what each has left.
    """
    with Load(zygote, config, rng, is_member=True) as load:
        load.pass_time()
        load.store.stop(keep_memory=True)
        members = [config, copy_prefix(config, 1)]
        load.succeed(config)
        load.pass_time()
        load.store.kill()
        load.store = load.store.restart(members[1], dies_at=0)
        step_count = load.store.step_count
        assert step_count > 100
        for worker in load.workers:
            worker.resume(load.store)
        load.pass_time()
        load.store.kill()
        steps = range(1, step_count)
        for step in rng.sample(steps, scaled(60, len(steps))):
            with contextlib.suppress(ConnectionError):  # its death
                load.store = load.store.restart(rng.choice(members), dies_at=step)
                load.store.kill()  # this one had fewer steps to go
            listed = _listed_numbers(members)
            numbers = [_hot_number(finding) for finding in reaped(members)]
            # One that was made at the very end is in no list yet, and nothing is in it.
            assert all(number > max(listed) for number in numbers), (step, listed, numbers)
        load.succeed(rng.choice(members))
        load.pass_time()
        reports = load.finish()
        check_log(load, read_log(load.store.config.store_path), reports)
