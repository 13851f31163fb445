"""A real Apache RocketMQ, as the judge of our stores: NameServer, brokers, mqadmin, Java client.

What lives here: `Release` fetches one release with Maven and holds every file against its SHA-256;
`RocketMQ` runs a NameServer and brokers of it as Java processes on loopback, and asks them through
`tests/interop/oracle/Oracle.java`, which uses nothing but RocketMQ's own client and mqadmin.

The jars lie in $XDG_CACHE_HOME/shmq (~/.cache/shmq), one folder a release: a second run fetches
nothing. Java or Maven missing: skipped by name, failed in CI.
"""

from __future__ import annotations

import base64
import contextlib
import random
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.support.jars import JarsMissing, cache_folder, fetch_jars
from tests.support.require import require_or_skip, require_program
from tests.support.rocketmq_decoder import decode_properties

FOLDER = Path(__file__).parents[1] / "interop/oracle"
_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 60.0
_LOOK_S = 0.05
# Below the ports that the kernel gives out by itself. A broker takes two more: -2 and +1.
_PORTS = range(20_000, 32_000, 10)
_given_ports: set[int] = set()  # a store's port is free until its broker boots
_JVM_OPTIONS = (
    "-Xms256m",
    "-Xmx512m",
    "-XX:MaxDirectMemorySize=256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "--add-exports=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",  # 4.9 unmaps files with it
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in ("java.lang", "java.nio", "java.util", "sun.nio.ch")
    ),
)
# Warnings go to standard output, which _last_words shows.
_LOGBACK = """<configuration>
  <appender name="out" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %p %t - %m%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="out"/></root>
</configuration>
"""


@dataclass(frozen=True)
class Release:
    """One release of Apache RocketMQ."""

    version: str

    def jars(self) -> Path:
        """The folder of its jars, fetched if it is not there; each is what it was when pinned."""
        require_program("javac", "default-jdk-headless")
        require_program("setpriv", "util-linux")
        folder = cache_folder() / f"rocketmq-{self.version}"
        pinned = FOLDER / f"rocketmq-{self.version}.sha256"
        try:
            fetch_jars(folder, FOLDER / "pom.xml", pinned, self.version)
        except JarsMissing as reason:
            require_or_skip(str(reason))
        return folder


def free_port(rng: random.Random) -> int:
    """A port on loopback that a real broker can have, with those beside it that it takes too."""
    for port in rng.sample(_PORTS, k=len(_PORTS)):
        if port in _given_ports:
            continue
        with contextlib.ExitStack() as stack:
            try:
                for number in (port - 2, port, port + 1):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("0.0.0.0", number))
            except OSError:
                continue
        _given_ports.add(port)
        return port
    raise AssertionError("no free port")


class Place(NamedTuple):
    """Where a message is."""

    broker_name: str
    queue_id: int
    queue_offset: int


@dataclass(frozen=True)
class RealMessage:
    """A message as RocketMQ's client hands it out."""

    place: Place
    offset_id: str
    flag: int
    born_timestamp: int
    store_timestamp: int
    body: bytes
    properties: dict[str, str]


class Progress(NamedTuple):
    """How far a group has come in a queue, as mqadmin consumerProgress knows it."""

    max_queue_offset: int
    consumer_offset: int

    @property
    def lag(self) -> int:
        return self.max_queue_offset - self.consumer_offset


class Topic(NamedTuple):
    """All that a topic holds."""

    ends: dict[tuple[str, int], tuple[int, int]]
    """(broker_name, queue_id): (min, max) queue_offset."""
    messages: list[RealMessage]


