"""Two processes for the abuse tests: `serve`, which is abused, and `witness`, who must not suffer.

python abused.py serve FOLDER NAME        serves ECHO, TAKE (descriptors) and WAIT until killed
python abused.py witness FOLDER NAME      calls ECHO until a line comes, then prints its figures:
                                          calls, median and 99th percentile and maximum in us
"""

import asyncio
import select
import sys
import time
from pathlib import Path

from shmq.remoting.client import Client
from shmq.remoting.command import Command, response_to
from shmq.remoting.runtime_folder import RuntimeFolder
from shmq.remoting.server import Connection, Processor, Server, ServerLimits

ECHO, TAKE, WAIT = 105, 9101, 107
CONNECTION_COUNT_MAX_PER_UID = 64


def echo(_connection: Connection, command: Command) -> Command:
    return response_to(command, ext_fields=command.ext_fields, body=command.body)


def take(_connection: Connection, command: Command) -> None:
    command.fields().number("n")


async def wait(_connection: Connection, command: Command) -> None:
    await asyncio.sleep(0)
    command.fields().text("t")


async def serve(folder: RuntimeFolder, name: str) -> None:
    Server(
        folder.listen(name),
        {
            ECHO: Processor(handler=echo),
            TAKE: Processor(handler=take, fd_count_max=2),
            WAIT: Processor(handler=wait),
        },
        role="abused",
        limits=ServerLimits(connection_count_max_per_uid=CONNECTION_COUNT_MAX_PER_UID),
    )
    print("ready", flush=True)
    await asyncio.Event().wait()


def witness(folder: RuntimeFolder, name: str) -> None:
    with Client(folder, name, role="witness", timeout_s=30) as client:
        print("ready", flush=True)
        took_us = []
        while not select.select([sys.stdin], [], [], 0.001)[0]:
            begin_ns = time.perf_counter_ns()
            answer = client.call(Command(ECHO, {"n": len(took_us)}), timeout_s=30)
            assert answer.ext_fields == {"n": len(took_us)}
            took_us.append((time.perf_counter_ns() - begin_ns) // 1000)
    took_us.sort()
    count = len(took_us)
    print(count, took_us[count // 2], took_us[count * 99 // 100], took_us[-1], flush=True)


if __name__ == "__main__":
    _, role, folder_path, socket_name = sys.argv
    with RuntimeFolder.open(Path(folder_path)) as opened:
        if role == "serve":
            asyncio.run(serve(opened, socket_name))
        else:
            witness(opened, socket_name)
