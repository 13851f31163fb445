"""The numbers that shmq shows to monitoring: their names, what they count, and by which labels.

What lives here: `METRICS`, from which exporters serve and docs/reference/metrics.md is made. Names
are ours, in base units (Prometheus: seconds, bytes, `_total`). Every number of a broker has the
labels cluster, broker and broker_id besides those in the table. Pure: nothing here reads or writes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["BROKER_LABELS", "METRICS", "Metric", "MetricKind", "MetricScope"]

BROKER_LABELS = ("cluster", "broker", "broker_id")
"""Of everything that belongs to one broker."""


class MetricKind(enum.StrEnum):
    """How a number moves."""

    COUNTER = "counter"
    """It grows; it begins anew with the broker, or with its memory."""
    GAUGE = "gauge"
    """It goes up and down."""
    HISTOGRAM = "histogram"
    """Counts by bucket, with their sum; counters all."""


class MetricScope(enum.StrEnum):
    """What a number is about, and so who shows it."""

    HOST = "host"
    """This machine, or the exporter itself: no broker's labels."""
    BROKER = "broker"
    """A broker: masters and slaves."""
    MASTER = "master"
    """A broker that takes messages; a slave has the same log, and would count it twice."""
    QUEUE = "queue"
    """One queue of a master: shown by request (--queues)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number."""

    name: str
    """Without the `_bucket`, `_sum` and `_count` of a histogram."""
    kind: MetricKind
    """How it moves."""
    scope: MetricScope
    """What it is about."""
    text: str
    """One sentence for people."""
    labels: tuple[str, ...] = ()
    """Beside the broker's."""
    scale: float = 1
    """What a broker's whole number is multiplied by."""


_C, _G, _H = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM
_HOST, _BROKER = MetricScope.HOST, MetricScope.BROKER
_MASTER, _QUEUE = MetricScope.MASTER, MetricScope.QUEUE

