"""A real broker process, and clients of it, for tests from outside.

What lives here: `BrokerProcess` starts, kills and restarts `python -m shmq.broker`; `BrokerClient`
is a client on the control plane with the session's lanes and readers, as the client room has them
but with every request in the test's hand; `ClientProcess` runs one in a process of its own that
takes orders on stdin, for tests that kill or stop a client.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from shmq.core import core
from shmq.errors import ShmqError
from shmq.remoting.client import Client
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
from shmq.remoting.runtime_folder import RuntimeFolder, broker_socket_name

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 30.0
_LOOK_S = 0.02
FD_MAX = 16
SMALL = {
    "commit_log_file_size_bytes": "8MiB",
    "hot_segment_count": "3",
    "session_count": "64",
    "ring_bytes": "256KiB",
    "arena_bytes": "4MiB",
}
"""Settings for a store that starts quickly."""


# ---- the broker ----------------------------------------------------------------------------------


class RunningBroker:
    """A broker that somebody else started."""

    def __init__(self, runtime: Path, name: str, broker_id: int = 0) -> None:
        self.runtime_path = runtime
        self.socket_name = broker_socket_name(name, broker_id)

    def connect(self, **options: Any) -> Client:
        with RuntimeFolder.open(self.runtime_path) as folder:
            return Client(folder, self.socket_name, role="test", timeout_s=60.0, **options)

    def status(self) -> dict[str, Any]:
        client = self.connect()
        try:
            command = Command(RequestCode.GET_BROKER_STATUS)
            return dict(client.call(command, timeout_s=60.0).ext_fields)
        finally:
            client.close()

    def said(self) -> dict[str, Any]:
        """Its status; nothing while nobody answers, as while its role changes."""
        with contextlib.suppress(ShmqError):
            return self.status()
        return {}


class BrokerProcess(RunningBroker):
    """One broker. A context manager: it is stopped and its memory removed at the end."""

    def __init__(
        self,
        folder: Path,
        cluster_name: str,
        *,
        name: str = "broker-a",
        broker_id: int = 0,
        runtime: Path | None = None,
        wait: bool = True,
        module: str = "shmq.broker",
        environment: Mapping[str, str] | None = None,
        wrapper: tuple[str, ...] = (),
        **settings: str,
    ) -> None:
        """Start it and wait until it serves.

        Args:
            folder: of the test; the store and the runtime folder are made in it.
            cluster_name: from the fixture of that name.
            name: broker_name.
            broker_id: 0 is the master.
            runtime: runtime folder, where brokers share one.
            wait: until it is RUNNING.
            module: what is run.
            environment: what is set there beside our own.
            wrapper: a command that becomes it, such as `in_dev_shm_of` gives.
            **settings: as --set.
        """
        self.folder = folder
        self.cluster_name = cluster_name
        self.name = name
        self.module = module
        self.environment = {**os.environ, **(environment or {})}
        self.settings = {**SMALL, **settings}
        self.wrapper = wrapper
        self.broker_id = broker_id
        super().__init__(runtime or folder / "run", name, broker_id)
        self.store_path = folder / f"store-{name}"
        self.log_path = folder / f"{name}.log"
        self.process = self._start()
        if wait:
            try:
                self.wait_running()
            except BaseException:  # nobody has it to stop it
                self.kill()
                raise

    def _start(self) -> subprocess.Popen[bytes]:
        options = [
            "--store", str(self.store_path),
            "--runtime", str(self.runtime_path),
            "--cluster", self.cluster_name,
            "--name", self.name,
            "--id", str(self.broker_id),
        ]  # fmt: skip
        for key, value in self.settings.items():
            options += ["--set", f"{key}={value}"]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [*self.wrapper, sys.executable, "-m", self.module, *options],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text("utf-8")

    def wait_running(self) -> None:
        waiting = threading.Event()
        for _ in range(int(TIMEOUT_S / _LOOK_S)):
            if self._is_running():
                return
            waiting.wait(_LOOK_S)
        raise AssertionError(f"the broker does not serve within {TIMEOUT_S} s: {self.log}")

    def _is_running(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return self.status()["phase"] == "RUNNING"
        except ShmqError:
            return False

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and wait until it has drained; the exit code."""
        self.process.terminate()
        return self.process.wait(TIMEOUT_S)

    def restart(self, **settings: str) -> None:
        """A successor on the same store, after a death or a stop."""
        assert self.process.poll() is not None
        self.settings.update(settings)
        self.process = self._start()
        self.wait_running()

    def __enter__(self) -> BrokerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.stop()
        # Whatever memory is left belongs to nobody any more: a last life removes it.
        own = f"shmq.{self.cluster_name}.{self.name}.{self.broker_id}."
        if any(name.startswith(own) for name in os.listdir("/dev/shm")):
            self.settings["keep_memory"] = "never"
            self.process = self._start()
            self.wait_running()
            self.stop()


# ---- a client ------------------------------------------------------------------------------------


@dataclass
class Queue:
    """One queue as the broker names it."""

    queue_id: int
    row: int
    generation: int
    facts: dict[str, Any] = field(default_factory=dict)


