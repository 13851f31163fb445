"""NATS JetStream with a file store; the server is built from its Go module; client nats-py."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from fetching import filled, run
from peer import (
    EARLY_NS,
    STAMP,
    TIMEOUT_S,
    Body,
    Consumer,
    NotHad,
    Pacer,
    Peer,
    Producer,
)
from servers import can_connect, free_port, start_server, stop_server

Topic = tuple[int, str, bool]
"""Port of the server, name of stream and subject, whether one acknowledgement is for all before."""
_MODULE = "github.com/nats-io/nats-server/v2"
_PENDING_MAX = 4_000
_UNACKNOWLEDGED_MAX = 5_000
_IDLE_TURNS = 200
_EARLY_NS = EARLY_NS + 1_000_000
"""The loop's own sleep takes whole milliseconds, rounded up."""


async def _connect(port: int) -> tuple[Any, Any]:
    import nats

    connection = await nats.connect(f"nats://127.0.0.1:{port}", pending_size=64 << 20)
    return connection, connection.jetstream(
        timeout=TIMEOUT_S, publish_async_max_pending=_PENDING_MAX
    )


async def _turn_ns() -> int:
    """Processor time of a turn of the loop in which nothing happens."""
    begin_ns = time.thread_time_ns()
    for _ in range(_IDLE_TURNS):
        await asyncio.sleep(0)
    return (time.thread_time_ns() - begin_ns) // _IDLE_TURNS


class NatsProducer(Producer):
    def __init__(self, topic: Topic) -> None:
        port, self._subject, _ = topic
        self._do = asyncio.new_event_loop().run_until_complete
        self._connection, self._stream = self._do(_connect(port))
        self._turn_ns = self._do(_turn_ns())

    def send(self, body: Body) -> None:
        self._do(self._stream.publish(self._subject, body))

    def put_many(self, bodies: Sequence[Body]) -> None:
        self._do(self._put_all(bodies))

    def put_repeatedly(self, body: Body, count: int) -> None:
        self._do(self._put_all([body] * count))

    def pace(self, body: bytes, due_times_ns: range) -> Pacer:
        pacer: Pacer = self._do(self._pace(body[STAMP.size :], due_times_ns))
        return pacer

    async def _put_all(self, bodies: Sequence[Body]) -> None:
        put, subject = self._stream.publish_async, self._subject
        for body in bodies:
            await put(subject, body)
        await self._stream.publish_async_completed()

    async def _pace(self, rest: bytes, due_times_ns: range) -> Pacer:
        put, subject = self._stream.publish_async, self._subject
        pacer, turn_ns = Pacer(), self._turn_ns
        for due_ns in due_times_ns:
            # As Pacer.wait_until, in the loop, which writes and reads meanwhile.
            left_ns = due_ns - time.monotonic_ns()
            if left_ns > 0:
                if left_ns > _EARLY_NS:
                    await asyncio.sleep((left_ns - _EARLY_NS) / 1e9)
                while (now_ns := time.monotonic_ns()) < due_ns:
                    await asyncio.sleep(0)
                    pacer.cpu_ns += turn_ns
                pacer.late_ns.append(now_ns - due_ns)
            await put(subject, STAMP.pack(due_ns) + rest)
        await self._stream.publish_async_completed()
        return pacer

    def close(self) -> None:
        self._do(self._connection.close())


class NatsConsumer(Consumer):
    def __init__(self, topic: Topic, group: int) -> None:
        port, self._stream, self._is_one_for_all = topic
        self._do = asyncio.new_event_loop().run_until_complete
        self._arrived = asyncio.Event()
        self._messages: list[Any] = []
        self._taken: list[Any] = []
        self._do(self._bind(port, f"group-{group}"))

    async def _bind(self, port: int, group: str) -> None:
        self._connection, context = await _connect(port)
        known = await context.consumer_info(self._stream, group)
        await context.subscribe_bind(
            self._stream,
            known.config,
            group,
            cb=self._arrive,
            manual_ack=True,
            pending_msgs_limit=-1,
            pending_bytes_limit=-1,
        )

    async def _arrive(self, message: Any) -> None:
        self._messages.append(message)
        self._arrived.set()

    def receive(self, max_count: int, timeout_s: float) -> Sequence[Body]:
        if not self._messages:
            self._do(self._wait(timeout_s))
        self._taken, self._messages = self._messages, []
        return [message.data for message in self._taken]

    async def _wait(self, timeout_s: float) -> None:
        self._arrived.clear()
        try:
            await asyncio.wait_for(self._arrived.wait(), timeout_s)
        except TimeoutError:
            pass

    def complete(self) -> None:
        self._do(self._complete(self._taken[-1:] if self._is_one_for_all else self._taken))

    async def _complete(self, messages: Sequence[Any]) -> None:
        for message in messages:
            await message.ack()
        await self._connection.flush()

    def close(self) -> None:
        self._do(self._connection.close())


