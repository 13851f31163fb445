"""Checks a store and mends it: `python -m shmq.tools.fsck STORE [--repair] [--json]`.

Every file name and size, every frame's CRCs, BLANK frames, queue offsets, zeros behind the tail,
positions, quarantine list, ConsumeQueue files against the log, config JSON, manifest, boot files.
A store that a broker has open is refused. Without --repair nothing is written.

Exit codes: 0 clean, 1 findings, 2 found and repaired, 3 in use, unreadable or no store, 64 usage.

What lives here: the command line and what is printed. A process of its own; see fsck_check.py and
fsck_repair.py for the work.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import orjson

from shmq.errors import ShmqError, StoreLockedError
from shmq.store.store_lock import LOCK_FILE, StoreLock, lock_holder
from shmq.tools.fsck_check import check_store
from shmq.tools.fsck_findings import (
    EXIT_CLEAN,
    EXIT_FINDINGS,
    EXIT_REPAIRED,
    EXIT_USAGE,
    Report,
    Severity,
)
from shmq.tools.fsck_repair import repair

__all__ = ["fsck", "main"]

_VERDICTS = {
    EXIT_CLEAN: "clean",
    EXIT_FINDINGS: "not clean",
    EXIT_REPAIRED: "repaired",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = _Parser(
        prog="python -m shmq.tools.fsck",
        description="Check a shmq or RocketMQ store; with --repair mend it.",
        epilog="exit codes: 0 clean, 1 findings, 2 repaired, 3 in use or unreadable, 64 usage",
    )
    parser.add_argument("store", type=Path, metavar="STORE", help="folder of the store")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="mend what can be mended; what is written over is kept in STORE/shmq/quarantine",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args(argv)
    show = None
    if sys.stderr.isatty() and not arguments.json:
        show = _show_progress
    report = fsck(arguments.store, is_repairing=arguments.repair, on_progress=show)
    if show is not None:
        print("\r\x1b[K", end="", file=sys.stderr)
    if arguments.json:
        sys.stdout.write(orjson.dumps(report.to_dict(), option=orjson.OPT_INDENT_2).decode())
        print()
    else:
        _print(report)
    return report.exit_code


def fsck(
    store_path: Path,
    *,
    is_repairing: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check one store, and mend it if asked to. Blocks for the disk.

    Args:
        store_path: folder of the store.
        is_repairing: mend what can be mended.
        on_progress: called with (bytes of the log done, bytes of the log).

    Returns:
        what was found; a store that cannot be checked to its end is a report that says why.
    """
    report = Report(store=str(store_path))
    try:
        with _excluding_brokers(store_path, is_repairing=is_repairing):
            check = check_store(store_path, on_progress=on_progress)
            report = check.report
            if is_repairing and report.findings:
                repair(check)
    except (ShmqError, OSError) as error:
        report.unusable = str(error)
    return report


@contextlib.contextmanager
def _excluding_brokers(store_path: Path, *, is_repairing: bool) -> Iterator[None]:
    """Hold the store's lock, or at least make sure that nobody does, where nothing is written."""
    if not is_repairing and not (store_path / LOCK_FILE).exists():
        yield  # never opened by anybody: a check makes no file
        return
    try:
        lock = StoreLock(store_path)
    except StoreLockedError:
        raise
    except ShmqError:
        if is_repairing:
            raise
        holder = lock_holder(store_path)
        if holder is not None:
            raise StoreLockedError(
                f"check {store_path}: process {holder} has the store open"
            ) from None
        yield
        return
    with lock:
        yield


def _show_progress(done: int, total: int) -> None:
    share = 100 * done // total if total else 100
    print(f"\r{share:3d} % of {total >> 20} MiB", end="", file=sys.stderr, flush=True)


def _print(report: Report) -> None:
    if report.unusable is not None:
        print(f"{report.store}: {report.unusable}", file=sys.stderr)
    for finding in report.findings:
        mended = " (repaired)" if finding.is_repaired else ""
        print(f"{finding.severity}: {finding.path}: {finding.message} [{finding.code}]{mended}")
    for loss in report.losses:
        kept = f", bytes kept in shmq/quarantine/{loss.kept_as}" if loss.kept_as else ""
        print(f"lost: {loss.size} bytes at {loss.position} ({loss.reason}){kept}")
        for message in loss.messages:
            where = f"{message.topic} queue {message.queue_id} offset {message.queue_offset}"
            print(f"  message {where}")
        if not loss.messages:
            print("  no message is known to have been there")
    if report.unusable is None:
        left = [
            item
            for item in report.findings
            if item.severity is not Severity.NOTE and not item.is_repaired
        ]
        print(
            f"{report.store}: {_VERDICTS[report.exit_code]}: {report.file_count} files, "
            f"{report.record_count} records, {report.queue_count} queues, log ends at "
            f"{report.end_position}, {len(left)} findings left"
        )


if __name__ == "__main__":
    sys.exit(main())
