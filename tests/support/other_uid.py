"""Programs of other uids, for tests of rights: each runs in a process of its own that becomes the
uid for good, and does what it is told, line by line.

What lives here: `Person`, whose process does named actions through the library or with requests of
its own making, and says what came of each. Needs root.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.support.cluster import Program

if TYPE_CHECKING:
    from pathlib import Path

# The interpreter may lie where only root can read: everything is imported before the uid changes.
_SOURCE = """
import json, os, socket, sys
import orjson
import shmq, shmq.client.admin, shmq.client.instance, shmq.client.consumer, shmq.client.producer
import shmq.client.batch, shmq.client.pull_consumer, shmq.client.push_consumer, shmq.result, numpy
import shmq.tools.cli.output
from shmq.remoting.client import Client as Connection
from shmq.remoting.codes import RequestCode
from shmq.core import core
from shmq.remoting.command import Command, encode, hello
from shmq.remoting.runtime_folder import (
    RuntimeFolder, broker_socket_name, namesrv_socket_name
)
from shmq.result import MessageQueue
import encodings.idna, encodings.utf_16_le, encodings.utf_16_be, uuid, logging
import concurrent.futures.thread
import asyncio, gc, shmq.aio

runtime, uid, groups = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
os.setgroups(groups)
os.setgid(groups[0])
os.setuid(uid)
kept = {}

def client():
    if "client" not in kept:
        kept["client"] = shmq.connect(runtime)
    return kept["client"]

def link():
    return client().link("broker-a")

def connection():
    if "connection" not in kept:
        with RuntimeFolder.open(runtime) as folder:
            kept["connection"] = Connection(
                folder, broker_socket_name("broker-a", 0), role="test", timeout_s=60.0
            )
    return kept["connection"]

def admin():
    if "admin" not in kept:
        kept["admin"] = shmq.client.admin.Admin(runtime)
    return kept["admin"]

def consumer(topic, group):
    if ("consumer", topic, group) not in kept:
        kept["consumer", topic, group] = client().consumer(topic, group)
    return kept["consumer", topic, group]

def receive(topic, group, count, timeout=30.0):
    found = []
    while len(found) < count:
        messages = consumer(topic, group).receive(count - len(found), timeout=timeout)
        if not messages:
            break
        found += [[m.queue_id, m.queue_offset, bytes(m.body).decode(), m.tag] for m in messages]
    return found

def pull(topic, queue_id=0, queue_offset=0, count=32, timeout=0.0, filter=None):
    with client().pull_consumer(topic, filter=filter) as made:
        queue = MessageQueue(topic, "broker-a", queue_id)
        result = made.pull(queue, queue_offset, count, timeout=timeout)
        bodies = [bytes(m.body).decode() for m in result.messages]
        return [str(result.pull_status.name), result.next_begin_offset, bodies]

def raw(code, fields=None, body=None):
    command = Command(RequestCode[code], fields or {}, b"" if body is None else orjson.dumps(body))
    answer = connection().call(command, timeout_s=10.0, fd_count_max=16)
    names = str(answer.ext_fields.get("fds", ""))
    for fd in answer.take_fds():
        os.close(fd)
    return {**answer.ext_fields, "bodyBytes": len(answer.body), "fds": names}

def send(topic, body="x"):
    result = client().producer().send(topic, body.encode(), timeout=20.0)
    return result.send_status.name

def pull_heads(topic, queue_offset):
    with client().pull_consumer(topic) as made:
        result = made.pull(MessageQueue(topic, "broker-a", 0), queue_offset, 32)
        heads = [bytes(m.body[:6]).decode() for m in result.messages]
        return [str(result.pull_status.name), result.next_begin_offset, heads]

def ask_namesrv(code, fields):
    with RuntimeFolder.open(runtime) as folder:
        asked = Connection(folder, namesrv_socket_name("ns0"), role="test", timeout_s=60.0)
    try:
        asked.call(Command(RequestCode[code], fields, b'{"table": {}}'), timeout_s=10.0)
    finally:
        asked.close()

def raw_json(code, fields, body):
    command = Command(RequestCode[code], fields, orjson.dumps(body))
    return connection().call(command, timeout_s=10.0).json()

def resume_by_hand(session, generation):
    fields = {"session": session, "generation": generation, "clientId": "stranger", "fds": ""}
    return raw("RESUME_SESSION", {**fields, "isMapped": True})

