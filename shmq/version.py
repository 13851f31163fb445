"""Which shmq this is. Reads the installed package once; writes nothing."""

from functools import cache

__all__ = ["version_text"]


@cache
def version_text() -> str:
    """The version of the shmq that this process runs: `0.1.0`."""
    from importlib.metadata import version  # 10 ms that a client need not pay

    return version("shmq")
