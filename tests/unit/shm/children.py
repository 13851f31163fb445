"""Child processes for the shm room's tests: killed, of another uid, with their own /dev/shm."""

import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tests.support.require import require_or_skip, require_program, require_root

ROOT = Path(__file__).resolve().parents[3]
NOBODY = 65534
_started: list["subprocess.Popen[str]"] = []


def start(
    code: str, *args: object, before: Sequence[str] = (), stdin: int = subprocess.PIPE
) -> "subprocess.Popen[str]":
    """Start a Python child that runs `code` with `args`; `before` goes before the command."""
    child = subprocess.Popen(
        [*before, sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    _started.append(child)
    return child


def end_all() -> None:
    """Kill the children that a failed test left running, so that none outlives its test."""
    while _started:
        child = _started.pop()
        if child.poll() is None:
            child.kill()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
        child.wait()


def run(code: str, *args: object, before: Sequence[str] = (), stdin: int = subprocess.PIPE) -> str:
    """Run `code` in a child to its end; return what it printed. A failing child fails the test."""
    child = start(code, *args, before=before, stdin=stdin)
    out, err = child.communicate()
    assert child.returncode == 0, err
    return out.strip()


def run_in_private_shm(mount_options: str, code: str, *args: object) -> str:
    """Run `code` in a child whose /dev/shm is a tmpfs of its own with these mount options."""
    require_root()
    unshare = require_program("unshare", "util-linux")
    if subprocess.run([unshare, "-m", "true"], capture_output=True, check=False).returncode:
        require_or_skip("no right to make a mount namespace (unshare -m)")
    mount = f"mount -t tmpfs -o {mount_options} shmq-test /dev/shm"
    return run(code, *args, before=[unshare, "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"])


def run_as_nobody(code: str, *args: object, stdin: int = subprocess.PIPE) -> str:
    """Run `code` in a child of uid 65534."""
    require_root()
    setpriv = require_program("setpriv", "util-linux")
    as_nobody = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    probe = [*as_nobody, sys.executable, "-c", "import shmq.errors"]
    if subprocess.run(probe, capture_output=True, cwd=ROOT, check=False).returncode:
        require_or_skip("uid 65534 cannot run this Python from this folder")
    return run(code, *args, before=as_nobody, stdin=stdin)
