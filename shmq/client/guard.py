"""The guard of a private cluster: `python -m shmq.client.guard ROOT RUN remove|keep PID`.

What lives here: a process that starts a NameServer, which supervises the brokers, and stops all
when its standard input ends: when the program closes it, exits, or is killed. A NameServer that is
killed is started again. Writes: nothing itself; with `remove` the folder goes at the end.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
from pathlib import Path

from shmq.client.namesrv_process import start_namesrv

__all__ = ["main"]


def main(root: Path, run: Path, program_pid: int, *, is_temporary: bool) -> int:
    """Keep a NameServer running until the program closes standard input or ends; then stop it and
    its brokers. A child that the program forked has a copy of the pipe, and keeps nothing alive.

    Args:
        root: folder of the stores and the log.
        run: the runtime folder.
        program_pid: of the parent.
        is_temporary: remove `root`, and what is in shared memory, at the end.

    Returns:
        The NameServer's exit code.
    """
    program = os.pidfd_open(program_pid)
    if os.getppid() != program_pid:  # it has ended: the pidfd may be somebody else's
        if is_temporary:
            shutil.rmtree(root, ignore_errors=True)
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = start_namesrv(root, run)
    # All that the end takes is loaded beside the NameServer, not before it: the program waits for
    # that one. And not at the end: these files may be another version's by then.
    from shmq.client.cleanup import end_all

    while True:
        pidfd = os.pidfd_open(process.pid)
        poll = select.poll()
        poll.register(0, select.POLLIN | select.POLLHUP)
        poll.register(program, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        os.close(pidfd)
        if 0 in ready or program in ready:
            break
        if process.wait() >= 0:  # one that ended by itself would do so again
            break
        process = start_namesrv(root, run)  # killed: this one adopts the brokers
    process.terminate()
    process.wait()
    end_all(root, run, is_temporary=is_temporary)
    return process.returncode


if __name__ == "__main__":
    _root, _run, _kind, _pid = sys.argv[1:]
    sys.exit(main(Path(_root), Path(_run), int(_pid), is_temporary=_kind == "remove"))
