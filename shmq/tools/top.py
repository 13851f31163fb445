"""What `shmq top` shows: rows made of two readings, sorted and filtered.

What lives here: `TABLES`, the three tables with their columns, and `rows_of`. Pure: nothing is read
or written, nothing blocks or fails. Rates are those between the two readings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shmq.metrics import BROKER_LABELS
from shmq.tools.checks import CHECKS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shmq.tools.reading import Broker, Reading

__all__ = ["Column", "TABLES", "Table", "Value", "rows_of"]

Value = str | float | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    key: str
    """In JSON."""
    head: str
    """On the screen."""
    unit: str = ""
    """bytes, s, /s, %, or none."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table: what its rows are about, and how they are made."""

    columns: tuple[Column, ...]
    """Their keys are those of its rows."""
    sorted_by: str
    """Key of the column by which it is sorted unless asked otherwise."""
    make: Callable[[Reading, Reading], list[dict[str, Value]]]
    """Rows of (before, now)."""


def rows_of(
    name: str,
    before: Reading,
    now: Reading,
    *,
    sorted_by: str | None = None,
    wanted: str = "",
) -> list[dict[str, Value]]:
    """The rows of a table: the largest first, texts from a to z.

    Args:
        name: one of TABLES.
        before: an earlier reading, for rates.
        now: the reading to show.
        sorted_by: key of a column; None: the table's own.
        wanted: only rows with this text in a name, whatever its case.
    """
    table = TABLES[name]
    key = sorted_by or table.sorted_by
    rows = [row for row in table.make(before, now) if _has(row, wanted.lower())]
    name_key = table.columns[0].key
    rows.sort(key=lambda row: str(row[name_key]))
    if any(isinstance(row[key], str) for row in rows):
        return sorted(rows, key=lambda row: str(row[key]))
    return sorted(rows, key=lambda row: -_number(row[key]))


def _has(row: Mapping[str, Value], wanted: str) -> bool:
    return any(wanted in value.lower() for value in row.values() if isinstance(value, str))


def _number(value: Value) -> float:
    return value if isinstance(value, (int, float)) else -1.0  # what is not known comes last


def _brokers(before: Reading, now: Reading) -> list[dict[str, Value]]:
    numbers = {name: now.by_broker(name) for name in _BROKER_GAUGES.values()}
    messages = now.rates(before, "shmq_messages_in_total", *BROKER_LABELS)
    size = now.rates(before, "shmq_bytes_in_total", *BROKER_LABELS)
    ring_used = now.by_broker("shmq_ring_used_ratio")
    free = now.by_broker("shmq_store_disk_free_bytes")
    disk_used = {
        broker: 1 - free.get(broker, 0) / total
        for broker, total in now.by_broker("shmq_store_disk_size_bytes").items()
        if total
    }
    roles: dict[Broker, str] = {
        (labels["cluster"], labels["broker"], labels["broker_id"]): labels["role"]
        for labels, value in now.of("shmq_ha_role")
        if value
    }
    behind: dict[Broker, float] = {
        (labels["cluster"], labels["broker"], labels["replica"]): value
        for labels, value in now.of("shmq_ha_replica_lag_bytes")
    }
    ailing = _ailing(now, roles)
    rows = []
    for broker, is_up in sorted(now.by_broker("shmq_broker_up").items()):
        gauges = {key: numbers[name].get(broker) for key, name in _BROKER_GAUGES.items()}
        rows.append(
            {
                "broker": broker[1],
                "brokerId": broker[2],
                "role": "DEAD" if not is_up else ailing.get(broker) or roles.get(broker, ""),
                "messagesInPerSecond": messages.get(broker),
                "bytesInPerSecond": size.get(broker),
                "replicaLagBytes": behind.get(broker),
                "sendP99Seconds": now.quantile(before, "shmq_send_duration_seconds", broker, 0.99),
                "fsyncP99Seconds": now.quantile(
                    before, "shmq_fsync_duration_seconds", broker, 0.99
                ),
                "diskUsedPercent": _percent(disk_used.get(broker)),
                "ringUsedPercent": _percent(ring_used.get(broker)),
                **gauges,
            }
        )
    return rows


