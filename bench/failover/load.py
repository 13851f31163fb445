"""The programs that are a replica set's load: each a process, told by lines on its standard input.

`send` tells a ledger what became of each of its sends; `hear` consumes all of it.
"""

import collections
import json
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

from ledger import BODY, Ledger, Outcome, Seen, Told

import shmq

TIMEOUT_S = 60.0
"""A send that waits longer for a master has failed."""
BEHIND_MAX_S = 0.1
"""Who could not send for longer does not make up for it."""
FETCH_S = 0.1
RECEIVE_MAX = 256


def send(folder: str, topic: str, stream: str, in_flight: str, rate: str, ledger_file: str) -> None:
    """Sends to one queue at a rate, so many at once. Answers a line with how many are stored, and
    "stop" once all is settled with what failed first.
    """
    ledger = Ledger(Path(ledger_file))
    stopping = threading.Event()
    failed: list[str] = []
    flying: collections.deque[tuple[int, int, Future[shmq.SendResult]]] = collections.deque()

    def settle() -> None:
        sequence, begin_ns, future = flying.popleft()
        try:
            is_ok = future.result().send_status is shmq.SendStatus.SEND_OK
            outcome = Outcome.SEND_OK if is_ok else Outcome.STORED
        except shmq.ShmqError as error:
            failed.append(f"stream {stream} sequence {sequence}: {error}")
            outcome = Outcome.FAILED
        ledger.note(Told(sequence, begin_ns, time.monotonic_ns(), outcome))

    def obey() -> None:
        for line in sys.stdin:
            if line.strip() == "stop":
                break
            _say(str(ledger.acked_count))
        stopping.set()

    with shmq.connect(folder) as client, client.producer() as producer:
        queue = producer.queues(topic)[int(stream)]
        _say("ready")
        threading.Thread(target=obey, daemon=True).start()
        due, sequence = time.perf_counter(), 0
        while not stopping.is_set():
            due = max(due + 1 / int(rate), time.perf_counter() - BEHIND_MAX_S)
            time.sleep(max(0.0, due - time.perf_counter()))
            while len(flying) >= int(in_flight) or (flying and flying[0][2].done()):
                settle()
            body = BODY.pack(int(stream), sequence)
            begin_ns = time.monotonic_ns()
            try:
                future = producer.send_async(topic, body, queue=queue, timeout=TIMEOUT_S)
            except shmq.ShmqError as error:
                future = Future()
                future.set_exception(error)
            flying.append((sequence, begin_ns, future))
            sequence += 1
        while flying:
            settle()
        ledger.close()
    _say(json.dumps({"failed_count": len(failed), "failed": failed[:3]}))


def hear(folder: str, topic: str) -> None:
    """Consumes all streams. Told the last sequence of each, it goes on until it has seen them or
    nothing comes any more, and answers what it saw.
    """
    wanted: list[dict[str, int]] = []
    seen: dict[str, Seen] = collections.defaultdict(Seen)

    def obey() -> None:
        wanted.append(json.loads(sys.stdin.readline() or "{}"))

    def is_complete() -> bool:
        return all(seen[stream].last >= last for stream, last in wanted[0].items())

    with shmq.connect(folder) as client, client.consumer(topic, "hear") as consumer:
        _say("ready")
        threading.Thread(target=obey, daemon=True).start()
        quiet_at = time.monotonic() + TIMEOUT_S
        while not wanted or (not is_complete() and time.monotonic() < quiet_at):
            messages = consumer.receive(RECEIVE_MAX, timeout=FETCH_S)
            for message in messages:
                stream, sequence = BODY.unpack_from(message.body)
                seen[str(stream)].see(sequence)
            if messages or not wanted:
                quiet_at = time.monotonic() + TIMEOUT_S
    _say(json.dumps({stream: found.to_json() for stream, found in seen.items()}))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    {"send": send, "hear": hear}[sys.argv[1]](*sys.argv[2:])
