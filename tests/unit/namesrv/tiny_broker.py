"""A process that behaves like a broker as far as a supervisor can see; or badly, if told so.

python -m tests.unit.namesrv.tiny_broker --config FILE --broker NAME --runtime DIR [--set SETTING]

It answers GET_BROKER_STATUS on its socket and ends on SIGTERM. How it behaves stands in the file
DIR/NAME.how, if that is there: words of
    exit        ends at once with code 3
    deaf        listens, and answers nobody as long as it says so
    unhealthy   answers that it makes no progress as long as it says so
    stubborn    passes over SIGTERM
    registers   registers with the NameServer ns0
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from shmq.remoting.aio_client import AsyncClient
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command, response_to
from shmq.remoting.namesrv_requests import BrokerAddress, register_broker
from shmq.remoting.runtime_folder import (
    RuntimeFolder,
    broker_socket_name,
    namesrv_socket_name,
)
from shmq.remoting.server import Connection, Processor, Server
from shmq.topic import TopicConfig


def words(path: Path) -> set[str]:
    return set(path.read_text().split()) if path.exists() else set()


async def run(name: str, folder: RuntimeFolder, how_path: Path) -> None:
    how = words(how_path)
    is_ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(
        signal.SIGTERM, lambda: print("asked to end", flush=True) or is_ending.set()
    )
    if "stubborn" in how:
        loop.add_signal_handler(signal.SIGTERM, lambda: print("no", flush=True))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    async def status(_connection: Connection, command: Command) -> Command:
        while "deaf" in words(how_path):
            await asyncio.sleep(0.1)
        is_healthy = "unhealthy" not in words(how_path)
        return response_to(command, ext_fields={"isHealthy": is_healthy, "problem": "stuck"})

    broker_id = 1 if name.endswith("slave") else 0
    broker_name = name.removesuffix("-slave")
    socket_name = broker_socket_name(broker_name, broker_id)
    listener = folder.listen(socket_name)
    row = Processor(handler=status, is_concurrent=True)
    Server(listener, {RequestCode.GET_BROKER_STATUS: row}, role="broker")
    namesrv = None
    if "registers" in how:
        namesrv = await AsyncClient.connect(
            folder, namesrv_socket_name("ns0"), role="broker", timeout_s=30
        )
        address = BrokerAddress(
            cluster_name="c", broker_name=broker_name, broker_id=broker_id, socket_name=socket_name
        )
        for command in register_broker(address, {"t": TopicConfig(topic_name="t")}, {}):
            await namesrv.call(command, timeout_s=30)
    print(f"broker {name} is up", flush=True)
    await is_ending.wait()
    if namesrv is not None:
        namesrv.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    parser.add_argument("--broker")
    parser.add_argument("--runtime", type=Path)
    parser.add_argument("--set", help="a port that nothing listens at")
    options = parser.parse_args()
    how_path = options.runtime / f"{options.broker}.how"
    print(f"environment: {sorted(key for key in os.environ if 'NOTIFY' in key)}", flush=True)
    if "exit" in words(how_path):
        print("not today", file=sys.stderr, flush=True)
        sys.exit(3)
    with RuntimeFolder.open(options.runtime) as folder:
        asyncio.run(run(options.broker, folder, how_path))


if __name__ == "__main__":
    main()