def _ailing(now: Reading, roles: Mapping[Broker, str]) -> dict[Broker, str]:
    """What comes before its role: of those that hang, and those that take no messages."""
    found: dict[Broker, str] = {}
    for broker, is_writable in now.by_broker("shmq_store_writable").items():
        if not is_writable and roles.get(broker) == "master":
            found[broker] = "WAITS"
    for broker, age_s in now.by_broker("shmq_heartbeat_age_seconds").items():
        if age_s >= CHECKS["broker"].limits[0]:
            found[broker] = "HUNG"
    return found


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else 100 * ratio


_BROKER_GAUGES = {
    "sessions": "shmq_sessions",
    "flushBehindBytes": "shmq_flush_behind_bytes",
    "logHotBytes": "shmq_log_hot_bytes",
}


def _topics(before: Reading, now: Reading) -> list[dict[str, Value]]:
    messages = now.rates(before, "shmq_messages_in_total", "topic")
    size = now.rates(before, "shmq_bytes_in_total", "topic")
    return [
        {
            "topic": topic,
            "messagesInPerSecond": messages.get((topic,)),
            "bytesInPerSecond": size.get((topic,)),
            "messages": kept,
        }
        for (topic,), kept in now.by("shmq_topic_messages", "topic").items()
    ]


def _groups(before: Reading, now: Reading) -> list[dict[str, Value]]:
    out = now.rates(before, "shmq_messages_out_total", "group", "topic")
    members = now.by("shmq_consumer_members", "group")
    seconds: dict[tuple[str, str], float] = {}
    for labels, value in now.of("shmq_consumer_lag_seconds"):
        key = labels["group"], labels["topic"]
        seconds[key] = max(seconds.get(key, 0.0), value)
    return [
        {
            "group": group,
            "topic": topic,
            "lagMessages": lag,
            "lagSeconds": seconds.get((group, topic)),
            "messagesOutPerSecond": out.get((group, topic)),
            "members": members.get((group,), 0),
        }
        for (group, topic), lag in now.by("shmq_consumer_lag_messages", "group", "topic").items()
    ]


TABLES: dict[str, Table] = {
    "brokers": Table(
        (
            Column("broker", "BROKER"),
            Column("brokerId", "ID"),
            Column("role", "ROLE"),
            Column("messagesInPerSecond", "IN", "/s"),
            Column("bytesInPerSecond", "BYTES", "bytes"),
            Column("sendP99Seconds", "SEND P99", "s"),
            Column("ringUsedPercent", "RING", "%"),
            Column("flushBehindBytes", "NOT ON DISK", "bytes"),
            Column("fsyncP99Seconds", "FSYNC P99", "s"),
            Column("replicaLagBytes", "BEHIND", "bytes"),
            Column("logHotBytes", "IN MEMORY", "bytes"),
            Column("diskUsedPercent", "DISK", "%"),
            Column("sessions", "CLIENTS"),
        ),
        "broker",
        _brokers,
    ),
    "topics": Table(
        (
            Column("topic", "TOPIC"),
            Column("messagesInPerSecond", "IN", "/s"),
            Column("bytesInPerSecond", "BYTES", "bytes"),
            Column("messages", "KEPT"),
        ),
        "messagesInPerSecond",
        _topics,
    ),
    "groups": Table(
        (
            Column("group", "GROUP"),
            Column("topic", "TOPIC"),
            Column("lagMessages", "LAG"),
            Column("lagSeconds", "OLDEST", "s"),
            Column("messagesOutPerSecond", "OUT", "/s"),
            Column("members", "MEMBERS"),
        ),
        "lagMessages",
        _groups,
    ),
}
"""By name, in the order of the screen."""
