"""The command line against a real cluster: what it prints, its exit codes, its errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

import shmq
from tests.support.cluster import wait_for
from tests.support.repository import ROOT
from tests.support.shell import SHMQ, Shell, dev_cluster
from tests.support.store_process import wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A cluster of two brokers under `shmq dev`."""
    runtime = tmp_path_factory.mktemp("dev") / "run"
    with dev_cluster(runtime, "--brokers", "2") as said:
        assert "broker-a, broker-b" in said[0]
        assert any(f"shmq pub -n {runtime} orders hello" in line for line in said)
        yield Shell(runtime)


def test_topic_is_created_shown_changed_and_deleted(shell: Shell) -> None:
    shell.out("topic", "create", "life", "-q", "4", "-b", "broker-a")
    [found] = [t for t in shell.json("topic", "list")["topics"] if t["topic"] == "life"]
    assert found["brokers"]["broker-a"]["writeQueueNums"] == 4
    assert list(found["brokers"]) == ["broker-a"]
    flush = "shmq.flush.disk.type=SYNC_FLUSH"
    shell.out("topic", "update", "life", "--write-queues", "2", "-a", flush)
    shown = shell.json("topic", "show", "life")
    config = shown["brokers"]["broker-a"]
    assert (config["readQueueNums"], config["writeQueueNums"]) == (4, 2)
    assert config["attributes"] == {"shmq.flush.disk.type": "SYNC_FLUSH"}
    assert [queue["queueId"] for queue in shown["queues"]] == [0, 1, 2, 3]
    assert "life" in shell.out("topic", "list")
    assert "--yes" in shell.fails("topic", "delete", "life", code=64)
    shell.out("topic", "delete", "life", "--yes")
    assert "shmq topic list" in shell.fails("topic", "show", "life", code=1)


def test_lines_of_a_pipe_come_out_of_a_pipe(shell: Shell) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(500))
    shell.out("topic", "create", "pipe")
    shell.out("pub", "pipe", "-K", "one", stdin=lines)
    assert shell.out("sub", "pipe", "-c", "500").encode() == lines
    assert shell.out("sub", "pipe", "-c", "3", "--from", "-3").encode() == lines[-27:]
    assert shell.out("sub", "pipe", "-c", "1", "--from", "7") == "line 7\n"
    assert [name for name in _groups(shell) if name.startswith("shmq-sub")] == []


def test_messages_go_through_as_json_lines(shell: Shell, tmp_path: Path) -> None:
    shell.out("topic", "create", "json", "-q", "1", "-b", "broker-a")
    shell.out("pub", "json", "a", "-t", "new", "-k", "k1 k2", "-p", "colour=red")
    shell.out("pub", "json", "--whole", stdin=b"\xff\n\xfe")
    printed = shell.out("sub", "json", "-c", "2", "--json")
    first, second = (orjson.loads(line) for line in printed.splitlines())
    assert (first["body"], first["tag"], first["keys"]) == ("a", "new", ["k1", "k2"])
    assert first["properties"]["colour"] == "red"
    assert second["bodyBase64"] == "/wr+"
    (tmp_path / "lines").write_bytes(
        b'{"body": "b", "tag": "t", "properties": {"x": "y"}}\n{"bodyBase64": "/wr+"}\n'
    )
    shell.out("pub", "json", "--jsonl", "-f", str(tmp_path / "lines"))
    printed = shell.out("sub", "json", "-c", "2", "--from", "2", "-f", r"%g %s %o\t%q %%\n")
    assert printed == "t 1 2\t0 %\n 3 3\t0 %\n"
    said = shell.fails("pub", "json", "--jsonl", stdin=b'{"body": 3}\n', code=64)
    assert "line 1: wanted" in said
    assert "json: 0 messages were sent" in said


def test_message_is_published_for_later(shell: Shell) -> None:
    shell.out("topic", "create", "later", "--queues", "1")
    shell.out("pub", "later", "one", "--delay-level", "1")
    assert shell.out("sub", "later", "-c", "1", "--idle", "30") == "one\n"
    with shmq.Admin(shell.runtime) as admin:
        (message,) = admin.find_messages("later")
    assert message.store_timestamp - message.born_timestamp >= 1000


