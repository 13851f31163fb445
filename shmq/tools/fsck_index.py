"""Checks the index files of a store against its log, and drops those that do not hold.

What lives here: `check_index`, a part of fsck's check. A missing file is no finding: the broker
makes it when it is wanted, and so it does with those that a repair removes. Which process: fsck.
May fail: StoreError where a file cannot be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmq.errors import StoreCorruptError, StoreVersionError
from shmq.store.index_files import IndexFile, index_path, index_positions, is_same
from shmq.tools.fsck_findings import Code, Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from shmq.store.log_files import LogFiles

__all__ = ["check_index"]


def check_index(
    files: LogFiles,
    find: Callable[[Code, Severity, Path, str], object],
    *,
    complete: Collection[int],
    damaged: Collection[int],
) -> None:
    """Look at every index file that is there.

    Args:
        files: the log.
        find: takes a finding.
        complete: its complete files.
        damaged: those of them that have holes: their index may be from before and is not compared.
    """
    for file_position in index_positions(files.store_path):
        path = index_path(files.store_path, file_position)
        if file_position not in complete:
            find(Code.INDEX_STALE, Severity.WARNING, path, "its log file is gone or not complete")
            continue
        try:
            with IndexFile(
                path, file_position=file_position, file_size_bytes=files.file_size_bytes
            ) as file:
                for page in range(file.header.page_count):
                    file.page(page)
            if file_position in damaged or is_same(files, file_position):
                continue
            code, text = Code.INDEX_WRONG, "it does not say what the log says"
        except (StoreCorruptError, StoreVersionError) as error:
            code, text = Code.INDEX_DAMAGED, str(error)
        find(code, Severity.WARNING, path, text)
