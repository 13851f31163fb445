import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from shmq.errors import StoreError
from shmq.store.durable_file import read_file


def test_file_is_read_whole_or_is_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_file(path, size_max=10) is None
    path.write_bytes(b"0123456789")
    assert read_file(path, size_max=10) == b"0123456789"
    path.write_bytes(b"")
    assert read_file(path, size_max=10) == b""


def test_what_cannot_be_a_file_of_ours_is_refused(tmp_path: Path) -> None:
    large, link, pipe = (tmp_path / name for name in ("large", "link", "pipe"))
    large.write_bytes(b"0123456789a")
    link.symlink_to(large)
    os.mkfifo(pipe)
    for path, why in ((large, "more than 10"), (link, "link"), (pipe, "plain file")):
        with pytest.raises(StoreError, match=why):
            read_file(path, size_max=10)
    with pytest.raises(StoreError, match="plain file"):
        read_file(tmp_path, size_max=10)


def test_small_file_takes_little_memory_whatever_it_might_have_been(tmp_path: Path) -> None:
    """Config files may have a GiB, and most have a KiB."""
    path = tmp_path / "small"
    path.write_bytes(b"{}")
    limit = 400 << 20
    program = (
        "import sys\nfrom pathlib import Path\nfrom shmq.store.durable_file import read_file\n"
        "assert read_file(Path(sys.argv[1]), size_max=1 << 30) == b'{}'"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(path)],
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
