"""Apache RocketMQ 5 with its own Java client over remoting; rocketmq/Peer.java does the work."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import rocketmq_server
from peer import Consumer, Peer, PeerError, Producer
from rocketmq_server import Server, group_name
from servers import end_with_parent

Topic = tuple[str, str, str, str]
"""Cache folder, folder of the run, address of the NameServer, name."""
_OPTIONS = "-Xmx512m -XX:+UseSerialGC -Dcom.rocketmq.remoting.client.connect.timeout=30000"


class _Program:
    """Peer.java as a process, told by lines."""

    def __init__(self, topic: Topic, role: str, *more: str) -> None:
        cache, folder, namesrv, name = topic
        with open(f"{folder}/client.out", "ab") as out:
            self._process = subprocess.Popen(
                rocketmq_server.java(
                    Path(cache), Path(folder), _OPTIONS, "Peer", role, namesrv, name, *more
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
                preexec_fn=end_with_parent,
            )
        self._out = f"{folder}/client.out"
        self.answer()

    def tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()

    def answer(self) -> list[str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = Path(self._out).read_text("utf-8", "replace")[-2000:]
            raise PeerError(f"Peer.java ended; what it said: {said}")
        return line.split()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class JavaProducer(Producer):
    def __init__(self, topic: Topic) -> None:
        self._program = _Program(topic, "produce")

    def work(self, *, verb: str, size: int, count: int, **more: int) -> dict[str, int]:
        self._program.tell(verb, size, count, next(iter(more.values()), 0))
        begin_ns, end_ns = map(int, self._program.answer())
        return {"begin_ns": begin_ns, "end_ns": end_ns}

    def close(self) -> None:
        self._program.close()


class JavaConsumer(Consumer):
    def __init__(self, topic: Topic, group: int) -> None:
        self._program = _Program(topic, "consume", group_name(topic[3], group))

    def work(
        self, board_path: str, words: memoryview, at: int, *, run: int, has_ages: bool
    ) -> Iterator[dict[str, Any]]:
        self._program.tell(board_path, at, run, int(has_ages))
        self._program.answer()
        yield {}
        count, byte_count, end_ns, *ages = map(int, self._program.answer())
        yield {"count": count, "bytes": byte_count, "end_ns": end_ns, "ages_ns": ages}

    def close(self) -> None:
        self._program.close()


class RocketMQJava(Peer):
    NAME = "rocketmq-java"
    WARM_UP_S = rocketmq_server.WARM_UP_S
    SETTINGS: ClassVar = {
        "server": rocketmq_server.SETTINGS,
        "put": "DefaultMQProducer.send with a callback, 1,000 or 64 MiB under way at most",
        "batch": "send of a collection of 500, 3 MiB at most",
        "consumer": "DefaultMQPushConsumer, pulls of 256, the listener gets 256 at most; complete "
        "when the listener has returned",
        "client": f"rocketmq-client {rocketmq_server.VERSION} in Java, {_OPTIONS}",
    }

    @staticmethod
    def fetch(cache: Path) -> None:
        rocketmq_server.fetch(cache)

    def version(self) -> str:
        return f"server and client {rocketmq_server.VERSION}"

    def start(self, folder: Path, *, is_flushed: bool) -> None:
        self._folder = folder
        self._server = Server(self.cache, folder, is_flushed=is_flushed)

    def stop(self) -> None:
        self._server.stop()

    def topic(self, name: str, *, members: int = 1, groups: int = 1) -> Topic:
        self._server.create_topic(name, queues=4 if members == 1 else 2 * members, groups=groups)
        return str(self.cache), str(self._folder), self._server.namesrv, name

    @staticmethod
    def producer(topic: Topic) -> Producer:
        return JavaProducer(topic)

    @staticmethod
    def consumer(topic: Topic, group: int) -> Consumer:
        return JavaConsumer(topic, group)


PEER = RocketMQJava
