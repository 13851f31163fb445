"""Apache RocketMQ 5 as a server: a NameServer, and a broker with its Proxy in one process.

What its peers have in common is here, too: they differ in the client alone.
"""

import hashlib
import json
import socket
import struct
import time
from pathlib import Path
from typing import NamedTuple

from fetching import filled, run
from peer import NotHad, Peer, PeerError
from servers import can_connect, free_port, need_program, start_server, stop_server

from tests.support.jars import JarsMissing, fetch_jars

VERSION = "5.5.0"
HEAP = "-Xms1g -Xmx1g -XX:MaxDirectMemorySize=1g -XX:+UseG1GC"
"""Of the broker; its start scripts have 8 GiB, for a machine of its own."""
WARM_UP_S = 4.0
SETTINGS = (
    f"NameServer and one broker with its Proxy (LOCAL), {HEAP}; defaults: ASYNC_FLUSH each 500 ms "
    "(rows on disk: SYNC_FLUSH); messages of one pull 256; "
    f"{WARM_UP_S:.0f} s of messages in each life before what is measured, half of it with --quick"
)
_SOURCE = Path(__file__).with_name("rocketmq")
_UPDATE_AND_CREATE_TOPIC, _GET_ROUTEINFO_BY_TOPIC = 17, 105
_UPDATE_AND_CREATE_SUBSCRIPTIONGROUP = 200
_QUERY_CONSUMER_OFFSET, _UPDATE_CONSUMER_OFFSET = 14, 15
_NAMESRV_OPTIONS = "-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"
"""It is not on the way of a message: what makes it start quickly."""
_TOPIC_TIMEOUT_S = 30.0
_OPENS = (
    "java.base/java.lang",
    "java.base/java.nio",
    "java.base/sun.nio.ch",
    "java.base/java.util",
)


def jars(cache: Path) -> Path:
    """The folder of its jars, once fetched."""
    return cache / f"rocketmq-{VERSION}"


def classes(cache: Path) -> Path:
    """The folder of our own Java client, once compiled."""
    source = hashlib.sha256((_SOURCE / "Peer.java").read_bytes()).hexdigest()
    return cache / f"rocketmq-{VERSION}-classes-{source[:12]}"


def _fetch(cache: Path) -> None:
    need_program("java", "default-jdk-headless")
    need_program("javac", "default-jdk-headless")
    try:
        fetch_jars(jars(cache), _SOURCE / "pom.xml", _SOURCE / "jars.sha256", VERSION)
    except JarsMissing as reason:
        raise NotHad(str(reason)) from None
    with filled(classes(cache)) as fresh:
        if fresh is not None:
            source = str(_SOURCE / "Peer.java")
            run(["javac", "-nowarn", "-cp", f"{jars(cache)}/*", "-d", str(fresh), source])


def java(cache: Path, folder: Path, options: str, main: str, *arguments: str) -> list[str]:
    """A command; all that Java writes beside its store goes into the folder."""
    return [
        "java",
        *options.split(),
        *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENS),
        "-XX:-UsePerfData",
        f"-Drocketmq.home.dir={folder}",
        f"-Duser.home={folder}",
        f"-Djava.io.tmpdir={folder}",
        "-Drocketmq.client.logRoot=" + str(folder),
        "-cp",
        f"{classes(cache)}:{jars(cache)}/*",
        main,
        *arguments,
    ]


class Place(NamedTuple):
    """What a client needs to know of a topic."""

    cache: str
    folder: str
    """Of the run."""
    namesrv: str
    """Address of the NameServer."""
    proxy: str
    """Address of the Proxy, which speaks gRPC."""
    topic: str
    queues: int
    members: int
    """Consumers in each group."""

    def group(self, number: int) -> str:
        """Name of a consumer group of the topic, counted from 0."""
        return f"{self.topic}-group-{number}"


class RocketMQ(Peer):
    """The server part, whatever the client."""

    WARM_UP_S = WARM_UP_S

    @staticmethod
    def fetch(cache: Path) -> None:
        """Fetch the jars, and compile our Java client.

        Raises:
            NotHad: no Java, no Maven, or the jars could not be had.
        """
        _fetch(cache)

    def start(self, folder: Path, *, is_flushed: bool) -> None:
        self._folder = folder
        self._server = Server(self.cache, folder, is_flushed=is_flushed)

    def stop(self) -> None:
        self._server.stop()

    def topic(self, name: str, *, members: int = 1, groups: int = 1) -> Place:
        queues = 4 if members == 1 else 2 * members
        place = Place(
            str(self.cache),
            str(self._folder),
            self._server.namesrv,
            self._server.proxy,
            name,
            queues,
            members,
        )
        self._server.create_topic(name, queues, [place.group(number) for number in range(groups)])
        return place