_TABLE = (
    # ---- the broker --------------------------------------------------------------------------
    Metric("shmq_broker_up", _G, _BROKER, "1 while its process lives, 0 after it died."),
    Metric("shmq_start_time_seconds", _G, _BROKER, "When it began, since 1970.", scale=1e-3),
    Metric("shmq_heartbeat_age_seconds", _G, _BROKER, "Since its control thread last went round."),
    Metric("shmq_ha_role", _G, _BROKER, "1 for what it is: master or slave.", ("role",)),
    Metric("shmq_master_epoch", _G, _BROKER, "Mastership under which its memory is written."),
    Metric("shmq_store_writable", _G, _BROKER, "1 while its store takes messages, 0 while not."),
    Metric(
        "shmq_store_waits",
        _G,
        _BROKER,
        "1 while the next CommitLog file cannot be made, by what senders are told.",
        ("status",),
    ),
    Metric("shmq_problem", _G, _BROKER, "1 while it has a problem that a person should see to."),
    Metric("shmq_sessions", _G, _BROKER, "Clients with memory shared with it, lost ones included."),
    Metric("shmq_sessions_lost", _G, _BROKER, "Sessions of a dead predecessor, not yet resumed."),
    Metric("shmq_sessions_ended_total", _C, _BROKER, "Sessions ended because they broke a rule."),
    Metric(
        "shmq_sessions_reaped_total",
        _C,
        _BROKER,
        "Sessions whose client's process ended and had not closed them.",
    ),
    Metric("shmq_clients", _G, _BROKER, "Programs connected that said who they are."),
    Metric("shmq_topics", _G, _BROKER, "Topics it has."),
    Metric("shmq_queues", _G, _BROKER, "Queues it has."),
    # ---- the path of a message ----------------------------------------------------------------
    Metric("shmq_turns_total", _C, _BROKER, "Turns committed; several messages share one."),
    Metric(
        "shmq_records_refused_total",
        _C,
        _BROKER,
        "Sends answered with an error, by its status.",
        ("status",),
    ),
    Metric(
        "shmq_send_duration_seconds",
        _H,
        _BROKER,
        "From a send until its sender had the answer; of sends that want one.",
    ),
    Metric("shmq_ring_full_total", _C, _BROKER, "Sends that found no room in their ring."),
    Metric("shmq_ring_used_ratio", _G, _BROKER, "Of the fullest ring, 0 to 1."),
    Metric("shmq_wakeups_total", _C, _BROKER, "Sleeping clients woken."),
    Metric("shmq_append_sleeps_total", _C, _BROKER, "Times the append thread slept."),
    Metric("shmq_log_full_turns_total", _C, _BROKER, "Turns cut short: the disk is too slow."),
    Metric("shmq_arena_full_turns_total", _C, _BROKER, "Turns cut short: no ConsumeQueue block."),
    # ---- the log -------------------------------------------------------------------------------
    Metric("shmq_log_appended_bytes_total", _C, _BROKER, "Where its log ends, in bytes."),
    Metric("shmq_log_kept_bytes", _G, _BROKER, "Bytes of its log in memory and files."),
    Metric("shmq_log_hot_bytes", _G, _BROKER, "Bytes of its log in memory."),
    Metric("shmq_flush_behind_bytes", _G, _BROKER, "Committed and not yet on disk."),
    Metric("shmq_fsync_duration_seconds", _H, _BROKER, "What a sync of the log took."),
    Metric("shmq_files_rolled_total", _C, _BROKER, "CommitLog files begun."),
    Metric("shmq_expired_files_total", _C, _BROKER, "CommitLog files that retention removed."),
    Metric("shmq_expired_bytes_total", _C, _BROKER, "Bytes in them."),
    Metric(
        "shmq_expired_unread_messages_total",
        _C,
        _BROKER,
        "Messages removed before a group had them, by group.",
        ("group",),
    ),
    Metric("shmq_corrupt_records", _G, _BROKER, "Damaged places in its quarantine list."),
    Metric("shmq_store_disk_free_bytes", _G, _BROKER, "Free on the disk of its store."),
    Metric("shmq_store_disk_size_bytes", _G, _BROKER, "Size of that disk."),
    Metric("shmq_store_disk_free_files", _G, _BROKER, "Files that can still be made there."),
    Metric("shmq_store_disk_size_files", _G, _BROKER, "Files that there may be."),
    Metric("shmq_store_read_only", _G, _BROKER, "1 while that file system is read-only."),
    Metric(
        "shmq_memory_free_bytes",
        _G,
        _BROKER,
        "Memory that it can still get, by the machine and its memory cgroups.",
    ),
    Metric("shmq_memory_size_bytes", _G, _BROKER, "The limit that leaves it least."),
    Metric("shmq_open_files", _G, _BROKER, "Files and connections that it has open."),
    Metric("shmq_open_files_limit", _G, _BROKER, "How many it may have (LimitNOFILE=)."),
    Metric("shmq_segment_bytes", _G, _BROKER, "Its shared memory, by kind of object.", ("kind",)),
    # ---- replicas ------------------------------------------------------------------------------
    Metric(
        "shmq_cut_messages_total",
        _C,
        _BROKER,
        "Messages cut of its log that only it had: resent, present at the master, or lost.",
        ("outcome",),
    ),
    Metric("shmq_cut_pending_bytes", _G, _BROKER, "Cut of its log, and not looked at yet."),
    Metric("shmq_ha_in_sync_replicas", _G, _MASTER, "Brokers in its SyncStateSet, with itself."),
    Metric(
        "shmq_ha_replica_lag_bytes",
        _G,
        _MASTER,
        "How far a slave is behind, by its broker_id.",
        ("replica",),
    ),
    Metric(
        "shmq_ha_replica_in_sync",
        _G,
        _MASTER,
        "1 for a slave in the SyncStateSet, 0 for one that is not.",
        ("replica",),
    ),
    # ---- topics and groups ---------------------------------------------------------------------
    Metric("shmq_messages_in_total", _C, _MASTER, "Messages appended, by topic.", ("topic",)),
    Metric("shmq_bytes_in_total", _C, _MASTER, "Bytes of their frames.", ("topic",)),
    Metric("shmq_topic_messages", _G, _MASTER, "Messages kept that can be consumed.", ("topic",)),
    Metric(
        "shmq_messages_out_total",
        _C,
        _MASTER,
        "Messages that a group has passed: consumed, filtered out, or skipped by hand.",
        ("group", "topic"),
    ),
    Metric(
        "shmq_consumer_lag_messages",
        _G,
        _MASTER,
        "Messages that a group has before it.",
        ("group", "topic"),
    ),
    Metric(
        "shmq_consumer_lag_seconds",
        _G,
        _MASTER,
        "Age of the oldest of them; 0 without.",
        ("group", "topic"),
    ),
    Metric("shmq_consumer_members", _G, _MASTER, "Members of a group connected.", ("group",)),
    Metric("shmq_retries_total", _C, _MASTER, "Messages sent back, to be consumed again."),
    Metric("shmq_dead_letters_total", _C, _MASTER, "Messages given up: moved to %DLQ% topics."),
    Metric(
        "shmq_dead_letters_waiting",
        _G,
        _MASTER,
        "Dead letters of a group that were not replayed.",
        ("group",),
    ),
    Metric("shmq_delayed_messages", _G, _MASTER, "Delayed messages that wait for their time."),
    Metric("shmq_delayed_delivered_total", _C, _MASTER, "Delayed messages put where they belong."),
    Metric("shmq_delayed_dropped_total", _C, _MASTER, "Delayed messages that could not be."),
    # ---- queues, by request --------------------------------------------------------------------
    Metric(
        "shmq_queue_messages_in_total",
        _C,
        _QUEUE,
        "Messages appended to a queue.",
        ("topic", "queue"),
    ),
    Metric(
        "shmq_queue_messages",
        _G,
        _QUEUE,
        "Messages kept in a queue that can be consumed.",
        ("topic", "queue"),
    ),
    Metric(
        "shmq_queue_consumer_lag_messages",
        _G,
        _QUEUE,
        "Messages that a group has before it in a queue.",
        ("group", "topic", "queue"),
    ),
    # ---- the host and the exporter -------------------------------------------------------------
    Metric(
        "shmq_service_up",
        _G,
        _HOST,
        "1 while a NameServer or Controller lives, 0 after it died; none once it was stopped.",
        ("service",),
    ),
    Metric("shmq_dev_shm_free_bytes", _G, _HOST, "Free in /dev/shm."),
    Metric("shmq_dev_shm_size_bytes", _G, _HOST, "Size of /dev/shm."),
    Metric("shmq_build_info", _G, _HOST, "1, with the exporter's version.", ("version",)),
    Metric("shmq_exporter_series", _G, _HOST, "Series shown."),
    Metric("shmq_exporter_series_dropped", _G, _HOST, "Series left out: beyond --series-max."),
    Metric("shmq_exporter_problems", _G, _HOST, "Brokers whose memory could not be read."),
    Metric(
        "shmq_exporter_scrape_seconds",
        _G,
        _HOST,
        "What reading all of this and writing it as text took.",
    ),
)

METRICS = {metric.name: metric for metric in _TABLE}
"""All of them, by name, in the order in which they are shown."""
