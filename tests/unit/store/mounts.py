"""Small file systems for tests that fill a disk or find it read-only: root only, else skipped."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.require import require_or_skip, require_program, require_root


@contextlib.contextmanager
def small_file_system(folder: Path, *, size: int) -> Iterator[Path]:
    """A tmpfs of `size` bytes at `folder`, unmounted behind the test however it ends."""
    require_root()
    mount = require_program("mount", "mount")
    folder.mkdir()
    command = [mount, "-t", "tmpfs", "-o", f"size={size}", "shmq-test", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        require_or_skip(f"cannot mount a tmpfs here: {result.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def make_readonly(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def make_writable(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