class RocketMQ:
    """A NameServer and brokers of one release, and who asks them. A context manager."""

    def __init__(self, release: Release, folder: Path, rng: random.Random) -> None:
        """Start the NameServer.

        Args:
            release: which.
            folder: of the test: logs, configuration and whatever else the processes write.
            rng: chooses ports.
        """
        self.version = release.version
        self._jars = release.jars()
        self._folder = folder
        self._rng = rng
        self._brokers: dict[str, subprocess.Popen[bytes]] = {}
        self._names_by_port: dict[int, str] = {}
        self._asker: subprocess.Popen[str] | None = None
        for name in ("home/conf", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for role in ("namesrv", "broker", "tools"):  # 4.9 does not start without
            (folder / f"home/conf/logback_{role}.xml").write_text(_LOGBACK, "ascii")
        port = free_port(rng)
        self.namesrv = f"127.0.0.1:{port}"
        conf = folder / "namesrv.conf"
        conf.write_text(f"listenPort={port}\nbindAddress=127.0.0.1\n", "ascii")
        main = "org.apache.rocketmq.namesrv.NamesrvStartup"
        self._namesrv = self._start("namesrv", main, "-c", str(conf))
        self._wait_booted("namesrv", self._namesrv)

    # ---- processes -------------------------------------------------------------------------------

    def _command(self, main: str, *arguments: str) -> list[str]:
        return [
            "setpriv", "--pdeathsig", "KILL",  # whatever becomes of the test run
            "java",
            *_JVM_OPTIONS,
            f"-Drocketmq.home.dir={self._folder / 'home'}",
            f"-Duser.home={self._folder / 'home'}",
            f"-Djava.io.tmpdir={self._folder / 'tmp'}",
            "-cp", f"{self._jars}/*",
            main,
            *arguments,
        ]  # fmt: skip

    def _start(self, name: str, main: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.out").open("wb") as out:  # of this life
            return subprocess.Popen(
                self._command(main, *arguments),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def _wait_booted(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Return when a process says that it serves: a broker is registered by then."""
        waiting = threading.Event()
        for _ in range(int(_START_TIMEOUT_S / _LOOK_S)):
            assert process.poll() is None, f"{name} ended: {self._last_words(name)}"
            if "boot success" in (self._folder / f"{name}.out").read_text("utf-8", "replace"):
                return
            waiting.wait(_LOOK_S)
        raise AssertionError(f"{name} does not serve: {self._last_words(name)}")

    def _last_words(self, name: str) -> str:
        return (self._folder / f"{name}.out").read_text("utf-8", "replace")[-2000:]

    def start_brokers(self, stores: Sequence[Path]) -> None:
        """Boot a broker on each store with the broker.conf that lies in it; returns when all serve.

        The paths in it must lead to the store; nothing else is told to the broker.
        """
        started = {}
        for store in stores:
            name = read_conf(store)["brokerName"]
            main = "org.apache.rocketmq.broker.BrokerStartup"
            arguments = ("-c", str(store / "broker.conf"), "-n", self.namesrv)
            started[name] = self._start(name, main, *arguments)
        self._brokers |= started
        for name, process in started.items():
            self._wait_booted(name, process)
        waiting = threading.Event()
        for _ in range(int(_START_TIMEOUT_S / _LOOK_S)):
            missing = started.keys() - {name for _, name in self._ask("brokers")}
            if not missing:
                return
            waiting.wait(_LOOK_S)
        raise AssertionError(f"not registered: {missing}")

    def stop_broker(self, name: str) -> None:
        """End it in order, and wait until it is gone."""
        process = self._brokers.pop(name)
        process.terminate()
        process.wait(_STOP_TIMEOUT_S)

    def kill_broker(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        process = self._brokers.pop(name)
        process.kill()
        process.wait()

    def __enter__(self) -> RocketMQ:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._brokers.values(), self._namesrv):
            process.kill()
            process.wait()
        if self._asker is not None:
            assert self._asker.stdin is not None
            assert self._asker.stdout is not None
            self._asker.kill()
            self._asker.wait()
            self._asker.stdin.close()
            self._asker.stdout.close()

    # ---- asking ----------------------------------------------------------------------------------

    def _ask(self, *words: str) -> list[list[str]]:
        """Tell Oracle.java, and return the lines of its answer."""
        if self._asker is None:
            with (self._folder / "oracle.out").open("ab") as out:
                self._asker = subprocess.Popen(
                    self._command(str(FOLDER / "Oracle.java"), self.namesrv),
                    cwd=self._folder,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=out,
                    text=True,
                )
            list(self._lines())
        assert self._asker.stdin is not None
        self._asker.stdin.write("\t".join(words) + "\n")
        self._asker.stdin.flush()
        return list(self._lines())

    def _lines(self) -> Iterator[list[str]]:
        assert self._asker is not None
        out = self._asker.stdout
        assert out is not None
        errors = []
        for line in out:
            kind, *words = line.rstrip("\n").split("\t")
            if kind == "end":
                break
            if kind == "error":
                errors.append(_text(words[0]))
            else:
                yield [kind, *words]
        else:
            raise AssertionError(f"Oracle.java ended: {self._last_words('oracle')}")
        assert not errors, errors

    def read(self, topic: str) -> Topic:
        """Every message of a topic, pulled by queue and offset from the first to the last."""
        ends = {}
        messages = []
        for kind, broker_name, queue_id, *words in self._ask("read", topic):
            if kind == "queue":
                ends[broker_name, int(queue_id)] = int(words[0]), int(words[1])
                continue
            message = _message(broker_name, queue_id, words)
            messages.append(message)
            port = int(message.offset_id[8:16], 16)  # behind the IPv4 address
            assert self._names_by_port.setdefault(port, broker_name) == broker_name
        return Topic(ends, messages)

    def find_by_key(self, topic: str, keys: Sequence[str]) -> dict[str, set[Place]]:
        """Where the messages with each of these keys are."""
        found = self._find("keys", topic, [_base64(key) for key in keys])
        return {_text(line): places for line, places in found.items()}

    def find_by_unique_key(self, topic: str, ids: Sequence[str]) -> dict[str, set[Place]]:
        """Where the messages are whose ids a producer got."""
        return self._find("unique", topic, ids)

    def find_by_offset_id(self, topic: str, ids: Sequence[str]) -> dict[str, set[Place]]:
        """Where the messages are whose ids name a broker's address and a place in its log."""
        return self._find("ids", topic, ids)

    def _find(self, verb: str, topic: str, lines: Sequence[str]) -> dict[str, set[Place]]:
        file = self._folder / "questions"
        file.write_text("".join(f"{line}\n" for line in lines), "ascii")
        found: dict[str, set[Place]] = {}
        for kind, line, answer in self._ask(verb, topic, str(file)):
            assert kind != "missing", (verb, line, _text(answer))
            found[line] = {self._place(text) for text in answer.split(",")}
        return found

    def _place(self, text: str) -> Place:
        """A message that was found by key or id says its broker's address only."""
        port, queue_id, queue_offset = map(int, text.split(":"))
        return Place(self._names_by_port[port], queue_id, queue_offset)

    def progress(self, group: str) -> dict[tuple[str, str, int], Progress]:
        """How far a group has come, by topic, broker_name and queue_id."""
        return {
            (topic, broker_name, int(queue_id)): Progress(int(end), int(seen))
            for _, topic, broker_name, queue_id, end, seen in self._ask("progress", group)
        }

    def consume(self, topic: str, group: str, count: int) -> list[RealMessage]:
        """Join the group, and take what it has not consumed yet, `count` messages."""
        messages: list[RealMessage] = []
        for kind, *words in self._ask("consume", topic, group, str(count)):
            if kind == "came":
                assert words == ["true"], f"{len(messages)} of {count} came"
            else:
                messages.append(_message(words[0], words[1], words[2:]))
        return messages

    def send(
        self,
        topic: str,
        broker_name: str,
        queue_id: int,
        bodies: Sequence[bytes],
        *,
        delay_level: int = 0,
    ) -> list[int]:
        """Send to a queue with the Java producer; their queue offsets, of the level's queue where
        they are delayed.
        """
        file = self._folder / "bodies"
        file.write_text("".join(base64.b64encode(body).decode() + "\n" for body in bodies), "ascii")
        words = (topic, broker_name, str(queue_id), str(file), str(delay_level))
        answers = self._ask("send", *words)
        assert {status for _, status, *_ in answers} == {"SEND_OK"}
        return [int(queue_offset) for _, _, queue_offset, _ in answers]

    def mqadmin(self, *arguments: str) -> str:
        """What mqadmin prints."""
        return "".join(_text(text) for _, text in self._ask("mqadmin", *arguments))


def _message(broker_name: str, queue_id: str, words: list[str]) -> RealMessage:
    queue_offset, offset_id, flag, born, stored, body, properties = words
    return RealMessage(
        place=Place(broker_name, int(queue_id), int(queue_offset)),
        offset_id=offset_id,
        flag=int(flag),
        born_timestamp=int(born),
        store_timestamp=int(stored),
        body=base64.b64decode(body),
        properties=decode_properties(base64.b64decode(properties)),
    )


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(line: str) -> str:
    return base64.b64decode(line).decode()


def read_conf(store: Path) -> dict[str, str]:
    """The settings of a store's broker.conf; paths and names are ASCII without backslashes here."""
    lines = (store / "broker.conf").read_text("ascii").splitlines()
    return dict(line.split("=", 1) for line in lines if line and line[0] != "#")
