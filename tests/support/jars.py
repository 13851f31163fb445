"""Jars of a release by Maven, each held against the SHA-256 that it had when it was pinned.

For the tests that ask a real RocketMQ, and for bin/bench peers; knows nothing of either.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

_FETCH = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies"
_FETCH_TIMEOUT_S = 600.0


class JarsMissing(Exception):
    """They cannot be had on this machine; says why."""


def cache_folder() -> Path:
    """Of this user, for every checkout: $XDG_CACHE_HOME/shmq."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shmq"


def fetch_jars(folder: Path, pom: Path, pinned: Path, version: str) -> None:
    """Fill the folder with what the pom names, unless it is there; each is what it was when pinned.

    Args:
        folder: where they lie.
        pom: names them; ${rocketmq.version} in it is the version.
        pinned: lines of SHA-256 and file name.
        version: of RocketMQ.

    Raises:
        JarsMissing: Maven is missing, or could not get them.
        AssertionError: it got others.
    """
    if not _wrong(folder, pinned):
        return
    mvn = shutil.which("mvn")
    if mvn is None:
        raise JarsMissing("mvn not found: apt install maven")
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        copy = shutil.copyfile(pom, fresh / "pom.xml")
        done = subprocess.run(
            [
                mvn, "--batch-mode", "--quiet", "--strict-checksums", "--file", str(copy),
                f"-Drocketmq.version={version}", "-DincludeScope=runtime",
                f"-DoutputDirectory={fresh / 'lib'}", _FETCH,
            ],
            capture_output=True,
            text=True,
            timeout=_FETCH_TIMEOUT_S,
            check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise JarsMissing(
                f"RocketMQ {version} cannot be fetched by Maven: "
                f"{(done.stdout + done.stderr).strip()[:1000]}"
            )
        shutil.rmtree(folder, ignore_errors=True)
        (fresh / "lib").rename(folder)
    finally:
        shutil.rmtree(fresh)
    wrong = _wrong(folder, pinned)
    assert not wrong, f"{folder}: not what was pinned: {', '.join(wrong)}"


def _wrong(folder: Path, pinned: Path) -> list[str]:
    """Files that are missing, too many, or not as pinned."""
    lines = pinned.read_text("ascii").splitlines()
    wanted = {name: digest for digest, name in (line.split() for line in lines)}
    found = {path.name for path in folder.glob("*")}
    return sorted(found ^ wanted.keys()) + [
        name
        for name in sorted(found & wanted.keys())
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted[name]
    ]
