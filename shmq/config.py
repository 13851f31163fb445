"""Settings of each role: frozen dataclasses with units in the names, and the one way to load them.

A value comes from, first to last: an argument, the environment (SHMQ_<NAME> in capitals), a TOML
file, the default. Every setting may be written by its own name or by RocketMQ's key
(flushDiskType, maxMessageSize), so that a broker.conf can be carried over line by line. Sizes may
be written with KiB, MiB or GiB. None (written "auto") means that nobody asked: such a size shrinks
to what the machine has, while an explicit one is taken or refused (shmq.shm.budget).

Nothing is written here and nothing blocks but the reading of the file. An unknown key, a value of
another kind or out of its range raises ConfigError naming source, key, seen and wanted.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from enum import Enum, StrEnum, unique
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, get_args, get_type_hints

from shmq.errors import ConfigError, ShmqError
from shmq.status import BrokerRole, FlushDiskType
from shmq.topic import BROKER_ID_MAX

__all__ = [
    "AUTO",
    "BrokerConfig",
    "ClusterConfig",
    "ControllerConfig",
    "ENVIRONMENT_PREFIX",
    "KeepMemory",
    "LISTEN_PORTS",
    "NamesrvConfig",
    "SERVICES_FOLDER",
    "Setting",
    "StoreConfig",
    "WaitingPolicy",
    "change_live",
    "default_namesrv_folder",
    "default_runtime_folder",
    "load",
    "load_broker_setting",
    "load_broker_tables",
    "names_of",
    "parsed_settings",
    "setting_text",
    "settings",
]

ENVIRONMENT_PREFIX = "SHMQ_"
AUTO = "auto"
"""How None is written in a file or in the environment."""

SERVICES_FOLDER = Path("/run/shmq")
"""The runtime folder of shmq's systemd units."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB)?")
_FACTOR = {None: 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}
_FLAGS: dict[object, bool] = {True: True, False: False, "true": True, "false": False}
_NAME = re.compile(r"[^\s/\x00-\x1f\x7f]{1,127}")
_PAGE_BYTES = 4096
DELAY_LEVELS = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"
"""RocketMQ's messageDelayLevel."""
DELAY_LEVEL_MAX = 64
"""Levels at most: what the core has room for."""
_DELAY = re.compile(r"([1-9]\d{0,5})([smhd])")
_DELAY_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
FRAME_BYTES_MAX = 64 * KIB
"""What a record may take beside its body: fixed fields, topic and properties, rounded up."""


@unique
class WaitingPolicy(StrEnum):
    """What a thread does while there is nothing to do."""

    BLOCKING = "blocking"
    """Sleeps at once: least processor time, one wake-up dearer."""
    ADAPTIVE = "adaptive"
    """Some pauses, a few yields, then sleeps."""
    BUSY_SPIN = "busy_spin"
    """Never sleeps: takes a core of its own."""


