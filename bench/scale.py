"""bin/bench scale: how cost grows with topics, queues, clients, groups, brokers, messages, the log.

    bin/bench scale [--quick] [--json] [--rows topics,clients,...] [--out FILE]

Each figure is taken at several sizes, so that what grows faster than the size shows; with --out the
JSON has the fits, too. How each is taken: bench/README.md; the rows are in bench/scale/.
"""

import os
import sys

# multiprocessing, which starts the clients of `ends` and `brokers`, loads this file again in each
# of them: nothing heavy may be imported up here.
if __name__ == "__main__":
    from pathlib import Path

    folder = Path(__file__).parent
    sys.path[:0] = [
        str(folder / name) for name in ("scale", "peers", "failover", "e2e", "micro", "..")
    ]

    from bodies import row_bodies
    from consumers import row_consumers
    from ends import row_brokers, row_ends
    from exporting import row_exporter
    from fits import fits
    from logs import row_log
    from members import row_clients, row_groups
    from queues import row_queues
    from reporting import run
    from topics import row_beside, row_topics

    ROWS = {
        "topics": row_topics,
        "beside": row_beside,
        "queues": row_queues,
        "clients": row_clients,
        "groups": row_groups,
        "consumers": row_consumers,
        "ends": row_ends,
        "brokers": row_brokers,
        "bodies": row_bodies,
        "log": row_log,
        "exporter": row_exporter,
    }
    # An installed package has its bytecode; without it every start compiles all of shmq anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    description = (__doc__ or "").split("\n")[0]
    sys.exit(run("scale", description, ROWS, derive=lambda got: {"fits": fits(got)}))
