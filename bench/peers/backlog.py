"""How fast a peer hands out what it has on disk and nowhere else."""

import os
from collections.abc import Iterator
from pathlib import Path

from measuring import SIZES
from peer import Peer
from rows import MIB, Scale, Value
from session import folder_of_run, running

_SIZE = SIZES["1KiB"]
_TOPIC = "backlog"


def row_backlog(kind: type[Peer], cache: Path, folders: list[str], scale: Scale) -> Iterator[Value]:
    """A server takes messages and ends; its files leave the page cache; another one starts on
    them, and a consumer takes all of it.
    """
    count = scale.backlog_bytes // _SIZE
    with folder_of_run() as folder:
        with running(kind, cache, folder, folders) as session:
            line = session.line(consumers=0, name=_TOPIC)
            session.send(line, "batch", _SIZE, count)
        leave_cache(folder)
        with running(kind, cache, folder, folders) as session:
            line = session.line(producers=0, name=_TOPIC)
            seconds = session.drain(line, _SIZE, count)
    name = f"{scale.backlog_bytes // MIB} MiB of 1KiB from disk"
    yield Value(name, count / seconds, "messages/s", True)


def leave_cache(folder: Path) -> None:
    """What is in the files is read from the disk when it is read again."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
