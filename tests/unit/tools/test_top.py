"""Rows of `shmq top`, of numbers that no broker has."""

from __future__ import annotations

import pytest

from shmq.store.retention import DiskUsage
from shmq.tools.reading import Reading
from shmq.tools.top import TABLES, rows_of


def labels(broker: str) -> dict[str, str]:
    return {"cluster": "c", "broker": broker, "broker_id": "0"}


@pytest.fixture
def before() -> Reading:
    return Reading(0, DiskUsage(used_bytes=1, free_bytes=1))


@pytest.fixture
def now() -> Reading:
    """One second later: a master that is well, and one of each kind that is not."""
    made = Reading(1_000_000_000, DiskUsage(used_bytes=1, free_bytes=1))
    for name in ("well", "slave", "hung", "waits", "dead"):
        made.take("shmq_broker_up", labels(name), name != "dead")
    for name in ("well", "slave", "hung", "waits"):
        role = "slave" if name == "slave" else "master"
        made.take("shmq_ha_role", {**labels(name), "role": role}, 1)
        made.take("shmq_heartbeat_age_seconds", labels(name), 15 if name == "hung" else 10)
        made.take("shmq_store_writable", labels(name), name in ("well", "hung"))
    return made


def test_role_says_who_does_not_work(before: Reading, now: Reading) -> None:
    roles = {row["broker"]: row["role"] for row in rows_of("brokers", before, now)}
    assert roles == {
        "dead": "DEAD", "hung": "HUNG", "slave": "slave", "waits": "WAITS", "well": "master",
    }  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_rows_have_a_value_for_each_column(name: str, before: Reading, now: Reading) -> None:
    topic = {**labels("well"), "topic": "orders"}
    now.take("shmq_topic_messages", topic, 1)
    now.take("shmq_consumer_lag_messages", {**topic, "group": "g"}, 1)
    rows = rows_of(name, before, now)
    assert rows
    for row in rows:
        assert row.keys() == {column.key for column in TABLES[name].columns}


def test_what_is_not_known_comes_last(before: Reading, now: Reading) -> None:
    now.take("shmq_sessions", labels("waits"), 1)
    now.take("shmq_sessions", labels("well"), 2)
    rows = rows_of("brokers", before, now, sorted_by="sessions")
    assert [row["broker"] for row in rows][:2] == ["well", "waits"]


def test_rate_is_what_a_counter_grew_by_and_none_where_it_began_anew(
    before: Reading, now: Reading
) -> None:
    for topic, then, since in (("a", 10, 17), ("b", 10, 3)):
        topic_labels = {**labels("well"), "topic": topic}
        before.take("shmq_messages_in_total", topic_labels, then)
        now.take("shmq_messages_in_total", topic_labels, since)
        now.take("shmq_topic_messages", topic_labels, since)
    rates = {row["topic"]: row["messagesInPerSecond"] for row in rows_of("topics", before, now)}
    assert rates == {"a": 7, "b": 0}
