"""`config/*.json`: RocketMQ's names and shapes, read leniently, written for every version.

What lives here: `ConfigFile`, one such file with its `.bak`, and the typed contents of those that
the store and the broker use: topics, consumer offsets, subscription groups, delay offsets.

Reading. fastjson writes integer keys without quotes, which is no JSON: they are taken as if they
had them. A missing or empty file gives the defaults, one that cannot be read its `.bak`, as in
RocketMQ; if that fails too, ConfigError names file, line, column and reason. Keys that we do not
know are kept and written back.

Writing. Keys are quoted (5.5.0 fails on unquoted ones), dataVersion.counter stays within 32 bits
(5.4.0 fails on more), and the last member is ours, one that RocketMQ passes over:

      "shmqCrc32": "0a1b2c3d"      CRC-32 of the file with these eight digits as zeros

A bit that flips in a number of consumerOffset.json leaves valid JSON: only this tells. A file
without it (RocketMQ or a person wrote it) is taken as it is; whoever edits a file of ours by hand
removes that line. The old version stays as `.bak`, the new one is renamed in: a crash at any step
leaves one of them whole under the file's name.

Which process: the broker writes, under the store's lock, each file from one thread; tools read.
What may fail: ConfigError; DiskFullError, StoreError.
"""

import logging
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum, unique
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import orjson

from shmq.errors import ConfigError
from shmq.json_fields import Fields
from shmq.store.consume_queue_files import QueueKey
from shmq.store.durable_file import BACKUP_SUFFIX, make_folder, read_file, replace_file
from shmq.subscription import SubscriptionGroupConfig
from shmq.topic import TopicConfig

__all__ = [
    "CHECKSUM_KEY",
    "CONFIG_FOLDER",
    "ClampedOffset",
    "ConfigFile",
    "ConfigFiles",
    "ConsumerOffsets",
    "DataVersion",
    "DelayOffsets",
    "Loaded",
    "Source",
    "SubscriptionGroups",
    "Topics",
    "clamp_consumer_offsets",
    "encode",
    "numbers_by_number",
    "offset_key",
    "parse",
    "split_offset_key",
    "unknown_queue_ends",
]

_log = logging.getLogger("shmq.store")

CONFIG_FOLDER = "config"
CHECKSUM_KEY = "shmqCrc32"
_COUNTER_LIMIT = 1 << 31
_SIZE_MAX = 1 << 30
_NO_CHECKSUM = b"00000000"
_END = re.compile(rb'"([^"]{9})": "([0-9A-Fa-f]{8})"\n}\n\Z')
# A text, or a number that stands where a key must: behind { or , and before a colon.
_TEXT_OR_BARE_KEY = re.compile(r'"(?:[^"\\]|\\.)*"|(?<=[{,])(\s*)(-?[0-9]+)(?=\s*:)')
_T = TypeVar("_T")
_RESTORE = "otherwise restore the file from a backup"


@unique
class Source(StrEnum):
    """Where the contents of a config file came from."""

    FILE = "file"
    BACKUP = "backup"
    """The file is missing, empty or damaged."""
    DEFAULT = "default"
    """There is neither."""


class Loaded(NamedTuple):
    """What a config file holds."""

    data: dict[str, object]
    """The object, without our checksum."""
    source: Source
    is_checked: bool
    """Its checksum was there and held; False: RocketMQ or a person wrote it."""
    problem: str | None
    """Why the file itself was not taken, with source BACKUP."""


