"""What a file of a store holds, field by field.

What lives here: for each kind of file the fields that inspect shows: frames of a CommitLog file,
ConsumeQueue files, index files, positions, our checksummed lists, config. Reads only, through
pread; a file that the broker is writing is shown as far as it is written.

Which process: inspect. What may fail: StoreError and ConfigError for a file that does not hold;
what can still be shown is shown before.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from shmq.core import core
from shmq.errors import ShmqError, StoreError
from shmq.shm import manifest
from shmq.store import checked_json, config_files, positions
from shmq.store.consume_queue_files import ENTRY_SIZE, ConsumeQueueFile
from shmq.store.index_files import IndexFile
from shmq.store.log_files import find_file_size

__all__ = ["Line", "Section", "Window", "file_sections", "frame_section", "walk_frames"]

_LOG_NAME = re.compile(r"\d{20}")
_HEAD_BYTES = 64 << 10
_TEXT_MAX = 120
_STATUS_NAMES = {value: name for name, (value, _) in core.STATUS.items()}
_MAGICS = {0xDAA320A7: "V1", 0xDAA320AB: "V2", 0xCBD43194: "BLANK"}
_SYS_FLAGS = (
    (0x1, "compressed"),
    (0x2, "multi-tags"),
    (0x10, "bornHost IPv6"),
    (0x20, "storeHost IPv6"),
    (0x40, "need unwrap"),
    (0x80, "inner batch"),
)
_TRANSACTIONS = {0x4: "prepared", 0x8: "commit", 0xC: "rollback"}


class Line(NamedTuple):
    """One field."""

    place: int | None
    """Byte in the file, or in the frame."""
    name: str
    value: object
    """As JSON shows it."""
    meaning: str
    """For people."""


class Section(NamedTuple):
    """A struct, a frame or a list in a file."""

    title: str
    lines: tuple[Line, ...]


class Window(NamedTuple):
    """What of a long file to show."""

    first: int
    """Index of the first frame, entry or row."""
    limit: int
    """At most so many."""


def file_sections(path: Path, window: Window) -> Iterator[Section]:
    """Yield what a file of a store holds; its kind is told by its name.

    Raises:
        StoreError, ConfigError, ShmError: it does not hold, or is no file of a store.
    """
    for matches, sections in _KINDS:
        if matches(path):
            yield from sections(path, window)
            return
    raise StoreError(
        f"inspect {path}: not a file of a store; wanted commitlog/<20 digits>, *.cq, *.idx, "
        "positions, *.json, *.json.bak, abort, lock or broker.conf"
    )


# ---- CommitLog -----------------------------------------------------------------------------------


def _log_sections(path: Path, window: Window) -> Iterator[Section]:
    file_position = int(path.name)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for index, (place, section) in enumerate(
            walk_frames(lambda at, n: os.pread(file.fileno(), n, at), size, file_position)
        ):
            if index >= window.first + window.limit:
                return
            if index >= window.first:
                yield section._replace(title=f"{section.title} at {place}")


def walk_frames(
    read: Callable[[int, int], bytes], size: int, file_position: int
) -> Iterator[tuple[int, Section]]:
    """Yield (physical_offset, frame) of a log file until its frames end.

    Args:
        read: gives bytes by (place in the file, number).
        size: of the file.
        file_position: physical_offset of its first byte.
    """
    at = 0
    while at < size:
        section, length = frame_section(read, at, size, file_position)
        yield file_position + at, section
        if length == 0:
            return
        at += length


def frame_section(
    read: Callable[[int, int], bytes], at: int, size: int, file_position: int
) -> tuple[Section, int]:
    """Return what lies at byte `at` of a log file, and its length; 0 if it is no frame.

    A damaged record whose parts still add up is shown with its length. A BLANK frame takes the rest
    of the file. Arguments as `walk_frames`.
    """
    data = read(at, min(_HEAD_BYTES, size - at))
    claimed = int.from_bytes(data[:4], "big")
    if len(data) >= 8 and int.from_bytes(data[4:8], "big") in _MAGICS and claimed > len(data):
        data = read(at, min(claimed, size - at))
    status, reason, fields = core.parse_frame(
        data[:claimed] if 8 <= claimed <= len(data) else data,
        physical_offset=file_position + at,
        demands=0,
        believe=True,
    )
    name = _STATUS_NAMES[status]
    if name == "EMPTY":
        return Section("end of the log", (Line(0, "zeros", True, "nothing was written here"),)), 0
    if name == "BLANK" or (fields is None and data[4:8] == b"\xcb\xd4\x31\x94"):
        blank = (
            Line(0, "totalSize", claimed, "bytes left in the file"),
            Line(4, "magic", "BLANK", "nothing more in this file"),
        )
        return Section("BLANK frame", blank), size - at if claimed == size - at else 0
    verdict = core.MESSAGE_REASONS[reason]
    if fields is None:
        return Section("no frame", (Line(0, "reason", verdict[0], verdict[1]),)), 0
    title = "record" if name == "OK" else f"damaged record ({verdict[0]}: {verdict[1]})"
    return Section(title, tuple(_record_lines(fields))), int(fields["totalSize"])


def _record_lines(fields: dict[str, object]) -> Iterator[Line]:
    """Yield the fields of a record in the order of their bytes."""
    born = len(_bytes(fields["bornHost"])) - 8
    stored = born + len(_bytes(fields["storeHost"])) - 8
    body = _bytes(fields["body"])
    topic = _bytes(fields["topic"])
    places = {
        "totalSize": 0,
        "magic": 4,
        "bodyCRC": 8,
        "queueId": 12,
        "flag": 16,
        "queueOffset": 20,
        "physicalOffset": 28,
        "sysFlag": 36,
        "bornTimestamp": 40,
        "bornHost": 48,
        "storeTimestamp": 56 + born,
        "storeHost": 64 + born,
        "reconsumeTimes": 72 + stored,
        "preparedTransactionOffset": 76 + stored,
    }
    for name, place in places.items():
        yield Line(place, name, _shown(name, fields[name]), _meaning(name, fields[name]))
    at = 84 + stored
    yield Line(at, "bodyLength", len(body), "bytes")
    yield Line(at + 4, "body", _text(body), "")
    at += 4 + len(body)
    yield Line(at, "topic", topic.decode("utf-8", "backslashreplace"), f"{len(topic)} bytes")
    at += (2 if len(topic) > 127 else 1) + len(topic)
    properties = _bytes(fields["properties"])
    yield Line(at, "propertiesLength", len(properties), "bytes")
    for pair in filter(None, properties.split(b"\x02")):
        key, _, value = pair.partition(b"\x01")
        yield Line(None, f"property {_text(key)}", _text(value), "")


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes), value
    return value


def _text(data: bytes) -> str:
    """Return the beginning of bytes as people read them: text where it is text, else hex."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    shown = text[:_TEXT_MAX] if text.isprintable() else data[: _TEXT_MAX // 2].hex()
    return shown if len(shown) in (len(text), 2 * len(data)) else f"{shown}..."


