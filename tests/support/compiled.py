"""Small C programs and libraries that tests need, compiled once and kept in build/c."""

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

from tests.support.repository import ROOT
from tests.support.require import require_program

STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-O2", "-g")


@cache
def program(source: Path, *flags: str) -> Path:
    """The program made of one C file; its own flags come last."""
    compiler = require_program(os.environ.get("CC", "gcc"), "gcc libc6-dev")
    command = [compiler, *STRICT, str(source), *flags]
    key = hashlib.sha256(repr(command).encode() + source.read_bytes()).hexdigest()[:16]
    made = ROOT / "build/c" / f"{source.stem}.{key}"
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    own = made.with_suffix(f".{os.getpid()}")
    result = subprocess.run([*command, "-o", str(own)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"
    own.rename(made)  # whole, or not there: other runs look for it, too
    return made


def library(source: Path, *flags: str) -> Path:
    """The shared library made of one C file."""
    return program(source, "-shared", "-fPIC", *flags)
