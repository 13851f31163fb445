"""A broker's process that does not know yet which broker it is: python -m shmq.broker.spare.

It imports all that a broker needs, which is most of what a start takes, and waits on its standard
input, a Unix socket, for one message: the arguments of `shmq.broker` as JSON, with two descriptors:
the broker's lock, held from here to the end, and the file that its lines go to. Then it is that
broker. If the other side closes, nobody needs it and it ends.

Written: nothing, before it is a broker. May fail: what a broker may; a message of another shape
ends it like any other broker that cannot start.
"""

import os
import socket
import sys

import orjson

from shmq.broker.__main__ import main as broker

__all__ = ["main"]

_MESSAGE_BYTES_MAX = 65_536


def main() -> int:
    """Wait, then run a broker until it is told to stop; the exit code."""
    with socket.socket(fileno=os.dup(0)) as giver:
        message, fds, _, _ = socket.recv_fds(giver, _MESSAGE_BYTES_MAX, 2)
    if not message:
        return 0
    _lock_fd, log_fd = fds  # the lock is held by being open
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    return broker(orjson.loads(message))


if __name__ == "__main__":
    sys.exit(main())