def _setting(
    default: object = MISSING,
    *,
    rocketmq: tuple[str, ...] = (),
    least: int | None = None,
    most: int | None = None,
    multiple_of: int = 1,
    power_of_two: bool = False,
    live: bool = False,
) -> Any:
    """A field with what its value must satisfy, RocketMQ's keys for it, and whether it may change
    while its process runs.
    """
    metadata = {
        "rocketmq": rocketmq,
        "least": least,
        "most": most,
        "multiple_of": multiple_of,
        "power_of_two": power_of_two,
        "live": live,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """One store: the CommitLog of one broker in shared memory and on disk."""

    store_path: Path = _setting(rocketmq=("storePathRootDir",))
    """Folder of the store; made if it is not there. No default: a store belongs somewhere chosen.
    A relative path in a file counts from that file's folder."""
    cluster_name: str = _setting("DefaultCluster", rocketmq=("brokerClusterName",))
    """Cluster of the broker, part of segment names. RocketMQ's default."""
    broker_name: str = _setting("broker-a", rocketmq=("brokerName",))
    """Name that master and slaves share. The name in RocketMQ's shipped configuration."""
    broker_id: int = _setting(0, rocketmq=("brokerId",), least=0, most=BROKER_ID_MAX)
    """0 is the master, others are slaves."""
    broker_ip: str = _setting("127.0.0.1", rocketmq=("brokerIP1",))
    """IPv4 address written as storeHost into every record, so that a real broker that takes over
    the store answers for its message ids. Loopback: nothing listens there for shmq itself."""
    listen_port: int = _setting(10911, rocketmq=("listenPort",), least=0, most=65_535)
    """Port written beside it; RocketMQ's default port. In a cluster file each broker that leaves it
    out gets one of its own, in the order of the tables: 10911, 10921 and so on."""
    runtime_path: Path | None = _setting(None)
    """Folder (0700) of the in-use mark and the control socket. None: the first of
    $RUNTIME_DIRECTORY (systemd), $XDG_RUNTIME_DIR/shmq, /tmp/shmq-<uid>; short, because a socket's
    path has 107 bytes."""

    commit_log_file_size_bytes: int | None = _setting(
        None,
        rocketmq=("mappedFileSizeCommitLog", "mapedFileSizeCommitLog"),
        least=64 * KIB,
        most=2 * GIB - _PAGE_BYTES,
        multiple_of=_PAGE_BYTES,
    )
    """Bytes of a CommitLog file and of a hot segment. None: 64 MiB, less where /dev/shm is small;
    larger files suit rates of GB/s. RocketMQ reads the size as a signed 32-bit number."""
    hot_segment_count: int | None = _setting(None, least=3, most=64)
    """Hot segments, each of a file's size: how far the disk may lag. None: as many as fit into an
    eighth of the free room and 1 GiB. Where they are asked for, all are kept ready for bursts; with
    slaves two, and the others hold what was written last, with which a slave can take over."""
    arena_bytes: int | None = _setting(None, least=MIB, multiple_of=_PAGE_BYTES)
    """Bytes to which the ConsumeQueue arena may grow. None: a quarter of the hot log."""
    session_count: int | None = _setting(None, least=1, most=65_536)
    """Clients at a time; their memory is allocated as they come. None: 256, fewer where the limit
    of open files or memory is low."""
    ring_bytes: int | None = _setting(None, least=64 * KIB, multiple_of=_PAGE_BYTES)
    """Bytes of one client's ingress rings together. None: 1 MiB, 256 KiB where memory is short."""
    lane_count: int = _setting(4, least=1, most=4)
    """Ingress rings into which one client's threads are spread; the layout has room for 4."""
    completion_count: int = _setting(1024, least=16, most=65_536, power_of_two=True)
    """Sends of one lane that may wait for their completion at a time. 1,024 cover 64 in flight
    for many threads in 64 KiB."""
    retired_bytes_max: int | None = _setting(None, least=0)
    """Bytes of segments already on disk that stay in memory because clients hold views of them;
    beyond it the client that does not answer is dropped. None: half the hot log."""
    queue_row_count_max: int = _setting(262_144, least=64, most=16_777_216)
    """Queues of all topics together. Address space is reserved for all, memory grows with use."""
    topic_row_count_max: int = _setting(65_536, least=16, most=4_194_304)
    """Topics. Address space is reserved for all, memory grows with use."""
    max_message_size_bytes: int = _setting(4 * MIB, rocketmq=("maxMessageSize",), least=1, most=GIB)
    """Largest body. RocketMQ's default."""
    waiting_policy: WaitingPolicy = _setting(WaitingPolicy.ADAPTIVE)
    """What the append thread does while nothing comes. Adaptive: an idle broker sleeps."""

    flush_disk_type: FlushDiskType = _setting(
        FlushDiskType.ASYNC_FLUSH, rocketmq=("flushDiskType",)
    )
    """When a message counts as stored, for topics that do not say. RocketMQ's default."""
    flush_interval_ms: int = _setting(
        10, rocketmq=("flushIntervalCommitLog",), least=0, most=60_000
    )
    """Milliseconds between two fdatasyncs of ASYNC_FLUSH. RocketMQ has 500; 10 keep what a power
    cut may take small and still leave a disk of 1 ms per sync nine tenths of its time."""
    unflushed_bytes_max: int | None = _setting(None, least=64 * KIB)
    """Bytes that ASYNC_FLUSH may leave unflushed before the flusher stops waiting for its interval.
    None: a quarter of the hot log."""
    sync_flush_timeout_ms: int = _setting(
        5_000, rocketmq=("syncFlushTimeout",), least=1, most=3_600_000
    )
    """Milliseconds after which a SYNC_FLUSH send completes as FLUSH_DISK_TIMEOUT. RocketMQ's."""
    broker_role: BrokerRole = _setting(BrokerRole.ASYNC_MASTER, rocketmq=("brokerRole",))
    """Whether a send waits for slaves where this broker is master, for topics that do not say.
    RocketMQ's default. SLAVE: it does not become master by itself, and as ASYNC_MASTER when it is
    told to."""
    slave_timeout_ms: int = _setting(3_000, rocketmq=("slaveTimeout",), least=1, most=3_600_000)
    """Milliseconds after which a SYNC_MASTER send completes as FLUSH_SLAVE_TIMEOUT. RocketMQ's."""

    message_index_enable: bool = _setting(True, rocketmq=("messageIndexEnable",))
    """Whether messages can be looked up by key and id. The index is built behind the log, of what
    is stored already too, and takes 16 bytes for each key. RocketMQ's default."""

    message_delay_level: str = _setting(DELAY_LEVELS, rocketmq=("messageDelayLevel",))
    """The delays of delay_level 1, 2, ...: numbers with s, m, h or d, joined by blanks, at most 64.
    RocketMQ's 18. A message waits by the level it was sent with, in that level's queue: new levels
    belong at the end. What waits longer than file_reserved_hours is gone with its log file."""

    file_reserved_hours: int = _setting(
        72, rocketmq=("fileReservedTime",), least=1, most=876_000, live=True
    )
    """Hours a complete CommitLog file is kept. RocketMQ's default."""
    delete_when: str = _setting("04", rocketmq=("deleteWhen",), live=True)
    """Hours of the day at which old files go, "00" to "23", joined by ";". RocketMQ's default."""
    clean_resource_interval_ms: int = _setting(
        10_000, rocketmq=("cleanResourceInterval",), least=10, most=3_600_000, live=True
    )
    """Milliseconds between two looks for files that may go. RocketMQ's default."""
    delete_file_batch_max: int = _setting(
        10, rocketmq=("deleteFileBatchMax",), least=1, most=1_000_000, live=True
    )
    """CommitLog files that one look may remove. RocketMQ's default."""
    delete_commit_log_files_interval_ms: int = _setting(
        100, rocketmq=("deleteCommitLogFilesInterval",), least=0, most=600_000, live=True
    )
    """Milliseconds between two of them. RocketMQ's default."""
    disk_max_used_space_ratio: int = _setting(
        75, rocketmq=("diskMaxUsedSpaceRatio",), least=10, most=95, live=True
    )
    """Percent of the disk used above which old files go at any hour. RocketMQ's default."""
    clean_file_forcibly_enable: bool = _setting(
        True, rocketmq=("cleanFileForciblyEnable",), live=True
    )
    """Whether messages go before their time where the disk is fuller than the next setting says,
    and their going helps. RocketMQ's default."""
    disk_space_clean_forcibly_ratio: int = _setting(85, least=10, most=100, live=True)
    """Percent of the disk used above which the oldest files go whatever their age. RocketMQ's."""
    disk_space_warning_level_ratio: int = _setting(90, least=10, most=100, live=True)
    """Percent of the disk used above which no new file is made: sends wait, then get a status.
    RocketMQ's."""
    disk_ample_free_bytes: int = _setting(8 * GIB, least=0, live=True)
    """Free bytes from which on none of these three ratios counts: a tenth of a large disk is room
    enough. RocketMQ has no such bound; a size above the disk's gives its behaviour."""

    def __post_init__(self) -> None:
        """Hold every value against its range and its neighbours."""
        _check_ranges(self)
        for name in ("cluster_name", "broker_name"):
            value = getattr(self, name)
            if not _NAME.fullmatch(value):
                wanted = "1 to 127 printable characters without blanks and /"
                raise _refused("StoreConfig", name, value, wanted)
        self._check_host()
        self._check_sizes()
        _ = self.delay_levels_ms  # raises where it names none
        hours = self.delete_when.split(";")
        if not all(re.fullmatch(r"[01]\d|2[0-3]", hour) for hour in hours):
            wanted = 'hours "00" to "23" joined by ";"'
            raise _refused("StoreConfig", "delete_when", self.delete_when, wanted)

    @property
    def delay_levels_ms(self) -> tuple[int, ...]:
        """message_delay_level in milliseconds, from level 1 on."""
        text = self.message_delay_level
        matches = [_DELAY.fullmatch(part) for part in text.split()]
        if not matches or len(matches) > DELAY_LEVEL_MAX or None in matches:
            wanted = f'1 to {DELAY_LEVEL_MAX} of "1s", "5m", "2h", "1d", joined by blanks'
            raise _refused("StoreConfig", "message_delay_level", text, wanted)
        return tuple(int(match[1]) * _DELAY_MS[match[2]] for match in matches if match)

    @property
    def master_role(self) -> BrokerRole:
        """What it is where it is master."""
        is_sync = self.broker_role is BrokerRole.SYNC_MASTER
        return BrokerRole.SYNC_MASTER if is_sync else BrokerRole.ASYNC_MASTER

    def _check_host(self) -> None:
        try:
            IPv4Address(self.broker_ip)
        except AddressValueError:
            raise _refused("StoreConfig", "broker_ip", self.broker_ip, "an IPv4 address") from None

    def _check_sizes(self) -> None:
        room = self.commit_log_file_size_bytes
        if room is not None and room < self.max_message_size_bytes + FRAME_BYTES_MAX:
            wanted = (
                f"at least {self.max_message_size_bytes + FRAME_BYTES_MAX} "
                "(max_message_size_bytes and 64 KiB for the rest of a record)"
            )
            raise _refused("StoreConfig", "commit_log_file_size_bytes", room, wanted)

    def runtime_folder(self, environ: Mapping[str, str] = os.environ) -> Path:
        """`runtime_path`, or the folder that the environment gives; it is not made here."""
        return self.runtime_path or default_runtime_folder(environ)


@unique
class KeepMemory(StrEnum):
    """What becomes of a broker's shared memory when it is stopped in order."""

    ATTACHED = "attached"
    """It stays if clients are attached: a successor adopts it and they go on."""
    ALWAYS = "always"
    """It stays."""
    NEVER = "never"
    """It is removed, whoever is attached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig(StoreConfig):
    """One broker: its store, and what it does for clients and NameServers."""

    register_broker_interval_ms: int = _setting(
        30_000, rocketmq=("registerNameServerPeriod",), least=10_000, most=60_000
    )
    """Milliseconds between two registrations where nothing changes. RocketMQ's default, and its
    bounds."""

    auto_create_topic_enable: bool = _setting(True, rocketmq=("autoCreateTopicEnable",), live=True)
    """Whether a send to an unknown topic creates it after TBW102. RocketMQ's default."""
    default_topic_queue_nums: int = _setting(
        8, rocketmq=("defaultTopicQueueNums",), least=1, most=65_535
    )
    """Queues that such a topic gets at most. RocketMQ's default."""
    auto_create_subscription_group: bool = _setting(
        True, rocketmq=("autoCreateSubscriptionGroup",), live=True
    )
    """Whether a heartbeat of an unknown consumer group creates it. RocketMQ's default."""

    client_scan_interval_ms: int = _setting(10_000, least=100, most=600_000, live=True)
    """Milliseconds between two looks for silent clients. RocketMQ's interval."""
    client_expiry_ms: int = _setting(
        120_000, rocketmq=("channelExpiredTimeout",), least=1_000, most=3_600_000, live=True
    )
    """Milliseconds after which a client without a heartbeat is ended. RocketMQ's time; a dead one
    is noticed at once."""
    flush_consumer_offset_interval_ms: int = _setting(
        5_000, rocketmq=("flushConsumerOffsetInterval",), least=100, most=600_000, live=True
    )
    """Milliseconds between two harvests of what consumers report, each of which is written to
    consumerOffset.json. RocketMQ's default."""
    flush_delay_offset_interval_ms: int = _setting(
        10_000, rocketmq=("flushDelayOffsetInterval",), least=100, most=600_000, live=True
    )
    """Milliseconds between two writes of delayOffset.json while delayed messages become due; what
    was delivered since comes twice after a power cut. RocketMQ's default."""
    session_grace_ms: int = _setting(10_000, least=100, most=600_000)
    """Milliseconds that sessions of a predecessor wait to be resumed. 10 s: a client tries again
    each second at least."""
    keep_memory: KeepMemory = _setting(KeepMemory.ATTACHED)
    """Whether shared memory outlives an orderly stop. Attached: only where somebody needs it."""

    all_ack_in_sync_state_set: bool = _setting(True, rocketmq=("allAckInSyncStateSet",), live=True)
    """SYNC_MASTER: a send waits for every slave of the SyncStateSet. RocketMQ's default is false,
    where with its inSyncReplicas of 1 nothing is waited for."""
    in_sync_replicas: int = _setting(1, rocketmq=("inSyncReplicas",), least=1, most=17, live=True)
    """Where not for all: how many must have a message, the master included. RocketMQ's default."""
    min_in_sync_replicas: int = _setting(
        1, rocketmq=("minInSyncReplicas",), least=1, most=17, live=True
    )
    """SYNC_MASTER: with fewer in sync, the master included, a send is refused
    (IN_SYNC_REPLICAS_NOT_ENOUGH). RocketMQ's default."""
    confirm_flushed_enable: bool = _setting(False, live=True)
    """SYNC_MASTER: a slave has a message once it is on its disk, not once it is in its log, as in
    RocketMQ. A send waits for the slave's next flush then (flush_interval_ms there).
    """
    ha_max_time_slave_not_catchup_ms: int = _setting(
        15_000, rocketmq=("haMaxTimeSlaveNotCatchup",), least=100, most=3_600_000, live=True
    )
    """Milliseconds after which a slave that has not caught up leaves the SyncStateSet. RocketMQ's
    default; one that died leaves it at once."""
    ha_max_gap_not_in_sync_bytes: int = _setting(
        256 * MIB, rocketmq=("haMaxGapNotInSync",), least=4096, live=True
    )
    """Bytes that a slave in sync may be behind. RocketMQ's default."""
    resend_cut_messages_enable: bool = _setting(True, live=True)
    """Whether messages that only a returning member has are appended again to the master's log,
    with the same UNIQ_KEY. They were acknowledged: RocketMQ gives them up without a word. False:
    they are counted as lost, and kept aside."""
    slave_sync_interval_ms: int = _setting(3_000, least=100, most=600_000, live=True)
    """Milliseconds between two looks of a slave for changed topics, groups and offsets of its
    master. RocketMQ's interval."""
    slave_read_enable: bool = _setting(False, rocketmq=("slaveReadEnable",), live=True)
    """Slave: whether consumers may read from it. Master: whether it sends consumers that are far
    behind to a slave. RocketMQ's default."""
    access_message_in_memory_max_ratio: int = _setting(
        40, rocketmq=("accessMessageInMemoryMaxRatio",), least=0, most=100, live=True
    )
    """Percent of the host's memory that a consumer of files may be behind before it is sent to a
    slave. RocketMQ's default: what is newer is likely still in the page cache."""

    enable_controller_mode: bool = _setting(False, rocketmq=("enableControllerMode",))
    """Whether a Controller says when this broker is master and when not: it registers with the one
    of the runtime folder, and waits to be told. RocketMQ's default; its controllerAddr is not
    needed, since Controllers are found by their sockets."""
    broker_election_priority: int = _setting(
        2**31 - 1, rocketmq=("brokerElectionPriority",), least=0, most=2**31 - 1
    )
    """Which member a Controller elects of those whose logs are equally long: the lowest. RocketMQ's
    default, the last."""
    async_learner: bool = _setting(False, rocketmq=("asyncLearner",))
    """Whether it copies its master's log and is never in the SyncStateSet, nor elected. RocketMQ's
    default."""
    broker_heartbeat_interval_ms: int = _setting(
        1_000, rocketmq=("brokerHeartbeatInterval",), least=50, most=60_000
    )
    """Milliseconds between two heartbeats to the Controller. RocketMQ's default."""

    acl_file: Path | None = _setting(None)
    """The rules of who may do what (docs/operate/rights.md), read again when they change. None:
    whoever may open the socket, its owner and its group, may do everything."""
    acl_check_interval_ms: int = _setting(2_000, least=100, most=600_000)
    """Milliseconds between two looks whether the ACL file has changed. SIGHUP asks at once."""
    session_count_max_per_uid: int | None = _setting(None, least=1, most=65_536, live=True)
    """Clients of one uid at a time. None: three quarters of session_count. Like the three below it
    may be set otherwise for some in the ACL file, and is not for root and the broker's own uid."""
    ring_bytes_max_per_uid: int = _setting(GIB, least=MIB, most=1 << 50, live=True)
    """Bytes of rings, pages and chunk memory of one uid's clients together. 1 GiB: thirty clients
    that send large bodies, a thousand that do not."""
    topic_count_max_per_uid: int = _setting(16_384, least=0, most=4_194_304, live=True)
    """Topics that one uid made and that exist. A quarter of topic_row_count_max."""
    group_count_max_per_uid: int = _setting(16_384, least=0, most=4_194_304, live=True)
    """Consumer groups that one uid made and that exist; each has a retry topic besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamesrvConfig:
    """One NameServer."""

    namesrv_name: str = _setting("ns0")
    """Name of the instance, part of its socket's name; several instances differ in it."""
    runtime_path: Path | None = _setting(None)
    """Folder (0750) in which all sockets of a host's cluster lie: brokers and clients are given the
    same. None: as for a broker."""
    scan_broker_interval_ms: int = _setting(
        10_000, rocketmq=("scanNotActiveBrokerInterval",), least=10, most=600_000
    )
    """Milliseconds between two looks for brokers that went silent. RocketMQ 4's value."""
    broker_expiry_ms: int = _setting(120_000, least=100, most=86_400_000)
    """Milliseconds without a word after which a broker that is alive leaves the routes; a dead one
    leaves them at once. RocketMQ's value; brokers register each 30 s."""
    kv_config_path: Path | None = _setting(None, rocketmq=("kvConfigPath",))
    """File that keeps the key-value configuration (order topics). None: it is kept in memory, as
    long as this NameServer lives."""
    connection_count_max: int = _setting(4_096, least=16, most=1_000_000)
    """Connections in all; each takes two descriptors."""
    connection_count_max_per_uid: int = _setting(1_024, least=8, most=1_000_000)
    """Connections of one uid, so that none keeps the others out."""
    acl_file: Path | None = _setting(None)
    """The rules of who may administrate (docs/operate/rights.md), read again when they change: the
    brokers' own file will do. None: whoever may open the socket may."""
    acl_check_interval_ms: int = _setting(2_000, least=100, most=600_000)
    """Milliseconds between two looks whether the ACL file has changed. SIGHUP asks at once."""
    fence_brokers: bool = _setting(False)
    """Whether this NameServer kills registered brokers that are alive and hung, for whoever
    restarts them (systemd) to start anew. The brokers of a cluster file are fenced anyway."""
    broker_hung_timeout_ms: int = _setting(
        10_000, rocketmq=("brokerNotActiveTimeoutMillis",), least=100, most=3_600_000
    )
    """Milliseconds for which a broker must be alive and give no sign of life to count as hung.
    RocketMQ's default."""
    enable_controller_in_namesrv: bool = _setting(False, rocketmq=("enableControllerInNamesrv",))
    """Whether this process is a Controller too, with the settings of the table [controller] of the
    same file. RocketMQ's default."""
    probe_interval_ms: int = _setting(1_000, least=10, most=600_000)
    """Milliseconds between two questions to a watched broker; RocketMQ's brokers beat each second.
    Two at least must fit into the time above."""

    def __post_init__(self) -> None:
        """Hold every value against its range and its neighbours."""
        _check_ranges(self)
        if not _NAME.fullmatch(self.namesrv_name):
            wanted = "1 to 127 printable characters without blanks and /"
            raise _refused("NamesrvConfig", "namesrv_name", self.namesrv_name, wanted)
        if self.probe_interval_ms * 2 > self.broker_hung_timeout_ms:
            wanted = f"at most {self.broker_hung_timeout_ms // 2}, half of broker_hung_timeout_ms"
            raise _refused("NamesrvConfig", "probe_interval_ms", self.probe_interval_ms, wanted)

    def runtime_folder(self, environ: Mapping[str, str] = os.environ) -> Path:
        """`runtime_path`, or the folder that the environment gives; it is not made here."""
        return self.runtime_path or default_runtime_folder(environ)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """One Controller: table [controller] of a file."""

    controller_store_path: Path = _setting(rocketmq=("controllerStorePath",))
    """Folder (0700) of the journal, on a disk: several Controllers of one host are given the same,
    and the one that has its lock is active. No default: a store belongs somewhere chosen. A
    relative path in a file counts from that file's folder."""
    controller_name: str = _setting("c0")
    """Name of the instance, part of its socket's name; several instances differ in it."""
    runtime_path: Path | None = _setting(None)
    """Folder (0750) in which all sockets of a host's cluster lie. None: as for a broker."""
    broker_not_active_timeout_ms: int = _setting(
        10_000, rocketmq=("brokerNotActiveTimeoutMillis",), least=100, most=3_600_000
    )
    """Milliseconds without a heartbeat after which a member is not there, and is killed if it is
    master and lives. RocketMQ's default; one that died is noticed at once."""
    election_grace_ms: int = _setting(5_000, least=0, most=3_600_000)
    """Milliseconds that an election waits for members that are not there, where the last master's
    memory is gone or nobody can go on with it."""
    enable_elect_unclean_master: bool = _setting(False, rocketmq=("enableElectUncleanMaster",))
    """Whether a member is elected that may lack confirmed messages, if no other one is there.
    RocketMQ's default."""
    acl_file: Path | None = _setting(None)
    """The rules of who may administrate (docs/operate/rights.md), read again on SIGHUP. None:
    whoever may open the socket may."""

    def __post_init__(self) -> None:
        """Hold every value against its range."""
        _check_ranges(self)
        if not _NAME.fullmatch(self.controller_name):
            wanted = "1 to 127 printable characters without blanks and /"
            raise _refused("ControllerConfig", "controller_name", self.controller_name, wanted)

    def runtime_folder(self, environ: Mapping[str, str] = os.environ) -> Path:
        """`runtime_path`, or the folder that the environment gives; it is not made here."""
        return self.runtime_path or default_runtime_folder(environ)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """How a supervising NameServer treats the brokers of its cluster file: table [cluster]."""

    restart_delay_ms: int = _setting(50, least=0, most=60_000)
    """Milliseconds from a broker's second death in a row to its restart; doubled with each further
    death. The first restart is at once: whoever waits for a send waits for it."""
    restart_delay_max_ms: int = _setting(5_000, least=0, most=600_000)
    """Where the doubling ends."""
    restart_delay_reset_ms: int = _setting(10_000, least=0, most=3_600_000)
    """Milliseconds a broker must have lived for its restarts to begin anew, without a delay."""
    crash_count_max: int = _setting(5, least=1, most=100)
    """Deaths within crash_window_ms after which a broker is not started any more: what fails five
    times at once needs a person."""
    crash_window_ms: int = _setting(30_000, least=100, most=3_600_000)
    """Milliseconds in which those deaths count together."""
    spare_broker: bool = _setting(True)
    """Whether a process that has imported all of a broker waits to take the place of one that is
    killed: that halves the time until it takes messages, and costs some 30 MB."""
    start_timeout_ms: int = _setting(60_000, least=100, most=3_600_000)
    """Milliseconds from a broker's start to its first sign of life, which it gives before it reads
    its store; beyond, it counts as hung."""
    stop_timeout_ms: int = _setting(35_000, least=0, most=600_000)
    """Milliseconds a broker may take to drain when the cluster stops, before it is killed. More
    than the 30 s that a daemon gives itself."""

    def __post_init__(self) -> None:
        """Hold every value against its range."""
        _check_ranges(self)


LISTEN_PORTS = range(10_911, 65_000, 10)
"""Nothing of shmq listens there: the address is in every message id, and is where a real RocketMQ
broker that takes a store over will listen. One for each broker, with room for those beside it."""


def parsed_settings(options: Iterable[str]) -> dict[str, Any]:
    """What a daemon's `--set KEY=VALUE` options say.

    Raises:
        ConfigError: one is not of that form, or sets again what another one sets.
    """
    found: dict[str, str] = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: wanted KEY=VALUE")
        if key in found:
            raise ConfigError(f"--set {text}: {key} is set twice")
        found[key] = value
    return found


def load_broker_tables(file: Path) -> dict[str, Mapping[str, object]]:
    """The tables [broker.NAME] of a cluster file, by NAME, in their order, unread.

    Besides them the file may have [cluster] (ClusterConfig), [namesrv] (NamesrvConfig) and
    [controller] (ControllerConfig).

    Raises:
        ConfigError: the file cannot be read, has no broker, or has a table that nothing reads.
    """
    data = _read_table(file, None)
    for key in data:
        if key == "proxy":
            raise ConfigError(
                f"{file}: [{key}]: a NameServer starts brokers only; remove the table"
            )
        known = ("broker", "cluster", "controller", "namesrv")
        _known({name: name for name in known}, key, str(file))
    brokers = data.get("broker", {})
    if not isinstance(brokers, dict) or not brokers:
        raise ConfigError(f"{file}: no [broker.NAME]; wanted a table for each broker")
    for name, table in brokers.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: broker.{name}: {table!r}, wanted a table [broker.{name}]")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            wanted = "a name of 1 to 64 of A-Z a-z 0-9 _ -"
            raise ConfigError(f"{file}: [broker.{name}]: wanted {wanted}")
    return brokers


def load_broker_setting(
    name: str, *, file: Path, broker: str, environ: Mapping[str, str] = os.environ
) -> object:
    """One setting of a [broker.NAME], as `load` finds it for that broker: the rest is unread.

    Raises:
        ConfigError: the file or the value cannot be used.
    """
    spec = next(spec for spec in fields(BrokerConfig) if spec.name == name)
    hint = get_type_hints(BrokerConfig)[name]
    variable = f"{ENVIRONMENT_PREFIX}{name.upper()}"
    if variable in environ:
        return _converted(environ[variable], hint, spec, variable)
    table = _read_table(file, ("broker", broker))
    for key in _keys(spec):
        if key in table:
            return _converted(table[key], hint, spec, f"{file}: [broker.{broker}]: {key}")
    return spec.default


def default_runtime_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The runtime folder where nobody has named one; it is not made here."""
    if environ.get("RUNTIME_DIRECTORY"):
        return Path(environ["RUNTIME_DIRECTORY"].split(":")[0])
    if environ.get("XDG_RUNTIME_DIR"):
        return Path(environ["XDG_RUNTIME_DIR"], "shmq")
    return Path(f"/tmp/shmq-{os.geteuid()}")


def default_namesrv_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The runtime folder in which a client looks for NameServers if nobody names one:
    SHMQ_NAMESRV, else where servers are by default; where none ever was, that of the machine's
    services, if there are some.
    """
    if environ.get("SHMQ_NAMESRV"):
        return Path(environ["SHMQ_NAMESRV"])
    own = default_runtime_folder(environ)
    if SERVICES_FOLDER.is_dir() and not any(own.glob("namesrv-*.sock")):
        return SERVICES_FOLDER
    return own


class _Role(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


_R = TypeVar("_R", bound=_Role)


def load(
    role: type[_R],
    *,
    file: Path | None = None,
    table: str | tuple[str, ...] | None = None,
    environ: Mapping[str, str] = os.environ,
    **arguments: object,
) -> _R:
    """The settings of one role from everywhere they may stand.

    Args:
        role: the dataclass, e.g. StoreConfig.
        file: a TOML file; None: no file.
        table: the table of the file that is this role's, ("broker", "a") for [broker.a]; None: the
            keys at its top.
        environ: where SHMQ_<NAME> is looked up.
        **arguments: settings that count before all others, by their own names or RocketMQ's;
            None counts as not given.

    Raises:
        ConfigError: a key, a value or the file cannot be used; it names source, key, seen, wanted.
    """
    hints = get_type_hints(role)
    specs = {spec.name: spec for spec in fields(role)}
    values: dict[str, object] = {}
    keys = {key: name for name, spec in specs.items() for key in _keys(spec)}
    if file is not None:
        for key, raw in _read_table(file, table).items():
            name = _known(keys, key, str(file))
            if name in values:
                raise _set_twice(str(file), key, name)
            value = _converted(raw, hints[name], specs[name], f"{file}: {key}")
            if isinstance(value, Path):
                value = file.parent / value.expanduser()
            values[name] = value
    for name, spec in specs.items():
        variable = f"{ENVIRONMENT_PREFIX}{name.upper()}"
        if variable in environ:
            values[name] = _converted(environ[variable], hints[name], spec, variable)
    given: set[str] = set()
    for key, raw in arguments.items():
        if raw is not None:
            name = _known(keys, key, role.__name__)
            if name in given:
                raise _set_twice(role.__name__, key, name)
            given.add(name)
            values[name] = _converted(raw, hints[name], specs[name], f"{role.__name__}: {name}")
    for name, spec in specs.items():
        if name not in values and spec.default is MISSING and spec.default_factory is MISSING:
            raise ConfigError(
                f"{file or role.__name__}: {name}: not set; "
                f"give it there or as {ENVIRONMENT_PREFIX}{name.upper()}"
            )
    try:
        return role(**values)
    except ShmqError as error:
        if file is None:
            raise
        raise ConfigError(f"{file}: {error}") from None


class Setting(NamedTuple):
    """One setting of a configuration, for people."""

    name: str
    """Its own name."""
    text: str
    """Its value; empty for a path that is not set."""
    default_text: str
    """What it is where nobody says; empty for none, and where it must be said."""
    is_live: bool
    """Whether it may change while its process runs."""


def settings(config: StoreConfig) -> list[Setting]:
    """All settings of a configuration."""
    return [
        Setting(
            spec.name,
            _text_of(spec, getattr(config, spec.name)),
            "" if spec.default is MISSING else _text_of(spec, spec.default),
            bool(spec.metadata["live"]),
        )
        for spec in fields(config)
    ]


def _text_of(spec: "Field[Any]", value: object) -> str:
    """A path that nobody gave is none; a size is found."""
    return "" if value is None and "Path" in str(spec.type) else setting_text(value)


def names_of(setting: str) -> tuple[str, ...]:
    """What a broker's setting may be called: its own name, then RocketMQ's."""
    for spec in fields(BrokerConfig):
        if spec.name == setting:
            return (setting, *spec.metadata["rocketmq"])
    return (setting,)


def setting_text(value: object) -> str:
    """A setting's value as a file or --set would have it."""
    if value is None:
        return AUTO
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)


def change_live(configs: Sequence[StoreConfig], changes: Mapping[str, object]) -> dict[str, Any]:
    """Give settings other values while their process runs: all of them, or none.

    The one exception to configurations that never change. Whoever holds one of `configs` sees the
    new value when it reads the setting next; nothing of that outlives the process.

    Args:
        configs: those that the process made of one configuration.
        changes: by own names or RocketMQ's.

    Returns:
        the new values by own names.

    Raises:
        ConfigError: a key or value cannot be used, or may not change while the process runs.
    """
    role = type(configs[0])
    hints = get_type_hints(role)
    specs = {spec.name: spec for spec in fields(role)}
    keys = {key: name for name, spec in specs.items() for key in _keys(spec)}
    values: dict[str, Any] = {}
    for key, raw in changes.items():
        name = _known(keys, key, "change settings")
        if name in values:
            raise _set_twice("change settings", key, name)
        if not specs[name].metadata["live"]:
            raise ConfigError(
                f"change settings: {key}: it counts from a start only; set it in the file and"
                " restart"
            )
        values[name] = _converted(raw, hints[name], specs[name], f"change settings: {key}")
    for config in configs:
        try:
            replace(config, **values)  # holds them against their neighbours
        except ConfigError as error:
            what = str(error).partition(": ")[2]  # without the name of the class
            raise ConfigError(f"change settings: {what}") from None
    for config in configs:
        for name, value in values.items():
            object.__setattr__(config, name, value)
    return values


def _read_table(file: Path, table: str | tuple[str, ...] | None) -> Mapping[str, object]:
    try:
        data: object = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}; wanted a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    path = (table,) if isinstance(table, str) else table or ()
    for key in path:
        if isinstance(data, dict):
            data = data.get(key, {})
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: [{'.'.join(path)}]: {data!r}, wanted a table")
    return data


