"""bin/bench e2e: what a program gets that uses shmq, through the public names only.

    bin/bench e2e [--quick] [--json] [--rows send_oneway,kill,...] [--out FILE]

NameServer, broker, producers and consumers are processes; programs use shmq.connect, Producer and
Consumer. Each figure is the median of several runs, with the least and the greatest beside it. How
each is taken: bench/README.md; the rows are in bench/e2e/.
"""

import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("micro")))
sys.path.insert(0, str(Path(__file__).with_suffix("")))

from deaths import row_dev, row_kill, row_reassign
from loops import row_loops
from pacing import row_latency
from quiet import row_calls, row_idle
from replicated import row_ha
from reporting import run
from throughput import row_consume, row_sending

import shmq

ROWS = {
    "send_oneway": partial(row_sending, verb="send_oneway"),
    "send_many": partial(row_sending, verb="send_many"),
    "send": partial(row_sending, verb="send"),
    "consume": row_consume,
    "latency_blocking": partial(row_latency, policy=shmq.WaitingPolicy.BLOCKING),
    "latency_adaptive": partial(row_latency, policy=shmq.WaitingPolicy.ADAPTIVE),
    "latency_busy_spin": partial(row_latency, policy=shmq.WaitingPolicy.BUSY_SPIN),
    "loops": row_loops,
    "kill": row_kill,
    "reassign": row_reassign,
    "dev": row_dev,
    "ha": row_ha,
    "idle": row_idle,
    "calls": row_calls,
}

if __name__ == "__main__":
    # An installed package has its bytecode; without it every start compiles all of shmq anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.exit(run("e2e", __doc__.split("\n")[0], ROWS))
