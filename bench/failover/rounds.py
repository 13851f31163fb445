"""The rounds, and what they cost: time until a send is accepted, and messages."""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from books import Books, Round
from faults import FAULTS, Fault
from ledger import BODY, Ledger, Outcome, Seen, Told, read_ledger, seen_of
from measuring import percentile
from programs import Program, lull, programs
from replica_pair import ReplicaPair, replica_pair, wait_for

import shmq

LOAD = Path(__file__).with_name("load.py")
TOPIC = "failover"
IN_FLIGHT = (1, 64)
"""Of each producer, one stream each; the stream behind them is that of the sends that are timed."""
TIMED = len(IN_FLIGHT)
PAUSE_MAX_S = 0.3
"""The fault comes within this time after all is well."""
GO_ON = 20
"""Sends of each producer that are accepted before all is well."""
ROLES = {"async": "ASYNC_MASTER", "sync": "SYNC_MASTER"}
PULL_MAX = 256


def run_rounds(options: argparse.Namespace, is_over: Callable[[], bool]) -> dict[str, Any]:
    """What bin/bench failover ends with; once it is over, of the rounds that there were."""
    random_ = random.Random(options.seed)
    problems: list[str] = []
    rounds: list[Round] = []
    fault = FAULTS[options.how]
    with (
        replica_pair(
            ROLES[options.mode],
            options.hung_ms,
            is_supervised=fault.is_supervised,
            is_led=fault.is_led,
            flush_ms=fault.flush_ms,
        ) as pair,
        programs() as started,
    ):
        pair.client.create_topic(TOPIC, queues=TIMED + 1)
        pair.await_topic(TOPIC)
        ledgers = [pair.folder / f"ledger-{stream}" for stream in range(TIMED + 1)]
        listener = started.start("hear", pair.client.namesrv, TOPIC, file=LOAD)
        senders = [
            started.start(
                "send",
                *(pair.client.namesrv, TOPIC, stream, in_flight, options.rate, ledgers[stream]),
                file=LOAD,
            )
            for stream, in_flight in enumerate(IN_FLIGHT)
        ]
        timed = Ledger(ledgers[TIMED])
        foreign = lull()
        with pair.client.producer() as producer:
            queue = producer.queues(TOPIC)[TIMED]
            for number in range(options.rounds):
                if is_over():
                    break
                try:
                    pair.await_whole()
                    _go_on(senders)
                    time.sleep(random_.uniform(0, PAUSE_MAX_S))
                    rounds.append(_strike(pair, producer, queue, timed, fault, random_))
                except (shmq.ShmqError, TimeoutError) as error:
                    problems.append(f"round {number + 1} failed: {error}; {pair.problems()}")
                    break
                print(f"round {number + 1}: {rounds[-1].first_send_ms:.1f} ms", flush=True)
        if not problems:
            pair.await_settled()
        timed.close()
        said = [json.loads(sender.ask("stop")) for sender in senders]
        told = [list(read_ledger(path)) for path in ledgers]
        last = {
            stream: max((one.sequence for one in each if one.is_acked), default=-1)
            for stream, each in enumerate(told)
        }
        heard = {int(k): seen_of(v) for k, v in json.loads(listener.ask(json.dumps(last))).items()}
        stored = _stored(pair.client)
    books = Books(told, rounds, fault, is_sync=options.mode == "sync")
    result: dict[str, Any] = {"rounds": len(rounds)}
    result |= books.differences("stored", stored, problems)
    times = sorted(one.first_send_ms for one in rounds)
    result["first_send_ms"] = _spread(times) if times else None
    result["consumer"] = books.differences("consumed", heard, problems)
    failed_count = sum(one["failed_count"] for one in said)
    problems += [line for one in said for line in one["failed"]]
    return result | {
        "mode": options.mode,
        "how": options.how,
        "hung_timeout_ms": options.hung_ms,
        "seed": options.seed,
        "rate_per_s": options.rate * len(IN_FLIGHT),
        "acknowledged": sum(one.is_acked for each in told for one in each),
        "failed_sends": failed_count,
        "memory_gone": books.memory_gone(stored),
        "taken_over": sum(one.is_taken_over for one in rounds),
        "foreign_cpu": round(foreign, 2),
        "problems": problems,
    }


def _go_on(senders: list[Program]) -> None:
    """Until each has so many more accepted."""
    for sender in senders:
        until = int(sender.ask("count")) + GO_ON
        wait_for(lambda sender=sender, until=until: int(sender.ask("count")) >= until, "sends")


def _strike(
    pair: ReplicaPair,
    producer: shmq.Producer,
    queue: shmq.MessageQueue,
    timed: Ledger,
    fault: Fault,
    random_: random.Random,
) -> Round:
    """The fault; from just before it until a send that began after it is accepted."""
    before = pair.master()
    struck = fault.strike(pair, random_)
    number = timed.count
    sent = producer.send(TOPIC, BODY.pack(TIMED, number), queue=queue, timeout=60.0)
    end_ns = time.monotonic_ns()
    is_ok = sent.send_status is shmq.SendStatus.SEND_OK
    outcome = Outcome.SEND_OK if is_ok else Outcome.STORED
    timed.note(Told(number, struck.at_ns, end_ns, outcome))
    is_taken_over = pair.master().broker_id != before.broker_id
    return Round(struck, (end_ns - struck.at_ns) / 1e6, is_taken_over)


def _stored(client: shmq.Client) -> dict[int, Seen]:
    """What is in the queues, read from their begin."""
    found = {}
    with client.pull_consumer(TOPIC) as pull:
        for queue in pull.queues():
            seen = found[queue.queue_id] = Seen()
            at = pull.min_offset(queue)
            while at < pull.max_offset(queue):
                result = pull.pull(queue, at, PULL_MAX, timeout=1.0)
                for message in result.messages:
                    seen.see(BODY.unpack_from(message.body)[1])
                at = result.next_begin_offset
    return found


def _spread(times: list[float]) -> dict[str, float]:
    """Of sorted times."""
    return {
        "median": round(statistics.median(times), 1),
        "p99": round(percentile(times, 0.99), 1),
        "max": round(times[-1], 1),
    }