def test_filter_and_idle_end(shell: Shell) -> None:
    shell.out("topic", "create", "tags")
    for tag in ("red", "blue", "green"):
        shell.out("pub", "tags", tag, "-t", tag)
    printed = shell.out("sub", "tags", "-F", "red || green", "--idle", "1")
    assert sorted(printed.split()) == ["green", "red"]


def test_group_remembers_and_is_reset(shell: Shell) -> None:
    shell.out("topic", "create", "remembered", "-q", "2", "-b", "broker-b")
    shell.out("pub", "remembered", "-K", "k", stdin=b"1\n2\n3\n4\n")
    assert shell.out("sub", "remembered", "-g", "billing", "-c", "3").split() == ["1", "2", "3"]
    assert shell.out("sub", "remembered", "-g", "billing", "-c", "1").split() == ["4"]
    lag = shell.json("group", "lag", "billing")["queues"]
    assert sum(queue["lag"] for queue in lag) == 0
    assert sum(queue["consumerOffset"] for queue in lag) == 4
    assert "--yes" in shell.fails(
        "group", "reset", "billing", "-t", "remembered", "--to", "first", code=64
    )
    shell.out("group", "reset", "billing", "-t", "remembered", "--to", "first", "--yes")
    [row] = [g for g in shell.json("group", "list")["groups"] if g["group"] == "billing"]
    assert (row["lag"], row["members"], row["topics"]) == (4, 0, ["remembered"])
    shell.out("group", "reset", "billing", "-t", "remembered", "--to", "@2020-01-01", "--yes")
    shell.out("group", "reset", "billing", "-t", "remembered", "--to", "last", "--yes")
    assert "remembered" in shell.out("group", "lag", "billing")
    assert "wanted first, last" in shell.fails(
        "group", "reset", "billing", "-t", "remembered", "--to", "soon", "--yes", code=64
    )
    shell.out("group", "delete", "billing", "--forget-offsets", "--yes")
    assert "shmq group list" in shell.fails("group", "lag", "billing", code=1)


def test_topic_that_may_not_be_read_is_told(shell: Shell) -> None:
    shell.out("topic", "create", "closed", "--perm", "w")
    said = shell.fails("sub", "closed", code=1)
    assert "closed: its perm has no R on broker-a, broker-b; give it back: shmq topic" in said


def test_living_member_is_seen(shell: Shell) -> None:
    shell.out("topic", "create", "watched")
    with (
        shmq.connect(shell.runtime) as client,
        client.consumer("watched", "watchers") as consumer,
    ):
        consumer.receive(1, timeout=0.1)
        [member] = shell.json("group", "members", "watchers")["members"]
        assert member == {"clientId": client.client_id, "brokerNames": ["broker-a", "broker-b"]}
        assert client.client_id in shell.out("group", "lag", "watchers")


def test_brokers_and_cluster_are_shown(shell: Shell) -> None:
    states = shell.json("broker", "list")["brokers"]
    assert [state["phase"] for state in states] == ["RUNNING", "RUNNING"]
    assert "broker-b" in shell.out("broker", "list")
    assert shell.json("broker", "show", "broker-a")["pid"] == str(states[0]["pid"])
    assert "putMessageTimesTotal" in shell.out("broker", "show", "broker-a")
    found = shell.json("cluster", "list")
    assert found["namesrvs"] == ["namesrv-ns0"]
    assert [row["pid"] for row in found["brokers"]] == [state["pid"] for state in states]
    assert "NameServers: namesrv-ns0" in shell.out("cluster", "list")


