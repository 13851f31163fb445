"""bin/bench index: what the message index costs, and what a lookup takes.

    bin/bench index [--quick] [--json] [--rows sending,looking] [--out FILE]

Sending with and without an index, in turns; 10,000,000 messages indexed, and looked up by key and
by id. How each figure is taken: bench/README.md; the rows are in bench/index/.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("micro")))
sys.path.insert(0, str(Path(__file__).with_name("e2e")))
sys.path.insert(0, str(Path(__file__).with_suffix("")))

from looking import row_looking
from reporting import run
from sending_beside import row_sending

ROWS = {"sending": row_sending, "looking": row_looking}

if __name__ == "__main__":
    sys.exit(run("index", __doc__.split("\n")[0], ROWS))
