"""shmq as services of a machine: docs/operate/systemd.md followed word for word on a fresh Debian,
and what happens to the services there.

One machine for all of them: each test leaves the services running, whatever it did to them.
"""

from __future__ import annotations

import contextlib
import re
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.machine import Machine
from tests.support.repository import ROOT
from tests.support.services import (
    BROKER,
    EXPORTER,
    IN_SYNC,
    NAMESRV,
    SHMQ,
    build_wheels,
    kill,
    main_pid,
    master_of_set,
    processes,
    python,
    read,
    sections,
    set_version,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.ci, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

SENDER = """
import sys, threading, shmq
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
with shmq.connect() as client:
    producer, number = client.producer(), 0
    while not done.wait(0.001):
        producer.send(sys.argv[1], str(number), timeout=60.0)
        number += 1
        if number == 100:
            print("under way", flush=True)
print(number)
"""
HOG = """
import sys
held = []
for line in sys.stdin:
    held.append(b"x" * int(line))
    print(flush=True)
"""
LIMIT_BYTES = 256 << 20
LEFT_BYTES = 8 << 20
STEP_BYTES = 256 << 10
LAST_WORDS = """
import sys, shmq
client = shmq.connect()
producer = client.producer()
producer.send(sys.argv[1], "0", timeout=60.0)
print("connected", flush=True)
sys.stdin.readline()
for number in range(1, 50):
    producer.send_oneway(sys.argv[1], str(number))
print("published", flush=True)
sys.stdin.readline()
"""


def said(machine: Machine, name: str) -> str:
    return (machine.root / "root/said" / name).read_text()


@contextlib.contextmanager
def sending(machine: Machine, topic: str) -> Iterator[None]:
    """alice sends from before to after what is done meanwhile; each message is there once."""
    with machine.begin(python(SENDER, topic), user="alice") as sender:
        assert sender.stdout is not None
        assert sender.stdout.readline() == "under way\n"
        yield
        count = int(sender.communicate()[0])
    assert read(machine, topic, count) == list(range(count))


def test_page_is_followed_to_the_end() -> None:
    """Every block of commands is run by a test below, in the order of the page."""
    counts = {heading: len(blocks) for heading, blocks in sections().items()}
    assert counts == {
        "Install": 2,
        "Let a user in": 2,
        "Replica sets": 1,
        "Upgrade": 1,
        "Uninstall": 1,
    }


def test_what_a_prometheus_needs_is_installed(installed: Machine) -> None:
    wanted = {path.name for path in (ROOT / "systemd/monitoring").iterdir()}
    assert set(installed.run("ls /opt/shmq/share/shmq/systemd/monitoring").split()) == wanted


def test_another_user_sends_and_receives(installed: Machine) -> None:
    assert "systemctl start shmq.target" in said(installed, "Install0")
    assert re.search(rf"^{BROKER} +enabled +active", said(installed, "Install0"), re.MULTILINE)
    assert "wrong" not in said(installed, "Install0")
    assert said(installed, "Let a user in1") == "hello\n"


def test_user_that_was_not_let_in_is_refused(machine: Machine) -> None:
    done = machine.try_to(f"{SHMQ} pub orders hello", user="bob")
    assert done.returncode == 1
    assert "open the runtime folder /run/shmq" in done.stderr


def test_units_are_safe_and_verified_where_they_run(machine: Machine) -> None:
    names = sorted(path.name for path in (ROOT / "systemd").glob("shmq*"))
    units = [name.replace("@", "@broker-a") for name in names]
    assert {BROKER, NAMESRV, EXPORTER, "shmq-controller.service"} <= set(units)
    assert {"shmq-exporter.socket", "shmq.target"} <= set(units)
    machine.run(f"systemd-analyze verify --man=no --recursive-errors=no {' '.join(units)}")
    for unit in units:
        if unit.endswith(".service"):  # the only kind that runs anything
            machine.run(f"systemd-analyze security --threshold=10 {unit}")


def test_prometheus_asks_an_exporter_that_has_no_network(machine: Machine) -> None:
    page = "http://127.0.0.1:5557/metrics"
    ask = f"from urllib.request import urlopen; print(urlopen('{page}').read().decode())"
    said = machine.run(python(ask), user="bob")
    assert re.search(r'^shmq_broker_up\{[^}]*"broker-a"[^}]*\} 1', said, re.MULTILINE), said
    inside = machine.run(f"readlink /proc/{main_pid(machine, EXPORTER)}/ns/net")
    assert inside != machine.run("readlink /proc/1/ns/net")
    assert machine.show(EXPORTER, "StatusText") == "exporter: running"


def test_status_finds_what_was_changed(machine: Machine) -> None:
    unit = "/usr/local/lib/systemd/system/shmq.target"
    machine.run(f"cp {unit} /root/kept; echo '# mine' >> {unit}; chmod 2770 /run/shmq")
    try:
        done = machine.try_to(f"{SHMQ} service status")
    finally:
        machine.run(f"cp /root/kept {unit}; chmod 2750 /run/shmq; systemctl daemon-reload")
    assert done.returncode == 1
    assert f"wrong: {unit} is not as this version writes it" in done.stdout
    assert "wrong: /run/shmq has owner" in done.stdout
    assert "wrong" not in machine.run(f"{SHMQ} service status")


@pytest.mark.parametrize(
    ("user", "command", "said"),
    [
        ("root", "install --prefix '/opt/with blank'", "cannot name a path with blanks"),
        ("root", "install --prefix opt/shmq", "wanted a path from /"),
        ("root", "install --prefix ''", "wanted a path from /"),
        ("root", "install --prefix /nowhere", "no program shmq-broker in /nowhere/bin"),
        ("root", "install --broker 'a b'", "wanted 1 to 64 of"),
        ("root", "install --broker ''", "wanted 1 to 64 of"),
        ("root", "allow carol", "'carol': no such user on this machine"),
        ("root", "allow ''", "'': no such user on this machine"),
        ("bob", "install", "uid 1001 may not; run it as root"),
        ("bob", "uninstall", "uid 1001 may not; run it as root"),
        ("bob", "allow bob", "uid 1001 may not; run it as root"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    machine: Machine, user: str, command: str, said: str
) -> None:
    done = machine.try_to(f"{SHMQ} service {command}", user=user)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: .*{re.escape(said)}.*\n", done.stderr), done.stderr


def test_what_was_done_before_is_done_again_without_harm(machine: Machine) -> None:
    assert machine.run(f"{SHMQ} service install").startswith("shmq runs from /opt/shmq")
    assert "alice is in the group shmq" in machine.run(f"{SHMQ} service allow alice")


def test_configuration_that_is_missing_or_no_brokers_is_named(machine: Machine) -> None:
    folder = "/etc/shmq/brokers"
    machine.run(
        f"mv {folder}/broker-a.toml /root/kept; touch '{folder}/my broker.toml';"
        f" mkdir {folder}/y.toml; ln -s /nowhere {folder}/x.toml; printf '\\377' > {folder}/z.toml"
    )
    try:
        machine.run(f"{SHMQ} service install")
        said = machine.try_to(f"{SHMQ} service status").stdout
    finally:
        machine.run(f"rm -r {folder}/[xyz].toml '{folder}/my broker.toml'")
        machine.run(f"mv /root/kept {folder}/broker-a.toml")
    assert f"wrong: {BROKER} has no configuration in {folder}: put it back, or have one" in said
    assert f"wrong: {folder}/my broker.toml is no broker's: " in said
    assert "wrong" not in machine.run(f"{SHMQ} service status")


def test_messages_and_rings_survive_the_death_of_the_broker(machine: Machine) -> None:
    before = main_pid(machine)
    with sending(machine, "crash"):
        kill(machine, BROKER)
        wait_for(machine, f"systemctl is-active --quiet {BROKER}")
    assert main_pid(machine) not in (0, before)
    assert machine.show(BROKER, "NRestarts") == "1"


def test_broker_that_the_kernel_kills_for_memory_is_there_again(machine: Machine) -> None:
    """A limit of its own, as MemoryMax= is one, and somebody below it who takes the rest."""
    before = main_pid(machine)
    with machine.memory_group("tight") as group, sending(machine, "memory"):
        broker = machine.outside(before)
        with subprocess.Popen(
            [sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as hog:
            assert hog.stdin is not None
            assert hog.stdout is not None
            for pid in (broker, hog.pid):
                (group.folder / "cgroup.procs").write_text(str(pid))
            group.limit(LIMIT_BYTES)
            Path(f"/proc/{broker}/oom_score_adj").write_text("1000")  # it, and not the other
            hog.stdin.write(b"%d\n" % (LIMIT_BYTES - group.usage - LEFT_BYTES))
            hog.stdin.flush()
            wait_for(machine, f"{SHMQ} check memory | grep --quiet '^SHMQ MEMORY CRITICAL'")
            while group.kill_count == 0:
                hog.stdin.write(b"%d\n" % STEP_BYTES)
                hog.stdin.flush()
                select.select([hog.stdout], [], [], 0.1)  # held up until somebody was killed
            hog.kill()
        wait_for(machine, f"systemctl is-active --quiet {BROKER}")
    assert main_pid(machine) not in (0, before)
    assert machine.show(BROKER, "NRestarts") == "1"
    said = machine.run(f"journalctl --no-pager --lines=50 --unit {BROKER}")
    assert "Main process exited, code=killed, status=9/KILL" in said
    wait_for(machine, f"{SHMQ} check memory | grep --quiet '^SHMQ MEMORY OK'")


def test_ring_outlives_both_its_client_and_the_broker(machine: Machine) -> None:
    """What was published and not taken yet is in systemd's hands alone for a moment."""
    with machine.begin(python(LAST_WORDS, "orphan"), user="alice") as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == "connected\n"
        kill(machine, BROKER, "STOP")
        print(file=client.stdin, flush=True)
        assert client.stdout.readline() == "published\n"
        hers = "$(find /proc -maxdepth 1 -user alice)"
        machine.run(f"for place in {hers}; do kill -KILL ${{place#/proc/}}; done")
    kill(machine, BROKER)
    wait_for(machine, f"systemctl is-active --quiet {BROKER}")
    assert read(machine, "orphan", 50) == list(range(50))
    wait_for(machine, "! ls /proc/1/fd -l | grep --quiet memfd:shmq")


@pytest.mark.parametrize("unit", [BROKER, NAMESRV])
def test_watchdog_ends_what_is_stopped(machine: Machine, unit: str) -> None:
    """The NameServer would be faster to kill a broker: it is stopped, too."""
    override = f"/run/systemd/system/{unit}.d"
    machine.run(
        f"mkdir -p {override}; printf '[Service]\\nWatchdogSec=1\\n' > {override}/soon.conf;"
        f" systemctl daemon-reload; systemctl restart {unit}"
    )
    other = {BROKER: NAMESRV, NAMESRV: BROKER}[unit]
    try:
        before = main_pid(machine, unit)
        kill(machine, other, "STOP")
        kill(machine, unit, "STOP")
        wait_for(machine, f"[ $(systemctl show --value --property=NRestarts {unit}) = 1 ]")
        kill(machine, other, "CONT")
        wait_for(machine, f"systemctl is-active --quiet {unit}")
        assert main_pid(machine, unit) != before
        said = machine.run(f"journalctl --no-pager --lines=50 --unit {unit}")
        assert "Watchdog timeout" in said
    finally:
        machine.run(f"rm -r {override}; systemctl daemon-reload; systemctl restart {unit}")


def test_hung_broker_is_killed_by_the_nameserver(machine: Machine) -> None:
    before = main_pid(machine)
    wait_for(machine, f"{SHMQ} broker list | grep --quiet broker-a")
    kill(machine, BROKER, "STOP")
    wait_for(machine, f"[ $(systemctl show --value --property=NRestarts {BROKER}) = 1 ]")
    wait_for(machine, f"systemctl is-active --quiet {BROKER}")
    assert main_pid(machine) != before
    said = machine.run(f"journalctl --no-pager --lines=50 --unit {NAMESRV}")
    assert re.search(rf"fenced .*pid {before} ", said)


def test_broker_that_dies_again_and_again_is_given_up(machine: Machine) -> None:
    machine.run(
        f"until systemctl is-failed --quiet {BROKER};"
        f" do systemctl kill --kill-whom=main --signal=KILL {BROKER} 2>/dev/null; true; done"
    )
    assert "Start request repeated too quickly" in machine.journal()
    done = machine.try_to(f"{SHMQ} service status")
    assert f"wrong: {BROKER} has failed" in done.stdout


def test_broker_with_a_wrong_setting_is_not_tried_again(machine: Machine) -> None:
    file = "/etc/shmq/brokers/broker-a.toml"
    machine.run(f"cp {file} /root/kept; echo 'no_such = 1' >> {file}")
    try:
        assert machine.try_to(f"systemctl restart {BROKER}").returncode == 1
        assert machine.show(BROKER, "ActiveState") == "failed"
        assert machine.show(BROKER, "NRestarts") == "0"
        assert "no_such" in machine.run(f"journalctl --no-pager --priority=err --unit {BROKER}")
    finally:
        machine.run(f"cp /root/kept {file}; systemctl reset-failed")


def test_stopped_in_order_it_leaves_no_memory_and_no_message_behind(machine: Machine) -> None:
    machine.run(f"{SHMQ} pub stopped 1", user="alice")
    machine.run("systemctl stop shmq.target 'shmq-*'")
    assert machine.run("ls /dev/shm") == ""
    assert processes(machine) == ""
    ended = [machine.show(unit, "InactiveEnterTimestampMonotonic") for unit in (BROKER, NAMESRV)]
    assert int(ended[0]) < int(ended[1])
    machine.run("systemctl start shmq.target")
    assert read(machine, "stopped", 1) == [1]


def test_machine_boots_again_and_all_is_there(machine: Machine) -> None:
    machine.run(f"{SHMQ} pub booted 7", user="alice")
    machine.restart()
    assert machine.show("shmq.target", "ActiveState") == "active"
    assert read(machine, "booted", 1) == [7]


def test_controller_makes_another_member_master(machine: Machine) -> None:
    units = [f"shmq-broker@set-{number}.service" for number in range(2)]
    try:
        for block in sections()["Replica sets"]:
            machine.run(f"set -e\n{block}")
        wait_for(machine, IN_SYNC)
        machine.run(f"{SHMQ} topic create elected --broker set")
        first = master_of_set(machine)
        with sending(machine, "elected"):
            kill(machine, units[first])
            machine.run(f"systemctl stop {units[first]}")  # it is not to come back
            wait_for(machine, f"{SHMQ} ha status set --json | grep --quiet MASTER")
        assert master_of_set(machine) == 1 - first
        assert machine.run("find /var/lib/shmq/controller -name '*.journal'") != ""
    finally:
        off = " ".join([*units, "shmq-controller.service"])
        machine.run(f"systemctl disable --quiet --now {off}; rm -f /etc/shmq/brokers/set-*")


def test_upgrade_keeps_who_is_connected(machine: Machine) -> None:
    checkout = machine.shown["/root/wheels"].parent
    set_version(checkout, "9.9.9")
    build_wheels("pip wheel --no-deps --no-build-isolation --wheel-dir wheels .", checkout)
    with sending(machine, "upgrade"):
        for block in sections()["Upgrade"]:
            said = machine.run(f"set -e\n{block}")
            assert "wrote /usr/local/lib/systemd/system/shmq.target" in said
    assert machine.run(f"{SHMQ} --version") == "shmq 9.9.9\n"
    assert "wrong" not in machine.run(f"{SHMQ} service status")


def test_uninstalled_it_keeps_messages_and_configuration(machine: Machine) -> None:
    machine.run(f"{SHMQ} pub kept 5", user="alice")
    machine.run("echo '# mine' >> /etc/shmq/brokers/broker-a.toml")
    for block in sections()["Uninstall"]:
        machine.run(f"set -e\n{block}")
    assert machine.run("find /usr/local/lib /etc/systemd /run/systemd/system -name 'shmq*'") == ""
    assert machine.run("ls /dev/shm") == ""
    assert processes(machine) == ""
    assert machine.try_to(f"{SHMQ} service status").returncode == 1
    machine.run(f"{SHMQ} service install && systemctl start shmq.target")
    assert "# mine" in machine.run("cat /etc/shmq/brokers/broker-a.toml")
    assert read(machine, "kept", 1) == [5]
