"""bin/bench micro: what one message costs, on this machine, through a real broker.

    bin/bench micro [--quick] [--json] [--rows put,send,...] [--out FILE]

Each figure is the median of several runs, with the least and the greatest beside it, what bounds
it, and how much of a core other programs took meanwhile (a disturbed run is done again). A private
cluster (shmq.local) is started for each group of rows; its store lies in this checkout, on the file
system that is measured. Compare ratios, not absolute times: machines and neighbours differ.
How each figure is taken: bench/README.md; the rows are in bench/micro/.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_suffix("")))

from base import row_base
from core import row_core
from flushing import row_flush
from latency import row_latency
from receiving import row_receive
from recovering import row_recovery, row_standing
from reporting import run
from sending import (
    row_producers,
    row_put,
    row_put_many,
    row_send,
    row_sustained,
)

ROWS = {
    "base": row_base,
    "core": row_core,
    "put": row_put,
    "put_many": row_put_many,
    "send": row_send,
    "producers": row_producers,
    "sustained": row_sustained,
    "receive": row_receive,
    "latency": row_latency,
    "flush": row_flush,
    "recovery": row_recovery,
    "standing": row_standing,
}


if __name__ == "__main__":
    sys.exit(run("micro", __doc__.split("\n")[0], ROWS))
