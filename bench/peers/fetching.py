"""What peers need, brought to a cache folder once: Python packages, Debian packages, Go programs.

Python packages and Go modules are pinned, each file with its hash; Debian's are the newest that the
machine's own, signed lists name. Everything goes through the clients that the machine has set up.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from peer import NotHad

_TIMEOUT_S = 900.0
_REQUIREMENTS = Path(__file__).with_name("requirements")


def cache_folder() -> Path:
    """Where it all is kept, for every checkout of this user."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "shmq/peers"


def python_packages(name: str, cache: Path) -> Path | None:
    """The folder of a peer's Python packages; None if it needs none.

    Raises:
        NotHad: pip could not get them.
    """
    wanted = _REQUIREMENTS / f"{name}.txt"
    if not wanted.exists():
        return None
    key = f"{sys.version} {hashlib.sha256(wanted.read_bytes()).hexdigest()}"
    folder = cache / f"{name}-python-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    with filled(folder) as fresh:
        if fresh is not None:
            pip = f"{sys.executable} -m pip install --quiet --disable-pip-version-check".split()
            how = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
            run([*pip, *how, "--target", str(fresh), "--requirement", str(wanted)])
    return folder


def debian_packages(folder: Path, names: Sequence[str]) -> None:
    """Unpack packages there, without installing them.

    Raises:
        NotHad: apt could not get them.
    """
    with filled(folder) as fresh:
        if fresh is None:
            return
        if shutil.which("apt-get") is None:
            raise NotHad(f"no apt-get here; install {names[0]}")
        run(["apt-get", "--quiet", "download", *names], cwd=fresh)
        for package in sorted(fresh.glob("*.deb")):
            run(["dpkg-deb", "--extract", str(package), str(fresh)])
            package.unlink()


def run(
    command: Sequence[str],
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run to its end.

    Raises:
        NotHad: it failed; with its last line.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHad(f"{' '.join(command)}: {error}") from None
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip().splitlines() or ["it said nothing"]
        raise NotHad(f"{' '.join(command[:4])} …: {said[-1][:300]}")


@contextmanager
def filled(folder: Path) -> Iterator[Path | None]:
    """An empty folder to be filled, which becomes `folder` if nothing is raised; None if that is
    there already. One program at a time.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            yield None
            return
        fresh = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            yield fresh
            fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
