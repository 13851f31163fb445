"""Build of the compiled core; everything else is declared in pyproject.toml.

It stands beside pyproject.toml for what a table cannot say: it globs the binding folder, refuses
systems the core is not written for in one line, and takes the strict warnings from the project's
own builds only (SHMQ_STRICT=1), so that a newer compiler never breaks a user's `pip install`.
Read from the environment: SHMQ_STRICT, SHMQ_BUILD_CORE (0: metadata only, bin/_setup compiles in
a step of its own), and CFLAGS / LDFLAGS as setuptools always does (sanitizers).
"""

import os
import shlex
import shutil
import sys
import sysconfig
from glob import glob

from setuptools import Extension, setup

INCLUDE = "shmq/core/include"
STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-UNDEBUG"]


def refusal(building: bool) -> str | None:
    """Why the core cannot be built here, in one line that names the remedy; None if it can."""
    if not sys.platform.startswith("linux"):
        return f"shmq runs on Linux only (futex, memfd, pidfd); this is {sys.platform}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "shmq needs a Python with the GIL; this one is free-threaded: use python3.x, no t"
    if not building:
        return None
    if not compiler_found():
        return "shmq needs a C compiler: apt install gcc libc6-dev"
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        return "shmq needs Python.h to compile its core: apt install python3-dev"
    return None


def compiler_found() -> bool:
    """Whether there is a compiler; one that the interpreter was not built with goes into CC."""
    named = os.environ.get("CC") or sysconfig.get_config_var("CC") or "gcc"
    if shutil.which(shlex.split(named)[0]):
        return True
    if "CC" in os.environ or not shutil.which("gcc"):
        return False
    os.environ["CC"] = "gcc"
    return True


def core() -> list[Extension]:
    """The extension shmq.core._core from every C file of the binding folder."""
    sources = sorted(glob("shmq/core/binding/*.c"))
    if os.environ.get("SHMQ_BUILD_CORE") == "0" or not sources:
        return []
    flags = ["-std=c11", "-O2", "-g", "-fvisibility=hidden"]
    if os.environ.get("SHMQ_STRICT") == "1":
        # Python's own headers do not pass -Wconversion: as a system folder they need not.
        flags += [*STRICT, "-isystem", sysconfig.get_path("include")]
    shown = " ".join([os.environ.get("CFLAGS", ""), *flags]).strip()  # as the compiler has them
    return [
        Extension(
            "shmq.core._core",
            sources=sources,
            depends=sorted(glob(f"{INCLUDE}/shmq/*.h") + glob("shmq/core/binding/*.h")),
            include_dirs=[INCLUDE],
            define_macros=[("SHMQ_BUILD_FLAGS", f'"{shown}"')],
            extra_compile_args=flags,
        )
    ]


extensions = core()
reason = refusal(
    building=bool(extensions) and "sdist" not in sys.argv and "egg_info" not in sys.argv
)
if reason:
    sys.exit(f"error: {reason}")
setup(ext_modules=extensions)