def test_members_and_epochs_are_shown_and_a_broker_on_its_own_has_nobody_to_switch_to(
    shell: Shell,
) -> None:
    members = shell.json("ha", "status")["members"]
    assert [(row["brokerName"], row["brokerId"], row["role"]) for row in members] == [
        ("broker-a", 0, "ASYNC_MASTER"),
        ("broker-b", 0, "ASYNC_MASTER"),
    ]
    assert "broker-b" in shell.out("ha", "status", "broker-b")
    (epoch,) = shell.json("broker", "epoch", "broker-a")["epochList"]
    assert epoch == {"epoch": members[0]["masterEpoch"], "startOffset": 0}
    assert "STARTS AT" in shell.out("broker", "epoch", "broker-a", "--id", "0")
    said = shell.fails("ha", "switch", "broker-a", code=1)
    assert "members that wait: none; see shmq ha status" in said
    said = shell.fails("ha", "switch", "broker-a", "--to", "1", code=1)
    assert "broker_id 1: it does not answer; members that wait: none" in said
    assert "start it, or name one that waits" in said
    said = shell.fails("ha", "status", "broker-z", code=1)
    assert "broker-z: no member of such a replica set answers" in said
    said = shell.fails("broker", "epoch", "broker-a", "--id", "9", code=1)
    assert "broker-a: broker_id 9 does not answer" in said
    assert "shmq ha status lists the members that do" in said


