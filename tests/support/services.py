"""shmq as services of a machine of the tests' own: made, looked at, and what a test does there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.repository import ROOT

if TYPE_CHECKING:
    from tests.support.machine import Machine

PAGE = ROOT / "docs/operate/systemd.md"
BROKER = "shmq-broker@broker-a.service"
NAMESRV = "shmq-namesrv.service"
EXPORTER = "shmq-exporter.service"
SHMQ = "/opt/shmq/bin/shmq"

IN_SYNC = f"{SHMQ} ha status set 2>/dev/null | grep --quiet 'SLAVE .* yes '"
"""The replica set has a master, and its slave has all that is confirmed: a standby has not."""
READER = """
import sys, shmq
topic, count = sys.argv[1], int(sys.argv[2])
with shmq.connect() as client, client.consumer(topic, group="reader") as consumer:
    found = []
    while len(found) < count:
        for message in consumer.receive(count, timeout=60.0) or sys.exit("nothing came"):
            with message.process():
                found.append(int(bytes(message)))
    found += [int(bytes(message)) for message in consumer.receive(count, timeout=0.5)]
print(*sorted(found))
"""


def sections() -> dict[str, list[str]]:
    """The commands of the page, by the heading that they stand under."""
    found: dict[str, list[str]] = {}
    for part in PAGE.read_text("utf-8").split("\n## ")[1:]:
        blocks = re.findall(r"^```sh\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
        if blocks:
            found[part.split("\n", 1)[0]] = blocks
    return found


def copy_checkout(folder: Path) -> None:
    """What a wheel is made of, as it is now."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if name.startswith(("shmq/", "systemd/", "setup.py", "pyproject.toml", "README.md")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # deleted and not committed yet
                shutil.copy(ROOT / name, folder / name)


def set_version(folder: Path, version: str) -> None:
    """Make another version of a copy: another number, and a unit that differs."""
    project = folder / "pyproject.toml"
    text = re.sub(r'(?m)^version = "[^"]*"$', f'version = "{version}"', project.read_text())
    project.write_text(text)
    unit = folder / "systemd/shmq.target"
    unit.write_text(f"# {version}\n{unit.read_text()}")


def build_wheels(command: str, folder: Path) -> None:
    """Run a command that builds wheels in a copy of the checkout."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def python(source: str, *arguments: object) -> str:
    return shlex.join(["/opt/shmq/bin/python", "-c", source, *map(str, arguments)])


def read(machine: Machine, topic: str, count: int) -> list[int]:
    """What a reader of alice's gets of a topic."""
    found = machine.run(python(READER, topic, count), user="alice")
    return [int(word) for word in found.split()]


def master_of_set(machine: Machine) -> int:
    """broker_id of the member of the replica set that is master."""
    members = json.loads(machine.run(f"{SHMQ} ha status set --json"))["members"]
    found: int = next(each["brokerId"] for each in members if "MASTER" in each["role"])
    return found


def main_pid(machine: Machine, unit: str = BROKER) -> int:
    return int(machine.show(unit, "MainPID"))


def processes(machine: Machine) -> str:
    """What runs as the user of the services."""
    return machine.run("find /proc -maxdepth 1 -user shmq")


def wait_for(machine: Machine, command: str) -> None:
    """Until a command inside succeeds; its watchdog is the test's."""
    machine.run(f"until {command}; do sleep 0.05; done")


def kill(machine: Machine, unit: str, number: str = "KILL") -> None:
    machine.run(f"systemctl kill --kill-whom=main --signal={number} {unit}")
