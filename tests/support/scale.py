"""How much a test does: few rounds in the default set, all of them in a full run."""

import os


def is_full_run() -> bool:
    """Whether this is a full run (bin/test --full, or SHMQ_FULL=1)."""
    return os.environ.get("SHMQ_FULL") == "1"


def scaled(default_count: int, full_count: int) -> int:
    """`default_count` in the default set, `full_count` in a full run."""
    return full_count if is_full_run() else default_count
