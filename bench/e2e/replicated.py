"""What a slave costs its master's producers: none, ASYNC_MASTER and SYNC_MASTER side by side."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "failover"))

from lag import Lag, LagWatch
from measuring import Figure, count_for, figure, undisturbed
from programs import programs
from replica_pair import ReplicaPair, replica_pair

SET_UPS = (
    ("no slave", "ASYNC_MASTER", 1),
    ("ASYNC_MASTER", "ASYNC_MASTER", 2),
    ("SYNC_MASTER", "SYNC_MASTER", 2),
)
SENDS = {"send": 50_000, "send_many": 1_000_000}
PACED = 1_000
RATE = 1_000
TOPIC = "ha"


def row_ha(options: argparse.Namespace) -> dict[str, Figure]:
    """Messages/s of one producer, and latency idle into a consumer's hands, of 100 B."""
    figures = {}
    for label, role, member_count in SET_UPS:
        with replica_pair(role, member_count=member_count) as pair, programs() as started:
            folder = pair.client.namesrv
            pair.client.create_topic(TOPIC, queues=1)
            pacer = started.start("pace", folder, TOPIC, "adaptive", RATE)
            listener = started.start("hear", folder, TOPIC, "adaptive")

            def latency_us(_run: int, pacer=pacer, listener=listener) -> float:
                listener.tell(PACED)
                pacer.ask(PACED)
                return statistics.median(json.loads(listener.answer())["ages_ns"]) / 1e3

            values, share = undisturbed(latency_us, options.runs)
            bound = "two wake-ups of idle cores; with SYNC_MASTER the slave's, too"
            figures[f"ha {label} latency idle, p50"] = figure(
                values, "us", bound, foreign_cpu_max=share
            )
            for verb, most in SENDS.items():
                count = count_for(100, options.quick, most)
                sender = started.start("produce", folder, f"ha-{verb}", verb, 100)

                def rate(_run: int, sender=sender, count=count) -> float:
                    begin = time.perf_counter()
                    sender.ask(count)
                    return count / (time.perf_counter() - begin)

                values, share = undisturbed(rate, options.runs)
                bound = "producer, append thread, and the slave's copy share the cores"
                figures[f"ha {label} {verb} 100B"] = figure(
                    values, "messages/s", bound, foreign_cpu_max=share
                )
            if member_count > 1:
                figures |= _lag(f"ha {label}", pair, rate, options.runs)
    return figures


def _lag(
    label: str, pair: ReplicaPair, rate: Callable[[int], float], runs: int
) -> dict[str, Figure]:
    """The slave's while the last sender sends at full speed."""

    def lag(run: int) -> Lag:
        stores = pair.store(pair.master().broker_id), pair.store(pair.slave().broker_id)
        with LagWatch(*stores) as watch:
            rate(run)
        return watch.lag()

    values, share = undisturbed(lag, runs)
    bound = "the slave's copy at memory speed; on two cores, its turn to run"
    return {
        f"{label} slave lag in {unit} at send_many, {name}": figure(
            [getattr(one, field) for one in values], unit, bound, foreign_cpu_max=share
        )
        for name, field, unit in (
            ("p50", "bytes_p50", "bytes"),
            ("p99", "bytes_p99", "bytes"),
            ("p50", "us_p50", "us"),
            ("p99", "us_p99", "us"),
        )
    }
