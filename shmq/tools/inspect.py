"""Shows what is in a segment or a file: `python -m shmq.tools.inspect TARGET [options]`.

TARGET is the name of a shared memory object (`/shmq...`, as in /dev/shm), the `/proc/PID/fd/N` of a
ring or a consumer page, a file of a store, or a store's folder. Every field has its name, its value
and its meaning, from the same tables that the core was compiled with. Reads only: it may be used
while the broker runs.

Exit codes: 0 shown (a damaged frame as well: its title says so; to check a store is fsck's task),
1 it does not hold or is not there (what holds is shown first), 64 usage.

What lives here: the command line and what is printed; inspect_segment.py and inspect_files.py know
the formats. A process of its own.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import orjson

from shmq.core import core
from shmq.errors import ShmqError, StoreError
from shmq.shm.names import ObjectKind, ObjectName, parse
from shmq.shm.segment import SHM_FOLDER
from shmq.store.log_files import LogFiles, find_file_size
from shmq.tools.inspect_files import (
    Line,
    Section,
    Window,
    file_sections,
    frame_section,
    walk_frames,
)
from shmq.tools.inspect_segment import Part, SegmentReader, is_memfd, parts

__all__ = ["inspect", "main"]

FORMAT_VERSION = 1
_EXIT_SHOWN = 0
_EXIT_DOES_NOT_HOLD = 1
_EXIT_USAGE = 64
_COUNT_DEFAULT = 32
_VALUE_WIDTH_MAX = 48

# Fields that hold a member of an enum: (struct, field) to the names of its constants.
_ROW_STATES = ("ROW_FREE", "ROW_ACTIVE", "ROW_READ_ONLY", "ROW_DELETED")
_STATES = {
    ("hot_slot", "state"): ("HOT_FREE", "HOT_READY", "HOT_LIVE", "HOT_RETIRED"),
    ("session_slot", "state"): ("SESSION_FREE", "SESSION_LIVE"),
    ("queue_row", "state"): _ROW_STATES,
    ("topic_row", "state"): _ROW_STATES,
}
# Structs that stand in a row: shown by --begin and --count, one kind after the other.
_UNCOUNTED = {"segment_header", "control_config", "turn_header"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(_EXIT_USAGE, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = _parser().parse_args(argv)
    window = Window(arguments.begin, arguments.count)
    sections: list[Section] = []
    problem = None
    try:
        for section in inspect(
            arguments.target,
            window=window,
            position=arguments.at,
            struct=arguments.struct,
            is_showing_unused=arguments.all,
        ):
            sections.append(section)
            if not arguments.json:
                _print(section)
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_SHOWN
    except (ShmqError, OSError, UnicodeDecodeError) as error:
        problem = str(error)
    if arguments.json:
        _print_json(arguments.target, sections, problem)
    elif problem is not None:
        print(f"error: {problem}", file=sys.stderr)
    return _EXIT_SHOWN if problem is None else _EXIT_DOES_NOT_HOLD


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m shmq.tools.inspect",
        description="Show a segment in shared memory or a file of a store, field by field.",
        epilog="exit codes: 0 shown, 1 it does not hold or is not there, 64 usage",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="/shmq... (as in /dev/shm), a ring's /proc/PID/fd/N, a file, or a store's folder",
    )
    parser.add_argument(
        "--at",
        type=_natural,
        metavar="POSITION",
        help="the frame at this physical_offset; TARGET is a store, a log file or a hot segment",
    )
    parser.add_argument(
        "--begin",
        type=_natural,
        default=0,
        metavar="N",
        help="first frame, entry or row to show (default 0)",
    )
    parser.add_argument(
        "--count",
        type=_natural,
        default=_COUNT_DEFAULT,
        metavar="N",
        help=f"how many of each to show (default {_COUNT_DEFAULT})",
    )
    parser.add_argument("--struct", metavar="NAME", help="only this struct of a segment")
    parser.add_argument("--all", action="store_true", help="slots and rows that hold nothing, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


def _natural(text: str) -> int:
    value = int(text, 0)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: wanted 0 or more")
    return value


def inspect(
    target: str,
    *,
    window: Window,
    position: int | None = None,
    struct: str | None = None,
    is_showing_unused: bool = False,
) -> Iterator[Section]:
    """Yield what a segment, a file or a store holds.

    Args:
        target: a name in /dev/shm, a process's fd of a ring, or a path.
        window: which frames, entries or rows of a long one.
        position: only the frame at this physical_offset.
        struct: only this struct of a segment.
        is_showing_unused: slots and rows of a segment that hold nothing, too.

    Raises:
        ShmqError: it does not hold, or is not there; what holds came before.
    """
    name = parse(target.removeprefix(f"{SHM_FOLDER}/"))
    if name is not None and name.kind is ObjectKind.HOT:
        yield from _hot_sections(name, window, position)
    elif name is not None:
        yield from _segment_sections(name, window, struct, is_showing_unused)
    elif is_memfd(target):
        yield from _segment_sections(target, window, struct, is_showing_unused)
    elif position is not None:
        yield _frame_in_files(Path(target), position)
    else:
        if not Path(target).exists():
            raise StoreError(f"inspect {target}: no such segment or file")
        yield from file_sections(Path(target), window)


# ---- segments ------------------------------------------------------------------------------------


def _segment_sections(
    name: ObjectName | str, window: Window, struct: str | None, is_showing_unused: bool
) -> Iterator[Section]:
    if struct is not None and struct not in core.LAYOUT:
        raise StoreError(f"inspect {name}: no struct {struct}; wanted {', '.join(core.LAYOUT)}")
    seen: dict[str, int] = {}
    with SegmentReader(name) as reader:
        for part in parts(reader):
            if struct is not None and part.struct != struct:
                continue
            if part.struct in _UNCOUNTED:
                yield _part_section(part)
                continue
            if not part.is_used and not is_showing_unused:
                continue
            index = seen.get(part.struct, 0)
            seen[part.struct] = index + 1
            if window.first <= index < window.first + window.limit:
                yield _part_section(part)


def _part_section(part: Part) -> Section:
    lines = []
    for field, place, _, _, doc in core.LAYOUT[part.struct][1]:
        value = part.values[field]
        if field.startswith("reserved") and not any(value if isinstance(value, tuple) else [value]):
            continue
        lines.append(Line(part.place + place, field, *_shown(part.struct, field, value, doc)))
    return Section(part.label, tuple(lines))


def _shown(
    struct: str, field: str, value: int | bytes | tuple[int, ...], doc: str
) -> tuple[object, str]:
    """Return (value, meaning) of a field as people want to see it."""
    if isinstance(value, bytes):
        text = value.rstrip(b"\0")
        return (text.decode("utf-8", "backslashreplace") if field == "topic" else value.hex()), doc
    if field == "magic" and isinstance(value, int):
        return value.to_bytes(8, "little").decode("ascii", "backslashreplace"), doc
    if field == "tags_code" and isinstance(value, int):
        return value - (1 << 64) if value >> 63 else value, doc
    for name in _STATES.get((struct, field), ()):
        if getattr(core, name) == value:
            return value, f"{name}: {doc}"
    return value, doc


def _hot_sections(name: ObjectName, window: Window, position: int | None) -> Iterator[Section]:
    """Yield the frames of a hot segment: the first one says where in the log it lies."""
    with SegmentReader(name) as reader:

        def read(at: int, size: int) -> bytes:
            return reader.read(at, size)

        file_position = int.from_bytes(reader.read(28, 8), "big")
        if reader.read(4, 4) == b"\xcb\xd4\x31\x94":
            file_position = 0
        if position is not None:
            yield _frame_at(read, reader.size_bytes, file_position, position, str(name))
            return
        frames = walk_frames(read, reader.size_bytes, file_position)
        last = window.first + window.limit
        for place, section in itertools.islice(frames, window.first, last):
            yield section._replace(title=f"{section.title} at {place}")


# ---- one frame of the log ------------------------------------------------------------------------


def _frame_in_files(path: Path, position: int) -> Section:
    """Return the frame at `position`, given its file, the folder commitlog/ or the store."""
    if path.is_dir():
        store = path.parent if path.name == "commitlog" else path
        size = find_file_size(store)
        if size is None:
            raise StoreError(f"inspect {path}: no log files there")
        files = LogFiles(store, size)
        path = files.path(files.file_position(position))
    if not path.name.isdecimal():
        raise StoreError(f"inspect {path}: --at wants a store, a log file or a hot segment")
    with path.open("rb") as file:

        def read(at: int, size: int) -> bytes:
            return os.pread(file.fileno(), size, at)

        size = os.fstat(file.fileno()).st_size
        return _frame_at(read, size, int(path.name), position, str(path))


def _frame_at(
    read: Callable[[int, int], bytes], size: int, file_position: int, position: int, where: str
) -> Section:
    if not file_position <= position < file_position + size:
        raise StoreError(
            f"inspect {where}: it holds {file_position} to {file_position + size - 1}, "
            f"not {position}"
        )
    section, _ = frame_section(read, position - file_position, size, file_position)
    return section._replace(title=f"{section.title} at {position}")


# ---- output --------------------------------------------------------------------------------------


def _print(section: Section) -> None:
    print(section.title)
    names = max((len(line.name) for line in section.lines), default=0)
    values = [_value_text(line.value) for line in section.lines]
    width = min(_VALUE_WIDTH_MAX, max(map(len, values), default=0))
    for line, value in zip(section.lines, values, strict=True):
        place = "" if line.place is None else str(line.place)
        print(f"{place:>10}  {line.name:<{names}}  {value:<{width}}  {line.meaning}".rstrip())
    print()


def _value_text(value: object) -> str:
    if isinstance(value, str):
        return value
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()


def _print_json(target: str, sections: Sequence[Section], problem: str | None) -> None:
    data = {
        "format_version": FORMAT_VERSION,
        "target": target,
        "sections": [
            {"title": section.title, "fields": [line._asdict() for line in section.lines]}
            for section in sections
        ],
        "problem": problem,
    }
    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
    print(orjson.dumps(data, option=options).decode())


if __name__ == "__main__":
    sys.exit(main())