def _shown(name: str, value: object) -> object:
    if isinstance(value, bytes):
        return f"{ip_address(value[:-4])}:{int.from_bytes(value[-4:], 'big')}"
    if name == "magic" and isinstance(value, int):
        return _MAGICS.get(value, value)
    return value


def _meaning(name: str, value: object) -> str:
    if name.endswith("Timestamp") and isinstance(value, int):
        try:
            return datetime.fromtimestamp(value / 1000, UTC).isoformat(timespec="milliseconds")
        except (OverflowError, ValueError, OSError):
            return "no date"
    if name == "sysFlag" and isinstance(value, int):
        names = [text for bit, text in _SYS_FLAGS if value & bit]
        transaction = _TRANSACTIONS.get(value & 0xC)
        return ", ".join([*names, *([f"transaction {transaction}"] if transaction else [])])
    return ""


# ---- files of our own ----------------------------------------------------------------------------


def _positions_sections(path: Path, window: Window) -> Iterator[Section]:
    del window
    reports = positions.inspect_slots(path)
    for report in reports or ():
        if report.positions is None:
            reason = report.reason or "never written"
            line = Line(report.slot * positions.SLOT_SIZE, "reason", reason, "")
            yield Section(f"slot {report.slot}: does not count", (line,))
            continue
        values = asdict(report.positions)
        lines = tuple(
            Line(None, name, _plain(value), _meaning(name.replace("timestamp", "Timestamp"), value))
            for name, value in values.items()
        )
        yield Section(f"slot {report.slot}", lines)


def _lines(values: Mapping[str, object]) -> tuple[Line, ...]:
    """Return one line for each value."""
    return tuple(Line(None, name, value, "") for name, value in values.items())


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


def _consume_queue_sections(path: Path, window: Window) -> Iterator[Section]:
    file_position = int(path.stem) if path.stem.isdecimal() else 0
    size = int.from_bytes(path.read_bytes()[24:32], "little")
    with ConsumeQueueFile(path, file_position=file_position, file_size_bytes=size) as file:
        header = asdict(file.header)
        yield Section("header", _lines(header))
        skipped = 0
        left = window.limit
        for run in file.runs:
            title = f"{run.key.topic} queue {run.key.queue_id}"
            values = run._asdict()
            del values["key"]
            yield Section(title, _lines(values))
            begin = max(0, window.first - skipped)
            skipped += run.entry_count
            count = min(left, run.entry_count - begin)
            if count > 0:
                left -= count
                first = run.first_queue_offset + begin
                yield _entry_section(file.read(run, first, count), first, title)


