"""Succession: a member of a replica set serves from the memory that a dead master left.

What lives here: the judgement whether that memory may be served from with our own files, and the
frames' check. A slave's log is a prefix of its master's, byte for byte, so a successor needs no
conversion: it opens its own folder with the dead master's memory, as a restarted master opens its
own (decision 0019). What must hold, or the memory is left alone:

    - its bytes reach back to where our files end: hot_min_position <= end of our log
    - our log is no longer than it: end of our log <= committed_position
    - our last bytes are the memory's, where both have them
    - each frame from there to committed_position holds

Whose the memory is, at each step (the steps are adoption.py's; each was killed in a test):

    mastership.json names     files_owner    a death here: the next holder of mastership ...
    the dead master's list    the dead one   dead master's: adopts; others: begin here
    (our list is written)     the dead one   the same: our copy of the list counts for nothing yet
    our list                  the dead one   finds by files_owner that the flushed position is not
                                             of its files, whoever it is, and looks at those first
    our list                  nobody         the same
    our list                  us             ours; the dead one's list is removed, or ignored

The reaper touches none of it meanwhile: one of the two lists names it throughout, and the in-use
mark in the folder that the members share is held.

Which process: a member that holds mastership, while it opens its store. Writes nothing. May fail:
ShmError: the memory is not one for our files, and why.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from shmq.core import core
from shmq.core.fields import control_place
from shmq.errors import ShmError, StoreCorruptError
from shmq.store.durable_file import disk_error

if TYPE_CHECKING:
    from shmq.store.log_files import LogFiles
    from shmq.store.memory import StoreMemory

__all__ = ["check_frames", "check_prefix"]

_OK: Final = core.STATUS["OK"][0]
_BLANK: Final = core.STATUS["BLANK"][0]
_COMPARED_BYTES: Final = 1 << 20
"""Of the end of our log, beside the memory's: another history of the log differs in every frame's
time and place, and reading all that both have would take what a failover has to spare."""


def check_prefix(memory: StoreMemory, files: LogFiles, *, end_position: int) -> None:
    """Return if the log in `files`, which ends at `end_position`, goes on in `memory`.

    Args:
        memory: attached, its owner dead.
        files: ours, after recovery.
        end_position: physical_offset behind our last frame.

    Raises:
        ShmError, StoreCorruptError: it does not: the memory is not to be used, nor removed.
        StoreError: our files cannot be read.
    """
    size = memory.manifest.file_size_bytes
    load = memory.control.load64
    committed = load(control_place("append_positions", "committed_position"))
    hot_min = load(control_place("append_positions", "hot_min_position"))
    what = f"go on with the memory {memory.store}"
    if size != files.file_size_bytes:
        raise ShmError(f"{what}: its files have {size} bytes, ours {files.file_size_bytes}")
    if not hot_min <= end_position <= committed:
        raise ShmError(
            f"{what}: our files end at {end_position}, it has {hot_min} to {committed};"
            " what is missing is in the files of the dead master: start that one"
        )
    whole_end = end_position
    for file_position, _ in memory.hot_files():
        if file_position <= whole_end:
            whole_end = max(whole_end, file_position + size)
    if whole_end < committed:
        raise ShmError(f"{what}: the segment that holds the bytes from {whole_end} on is gone")
    begin = max(hot_min, end_position - _COMPARED_BYTES)
    for file_position, hot in memory.hot_files():
        first, last = max(begin, file_position), min(end_position, file_position + size)
        if first >= last:
            continue
        with memoryview(hot.mapping) as view:
            theirs = bytes(view[first - file_position : last - file_position])
        if theirs != _read(files, file_position, first, last):
            raise StoreCorruptError(
                f"{what}: the bytes {first} to {last} are other ones in our files: the logs are"
                " not one; start the member that was master last"
            )
    check_frames(memory, end_position, committed)


def check_frames(memory: StoreMemory, begin: int, end: int) -> None:
    """Return if every frame of the log in memory from `begin` to `end` holds.

    Raises:
        StoreCorruptError: one does not.
    """
    size = memory.manifest.file_size_bytes
    for file_position, hot in memory.hot_files():
        first, last = max(begin, file_position), min(end, file_position + size)
        while first < last:
            first, status, reason, _ = core.scan(
                hot.mapping,
                position=file_position,
                begin=first,
                end=last,
                file_end=file_position + size,
                topics={},
                demands=core.CHECK_RECORD_CRC,
            )
            if status == _BLANK:
                break
            if status != _OK:
                raise StoreCorruptError(
                    f"adopt {memory.store}: the frame at {first} in memory does not hold: "
                    f"{core.MESSAGE_REASONS[reason][1]}"
                )


def _read(files: LogFiles, file_position: int, first: int, last: int) -> bytes:
    fd = files.open(file_position, readonly=True)
    try:
        return os.pread(fd, last - first, first - file_position)
    except OSError as error:
        raise disk_error(f"read the CommitLog file at {file_position}", error) from error
    finally:
        os.close(fd)
