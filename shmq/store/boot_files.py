"""What lets a real RocketMQ broker boot on the folder: `abort`, `broker.conf`, nothing derived.

What lives here: the one state of a store from which every RocketMQ release rebuilds itself: there
is always an `abort` file and never a `checkpoint`, `consumequeue/` or `index/` (an older
ConsumeQueue beside a longer log would hide messages for good), and a `broker.conf` that says the
file size, the names and the paths. A store that RocketMQ used before has such derived files: they
are moved to `shmq/rocketmq/`, not deleted.

Which process: the broker, under its lock, before the first append. What may fail: DiskFullError,
StoreError. Everything here may be done twice.
"""

import os
from pathlib import Path

from shmq.config import StoreConfig
from shmq.store.durable_file import disk_error, fsync_folder, make_folder, replace_file
from shmq.store.log_files import COMMIT_LOG_FOLDER, OWN_FOLDER

__all__ = [
    "ABORT_FILE",
    "BROKER_CONF",
    "SET_ASIDE_FOLDER",
    "broker_conf",
    "derived_by_rocketmq",
    "make_abort",
    "set_derived_aside",
    "write_broker_conf",
]

ABORT_FILE = "abort"
BROKER_CONF = "broker.conf"
SET_ASIDE_FOLDER = "rocketmq"
"""Under shmq/: what RocketMQ had derived from the log before we wrote to it."""

# What a broker derives from the log and would trust beside a longer one.
_DERIVED = (
    "checkpoint",
    "consumequeue",
    "consumequeue_ext",
    "batchconsumequeue",
    "index",
    "timerwheel",
    "timerlog",
)
_NAMES_MAX = 10_000


def make_abort(store_path: Path) -> None:
    """Make the file `abort` if it is not there; its contents are read by nobody (RocketMQ 5: pid).

    Raises:
        DiskFullError, StoreError.
    """
    path = store_path / ABORT_FILE
    if not path.exists():
        replace_file(path, b"%d" % os.getpid())


def derived_by_rocketmq(store_path: Path) -> list[str]:
    """Return the names in the store that a real broker derived from its log; none in our own."""
    return [name for name in _DERIVED if (store_path / name).exists()]


def set_derived_aside(store_path: Path) -> list[str]:
    """Move what a real broker derived from its log out of its sight, durably.

    Returns:
        the names that were moved to shmq/rocketmq/<name>[.<number>].

    Raises:
        DiskFullError, StoreError.
    """
    names = derived_by_rocketmq(store_path)
    if not names:
        return names
    aside = store_path / OWN_FOLDER / SET_ASIDE_FOLDER
    make_folder(aside)
    try:
        for name in names:
            numbered = (aside / f"{name}.{number}" for number in range(1, _NAMES_MAX))
            free = next(path for path in (aside / name, *numbered) if not path.exists())
            os.rename(store_path / name, free)
        fsync_folder(aside)
        fsync_folder(store_path)
    except OSError as error:
        raise disk_error(f"move {', '.join(names)} to {aside}", error) from error
    return names


def broker_conf(config: StoreConfig, *, store_path: Path, file_size_bytes: int) -> str:
    """Return the text of a broker.conf with which a real broker boots on the store.

    Args:
        config: names, host and levels.
        store_path: where that broker will find the store: the folder itself, or a copy.
        file_size_bytes: size of the log files.
    """
    path = store_path.absolute()
    values: dict[str, object] = {
        "brokerClusterName": config.cluster_name,
        "brokerName": config.broker_name,
        "brokerId": config.broker_id,
        "brokerRole": "SLAVE" if config.broker_id else "ASYNC_MASTER",
        "brokerIP1": config.broker_ip,
        "listenPort": config.listen_port,
        "storePathRootDir": path,
        "storePathCommitLog": path / COMMIT_LOG_FOLDER,
        "mappedFileSizeCommitLog": file_size_bytes,
        "maxMessageSize": config.max_message_size_bytes,
        "flushDiskType": config.flush_disk_type,
        "fileReservedTime": config.file_reserved_hours,
        "deleteWhen": config.delete_when,
        "diskMaxUsedSpaceRatio": config.disk_max_used_space_ratio,
        "messageDelayLevel": config.message_delay_level,
        "enableControllerMode": "false",
    }
    lines = [
        "# Written by shmq, for an Apache RocketMQ broker that is to take this store over:",
        "#   mqbroker -c broker.conf -n <NameServer address>",
        "# Stop shmq first. For a copy of the store set both paths to where the copy lies.",
        *(f"{key}={_escaped(str(value))}" for key, value in values.items()),
    ]
    return "\n".join(lines) + "\n"


def write_broker_conf(config: StoreConfig, *, file_size_bytes: int) -> None:
    """Write broker.conf into the store unless it says the same already.

    Raises:
        DiskFullError, StoreError.
    """
    path = config.store_path / BROKER_CONF
    text = broker_conf(config, store_path=config.store_path, file_size_bytes=file_size_bytes)
    data = text.encode("ascii")
    if not path.is_file() or path.read_bytes() != data:
        replace_file(path, data)


def _escaped(text: str) -> str:
    """Return a value as java.util.Properties reads it back."""
    units = (
        char
        if 0x20 < ord(char) < 0x7F and char != "\\"
        else "\\\\"
        if char == "\\"
        else "".join(f"\\u{unit:04x}" for unit in _utf16(char))
        for char in text
    )
    return "".join(units)


def _utf16(char: str) -> list[int]:
    """Its UTF-16 units, by arithmetic: the codec is a file that an unprivileged broker may not be
    allowed to import late.
    """
    code = ord(char)
    if code < 0x10000:
        return [code]
    code -= 0x10000
    return [0xD800 + (code >> 10), 0xDC00 + (code & 0x3FF)]
