"""A machine of its own for tests of systemd: Debian with a real PID 1, in a container.

What lives here: `debian` makes the tree of a minimal Debian once, with debootstrap, and keeps it in
$XDG_CACHE_HOME/shmq (~/.cache/shmq); `Machine` boots a copy-on-write layer over it with
systemd-nspawn, runs commands inside, restarts it and switches it off. It has a network, /dev/shm
and processes of its own, and no way out.

Needs root, systemd-nspawn and debootstrap; missing: skipped by name, failed in CI.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.memory_group import MemoryGroup
from tests.support.require import require_or_skip, require_program, require_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_RELEASES = {(3, 11): "bookworm", (3, 13): "trixie"}
"""Which Debian has our Python: a wheel of ours is for one."""
_PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv"
_DEBOOTSTRAP_TIMEOUT_S = 900.0
_LOOK_S = 0.02
_BOOT_LOOKS = 3000
_COMMAND_TIMEOUT_S = 120.0
_MEMORY = "/sys/fs/cgroup/memory"
_CGROUPS = ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", _MEMORY, "/sys/fs/cgroup")
_INSIDE = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


def debian() -> Path:
    """The tree of a minimal Debian with the Python that runs the tests; nobody writes into it."""
    require_root()
    require_program("systemd-nspawn", "systemd-container")
    program = require_program("debootstrap", "debootstrap")
    release = _RELEASES.get(sys.version_info[:2])
    if release is None:
        pytest.skip(f"no Debian has Python {sys.version_info.major}.{sys.version_info.minor}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(_PACKAGES.encode()).hexdigest()[:8]
    folder = cache / "shmq" / f"debian-{release}-{key}"
    if folder.is_dir():
        return folder
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        done = subprocess.run(
            [program, "--variant=minbase", f"--include={_PACKAGES}", release, str(fresh)],
            capture_output=True,
            text=True,
            timeout=_DEBOOTSTRAP_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            said = done.stdout.splitlines()[-1:]
            require_or_skip(f"debootstrap {release}: {said}; Debian's packages must be reachable")
        with contextlib.suppress(OSError):  # another run was faster
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


class Machine:
    """One machine; a context manager. It is off until `boot`, and keeps its disk until the end.

    Args:
        tree: of `debian`.
        folder: for its disk.
        shown: files of ours by where the machine has them, read-only.
    """

    def __init__(self, tree: Path, folder: Path, shown: Mapping[str, Path]) -> None:
        self._folder = folder
        self.shown = shown
        self.root = folder / "root"
        """Its disk, also while it is off."""
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._cgroups = [
            Path(place, f"shmq-{os.getpid()}-{folder.name}")
            for place in _CGROUPS
            if Path(place, "cgroup.procs").exists()
        ]
        layers = [folder / name for name in ("disk", "work", "root")]
        for layer in layers:
            layer.mkdir(parents=True)
        disk, work, root = map(str, layers)
        options = f"lowerdir={tree},upperdir={disk},workdir={work}"
        done = subprocess.run(
            ["mount", "-t", "overlay", "shmq-test", "-o", options, root],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            require_or_skip(f"cannot mount an overlay here: {done.stderr.strip()}")

    def boot(self) -> None:
        """Switch it on; returns when systemd has started everything."""
        for place in self._cgroups:
            place.mkdir(exist_ok=True)
        enter = "".join(f"echo $$ > {place}/cgroup.procs; " for place in self._cgroups)
        command = [
            "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network",
            "--console=pipe", f"--directory={self.root}", "--boot",
            *(f"--bind-ro={ours}:{there}" for there, ours in self.shown.items()),
        ]  # fmt: skip
        with (self._folder / "console").open("ab") as console:
            self._nspawn = subprocess.Popen(
                ["sh", "-c", f'{enter}exec "$@"', "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        waiting = threading.Event()
        for _ in range(_BOOT_LOOKS):
            if self._nspawn.poll() is not None:
                break
            for child in psutil.Process(self._nspawn.pid).children():
                self._pid = child.pid
                if self.try_to("systemctl is-system-running").stdout.strip() == "running":
                    return
            waiting.wait(_LOOK_S)
        failed = self.try_to("systemctl --failed --no-legend").stdout
        said = (self._folder / "console").read_text("utf-8", "replace")[-2000:]
        raise AssertionError(f"the machine does not come up: {failed}{said}")

    def try_to(self, command: str, *, user: str = "root") -> subprocess.CompletedProcess[str]:
        """A shell command of a user inside, in its home."""
        return subprocess.run(
            self._inside(command, user),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
            env=_INSIDE,
        )

    def run(self, command: str, *, user: str = "root") -> str:
        """What such a command prints, which must not fail."""
        done = self.try_to(command, user=user)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}{self.journal()}"
        return done.stdout

    def begin(self, command: str, *, user: str = "root") -> subprocess.Popen[str]:
        """Start such a command, with pipes; it ends with the machine at the latest."""
        return subprocess.Popen(
            self._inside(command, user),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_INSIDE,
        )

    def _inside(self, command: str, user: str) -> list[str]:
        enter = ["nsenter", "--target", str(self._pid), "--all", "--", "sh", "-c"]
        if user == "root":
            return [*enter, f"cd; {command}"]
        return [*enter, 'exec su --login "$0" --command "$1"', user, command]

    def journal(self) -> str:
        """What the units of shmq said last."""
        said = self.try_to("journalctl --no-pager --lines=60 --unit 'shmq*'")
        return f"\n{said.stdout}"

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run(f"systemctl show --value --property={name} {unit}").strip()

    def outside(self, pid: int) -> int:
        """The pid that a process inside has for us."""
        for process in psutil.Process(self._pid).children(recursive=True):
            with contextlib.suppress(FileNotFoundError):
                status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
                if int(status.partition("\nNSpid:")[2].partition("\n")[0].split()[-1]) == pid:
                    return process.pid
        raise AssertionError(f"no process {pid} inside")

    @contextlib.contextmanager
    def memory_group(self, name: str) -> Iterator[MemoryGroup]:
        """A memory cgroup that those inside see, too; it goes with the machine.

        Of cgroup v1 only: its memory controller is not the systemd's inside, and so MemoryMax= is
        without effect there; with v2 all of the tree is that systemd's.
        """
        place = next((place for place in self._cgroups if str(place.parent) == _MEMORY), None)
        if place is None:
            pytest.skip("no memory controller of cgroup v1")
        folder = place / name
        folder.mkdir()
        yield MemoryGroup(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "-1")

    def restart(self) -> None:
        """As a person would, in order; returns when it is up again."""
        self.try_to("systemctl reboot")
        self._wait_off()
        self.boot()

    def _wait_off(self) -> None:
        """A container cannot start itself again: a reboot ends it, too."""
        assert self._nspawn is not None
        self._nspawn.wait(_COMMAND_TIMEOUT_S)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._nspawn is not None and self._nspawn.poll() is None:
            self._nspawn.terminate()  # as pulling the plug
            self._nspawn.wait(_COMMAND_TIMEOUT_S)
        for place in self._cgroups:
            for folder, _, _ in os.walk(place, topdown=False):
                os.rmdir(folder)
        subprocess.run(["umount", str(self.root)], check=True)
