"""What `shmq check` says of numbers, without a broker that has them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shmq.broker.stats import ROUND_MAX_S
from shmq.monitor.broker_pages import find_stores
from shmq.shm.incarnation import boot_id
from shmq.shm.names import StoreName
from shmq.store.retention import DiskUsage
from shmq.tools.checks import CHECKS, State
from shmq.tools.reading import Reading
from tests.support.repository import ROOT
from tests.support.require import require_root

BROKER = {"cluster": "c", "broker": "b", "broker_id": "0"}


@pytest.fixture
def reading() -> Reading:
    made = Reading(0, DiskUsage(used_bytes=1, free_bytes=1))
    made.take("shmq_broker_up", BROKER, 1)
    made.take("shmq_ha_role", {**BROKER, "role": "master"}, 1)
    return made


@pytest.mark.parametrize(
    ("age_s", "wanted"),
    [(1.0, State.OK), (1.2 * ROUND_MAX_S, State.OK), (20.0, State.WARNING), (30.0, State.CRITICAL)],
)
def test_large_broker_that_goes_round_is_well(
    reading: Reading, age_s: float, wanted: State
) -> None:
    reading.take("shmq_heartbeat_age_seconds", BROKER, age_s)
    assert CHECKS["broker"].run("broker", reading, CHECKS["broker"].limits).state is wanted


OTHER_UID = 65534
LOOK_AS_ANOTHER = f"""
import os, sys
from pathlib import Path
from shmq.monitor.monitor import Monitor
from shmq.tools.checks import CHECKS
from shmq.tools.reading import Reading
Reading.read(Monitor(Path(sys.argv[1])))  # imports what may lie where only root can read
os.setgid({OTHER_UID})
os.setuid({OTHER_UID})
reading = Reading.read(Monitor(Path(sys.argv[1])))
print(CHECKS["lag"].run("lag", reading, (1.0, 2.0)).line())
"""


def look_as_another(runtime: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", LOOK_AS_ANOTHER, runtime],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_root_sees_brokers_of_others_and_others_are_told_whose_they_are() -> None:
    require_root()
    with tempfile.TemporaryDirectory() as name:
        runtime = Path(name)
        runtime.chmod(0o755)
        folder = runtime / "broker-b.0.d"
        folder.mkdir(0o700)
        store = StoreName("c", "b", 0, boot_id().hex()[:8], "0123456789abcdef")
        (folder / f"{store}.lock").touch(0o600)
        said = look_as_another(runtime)
        assert said == (f"SHMQ LAG UNKNOWN - {folder} is not to be read: run it as root\n")
        for path in (folder, *folder.iterdir()):
            os.chown(path, OTHER_UID, OTHER_UID)
        assert find_stores(runtime) == {store}
        assert f"no broker's memory is in {runtime}" in look_as_another(runtime)
        runtime.chmod(0o700)
        assert f"{runtime} is not to be read: run it as root" in look_as_another(runtime)
