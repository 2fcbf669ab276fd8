"""The method with each loss switched off in turn, with the paper's translator, and without what is ours.

    python -m benchmarks.ablate --data rendered --seeds 0 1 2

Options, files and resuming are those of benchmarks.compare; rows that are in WORK's results.jsonl already are not run again.
"""

from __future__ import annotations

import sys

from benchmarks.campaign import carry_out, parser
from benchmarks.variants import ABLATE


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--variants", nargs="+", choices=ABLATE, default=list(ABLATE))
    given = made.parse_args(arguments)
    return carry_out({name: ABLATE[name] for name in given.variants}, given)


if __name__ == "__main__":
    sys.exit(main())