def _keys(spec: "Field[Any]") -> Iterator[str]:
    yield spec.name
    yield from spec.metadata.get("rocketmq", ())


def _known(keys: Mapping[str, str], key: str, source: str) -> str:
    """The setting that `key` means; ConfigError proposing the nearest one if it means none."""
    if key in keys:
        return keys[key]
    near = difflib.get_close_matches(key, keys, n=1)
    proposal = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"{source}: {key}: no such setting{proposal}")


def _converted(raw: object, hint: object, spec: "Field[Any]", where: str) -> object:
    """`raw` as the setting's type, within its range."""
    optional = isinstance(hint, UnionType)
    kind = next(arg for arg in get_args(hint) if arg is not type(None)) if optional else hint
    if optional and raw == AUTO:
        return None
    value = _cast(raw, kind, spec)
    if value is None:
        wanted = f"{_kind_wanted(kind)}{' or auto' if optional else ''}"
        if kind is int and spec.metadata["least"] is not None:
            wanted += f", {_range_text(spec)}"
        raise ConfigError(f"{where} = {raw!r}, wanted {wanted}")
    wanted_range = _out_of_range(spec, value)
    if wanted_range:
        raise ConfigError(f"{where} = {raw!r}, wanted {wanted_range}")
    return value


def _cast(raw: object, kind: object, spec: "Field[Any]") -> object:
    """`raw` as `kind`, or None where it is not one."""
    if kind is int:
        if isinstance(raw, str):
            match = _SIZE.fullmatch(raw.strip())
            if not match or (match[2] and not _is_size(spec)):
                return None
            return int(match[1]) * _FACTOR[match[2]]
        return raw if isinstance(raw, int) and not isinstance(raw, bool) else None
    if kind is bool:
        return _FLAGS.get(raw) if isinstance(raw, str | bool) else None
    if kind is Path:
        return Path(raw) if isinstance(raw, str | Path) and str(raw) else None
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(raw)
        except ValueError:
            return None
    return raw if isinstance(raw, str) else None


