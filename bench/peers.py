"""bin/bench peers: the same work through shmq and through each of its peers, in turns.

    bin/bench peers [--quick | --full] [--only redis,zeromq,...] [--rows throughput,latency,...]
                    [--sizes 100B,1KiB,...] [--rounds N] [--patience SECONDS]
                    [--json] [--out FILE] [--table FILE]

Producers and consumers are processes; each peer has the fast settings that its own documents
recommend, which are printed. What cannot be had on this machine is named. How each figure is taken:
bench/README.md; the peers and the rows are in bench/peers/.
"""

import sys

# multiprocessing, which starts the clients, loads this file again in each of them: nothing heavy
# may be imported up here.
if __name__ == "__main__":
    from pathlib import Path

    folder = Path(__file__).parent
    sys.path[:0] = [str(folder / name) for name in ("peers", "e2e", "micro", "..")]

    from comparing import main

    sys.exit(main(__doc__.split("\n")[0]))
