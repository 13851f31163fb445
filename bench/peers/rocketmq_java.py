"""Apache RocketMQ 5 with its own Java client over remoting; rocketmq/Peer.java does the work."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import rocketmq_server
from peer import NUMBERED, Consumer, PeerError, Producer
from rocketmq_server import Place, RocketMQ
from servers import end_with_parent

_OPTIONS = "-Xmx512m -XX:+UseSerialGC -Dcom.rocketmq.remoting.client.connect.timeout=30000"


class _Program:
    """Peer.java as a process, told by lines."""

    def __init__(self, place: Place, role: str, *more: object) -> None:
        self._out = f"{place.folder}/client.out"
        arguments = ("Peer", role, place.namesrv, place.topic, *map(str, more))
        with open(self._out, "ab") as out:
            self._process = subprocess.Popen(
                rocketmq_server.java(Path(place.cache), Path(place.folder), _OPTIONS, *arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
                preexec_fn=end_with_parent,
            )
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
    def __init__(self, place: Place) -> None:
        self._program = _Program(place, "produce")

    def work(self, *, verb: str, size: int, count: int, **more: int) -> dict[str, Any]:
        interval_ns = more.get("interval_ns", 0)
        self._program.tell(verb, size, count, more.get("flying", interval_ns))
        begin_ns, end_ns, cpu_ns, *late_ns = map(int, self._program.answer())
        numbers = range(count if verb in NUMBERED else 0)
        if interval_ns:
            first_ns = begin_ns + interval_ns
            numbers = range(first_ns, first_ns + count * interval_ns, interval_ns)
        return {
            "begin_ns": begin_ns,
            "end_ns": end_ns,
            "numbers": numbers,
            "pacer_cpu_ns": cpu_ns,
            "late_ns": late_ns,
        }

    def close(self) -> None:
        self._program.close()


class JavaConsumer(Consumer):
    def __init__(self, place: Place, group: int) -> None:
        self._program = _Program(place, "consume", place.group(group), place.members)

    def work(
        self, board_path: str, words: memoryview, at: int, *, run: int, verb: str, size: int
    ) -> Iterator[dict[str, Any]]:
        self._program.tell(board_path, at, run, int(verb in NUMBERED), int(verb == "pace"), size)
        self._program.answer()
        yield {}
        count, is_right, end_ns, *more = map(int, self._program.answer())
        numbers = more[:count] if verb in NUMBERED else []
        yield {
            "count": count,
            "is_right": bool(is_right),
            "numbers": numbers,
            "end_ns": end_ns,
            "ages_ns": more[len(numbers) :],
        }

    def close(self) -> None:
        self._program.close()


class RocketMQJava(RocketMQ):
    NAME = "rocketmq-java"
    SETTINGS: ClassVar = {
        "server": rocketmq_server.SETTINGS,
        "put": "DefaultMQProducer.send with a callback, 1,000 or 64 MiB under way at most",
        "batch": "send of a collection of 500, 3 MiB at most",
        "consumer": "DefaultMQPushConsumer, pulls of 256, the listener gets 256 at most; complete "
        "when the listener has returned; members have divided the queues before anything is sent",
        "client": f"rocketmq-client {rocketmq_server.VERSION} in Java, {_OPTIONS}",
    }

    def version(self) -> str:
        return f"server and client {rocketmq_server.VERSION}"

    @staticmethod
    def producer(topic: Place) -> Producer:
        return JavaProducer(topic)

    @staticmethod
    def consumer(topic: Place, group: int) -> Consumer:
        return JavaConsumer(topic, group)


PEER = RocketMQJava