def flood(topic, count):
    producer = client().producer()
    for number in range(count):
        producer.send_oneway(topic, b"flood")
    return count

def flood_until_refused(topic):
    producer, sent = client().producer(), 0
    while True:
        try:
            producer.send(topic, b"flood", timeout=20.0)
        except shmq.ShmqError as error:
            return [sent, type(error).__name__, str(error)]
        sent += 1

def put(row, generation):
    status = link().lanes[0].send(row, generation, b"by hand")[0]
    return next((name for name, (number, _) in core.STATUS.items() if number == status), status)

def put_by_hand():
    return put(*sorted(link()._handles)[0])

def put_guessed(rows):
    return sorted({put(row, generation) for row in range(rows) for generation in (1, 2, 3)})

def ask_and_read_nothing(topic, count):
    sock = kept["lazy"] = socket.socket(socket.AF_UNIX)
    sock.connect(os.path.join(runtime, broker_socket_name("broker-a", 0) + ".sock"))
    sock.sendall(encode(hello("test")))
    fields = {"topic": topic, "queueId": 0, "queueOffset": 0, "maxMsgBytes": 1 << 20}
    sock.settimeout(1.0)
    for number in range(count):
        fields["queueOffset"] = 5 + number % 5
        try:
            sock.sendall(encode(Command(RequestCode.PULL_MESSAGE, fields, opaque=number)))
        except TimeoutError:
            return number
    return count

def aio(work):
    # Instead of the other client: a quota may allow one only.
    for key in [key for key in kept if key == "client" or key[0] == "consumer"]:
        kept.pop(key).close()
    async def whole():
        async with shmq.aio.connect(runtime) as made:
            return await work(made)
    return asyncio.run(whole())

def aio_send(topic):
    async def work(made):
        return (await made.producer().send(topic, b"x", timeout=20.0)).send_status.name
    return aio(work)

def aio_receive(topic, group):
    async def work(made):
        async with made.consumer(topic, group) as consumer:
            return len(await consumer.receive(1, timeout=0.1))
    return aio(work)

def poll(topic, group, count):
    with client().lite_pull_consumer(group) as consumer:
        consumer.subscribe(topic)
        found = 0
        while found < count:
            found += len(consumer.poll(60.0))
        return found

def aio_poll(topic, group, count):
    async def work(made):
        async with made.lite_pull_consumer(group) as consumer:
            await consumer.subscribe(topic)
            found = 0
            while found < count:
                found += len(await consumer.poll(60.0))
            return found
    return aio(work)

def leave():
    kept.pop("client").close()

def mapped():
    return link().is_mapped

def maps():
    gc.collect()  # what was closed is in cycles, and mapped until these go
    with open("/proc/self/maps") as file:
        return sorted({line.split()[-1] for line in file if "/dev/shm/shmq" in line})

for line in sys.stdin:
    name, args, kwargs = json.loads(line)
    try:
        said = ["done", globals()[name](*args, **kwargs)]
    except shmq.ShmqError as error:
        said = [type(error).__name__, str(error)]
    except Exception as error:
        said = ["unforeseen " + type(error).__name__, str(error)]
    print(json.dumps(said), flush=True)
"""


class Person:
    """Somebody of another uid. A context manager."""

    def __init__(self, runtime: Path, uid: int, *groups: int) -> None:
        """Start its process.

        Args:
            runtime: the runtime folder.
            uid: who it becomes.
            groups: its group and supplementary groups.
        """
        self.program = Program(_SOURCE, runtime, uid, json.dumps(groups))

    def try_to(self, name: str, *args: Any, **kwargs: Any) -> tuple[str, Any]:
        """What came of an action: ("done", what it gave), or (class of the error, its text)."""
        self.begin(name, *args, **kwargs)
        return self.end()

    def do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What an action gave, which must not fail."""
        outcome, said = self.try_to(name, *args, **kwargs)
        assert outcome == "done", f"{name}{args}: {outcome}: {said}"
        return said

    def begin(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Have it do something, without waiting for it."""
        self.program.say(json.dumps([name, args, kwargs]))

    def end(self) -> tuple[str, Any]:
        """What came of what was begun."""
        outcome, said = self.program.hear()
        return outcome, said

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.__exit__()