def test_a_folder_where_no_broker_answers_is_no_empty_table(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    assert "no broker answers" in Shell(tmp_path).fails("ha", "status", code=1)


def test_shared_memory_in_use_is_listed_and_kept(shell: Shell) -> None:
    states = [store["state"] for store in shell.json("shm", "ls")["stores"]]
    for name in ("broker-a", "broker-b"):
        marks = shell.runtime / f"broker-{name}-0.d"
        assert any(state.startswith("in use") and str(marks) in state for state in states)
    assert shell.out("shm", "clean", "--yes") == "nothing to remove\n"


def test_inspect_and_fsck_are_the_tools(shell: Shell, tmp_path: Path) -> None:
    assert "STORE" in shell.out("fsck", "--help")
    assert shell.run("fsck", str(tmp_path)).returncode == 3
    assert "usage" in shell.out("inspect", "--help")


def test_slaves_of_dev_copy_their_master_and_take_its_place(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    with dev_cluster(runtime, "--slaves", "2") as said:
        assert "broker-a;" in said[0]
        assert any(f"shmq ha status -n {runtime}" in line for line in said)
        shell = Shell(runtime)
        shell.out("pub", "kept", "before")

        def members() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = shell.json("ha", "status")["members"]
            ends = {member["committedPosition"] for member in found}
            return found if len(found) == 3 and len(ends) == 1 else []

        found = wait_for(members, "the copies")
        assert [member["brokerId"] for member in found] == [0, 1, 2]
        (master,) = (member for member in found if member["role"] != "SLAVE")
        os.kill(master["pid"], signal.SIGKILL)
        shell.out("pub", "kept", "after")
        lines = shell.out("sub", "kept", "-c", "2").splitlines()
        assert sorted(lines) == ["after", "before"]
        wait_for(members, "the copies again")


def test_cluster_of_dev_does_not_wait_for_the_one_before(tmp_path: Path) -> None:
    """The store of whoever was master last is gone with that cluster."""
    runtime = tmp_path / "run"
    for options in (("--slaves", "1"), ()):
        with dev_cluster(runtime, *options):
            Shell(runtime).out("pub", "orders", "hello")


def test_second_cluster_in_the_same_runtime_folder_is_refused(shell: Shell) -> None:
    said = shell.fails("dev", "--runtime", str(shell.runtime), code=1)
    assert "namesrv-ns0 serves one there already" in said


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_script_is_printed(shell: Shell, name: str) -> None:
    assert "_SHMQ_COMPLETE" in shell.out("completion", name)


def test_words_are_completed(shell: Shell) -> None:
    environ = {"_SHMQ_COMPLETE": "bash_complete", "COMP_WORDS": "shmq gro", "COMP_CWORD": "1"}
    shell.environ.update(environ)
    try:
        assert shell.run().stdout == b"plain,group\n"
    finally:
        for name in environ:
            del shell.environ[name]


@pytest.mark.parametrize(
    ("arguments", "code", "wanted"),
    [
        (("pub", "bad topic", "x"), 1, "topic 'bad topic': character ' '"),
        (("pub", "t", "x", "-p", "noequals"), 64, "wanted NAME=VALUE"),
        (("pub", "t", "x", "-p", "REAL_TOPIC=1"), 1, "REAL_TOPIC"),
        (("pub", "t", "x", "--jsonl"), 64, "not both"),
        (("sub", "t", "-f", "%z"), 64, "%z is none of"),
        (("sub", "t", "--from", "soon"), 64, "wanted first, last"),
        (("sub", "t", "-g", "g", "--from", "7"), 64, "shmq group reset"),
        (("topic", "update", "t", "-a", "x"), 64, "wanted KEY=VALUE"),
        (("topic", "create", "t", "-b", "nobody"), 1, "nobody"),
        (("topic", "update", "mistyped", "-q", "2"), 1, "shmq topic list"),
        (("group", "reset", "g", "-t", "t", "--to", "9" * 30), 64, "wanted first"),
        (("group", "reset", "g", "-t", "t", "--to", "@" + "9" * 30), 64, "wanted @"),
        (("group", "reset", "g", "-t", "t", "--to", "@-999999d"), 64, "wanted @"),
        (("dev", "--folder", "/proc/none", "--runtime", "/proc/none/run"), 1, "/proc/none"),
        (("dev", "--runtime", "/proc/none"), 1, "/proc/none"),
        (("group", "create", "a b"), 1, "character ' '"),
        (("nonsense",), 64, "No such command"),
        (("pub", "t", "x", "--timeout", "nan"), 64, "no number of seconds"),
        (("msg", "find", "t", "-k", ""), 64, "wanted one of the words"),
        (("msg", "get", "broker-a@" + "9" * 30), 1, "wanted a number of 64 bits"),
        (("dlq", "ls", "nobody"), 1, "group nobody: no broker has it; see what there is"),
    ],
)
def test_mistake_gets_one_line(
    shell: Shell, arguments: tuple[str, ...], code: int, wanted: str
) -> None:
    said = shell.fails(*arguments, code=code)
    assert wanted in said
    assert "Traceback" not in said


def test_no_cluster_says_how_to_start_one(tmp_path: Path) -> None:
    said = Shell(tmp_path / "nowhere").fails("topic", "list", code=1)
    assert "shmq dev" in said
    assert len(said.splitlines()) == 1


def test_reader_that_goes_away_is_no_error(shell: Shell) -> None:
    shell.out("topic", "create", "closed-pipe")
    shell.out("pub", "closed-pipe", "-c", "2000", "x" * 100)
    done = subprocess.run(
        f"{sys.executable} -m shmq.tools.cli sub closed-pipe --idle 5 | head -1",
        shell=True,
        env=shell.environ,
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == b"x" * 100 + b"\n"
    assert done.stderr == b""


def test_full_disk_behind_the_output_is_told_in_one_line(shell: Shell) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*SHMQ, "cluster", "list"],
            env=shell.environ,
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bytes_that_are_no_text_are_sent_as_they_are(shell: Shell) -> None:
    shell.out("topic", "create", "raw", "-q", "1", "-b", "broker-a")
    subprocess.run(
        [os.fsencode(part) for part in [*SHMQ, "pub", "raw"]] + [b"\xff\xfe"],
        env=shell.environ,
        cwd=ROOT,
        timeout=60,
        check=True,
        capture_output=True,
    )
    assert shell.run("sub", "raw", "--count", "1").stdout == b"\xff\xfe\n"


def test_cluster_survives_its_nameserver_under_dev(shell: Shell) -> None:
    before = shell.json("cluster", "list")["brokers"]
    [namesrv] = _pids_of("shmq.namesrv", str(shell.runtime))
    os.kill(namesrv, signal.SIGKILL)
    wait_until(lambda: _pids_of("shmq.namesrv", str(shell.runtime)) not in ([], [namesrv]))
    wait_until(lambda: shell.run("cluster", "list").returncode == 0)
    wait_until(lambda: shell.json("cluster", "list")["brokers"] == before)


def _groups(shell: Shell) -> list[str]:
    return [group["group"] for group in shell.json("group", "list")["groups"]]


def _pids_of(module: str, argument: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if module in words and argument in words:
            found.append(int(path.parent.name))
    return found
