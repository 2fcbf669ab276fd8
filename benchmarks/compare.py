"""Every method on the same data from the same source weights, labels seen by the evaluation alone, at the end.

    python -m benchmarks.compare --data rendered --seeds 0 1 2
    python -m benchmarks.compare --data nyu drone_ir --root DATA --seeds 0 1 2 --jobs 2
    python -m benchmarks.compare --data rendered --seeds 0 --quick

Writes results.jsonl (a line a run), results.md (the tables) and a picture sheet for each data set into WORK. Stopped at any
point and started again, it goes on where it was: a run that is done is not done again, and one that was killed goes on from its
checkpoint. benchmarks/datasets.py says what lies in DATA, and which set needs none.
"""

from __future__ import annotations

import sys

from benchmarks.campaign import carry_out, parser
from benchmarks.variants import COMPARE, SOCKET_GRID, TOGETHER


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--methods", nargs="*", choices=COMPARE, default=list(COMPARE))
    made.add_argument(
        "--socket-grid", action="store_true", help="SOCKET with other settings too; the table picks the best by labels"
    )
    made.add_argument("--together", action="store_true", help="the source models of all seeds in one job too")
    given = made.parse_args(arguments)
    variants = {name: COMPARE[name] for name in given.methods}
    return carry_out(variants | (SOCKET_GRID if given.socket_grid else {}) | (TOGETHER if given.together else {}), given)


if __name__ == "__main__":
    sys.exit(main())