class Nats(Peer):
    NAME = "nats"
    SETTINGS: ClassVar = {
        "server": "file store, one replica, written out each 2 min (its default; rows on disk: "
        "sync_interval always), TCP on loopback, max_payload 8 MB",
        "put": f"publish_async, {_PENDING_MAX} at most unconfirmed",
        "batch": "the same: it has no other",
        "consumer": f"pushed to a coroutine, {_UNACKNOWLEDGED_MAX} at most unacknowledged; one "
        "acknowledgement for all that came (each message in groups of several), flushed",
        "client": "nats-py on asyncio",
    }

    @staticmethod
    def fetch(cache: Path) -> None:
        if shutil.which("nats-server") is not None and shutil.which("go") is None:
            return
        with filled(cache / "nats-server") as fresh:
            if fresh is None:
                return
            if shutil.which("go") is None:
                raise NotHad("no nats-server and no go to build it: apt install golang")
            # A newer Go would be downloaded where this one is too old.
            source = Path(__file__).with_name("nats")
            program = str(fresh / "nats-server")
            run(
                ["go", "build", "-C", str(source), "-mod=readonly", "-o", program, _MODULE],
                environment={"GOTOOLCHAIN": "local"},
            )

    def _program(self) -> str:
        built = self.cache / "nats-server/nats-server"
        return str(built) if built.exists() else "nats-server"

    def version(self) -> str:
        said = subprocess.check_output([self._program(), "--version"], text=True)
        return f"server {said.rpartition('v')[2].strip()}, nats-py {version('nats-py')}"

    def start(self, folder: Path, *, is_flushed: bool) -> None:
        self._port = free_port()
        interval = "always" if is_flushed else "2m"
        (folder / "nats.conf").write_text(
            f"listen: 127.0.0.1:{self._port}\nmax_payload: 8MB\nmax_pending: 2GB\n"
            f'jetstream {{ store_dir: "{folder}", sync_interval: {interval}, '
            "max_file: 64GB, max_mem: 1GB }\n"
        )
        self._process = start_server(
            [self._program(), "-c", folder / "nats.conf"], folder, lambda: can_connect(self._port)
        )

    def stop(self) -> None:
        stop_server(self._process)

    def topic(self, name: str, *, members: int = 1, groups: int = 1) -> Topic:
        asyncio.run(self._make(name, members == 1, groups))
        return self._port, name, members == 1

    async def _make(self, name: str, is_one_for_all: bool, groups: int) -> None:
        from nats.js.api import AckPolicy, ConsumerConfig, StorageType

        connection, stream = await _connect(self._port)
        await stream.add_stream(name=name, subjects=[name], storage=StorageType.FILE)
        for group in range(groups):
            configuration = ConsumerConfig(
                durable_name=f"group-{group}",
                ack_policy=AckPolicy.ALL if is_one_for_all else AckPolicy.EXPLICIT,
                max_ack_pending=_UNACKNOWLEDGED_MAX,
                deliver_subject=f"deliver.{name}.{group}",
                deliver_group=None if is_one_for_all else f"group-{group}",
            )
            await stream.add_consumer(name, configuration)
        await connection.close()

    @staticmethod
    def producer(topic: Topic) -> Producer:
        return NatsProducer(topic)

    @staticmethod
    def consumer(topic: Topic, group: int) -> Consumer:
        return NatsConsumer(topic, group)


PEER = Nats
