"""What every test run has: its header, its watchdog, and the check of /dev/shm after each test."""

import faulthandler
import getpass
import itertools
import os
import platform
import random
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

from tests.support.dev_shm import DEV_SHM, RUN_TOKEN, left_behind, ours_in_dev_shm
from tests.support.require import in_ci
from tests.support.scale import is_full_run, scaled
from tests.support.two_workers import TwoWorkers, encodable, runs_alone

HARD_LIMIT_EXTRA_S = 60.0
RERUNS = 1
"""In CI, of a failed test that starts processes: one that then passes is shown as RERUN, with its
failure, and is a defect to mend; it doesn't throw away the other two thousand answers."""
SEED = int(os.environ.get("SHMQ_SEED", "0"), 0) or random.SystemRandom().getrandbits(48)
_cluster_numbers = itertools.count()
_stderr = os.fdopen(os.dup(sys.__stderr__.fileno()), "w") if sys.__stderr__ else None


def pytest_report_header(config: pytest.Config) -> list[str]:
    lines = [
        f"shmq: {_core()}",
        f"machine: Linux {platform.release()}, {os.cpu_count()} cores, {platform.machine()}, "
        f"/dev/shm {shutil.disk_usage(DEV_SHM).free / 2**20:.0f} MiB free, "
        f"{'full run' if is_full_run() else 'default set'}{', CI' if in_ci() else ''}, "
        f"SHMQ_SEED={SEED:#x}",
    ]
    return lines + [f"WARNING: {story}" for story in _runs_that_died(config)]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Shows the header under -q too, where pytest leaves it out."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and session.config.get_verbosity() < 0 and not session.config.option.no_header:
        for line in pytest_report_header(session.config):
            reporter.write_line(line)


def _core() -> str:
    try:
        core = import_module("shmq.core._core")
    except ImportError as error:
        return f"no core ({error})"
    flags = getattr(core, "BUILD_FLAGS", "flags it does not tell")
    return f"layout {core.LAYOUT_VERSION}, core built with {flags}"


# --- a run that dies without a word (a fault in the core) leaves its last test's name -----------


def _marks(config: pytest.Config) -> Path | None:
    cache = getattr(config, "cache", None)  # absent with -p no:cacheprovider
    return cache.mkdir("shmq-running") if cache else None


def _runs_that_died(config: pytest.Config) -> list[str]:
    stories = []
    folder = _marks(config)
    for mark in folder.iterdir() if folder else ():
        pid, _, started = mark.name.partition("-")
        if _start_time(int(pid)) == started:
            continue  # another run, alive
        stories.append(f"an earlier run was killed or crashed in {mark.read_text() or 'start-up'}")
        mark.unlink(missing_ok=True)
    return stories


def _start_time(pid: int) -> str | None:
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return None


def pytest_configure(config: pytest.Config) -> None:
    # No deadline: a slow machine is not a wrong answer.
    settings.register_profile(
        "shmq", deadline=None, print_blob=True, max_examples=scaled(100, 10_000)
    )
    settings.load_profile("shmq")
    os.environ["SHMQ_SEED"] = f"{SEED:#x}"  # of the workers, too
    # What programs under test start without naming a cluster is known to be this run's, too.
    if _is_worker(config) or "SHMQ_CLUSTER_NAME" not in os.environ:
        os.environ["SHMQ_CLUSTER_NAME"] = f"{RUN_TOKEN}local"
    folder = _marks(config)
    if folder:
        mark = folder / f"{os.getpid()}-{_start_time(os.getpid())}"
        config.stash[_mark_key] = mark


_mark_key = pytest.StashKey[Path]()


def _is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of two that run the tests (bin/test without a path)."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """What a worker reports may show the name of a file that is no text."""
    return encodable((yield))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config) -> TwoWorkers:
    return TwoWorkers(config.getvalue("numprocesses"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    mark = session.config.stash.get(_mark_key, None)
    if mark:
        mark.unlink(missing_ok=True)
    folder = os.environ.get("PYTEST_DEBUG_TEMPROOT") or tempfile.gettempdir()
    try:
        Path(folder, f"pytest-of-{getpass.getuser()}").rmdir()
    except (OSError, KeyError):  # a failed test's files, another run's; a uid without a name
        pass


# --- selection, watchdog, leftovers ---------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(
                f"{item.nodeid}: an address in its id; all workers must have the same: give ids"
            )
    if in_ci():
        for item in items:
            if _starts_processes(item):
                item.add_marker(pytest.mark.flaky(reruns=RERUNS))
    if is_full_run():
        return
    named = {Path(config.invocation_params.dir, arg.split("::")[0]) for arg in config.args}
    left_out = [
        item
        for item in items
        if item.get_closest_marker("full")
        or (item.get_closest_marker("ci") and not in_ci() and item.path not in named)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _starts_processes(item: pytest.Item) -> bool:
    rooms = {"cluster", "crash", "interop", "model", "stress"}
    rooms |= {"broker", "client", "namesrv", "remoting", "store"}  # of tests/unit
    return bool(rooms & ({*item.path.parent.parts} | {mark.name for mark in item.iter_markers()}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows why a test had to be run again."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"RERUN {report.nodeid}: its first failure")
        terminalreporter.line(report.longreprtext)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Notes the test's name and arms the hard limit, for a hang that no signal can interrupt."""
    mark = item.config.stash.get(_mark_key, None)
    if mark:
        mark.write_text(item.nodeid)
    limit_s = _limit_s(item)
    if limit_s and _stderr:
        runs = 1 + RERUNS * in_ci()
        faulthandler.dump_traceback_later(
            runs * limit_s + HARD_LIMIT_EXTRA_S, exit=True, file=_stderr
        )
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _limit_s(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    if marker is None:
        return float(item.config.getini("timeout") or 0)
    return float(marker.args[0] if marker.args else marker.kwargs.get("timeout", 0))


@pytest.fixture(autouse=True)
def dev_shm_as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test /dev/shm holds no shmq object that it did not hold before."""
    before = ours_in_dev_shm()
    yield
    has_neighbour = _is_worker(request.config) and not runs_alone(request.node.nodeid)
    left = left_behind(before, strict=in_ci() and not has_neighbour)
    for name in left:
        if RUN_TOKEN in name:  # a neighbour's broker may be about to adopt the others
            (DEV_SHM / name).unlink(missing_ok=True)  # so that one leak fails one test
    assert not left, f"left in /dev/shm (removed if this run's): {', '.join(left)}"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Randomness of this test alone; SHMQ_SEED=<the header's> replays it."""
    return random.Random(f"{SEED}:{request.node.nodeid}")


@pytest.fixture
def cluster_name() -> str:
    """A cluster name of this test alone; objects named after it are known to be this run's."""
    return f"{RUN_TOKEN}{next(_cluster_numbers)}"
