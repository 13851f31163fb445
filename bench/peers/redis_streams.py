"""Redis Streams with consumer groups, append-only file; client redis-py with hiredis' parser."""

import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from fetching import debian_packages
from peer import RECEIVE_MAX, Body, Consumer, Peer, Producer
from servers import can_connect, start_server, stop_server

Topic = tuple[str, str]
"""Path of the socket, key of the stream."""
_PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")


def _connect(path: str) -> Any:
    import redis

    return redis.Redis(unix_socket_path=path, protocol=2)


class RedisProducer(Producer):
    def __init__(self, topic: Topic) -> None:
        path, self._stream = topic
        self._redis = _connect(path)

    def send(self, body: Body) -> None:
        self._redis.xadd(self._stream, {b"b": body})

    def put_many(self, bodies: Sequence[Body]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for body in bodies:
            pipeline.xadd(self._stream, {b"b": body})
        pipeline.execute()

    def close(self) -> None:
        self._redis.close()


class RedisConsumer(Consumer):
    def __init__(self, topic: Topic, group: int) -> None:
        path, self._stream = topic
        self._redis = _connect(path)
        self._group = f"group-{group}"
        self._asks = {
            "groupname": self._group,
            "consumername": f"consumer-{os.getpid()}",
            "streams": {self._stream: ">"},
        }
        self._ids: list[bytes] = []
        self._ahead: Any = None

    def receive(self, max_count: int, timeout_s: float) -> Sequence[Body]:
        answer, self._ahead = self._ahead, None
        if not answer:
            wait_ms = int(timeout_s * 1000)
            answer = self._redis.xreadgroup(count=max_count, block=wait_ms, **self._asks)
        if not answer:
            return []
        ((_, entries),) = answer
        self._ids = [entry for entry, _ in entries]
        return [fields[b"b"] for _, fields in entries]

    def complete(self) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xack(self._stream, self._group, *self._ids)
        pipeline.xreadgroup(count=RECEIVE_MAX, **self._asks)
        self._ahead = pipeline.execute()[1]

    def close(self) -> None:
        self._redis.close()


class Redis(Peer):
    NAME = "redis"
    SETTINGS: ClassVar = {
        "server": "Unix socket; appendonly yes, appendfsync everysec (flushed rows: always), no "
        "snapshots, the file never rewritten",
        "put": "XADD, each waited for: the client has no other",
        "batch": "a pipeline of 500 XADDs, no transaction",
        "consumer": "XREADGROUP COUNT 500; one pipeline has the XACK of all and the next read",
        "client": "redis-py with hiredis",
    }

    @staticmethod
    def fetch(cache: Path) -> None:
        if shutil.which("redis-server") is None:
            debian_packages(cache / "redis-debian", _PACKAGES)

    def version(self) -> str:
        server = _connect(self._socket).info("server")["redis_version"]
        return f"server {server}, redis-py {version('redis')}, hiredis {version('hiredis')}"

    def start(self, folder: Path, *, is_flushed: bool) -> None:
        unpacked = self.cache / "redis-debian"
        program = shutil.which("redis-server") or unpacked / "usr/bin/redis-server"
        libraries = ":".join(str(path.parent) for path in unpacked.glob("usr/lib/*/liblzf.so*"))
        # A socket's path has 107 bytes at most, and the folder's may have more.
        self._folder = os.open(folder, os.O_PATH)
        self._socket = f"/proc/{os.getpid()}/fd/{self._folder}/socket"
        options = {
            "port": "0",
            "unixsocket": "socket",
            "dir": str(folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always" if is_flushed else "everysec",
            "auto-aof-rewrite-percentage": "0",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = start_server(
            [program, *words],
            folder,
            lambda: can_connect(self._socket) and _connect(self._socket).ping(),
            {"LD_LIBRARY_PATH": libraries} if libraries else None,
        )

    def stop(self) -> None:
        stop_server(self._process)
        os.close(self._folder)

    def topic(self, name: str, *, members: int = 1, groups: int = 1) -> Topic:
        redis = _connect(self._socket)
        known = len(redis.xinfo_groups(name)) if redis.exists(name) else 0
        for group in range(known, groups):
            redis.xgroup_create(name, f"group-{group}", "0", mkstream=True)
        return self._socket, name

    @staticmethod
    def producer(topic: Topic) -> Producer:
        return RedisProducer(topic)

    @staticmethod
    def consumer(topic: Topic, group: int) -> Consumer:
        return RedisConsumer(topic, group)


PEER = Redis
