"""The control plane and a NameServer, as a client and a broker see them; prints one JSON object.

python bench/micro/bench_namesrv.py [--rounds 20000]

One client, one NameServer process, both awake: latencies of single calls over a Unix socket.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import orjson
from measuring import memory_mib, percentile

from shmq.remoting import namesrv_requests as requests
from shmq.remoting.client import Client
from shmq.remoting.namesrv_requests import BrokerAddress
from shmq.remoting.runtime_folder import (
    RuntimeFolder,
    broker_socket_name,
    namesrv_socket_name,
)
from shmq.topic import TopicConfig

ADDRESS = BrokerAddress(
    cluster_name="c", broker_name="a", broker_id=0, socket_name=broker_socket_name("a", 0)
)


def version(counter: int) -> dict[str, object]:
    return {"counter": counter, "stateVersion": 0, "timestamp": 0}


def latencies_us(rounds: int, action: Callable[[], object]) -> dict[str, float]:
    took_ns = []
    for _ in range(rounds):
        begin_ns = time.perf_counter_ns()
        action()
        took_ns.append(time.perf_counter_ns() - begin_ns)
    took_ns.sort()
    return {
        "p50": percentile(took_ns, 0.5) / 1e3,
        "p99": percentile(took_ns, 0.99) / 1e3,
        "max": took_ns[-1] / 1e3,
    }


def measure(folder: RuntimeFolder, name: str, rounds: int) -> dict[str, object]:
    figures: dict[str, object] = {}
    topics = {f"topic_{n}": TopicConfig(topic_name=f"topic_{n}") for n in range(10_000)}
    with Client(folder, name, role="bench", timeout_s=10) as client:

        def call(command: requests.Command) -> None:
            client.call(command, timeout_s=60)

        for count in (1, 100, 1_000, 10_000):
            chosen = dict(list(topics.items())[:count])
            begin_ns = time.perf_counter_ns()
            for command in requests.register_broker(ADDRESS, chosen, version(count)):
                call(command)
            figures[f"register_{count}_topics_us"] = (time.perf_counter_ns() - begin_ns) / 1e3
        counter = 10_000

        def change() -> None:
            nonlocal counter
            counter += 1
            call(
                requests.register_topics(
                    ADDRESS,
                    {"one_more": topics["topic_0"]},
                    [],
                    previous_version=version(counter - 1),
                    data_version=version(counter),
                )
            )

        figures["register_one_more_of_10000_us"] = latencies_us(rounds // 20, change)
        figures["route_us"] = latencies_us(rounds, lambda: call(requests.route_info("topic_7")))
        figures["heartbeat_us"] = latencies_us(
            rounds, lambda: call(requests.broker_heartbeat(ADDRESS))
        )

    def connect() -> None:
        Client(folder, name, role="bench", timeout_s=10).close()

    figures["connect_hello_close_us"] = latencies_us(rounds // 20, connect)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as above:
        runtime = Path(above, "run")
        namesrv = subprocess.Popen(
            [sys.executable, "-m", "shmq.namesrv", "--runtime", str(runtime)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert namesrv.stderr is not None
        while " ready name=" not in namesrv.stderr.readline():
            pass
        with RuntimeFolder.open(runtime) as folder:
            figures = measure(folder, namesrv_socket_name("ns0"), options.rounds)
        figures["namesrv_resident_kib"] = round(memory_mib(namesrv.pid, "VmRSS") * 1024)
        namesrv.terminate()
        namesrv.communicate()
    machine = {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }
    print(orjson.dumps({"machine": machine, **figures}, option=orjson.OPT_INDENT_2).decode())


if __name__ == "__main__":
    main()
