"""The extension under AddressSanitizer and UndefinedBehaviorSanitizer, and a tree to run it in.

Built once per state of the sources and kept in build/asan. A process that is started in the tree
imports this core instead of the shipped one; the rest of the package is the repository's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from tests.support.repository import ROOT
from tests.support.require import require_program
from tests.support.scale import QUICKLY

FLAGS = (
    "-std=c11",
    QUICKLY,
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-UNDEBUG",
)
_SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
_CORE = ROOT / "shmq/core"


@cache
def _compiler() -> str:
    return require_program(os.environ.get("CC", "gcc"), "gcc libc6-dev")


@cache
def sanitized_core() -> Path:
    """The extension, compiled if its sources have changed."""
    sources = sorted(_CORE.glob("binding/*.c"))
    headers = [*_CORE.glob("binding/*.h"), *_CORE.glob("include/shmq/*.h")]
    command = [_compiler(), *FLAGS, f"-I{_CORE / 'include'}"]
    command += ["-isystem", sysconfig.get_path("include")]
    command.append(f'-DSHMQ_BUILD_FLAGS="{" ".join(FLAGS)}"')
    digest = hashlib.sha256(repr(command).encode())
    for path in sorted([*sources, *headers]):
        digest.update(path.name.encode() + path.read_bytes())
    made = ROOT / "build/asan" / digest.hexdigest()[:16] / f"_core{_SUFFIX}"
    if made.exists():
        return made
    own = made.parent.with_name(f"{made.parent.name}.{os.getpid()}")
    own.mkdir(parents=True)

    def compile_one(source: Path) -> str:
        made_object = own / f"{source.stem}.o"
        _run([*command, "-c", str(source), "-o", str(made_object)])
        return str(made_object)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    _run([_compiler(), *FLAGS, "-shared", *objects, "-o", str(own / made.name)])
    for name in objects:
        os.unlink(name)
    _forget_older(made.parent.parent, own)
    try:
        own.rename(made.parent)  # whole, or not there
    except OSError:  # another run was first
        shutil.rmtree(own)
    return made


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"


def _forget_older(folder: Path, own: Path) -> None:
    """Keep the last few: other runs may be of another state of the tree."""
    built = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in [path for path in built if path != own and path.suffix == ""][:-3]:
        shutil.rmtree(path, ignore_errors=True)


def sanitized_tree(folder: Path) -> Path:
    """Make a folder in which `python -m ...` finds the package with the sanitized core."""
    core = folder / "shmq/core"
    core.mkdir(parents=True)
    for path in ROOT.joinpath("shmq").iterdir():
        if path.name not in ("core", "__pycache__"):
            (folder / "shmq" / path.name).symlink_to(path)
    for path in _CORE.iterdir():
        if path.suffix != ".so" and path.name != "__pycache__":
            (core / path.name).symlink_to(path)
    (core / f"_core{_SUFFIX}").symlink_to(sanitized_core())
    (folder / "tests").symlink_to(ROOT / "tests")
    return folder


def sanitized_environ() -> dict[str, str]:
    """What the process needs in its environment. Leaks are Python's own affair."""
    libraries = [
        subprocess.run(
            [_compiler(), f"-print-file-name={name}.so"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for name in ("libasan", "libubsan")
    ]
    return {
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
    }
