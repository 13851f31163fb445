"""bin/bench scale: how cost grows with topics, queues, clients and groups.

    bin/bench scale [--quick] [--json] [--rows topics,clients,...] [--out FILE]

Each figure is taken at several sizes, so that what grows faster than the size shows; with --out the
JSON has the fits, too. How each is taken: bench/README.md; the rows are in bench/scale/.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("micro")))
sys.path.insert(0, str(Path(__file__).with_name("e2e")))
sys.path.insert(0, str(Path(__file__).with_suffix("")))

from consumers import row_consumers
from exporting import row_exporter
from fits import fits
from members import row_clients, row_groups
from reporting import run
from topics import row_beside, row_topics

ROWS = {
    "topics": row_topics,
    "beside": row_beside,
    "clients": row_clients,
    "groups": row_groups,
    "consumers": row_consumers,
    "exporter": row_exporter,
}

if __name__ == "__main__":
    # An installed package has its bytecode; without it every start compiles all of shmq anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.exit(run("scale", __doc__.split("\n")[0], ROWS, derive=lambda got: {"fits": fits(got)}))
