"""bin/bench failover: what the death of a master costs, and whether any message pays for it.

    bin/bench failover [--rounds N] [--mode async|sync] [--how kill|stop|...] [--json]
                       [--out FILE] [--rate N] [--seed N] [--hung-ms N]

A NameServer that supervises a replica set of two, two producers and a consumer, all processes. In
each round the master is killed (or stopped, so that it is fenced; or another fault of
failover/faults.py comes) at a random instant under load, and the first send that is accepted
afterwards is timed. At the end what producers were told is held against what is stored and what the
consumer got. Ends with 1 if anything was lost, doubled or out of order, or a round failed. Ctrl-C:
after this round, with the rounds that there were. How it is counted: bench/README.md.
"""

import argparse
import json
import secrets
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("micro")))
sys.path.insert(0, str(Path(__file__).with_name("e2e")))
sys.path.insert(0, str(Path(__file__).with_suffix("")))

from faults import FAULTS
from measuring import machine
from reporting import Interruption, earlier
from rounds import run_rounds


def main() -> int:
    parser = argparse.ArgumentParser(prog="bin/bench failover", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="how often the master dies")
    parser.add_argument("--mode", choices=("async", "sync"), default="async", help="..._MASTER")
    parser.add_argument(
        "--how",
        choices=FAULTS,
        default="kill",
        help="; ".join(f"{name}: {fault.what}" for name, fault in FAULTS.items()),
    )
    parser.add_argument("--rate", type=int, default=1000, help="sends/s of each producer")
    parser.add_argument(
        "--hung-ms", type=int, default=10_000, help="broker_hung_timeout_ms, of which stop has most"
    )
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of the instants")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--out", type=Path, help="add it to the JSON there, as MODE HOW")
    options = parser.parse_args()
    if options.rounds < 1 or options.rate < 1:
        parser.error("--rounds and --rate: wanted 1 or more")
    runs = earlier(parser, options.out, {"rounds": int}).get("figures", {})
    print(f"failover {options.mode} {options.how}: seed {options.seed}", flush=True)
    interruption = Interruption(notes_first=True)
    try:
        result = run_rounds(options, lambda: interruption.has_come) | {"machine": machine()}
    except KeyboardInterrupt:
        print("interrupted twice: no round is counted", file=sys.stderr)
        return interruption.status
    if interruption.has_come:
        print(f"interrupted: {result['rounds']} of {options.rounds} rounds", file=sys.stderr)
    if options.out and result["rounds"]:
        runs[f"{options.mode} {options.how}"] = result
        kept = {"bench": "failover", "figures": runs}
        options.out.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    for problem in result["problems"]:
        print(f"problem: {problem}", file=sys.stderr)
    if options.json:
        print(json.dumps(result))
    return interruption.status or (1 if result["problems"] else 0)


if __name__ == "__main__":
    sys.exit(main())