class ConfigFile:
    """One file of config/ and its `.bak`. One writer.

    Args:
        path: the file; it need not exist.
    """

    __slots__ = ("_is_good", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_good = False  # what lies there now may become the backup

    @property
    def backup_path(self) -> Path:
        """Where the version before lies."""
        return self.path.with_name(f"{self.path.name}{BACKUP_SUFFIX}")

    def load(self) -> Loaded:
        """Read the file, or its backup where it is missing, empty or damaged.

        Raises:
            ConfigError: neither can be read: names file, line, column and reason of both.
            StoreError: the system refuses.
        """
        problem = hint = None
        data = read_file(self.path, size_max=_SIZE_MAX)
        if data:
            try:
                contents, is_checked = parse(data, self.path)
            except ConfigError as error:
                problem, hint = str(error), error.hint
            else:
                self._is_good = True
                return Loaded(contents, Source.FILE, is_checked, None)
        self._is_good = False
        backup = read_file(self.backup_path, size_max=_SIZE_MAX)
        if not backup:
            if problem is not None:
                raise ConfigError(f"{problem}; and there is no {self.backup_path.name}", hint=hint)
            return Loaded({}, Source.DEFAULT, False, None)
        try:
            contents, is_checked = parse(backup, self.backup_path)
        except ConfigError as error:
            said = f"{problem}; {error}" if problem else str(error)
            raise ConfigError(said, hint=hint or error.hint) from None
        reason = problem or f"read {self.path}: {'empty' if data is not None else 'missing'}"
        _log.warning("config taken from %s: %s", self.backup_path.name, reason)
        return Loaded(contents, Source.BACKUP, is_checked, reason)

    def store(self, data: Mapping[str, object], *, is_synced: bool = True) -> None:
        """Replace the file, durably; the version before becomes the backup if it was good.

        Args:
            data: the object; its keys and all below them are texts.
            is_synced: as in durable_file.replace_file; where a power cut takes the file, its backup
                is there.

        Raises:
            DiskFullError, StoreError: the old version stands.
        """
        make_folder(self.path.parent)
        replace_file(self.path, encode(data), keep_backup=self._is_good, is_synced=is_synced)
        self._is_good = True


def encode(data: Mapping[str, object]) -> bytes:
    """Return a config file's bytes, our checksum as the last member."""
    members = {key: value for key, value in data.items() if key != CHECKSUM_KEY}
    members[CHECKSUM_KEY] = _NO_CHECKSUM.decode()
    text = orjson.dumps(members, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    place = len(text) - len(b'"\n}\n') - len(_NO_CHECKSUM)
    return b"%s%08x%s" % (text[:place], zlib.crc32(text), text[place + len(_NO_CHECKSUM) :])


def parse(data: bytes, path: Path) -> tuple[dict[str, object], bool]:
    """Return (the object in a config file's bytes, whether our checksum was there and held).

    Args:
        data: JSON, or what fastjson writes.
        path: for the message.

    Raises:
        ConfigError: names file, line, column and reason.
    """
    value = _parse_json(data, path)
    if not isinstance(value, dict):
        raise ConfigError(f"read {path}, line 1, column 1: wanted an object")
    end = _END.search(data)
    if end is None and CHECKSUM_KEY not in value:
        return value, False
    name = max(0, data.rfind(CHECKSUM_KEY.encode())) if end is None else end.start(1)
    line, column = _line_and_column(data[: max(0, name - 1)].decode("utf-8"))
    edited = f'if it was edited by hand, remove the line with "{CHECKSUM_KEY}"'
    if end is None or end[1] != CHECKSUM_KEY.encode():
        if end is not None and CHECKSUM_KEY not in value and not _is_near(end[1]):
            return value, False
        raise ConfigError(
            f"read {path}, line {line}, column {column}: checksum damaged; {edited}", hint=_RESTORE
        )
    wanted = zlib.crc32(data[: end.start(2)] + _NO_CHECKSUM + data[end.end(2) :])
    if end[2] != b"%08x" % wanted:
        raise ConfigError(
            f"read {path}, line {line}, column {column}: checksum {end[2].decode()}, wanted "
            f"{wanted:08x}: damaged; {edited}",
            hint=_RESTORE,
        )
    del value[CHECKSUM_KEY]
    return value, True


def _is_near(name: bytes) -> bool:
    """Say whether a name is our checksum's with one byte changed."""
    return sum(a != b for a, b in zip(name, CHECKSUM_KEY.encode(), strict=True)) <= 1


def _parse_json(data: bytes, path: Path) -> object:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _line_and_column(data[: error.start].decode("utf-8"))
        raise ConfigError(f"read {path}, line {line}, column {column}: no UTF-8") from None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    quoted, places = _quote_keys(text)
    try:
        return orjson.loads(quoted)
    except orjson.JSONDecodeError as error:
        before = sum(place < error.pos for place in places)
        line, column = _line_and_column(text[: error.pos - before])
        raise ConfigError(f"read {path}, line {line}, column {column}: {error.msg}") from None


def _quote_keys(text: str) -> tuple[str, list[int]]:
    """Return the text with quotes around bare keys, and the places of the quotes added."""
    parts = []
    places = []
    size = done = 0
    for match in _TEXT_OR_BARE_KEY.finditer(text):
        if match[2] is None:
            continue
        parts += [text[done : match.start(2)], '"', match[2], '"']
        size += match.start(2) - done
        places += [size, size + 1 + len(match[2])]
        size += len(match[2]) + 2
        done = match.end(2)
    return "".join([*parts, text[done:]]), places


def _line_and_column(before: str) -> tuple[int, int]:
    """Return line and column, from 1, of the place behind a text."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


# ---- contents ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DataVersion:
    """RocketMQ's DataVersion: slaves and tools compare it to see that something changed."""

    counter: int = 0
    """Counts changes, below 2**31."""
    state_version: int = 0
    """Of the cluster state under which it changed; RocketMQ's controller mode."""
    timestamp: int = 0
    """Of the last change, ms since 1970."""

    def following(self, *, wall_ms: int) -> Self:
        """Return the version after one more change."""
        counter = (self.counter + 1) % _COUNTER_LIMIT
        return replace(self, counter=counter, timestamp=wall_ms)

    def is_newer(self, other: Self) -> bool:
        """Whether it came behind another version of the same history. Times are not asked: clocks
        are set.
        """
        return (self.state_version, self.counter) > (other.state_version, other.counter)

    def to_dict(self) -> dict[str, object]:
        """As RocketMQ's files have it."""
        return {
            "counter": self.counter % _COUNTER_LIMIT,
            "stateVersion": self.state_version,
            "timestamp": self.timestamp,
        }

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """From RocketMQ's JSON; null and missing give the first version."""
        if data is None:
            return cls()
        if not isinstance(data, Mapping):
            raise ConfigError(f"dataVersion: {data!r}, wanted an object")
        take = Fields(data, what="dataVersion")
        return cls(
            counter=take.number("counter", 0),
            state_version=take.number("stateVersion", 0),
            timestamp=take.number("timestamp", 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """config/topics.json."""

    FILE_NAME = "topics.json"
    data_version: DataVersion = DataVersion()
    topics: Mapping[str, TopicConfig] = field(default_factory=dict)
    """By topic."""
    other: Mapping[str, object] = field(default_factory=dict)
    """Keys that we do not know."""

    def to_dict(self) -> dict[str, object]:
        """As RocketMQ's file has it."""
        return {
            "dataVersion": self.data_version.to_dict(),
            "topicConfigTable": {name: topic.to_dict() for name, topic in self.topics.items()},
            **self.other,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """From RocketMQ's JSON; ConfigError names what is not as wanted."""
        table, version, other = _split(data, "topicConfigTable")
        return cls(
            data_version=version,
            topics={
                name: TopicConfig.from_dict(_object(item, name)) for name, item in table.items()
            },
            other=other,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionGroups:
    """config/subscriptionGroup.json."""

    FILE_NAME = "subscriptionGroup.json"
    data_version: DataVersion = DataVersion()
    groups: Mapping[str, SubscriptionGroupConfig] = field(default_factory=dict)
    """By group."""
    other: Mapping[str, object] = field(default_factory=dict)
    """Keys that we do not know, and forbiddenTable."""

    def to_dict(self) -> dict[str, object]:
        """As RocketMQ's file has it."""
        groups = {name: group.to_dict() for name, group in self.groups.items()}
        return {
            "dataVersion": self.data_version.to_dict(),
            "subscriptionGroupTable": groups,
            **self.other,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """From RocketMQ's JSON; ConfigError names what is not as wanted."""
        table, version, other = _split(data, "subscriptionGroupTable")
        return cls(
            data_version=version,
            groups={
                name: SubscriptionGroupConfig.from_dict(_object(item, name))
                for name, item in table.items()
            },
            other=other,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerOffsets:
    """config/consumerOffset.json."""

    FILE_NAME = "consumerOffset.json"
    data_version: DataVersion = DataVersion()
    offsets: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """By "topic@group": queue_id to the next queue_offset to consume."""
    other: Mapping[str, object] = field(default_factory=dict)
    """Keys that we do not know."""

    def to_dict(self) -> dict[str, object]:
        """As RocketMQ's file has it, with quoted queue ids."""
        return {
            "dataVersion": self.data_version.to_dict(),
            "offsetTable": {
                key: {str(queue_id): value for queue_id, value in queues.items()}
                for key, queues in self.offsets.items()
            },
            **self.other,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """From RocketMQ's JSON; ConfigError names what is not as wanted."""
        table, version, other = _split(data, "offsetTable")
        return cls(
            data_version=version,
            offsets={key: numbers_by_number(key, item) for key, item in table.items()},
            other=other,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayOffsets:
    """config/delayOffset.json."""

    FILE_NAME = "delayOffset.json"
    data_version: DataVersion = DataVersion()
    offsets: Mapping[int, int] = field(default_factory=dict)
    """Delay level to the next queue_offset of its queue in SCHEDULE_TOPIC_XXXX."""
    other: Mapping[str, object] = field(default_factory=dict)
    """Keys that we do not know."""

    def to_dict(self) -> dict[str, object]:
        """As RocketMQ's file has it, with quoted levels."""
        return {
            "dataVersion": self.data_version.to_dict(),
            "offsetTable": {str(level): value for level, value in self.offsets.items()},
            **self.other,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """From RocketMQ's JSON; ConfigError names what is not as wanted."""
        table, version, other = _split(data, "offsetTable")
        return cls(
            data_version=version, offsets=numbers_by_number("offsetTable", table), other=other
        )


def _split(
    data: Mapping[str, object], table_key: str
) -> tuple[Mapping[str, object], DataVersion, dict[str, object]]:
    """Return (the table, the version, what else there is) of a config file's object."""
    table = data.get(table_key)
    if table is None:
        table = {}
    if not isinstance(table, Mapping):
        raise ConfigError(f"{table_key}: {type(table).__name__}, wanted an object")
    other = {key: value for key, value in data.items() if key not in (table_key, "dataVersion")}
    return table, DataVersion.from_dict(data.get("dataVersion")), other


def _object(item: object, what: str) -> Mapping[str, object]:
    if not isinstance(item, Mapping):
        raise ConfigError(f"{what}: {item!r}, wanted an object")
    return item


def numbers_by_number(what: str, item: object) -> dict[int, int]:
    """Return an object of whole numbers by whole numbers; ConfigError names what is none."""
    numbers = {}
    for key, value in _object(item, what).items():
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number or not re.fullmatch(r"-?[0-9]+", key):
            raise ConfigError(f"{what}: {key}: {value!r}, wanted a whole number for a whole number")
        numbers[int(key)] = int(str(value))
    return numbers


class ConfigFiles:
    """The files of config/ that have a type here; any other goes through `file`.

    Args:
        store_path: folder of the store.
    """

    __slots__ = ("_files", "folder")

    def __init__(self, store_path: Path) -> None:
        self.folder = store_path / CONFIG_FOLDER
        self._files: dict[str, ConfigFile] = {}

    def file(self, name: str) -> ConfigFile:
        """Return the file of this name: one object for each, which remembers what it loaded."""
        return self._files.setdefault(name, ConfigFile(self.folder / name))

    def names(self) -> Iterator[str]:
        """Yield the names of the JSON files that are there."""
        if self.folder.is_dir():
            yield from sorted(path.name for path in self.folder.glob("*.json"))

    def load_topics(self) -> Topics:
        """Read topics.json; ConfigError names the file and what is wrong with it."""
        return self._load(Topics.FILE_NAME, Topics.from_dict)

    def load_subscription_groups(self) -> SubscriptionGroups:
        """Read subscriptionGroup.json; errors as `load_topics`."""
        return self._load(SubscriptionGroups.FILE_NAME, SubscriptionGroups.from_dict)

    def load_consumer_offsets(self) -> ConsumerOffsets:
        """Read consumerOffset.json; errors as `load_topics`."""
        return self._load(ConsumerOffsets.FILE_NAME, ConsumerOffsets.from_dict)

    def load_delay_offsets(self) -> DelayOffsets:
        """Read delayOffset.json; errors as `load_topics`."""
        return self._load(DelayOffsets.FILE_NAME, DelayOffsets.from_dict)

    def store(
        self,
        contents: Topics | SubscriptionGroups | ConsumerOffsets | DelayOffsets,
        *,
        is_synced: bool = True,
    ) -> None:
        """Replace the file of these contents, durably; `is_synced` as in ConfigFile.store.

        Raises:
            DiskFullError, StoreError: the old version stands.
        """
        self.file(contents.FILE_NAME).store(contents.to_dict(), is_synced=is_synced)

    def _load(self, name: str, make: Callable[[Mapping[str, object]], _T]) -> _T:
        file = self.file(name)
        try:
            return make(file.load().data)
        except ConfigError as error:
            text = str(error)
            if text.startswith("read "):
                raise
            raise ConfigError(f"{file.path}{_line_of(file.path, text)}: {text}") from None


def _line_of(path: Path, problem: str) -> str:
    """Where the key that a problem names first stands; nothing if that cannot be said.

    A problem reads "topic x: perm: 'y', wanted ..." or "a@b: 1: ...": what it is in, then the key.
    """
    words = [word.removeprefix("topic ").removeprefix("group ") for word in problem.split(": ")[:2]]
    lines = (read_file(path, size_max=_SIZE_MAX) or b"").decode(errors="replace").splitlines()
    number = 0
    for word in words:
        name = re.escape(word)
        key = re.compile(rf'(?:"{name}"|(?:^|[{{,])\s*{name})\s*:')
        found = next((n for n, line in enumerate(lines[number:], number) if key.search(line)), None)
        if found is None:
            break
        number = found
    else:
        return f" line {number + 1}"
    return ""


# ---- offsets -------------------------------------------------------------------------------------


class ClampedOffset(NamedTuple):
    """A consumer offset that lay behind its queue's end."""

    key: str
    """As "topic@group"."""
    queue_id: int
    seen: int
    end: int
    """max_queue_offset of the queue, which it is now."""


def offset_key(topic: str, group: str) -> str:
    """Return the key of a topic and a group in consumerOffset.json."""
    return f"{topic}@{group}"


def split_offset_key(key: str) -> tuple[str, str] | None:
    """Return (topic, group) of a key; None for one that RocketMQ would pass over."""
    topic, at, group = key.partition("@")
    return (topic, group) if at and topic and group and "@" not in group else None


def clamp_consumer_offsets(
    offsets: Mapping[str, Mapping[int, int]], queue_ends: Mapping[QueueKey, int]
) -> tuple[dict[str, dict[int, int]], list[ClampedOffset]]:
    """Cut offsets back to the ends of their queues, after a recovery that may have lost a tail.

    A queue that the log does not know keeps its offset: its messages have expired, and its offsets
    go on there (`unknown_queue_ends`).

    Args:
        offsets: as in ConsumerOffsets.
        queue_ends: max_queue_offset by queue.

    Returns:
        (the offsets, those that were cut back).
    """
    clamped = []
    result: dict[str, dict[int, int]] = {}
    for key, queues in offsets.items():
        names = split_offset_key(key)
        result[key] = dict(queues)
        for queue_id, seen in queues.items():
            end = queue_ends.get(QueueKey(names[0], queue_id)) if names else None
            if end is not None and seen > end:
                result[key][queue_id] = end
                clamped.append(ClampedOffset(key, queue_id, seen, end))
    return result, clamped


def unknown_queue_ends(
    offsets: Mapping[str, Mapping[int, int]], queue_ends: Mapping[QueueKey, int]
) -> dict[QueueKey, int]:
    """Return how far queues were that the log does not know, by what was consumed of them.

    A queue of a foreign store whose messages have all expired left no other trace. If it began at 0
    again, its consumers would wait for offsets that they think they have.

    Args:
        offsets: as in ConsumerOffsets.
        queue_ends: max_queue_offset by queue that is known.
    """
    ends: dict[QueueKey, int] = {}
    for key, queues in offsets.items():
        names = split_offset_key(key)
        if names is None:
            continue
        for queue_id, seen in queues.items():
            queue = QueueKey(names[0], queue_id)
            if queue not in queue_ends and queue_id >= 0 and seen > ends.get(queue, 0):
                ends[queue] = seen
    return ends
