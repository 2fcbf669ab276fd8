"""The method with each loss switched off in turn, with the paper's translator, and without what is ours.

    python -m benchmarks.ablate --data rendered --seeds 0 1 2
    python -m benchmarks.ablate --data drone_ir --bridging --steps 100

Options, files and resuming are those of benchmarks.compare; rows that are in WORK's results.jsonl already are not run again.
"""

from __future__ import annotations

import sys

from benchmarks.campaign import carry_out, parser
from benchmarks.variants import ABLATE, BRIDGING


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--bridging", action="store_true", help="of stage 1 by itself")
    made.add_argument("--variants", nargs="+", choices={**ABLATE, **BRIDGING}, metavar="NAME", help="some of the rows")
    given = made.parse_args(arguments)
    wanted = given.variants or list(BRIDGING if given.bridging else ABLATE)
    return carry_out({name: (ABLATE | BRIDGING)[name] for name in wanted}, given)


if __name__ == "__main__":
    sys.exit(main())