def _kind_wanted(kind: object) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(str(member.value) for member in kind)
    if kind is int:
        return "a whole number"
    if kind is bool:
        return "true or false"
    return "a path" if kind is Path else "a text"


def _is_size(spec: "Field[Any]") -> bool:
    return "bytes" in spec.name


def _out_of_range(spec: "Field[Any]", value: object) -> str | None:
    """What the setting wants if `value` is not within it, else None."""
    if not isinstance(value, int):
        return None
    least, most = spec.metadata["least"], spec.metadata["most"]
    if (least is not None and value < least) or (most is not None and value > most):
        return _range_text(spec)
    if value % spec.metadata["multiple_of"]:
        return f"a multiple of {spec.metadata['multiple_of']}"
    if spec.metadata["power_of_two"] and value & (value - 1):
        return "a power of two"
    return None


def _range_text(spec: "Field[Any]") -> str:
    least, most = spec.metadata["least"], spec.metadata["most"]
    return f"at least {least}" if most is None else f"{least} to {most}"


def _check_ranges(role: _Role) -> None:
    for spec in fields(role):
        value = getattr(role, spec.name)
        wanted = _out_of_range(spec, value)
        if wanted:
            raise _refused(type(role).__name__, spec.name, value, wanted)


def _set_twice(source: str, key: str, name: str) -> ConfigError:
    return ConfigError(f"{source}: {key}: {name} is set twice, by both of its names")


def _refused(source: str, key: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"{source}: {key} = {value!r}, wanted {wanted}")