def _index_sections(path: Path, window: Window) -> Iterator[Section]:
    file_position = int(path.stem) if path.stem.isdecimal() else 0
    with path.open("rb") as raw:
        size = int.from_bytes(os.pread(raw.fileno(), 8, 24), "little")
    with IndexFile(path, file_position=file_position, file_size_bytes=size) as file:
        yield Section("header", _lines(asdict(file.header)))
        lines = [
            Line(
                None,
                f"entry {index}",
                {
                    "hash": f"{entry.hash:016x}",
                    "physical_offset": file_position + entry.place,
                    "second": entry.second,
                },
                _meaning("storeTimestamp", entry.second * 1000),
            )
            for index, entry in enumerate(file.entries(window.first, window.limit), window.first)
        ]
        yield Section("entries", tuple(lines))


def _entry_section(view: memoryview, first: int, title: str) -> Section:
    lines = []
    for index in range(len(view) // ENTRY_SIZE):
        words = view[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE].cast("Q")
        tags_code = words[1] - (1 << 64) if words[1] >> 63 else words[1]
        value = {"physical_offset": words[0], "tags_code": tags_code, "size": words[2]}
        meaning = "" if words[2] else "hole: the message is damaged"
        lines.append(Line(None, f"offset {first + index}", value, meaning))
    return Section(f"{title} entries", tuple(lines))


def _checked_json_sections(path: Path, window: Window) -> Iterator[Section]:
    del window
    data = checked_json.load(path)
    if data is None:
        raise StoreError(f"inspect {path}: no such file")
    yield Section("checksum holds", _lines(data))


def _manifest_sections(path: Path, window: Window) -> Iterator[Section]:
    manifest.load(path)
    yield from _checked_json_sections(path, window)


def _config_sections(path: Path, window: Window) -> Iterator[Section]:
    del window
    contents, is_checked = config_files.parse(path.read_bytes(), path)
    title = "checksum holds" if is_checked else "no checksum: written by RocketMQ or by hand"
    yield Section(title, _lines(contents))


def _text_sections(path: Path, window: Window) -> Iterator[Section]:
    del window
    text = path.read_text(encoding="utf-8", errors="backslashreplace")
    lines = text.splitlines() or [""]
    yield Section(path.name, tuple(Line(None, str(n), line, "") for n, line in enumerate(lines, 1)))


def _store_sections(path: Path, window: Window) -> Iterator[Section]:
    """A whole store: what is where, and its positions."""
    del window
    folder = path / "commitlog"
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    lines = [
        Line(None, "file_size_bytes", find_file_size(path), "of a CommitLog file"),
        Line(None, "first file", names[0] if names else None, ""),
        Line(None, "last file", names[-1] if names else None, ""),
        Line(None, "file_count", len(names), ""),
    ]
    beside = ("abort", "lock", "broker.conf", "checkpoint", "consumequeue", "index")
    lines += [Line(None, name, (path / name).exists(), "is there") for name in beside]
    yield Section(f"store {path}", tuple(lines))
    for name, sections in (
        ("positions", _positions_sections),
        ("quarantine.json", _checked_json_sections),
        ("queue_floors.json", _checked_json_sections),
        ("manifest.json", _manifest_sections),
    ):
        file = path / "shmq" / name
        if not file.exists():
            continue
        try:
            for section in sections(file, Window(0, 0)):
                yield section._replace(title=f"{name}: {section.title}")
        except ShmqError as error:
            yield Section(f"{name}: does not hold", (Line(None, "reason", str(error), ""),))


def _is_log(path: Path) -> bool:
    return path.is_file() and bool(_LOG_NAME.fullmatch(path.name))


_OWN_JSON = {"quarantine.json", "queue_floors.json"}
_KINDS: tuple[tuple[Callable[[Path], bool], Callable[[Path, Window], Iterator[Section]]], ...] = (
    (lambda path: path.is_dir() and (path / "commitlog").is_dir(), _store_sections),
    (_is_log, _log_sections),
    (lambda path: path.suffix == ".cq", _consume_queue_sections),
    (lambda path: path.suffix == ".idx", _index_sections),
    (lambda path: path.name == positions.POSITIONS_FILE, _positions_sections),
    (lambda path: path.name == "manifest.json", _manifest_sections),
    (lambda path: path.name in _OWN_JSON, _checked_json_sections),
    (lambda path: path.name.endswith((".json", ".json.bak")), _config_sections),
    (lambda path: path.name in ("abort", "lock", "broker.conf"), _text_sections),
)
