"""Whole replica sets with their Controllers, from seeds; and that a broken rule is found.

20,000 steps by default, a million in a full run, at some 25,000 a second. A failure names its seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from shmq.controller import controller, replicas
from shmq.errors import StoreCorruptError
from tests.conftest import SEED
from tests.simulation.replica_set import BROKERS, NAME, Cluster, ViolationError
from tests.support.scale import is_full_run, scaled

STEPS = 2_000
CLUSTERS = scaled(10, 500)
HEAL_STEPS_MAX = 20_000
BROKEN_CLUSTERS_MAX = 100


@pytest.mark.parametrize("is_unclean_allowed", [False, True], ids=["clean", "unclean"])
def test_no_fault_makes_a_master_that_should_not_be(is_unclean_allowed: bool) -> None:
    total: Counter[str] = Counter()
    for index in range(CLUSTERS if not is_unclean_allowed else CLUSTERS // 5):
        seed = hash((SEED, index))
        cluster = Cluster(seed, is_unclean_allowed=is_unclean_allowed)
        try:
            _live(cluster)
            _come_to_a_master(cluster)
        except (AssertionError, StoreCorruptError) as error:
            pytest.fail(f"seed {seed}: {error!r}")
        total.update(cluster.counts)
    print(dict(total))
    assert total["begun"]
    assert total["confirmed"]
    if is_full_run():
        assert all(total.values()), "something never happened"


def test_without_faults_the_first_master_is_the_only_one() -> None:
    cluster = Cluster(SEED)
    cluster.heal()
    for _ in range(STEPS):
        cluster.step()
    counts = cluster.counts
    assert (counts["begun"], counts["killed"], counts["handed over"]) == (1, 0, 0), counts
    info = cluster.table.get(NAME)
    assert info is not None
    assert info.sync_state_set == {1, 2, 3}
    assert counts["confirmed"]


def _live(cluster: Cluster) -> None:
    for _ in range(STEPS):
        cluster.step()


def _come_to_a_master(cluster: Cluster) -> None:
    """Without faults there is a master in the end, and messages are confirmed under it."""
    cluster.heal()
    before = cluster.counts["confirmed"]
    for _ in range(HEAL_STEPS_MAX):
        cluster.step()
        if cluster.master is not None and cluster.counts["confirmed"] > before:
            return
    raise ViolationError("all is well, and nobody confirms messages")


def _forget_what_was_asked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cluster, "_count_as_in_sync", lambda *_: None)


def _begin_before_the_files_hold_the_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cluster, "_flush_adopted", lambda *_: None)


def _go_on_without_the_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cluster, "_may_do_without_memory", lambda *_: True)


def _tell_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cluster, "_is_durable", lambda *_: True)


def _elect_whoever_has_the_longest_log(patch: pytest.MonkeyPatch) -> None:
    elect = controller.elect
    patch.setattr(
        controller,
        "elect",
        lambda info, living, **how: elect(
            info, living, **{**how, "is_unclean_allowed": True, "is_grace_over": True}
        ),
    )


def _take_alterations_of_any_epoch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(controller, "_refuse_alteration", lambda *_: None)


def _elect_learners(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replicas.ReplicasInfo, "electable", frozenset(BROKERS))


def _empty_the_sync_state_set_with_the_election(patch: pytest.MonkeyPatch) -> None:
    """As RocketMQ does, which has no memory of a dead master to refuse."""
    apply_record = replicas.apply_record

    def apply(info: replicas.ReplicasInfo, record: replicas.Record) -> replicas.ReplicasInfo:
        after = apply_record(info, record)
        if isinstance(record, replicas.MasterElected) and record.master_broker_id is not None:
            in_sync = frozenset({record.master_broker_id})
            after = replicas.dataclasses.replace(after, sync_state_set=in_sync)
        return after

    patch.setattr(replicas, "apply_record", apply)


@pytest.mark.parametrize(
    "break_it",
    [
        _forget_what_was_asked_for,
        _begin_before_the_files_hold_the_memory,
        _go_on_without_the_memory,
        _tell_before_it_is_durable,
        _elect_whoever_has_the_longest_log,
        _take_alterations_of_any_epoch,
        _elect_learners,
        _empty_the_sync_state_set_with_the_election,
    ],
    ids=lambda break_it: break_it.__name__.strip("_"),
)
def test_a_broken_rule_is_found(
    monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    break_it(monkeypatch)
    for seed in range(BROKEN_CLUSTERS_MAX):
        try:
            _live(Cluster(seed))
        except (ViolationError, StoreCorruptError) as error:
            print(f"seed {seed}: {error}")
            return
    pytest.fail(f"not found in {BROKEN_CLUSTERS_MAX} clusters")