class BrokerClient:
    """A connection with, once attached, a session. A context manager."""

    def __init__(self, broker: RunningBroker, client_id: str, *, attach: bool = True) -> None:
        self.broker = broker
        self.client_id = client_id
        self.notices: queue.Queue[Command] = queue.Queue()
        self.client = broker.connect(on_notify=self._notified)
        self.fds: dict[str, int] = {}
        self.fields: dict[str, Any] = {}
        self.log_map: core.LogMap | None = None
        if attach:
            self.attach()

    def _notified(self, command: Command) -> None:
        self.notices.put(command)

    # ---- asking ------------------------------------------------------------------------------

    def call(
        self,
        code: RequestCode,
        fields: dict[str, Any] | None = None,
        body: object = None,
        *,
        fds: tuple[int, ...] = (),
    ) -> Command:
        command = Command(
            code, fields or {}, b"" if body is None else orjson.dumps(body), fds=list(fds)
        )
        return self.client.call(command, timeout_s=TIMEOUT_S, fd_count_max=FD_MAX)

    def json(
        self, code: RequestCode, fields: dict[str, Any] | None = None, body: object = None
    ) -> Any:
        return orjson.loads(self.call(code, fields, body).body)

    def notice(self, code: RequestCode, timeout_s: float = TIMEOUT_S) -> Command:
        """The next notice of a kind; others are dropped."""
        while True:
            command = self.notices.get(timeout=timeout_s)
            if command.code == code:
                return command

    # ---- the session -------------------------------------------------------------------------

    def attach(self, **options: Any) -> None:
        answer = self.call(RequestCode.ATTACH_SESSION, {"clientId": self.client_id, **options})
        self._take(answer)
        self._map_all()

    def resume(self, broker: RunningBroker, *, queues: list[Queue], **body: Any) -> dict[str, Any]:
        """Hand the memory to the successor; the answer's body."""
        self.client.close()
        self.client = broker.connect(on_notify=self._notified)
        kept = [name for name in ("ingress", "consumer", "chunk") if name in self.fds]
        fields = {
            "clientId": self.client_id,
            "session": self.fields["session"],
            "generation": self.fields["generation"],
            "fds": ",".join(kept),
        }
        answer = self.call(
            RequestCode.RESUME_SESSION,
            fields,
            {"sends": [[q.row, q.generation, 1] for q in queues], **body},
            fds=tuple(os.dup(self.fds[name]) for name in kept),
        )
        for name in set(self.fds) - set(kept):
            os.close(self.fds.pop(name))
        assert self.log_map is not None
        self.log_map.stop()
        sizes = self.fields
        self._take(answer)
        self.fields = {**sizes, **self.fields}
        self._map_shared()
        for lane in self.lanes:
            lane.resume(self.control, self.completion, self.fds["event"])
        result: dict[str, Any] = orjson.loads(answer.body)
        return result

    def _take(self, answer: Command) -> None:
        self.fields = dict(answer.ext_fields)
        names = str(self.fields["fds"]).split(",")
        self.fds |= dict(zip(names, answer.take_fds(), strict=True))

    def _map_all(self) -> None:
        self.lanes: list[core.Lane] = []
        self.ingress = self._mapping("ingress", writable=True) if "ingress" in self.fds else None
        self.consumer = self._mapping("consumer", writable=True) if "consumer" in self.fds else None
        self._map_shared()
        if self.ingress is not None:
            self.lanes = [
                core.Lane(
                    self.control,
                    self.ingress,
                    self.completion,
                    session=self.fields["session"],
                    lane=lane,
                    event_fd=self.fds["event"],
                )
                for lane in range(self.fields["laneCount"])
            ]

    def _map_shared(self) -> None:
        self.control = self._mapping("control")
        self.topics = self._mapping("topics")
        self.arena = self._mapping("arena")
        self.completion = self._mapping("completion")
        self.log_map = core.LogMap(file_size=self.fields["fileSizeBytes"])
        self.log_map.start(self.fds["log"])
        self.reader = core.Reader(
            self.control,
            self.arena,
            self.log_map,
            consumer=self.consumer,
            completion=self.completion,
            session=self.fields["session"],
        )

    def _mapping(self, name: str, *, writable: bool = False) -> core.Mapping:
        size = os.fstat(self.fds[name]).st_size
        reserve = max(size, self.fields.get(f"{name}Bytes", size))
        return core.Mapping(self.fds[name], size, writable=writable, reserve=reserve)

    # ---- what tests do with it ---------------------------------------------------------------

    def send_queues(self, topic: str, **fields: Any) -> list[Queue]:
        answer = self.json(RequestCode.GRANT_SEND, {"topic": topic, **fields})
        return [Queue(q["queueId"], q["row"], q["generation"]) for q in answer["queues"]]

    def read_queues(self, topic: str) -> list[Queue]:
        answer = self.json(RequestCode.GET_TOPIC_QUEUES, {"topic": topic})
        return [Queue(q["queueId"], q["row"], q["generation"], q) for q in answer["queues"]]

    def send(self, where: Queue, body: bytes) -> int:
        """Send and wait; the queue_offset."""
        status, _, queue_offset, *_ = self.lanes[0].send(
            where.row, where.generation, body, timeout=TIMEOUT_S
        )
        assert status == 0, status
        return queue_offset

    def bodies(self, where: Queue, queue_offset: int = 0, count: int = 1000) -> list[bytes]:
        status, messages, _ = self.reader.read(where.row, where.generation, queue_offset, count)
        assert status in (0, core.STATUS["EMPTY"][0]), status
        return [bytes(message.body) for message in messages]

    def heartbeat(self, *, consumers: dict[str, list[str]] | None = None, **more: Any) -> None:
        """Consumers: the topics of each group."""
        self.call(
            RequestCode.HEART_BEAT,
            body={
                "clientID": self.client_id,
                "producerDataSet": [],
                "consumerDataSet": [
                    {
                        "groupName": group,
                        "consumeType": "CONSUME_PASSIVELY",
                        "messageModel": "CLUSTERING",
                        "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET",
                        "subscriptionDataSet": [{"topic": t, "subString": "*"} for t in topics],
                    }
                    for group, topics in (consumers or {}).items()
                ],
                **more,
            },
        )

    def members(self, group: str) -> list[str]:
        answer = self.json(RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": group})
        ids: list[str] = answer["consumerIdList"]
        return ids

    def claim(
        self, group: str, topic: str, slots: dict[int, int], **fields: Any
    ) -> dict[int, dict[str, Any]]:
        """Claim queues (queue_id: slot) and write the claims into the page."""
        answer = self.json(
            RequestCode.CLAIM_QUEUES,
            {"consumerGroup": group, "topic": topic, **fields},
            {"claims": [{"queueId": q, "slot": s} for q, s in slots.items()]},
        )
        claims = {claim["queueId"]: claim for claim in answer["claims"]}
        for claim in claims.values():
            self.reader.claim(
                claim["slot"],
                claim["claim"],
                claim["row"],
                claim["generation"],
                claim["consumerOffset"],
            )
        return claims

    def consumer_offset(self, group: str, topic: str, queue_id: int) -> int:
        fields = {"consumerGroup": group, "topic": topic, "queueId": queue_id}
        offset = self.call(RequestCode.QUERY_CONSUMER_OFFSET, fields).ext_fields["offset"]
        assert isinstance(offset, int)
        return offset

    def create_topic(self, topic: str, nums: int = 4, **fields: Any) -> None:
        self.call(
            RequestCode.UPDATE_AND_CREATE_TOPIC,
            {"topic": topic, "readQueueNums": nums, "writeQueueNums": nums, **fields},
        )

    def close(self) -> None:
        """Leave without a word, as a process that ends does."""
        self.client.close()
        if self.log_map is not None:
            self.log_map.stop()
        while self.fds:
            os.close(self.fds.popitem()[1])

    def __enter__(self) -> BrokerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---- a client in a process of its own ------------------------------------------------------------


class ClientProcess:
    """Runs methods of a BrokerClient elsewhere: `run("send", ...)`. A context manager."""

    def __init__(self, broker: BrokerProcess, client_id: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "tests.support.broker_process",
                str(broker.runtime_path), broker.name, client_id,
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self._answer()

    def run(self, order: str, *arguments: Any, **options: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([order, arguments, options]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the client ended with {self.process.wait()}"
        return json.loads(line)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> ClientProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()


class _Orders:
    """What a ClientProcess can be told."""

    def __init__(self, client: BrokerClient) -> None:
        self._client = client
        self._queues: dict[str, list[Queue]] = {}

    def heartbeat(self, consumers: dict[str, list[str]]) -> None:
        self._client.heartbeat(consumers=consumers)

    def claim(self, group: str, topic: str, slots: dict[str, int]) -> dict[int, dict[str, Any]]:
        return self._client.claim(group, topic, {int(q): s for q, s in slots.items()})

    def report(self, slot: int, consumer_offset: int) -> None:
        self._client.reader.report(slot, consumer_offset)

    def put(self, topic: str, bodies: list[str]) -> int:
        """Publish without waiting for completions; how many went."""
        if topic not in self._queues:
            self._queues[topic] = self._client.send_queues(topic)
        where = self._queues[topic][0]
        for body in bodies:
            self._client.lanes[0].put(where.row, where.generation, body)
        return len(bodies)

    def flood(self, topic: str, size: int) -> int:
        """Publish bodies of a number each, `size` bytes long, until there is no room; how many."""
        where = self._client.send_queues(topic)[0]
        for number in range(1_000_000):
            body = b"%d" % number + bytes(size)
            lane = self._client.lanes[0]
            if lane.put(where.row, where.generation, body[:size], timeout=0.5) < 0:
                return number
        raise AssertionError("there is always room")


def _main() -> None:
    runtime, name, client_id = sys.argv[1:]
    with BrokerClient(RunningBroker(Path(runtime), name), client_id) as client:
        orders = _Orders(client)
        print("null", flush=True)
        for line in sys.stdin:
            order, arguments, options = json.loads(line)
            print(json.dumps(getattr(orders, order)(*arguments, **options)), flush=True)


if __name__ == "__main__":
    _main()