class Server:
    """It runs."""

    def __init__(self, cache: Path, folder: Path, *, is_flushed: bool) -> None:
        self._namesrv_port = free_port()
        self._broker_port = free_port((-2, 1))
        grpc_port, remoting_port = free_port(), free_port()
        self.namesrv = f"127.0.0.1:{self._namesrv_port}"
        self.proxy = f"127.0.0.1:{grpc_port}"
        (folder / "namesrv.conf").write_text(
            f"listenPort={self._namesrv_port}\nbindAddress=127.0.0.1\n"
        )
        (folder / "broker.conf").write_text(
            f"brokerClusterName=DefaultCluster\nbrokerName=broker-a\nbrokerId=0\n"
            f"brokerIP1=127.0.0.1\nlistenPort={self._broker_port}\nbindAddress=127.0.0.1\n"
            f"namesrvAddr={self.namesrv}\nstorePathRootDir={folder}/store\n"
            f"storePathCommitLog={folder}/store/commitlog\nautoCreateTopicEnable=false\n"
            f"flushDiskType={'SYNC_FLUSH' if is_flushed else 'ASYNC_FLUSH'}\n"
            "maxTransferCountOnMessageInMemory=256\nmaxTransferBytesOnMessageInMemory=4194304\n"
            # What is under way may wait; it would be refused after 0.2 s, or 1 s of a slow disk.
            "waitTimeMillsInSendQueue=60000\nosPageCacheBusyTimeOutMills=60000\n"
        )
        (folder / "rmq-proxy.json").write_text(
            json.dumps(
                {
                    "rocketMQClusterName": "DefaultCluster",
                    "namesrvAddr": self.namesrv,
                    "proxyMode": "LOCAL",
                    "grpcServerPort": grpc_port,
                    "remotingListenPort": remoting_port,
                    "localServeAddr": "127.0.0.1",
                }
            )
        )
        main = "org.apache.rocketmq.namesrv.NamesrvStartup"
        command = java(cache, folder, _NAMESRV_OPTIONS, main, "-c", f"{folder}/namesrv.conf")
        self._processes = [start_server(command, folder, lambda: can_connect(self._namesrv_port))]
        main = "org.apache.rocketmq.proxy.ProxyStartup"
        arguments = ("-pm", "local", "-n", self.namesrv, "-bc", f"{folder}/broker.conf")
        command = java(cache, folder, HEAP, main, *arguments, "-pc", f"{folder}/rmq-proxy.json")
        try:
            self._processes.append(start_server(command, folder, lambda: can_connect(grpc_port)))
        except PeerError:
            self.stop()
            raise

    def stop(self) -> None:
        while self._processes:
            # An orderly end takes it 10 s and more; what is written survives a kill.
            stop_server(self._processes.pop(), is_killed=True)

    def create_topic(self, name: str, queues: int, groups: list[str]) -> None:
        """At the broker, and its groups; returns when the NameServer knows it."""
        fields = {
            "topic": name,
            "defaultTopic": "TBW102",
            "readQueueNums": queues,
            "writeQueueNums": queues,
            "perm": 6,
            "topicFilterType": "SINGLE_TAG",
            "topicSysFlag": 0,
            "order": False,
        }
        deadline = time.monotonic() + _TOPIC_TIMEOUT_S
        while (said := _request(self._broker_port, _UPDATE_AND_CREATE_TOPIC, fields)) != 0:
            if time.monotonic() > deadline:
                raise PeerError(f"create topic {name}: the broker answers {said}")
            time.sleep(0.05)
        for group in groups:
            config = {"groupName": group, "consumeEnable": True}
            said = _request(
                self._broker_port, _UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, {}, json.dumps(config)
            )
            if said != 0:
                raise PeerError(f"create group {group}: the broker answers {said}")
            for queue in range(queues):
                self._begin_at_first(group, name, queue)
        while _request(self._namesrv_port, _GET_ROUTEINFO_BY_TOPIC, {"topic": name}) != 0:
            if time.monotonic() > deadline:
                raise PeerError(f"create topic {name}: the NameServer has not heard of it")
            time.sleep(0.02)

    def _begin_at_first(self, group: str, topic: str, queue: int) -> None:
        """Unless the group has been there. Clients that pop begin at the last message otherwise,
        if the first one is not in the page cache.
        """
        place: dict[str, object] = {"consumerGroup": group, "topic": topic, "queueId": queue}
        if _request(self._broker_port, _QUERY_CONSUMER_OFFSET, place) == 0:
            return
        said = _request(self._broker_port, _UPDATE_CONSUMER_OFFSET, {**place, "commitOffset": 0})
        if said != 0:
            raise PeerError(f"group {group}, first offset of {topic}: the broker answers {said}")


def _request(port: int, code: int, fields: dict[str, object], body: str = "") -> int:
    """One request of RocketMQ's remoting protocol; the code that it answers."""
    header = json.dumps(
        {
            "code": code,
            "language": "OTHER",
            "version": 0,
            "opaque": 1,
            "flag": 0,
            "extFields": {name: _text(value) for name, value in fields.items()},
        }
    ).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        lengths = struct.pack(">II", 4 + len(header) + len(body), len(header))
        connection.sendall(lengths + header + body.encode())
        with connection.makefile("rb") as answers:
            (length,) = struct.unpack(">I", answers.read(4))
            answer = answers.read(length)
    (header_length,) = struct.unpack_from(">I", answer)
    told = json.loads(answer[4 : 4 + (header_length & 0xFFFFFF)])
    result: int = told["code"]
    return result


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
